package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// runHere runs a command line in this process.
func runHere(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(context.Background(), args, stdio{strings.NewReader(""), &out, &errs}, environment(nil))
	return code, out.String(), errs.String()
}

// allCommands lists the arguments that lead to every command that people see.
func allCommands(cmd *cobra.Command, path []string) (all [][]string) {
	all = append(all, path)
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() {
			all = append(all, allCommands(c, append(append([]string(nil), path...), c.Name()))...)
		}
	}
	return all
}

// The help of every command is checked in, so that a change of it is seen in review.
func TestHelp(t *testing.T) {
	root := (&app{env: environment(nil)}).root()
	seen := map[string]bool{}
	for _, path := range allCommands(root, nil) {
		name := strings.Join(append([]string{"meshq"}, path...), "-") + ".txt"
		seen[name] = true
		t.Run(name, func(t *testing.T) {
			code, stdout, stderr := runHere(t, append(path, "--help")...)
			if code != exitDone || stderr != "" {
				t.Fatalf("exit code %d, stderr %q", code, stderr)
			}
			for i, line := range strings.Split(stdout, "\n") {
				if len(line) > 110 {
					t.Errorf("line %d has %d columns: %s", i+1, len(line), line)
				}
			}
			golden := filepath.Join("testdata", "help", name)
			if *updateScripts {
				if err := os.WriteFile(golden, []byte(stdout), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if stdout != string(want) {
				t.Errorf("help differs from %s; if that is meant, run: go test ./cmd/meshq -update-scripts\n%s", golden, stdout)
			}
		})
	}
	files, err := filepath.Glob("testdata/help/*.txt")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if !seen[filepath.Base(f)] {
			t.Errorf("%s is the help of no command", f)
		}
	}
}

// Every flag of serve can come from the environment too, and its help says from
// which variable.
func TestServeHelpNamesVariables(t *testing.T) {
	_, stdout, _ := runHere(t, "serve", "--help")
	for _, flag := range []string{"name", "data", "listen", "gossip", "http", "join", "zone", "config", "sync", "tls-cert", "log-level"} {
		if !strings.Contains(stdout, "["+envName(flag)+"]") {
			t.Errorf("help of serve does not say %s", envName(flag))
		}
	}
}
