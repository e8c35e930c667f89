package main

import (
	"bufio"
	"bytes"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// Ctrl-C ends a run, whatever it is at, says what was seen, and leaves nothing.
func TestChaosInterrupted(t *testing.T) {
	if testing.Short() {
		t.Skip("not with -short: starts meshes of processes")
	}
	for _, when := range []struct {
		name, line string // Ctrl-C follows a line with that
		length     string
		seen       bool // there is something to report
	}{
		{"as nodes start", "the mesh starts", "1h", false},
		{"under faults", "pause b", "1h", true},
		{"as the load ends", "the load ends", "2s", true},
		{"as all heals", "healed", "2s", true},
		{"as nothing is left", "drained", "2s", true},
	} {
		t.Run(when.name, func(t *testing.T) { interrupted(t, when.line, when.length, when.seen) })
	}
}

func interrupted(t *testing.T, line, length string, seen bool) {
	dir := t.TempDir()
	plan := `{
		"version": 1, "name": "interrupted", "seed": 1, "length": "` + length + `",
		"mesh": {"nodes": [{"name": "a"}, {"name": "b"}, {"name": "c"}]},
		"queues": [{"name": "q"}],
		"producers": [{"name": "p", "queue": "q"}],
		"consumers": [{"name": "c1", "queue": "q"}],
		"faults": [{"kind": "pause", "at": "1s", "on": ["b"]}, {"kind": "consumer-pause", "at": "1s", "on": ["c1"]}]
	}`
	if err := os.WriteFile(dir+"/plan.json", []byte(plan), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(dir+"/runs", 0o700); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	cmd := exec.Command("meshq", "chaos", "--plan", dir+"/plan.json", "--network", "loopback", "--disks", "plain", "--data", dir+"/runs", "--report", dir+"/page.html")
	cmd.Stdout = &out
	said, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	late := time.AfterFunc(2*time.Minute, func() { _ = cmd.Process.Kill() })
	defer late.Stop()
	var lines []string
	for s := bufio.NewScanner(said); s.Scan(); {
		lines = append(lines, s.Text())
		if strings.Contains(s.Text(), line) {
			if err := cmd.Process.Signal(os.Interrupt); err != nil {
				t.Fatal(err)
			}
		}
	}
	_ = cmd.Wait()
	text := strings.Join(lines, "\n")
	if code := cmd.ProcessState.ExitCode(); code != exitFailed || !strings.Contains(text, "meshq: chaos: interrupted") {
		t.Errorf("exit code %d, and it says:\n%s", code, text)
	}
	if strings.HasPrefix(out.String(), "STOPPED interrupted: ") != seen {
		t.Errorf("the verdict is:\n%s", out.String())
	}
	if left, err := os.ReadDir(dir + "/runs"); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	for _, process := range processesWith(t, dir) {
		t.Errorf("still there: %s", process)
	}
	page, err := os.ReadFile(dir + "/page.html")
	if seen && (err != nil || !bytes.Contains(page, []byte("interrupted"))) || !seen && !os.IsNotExist(err) {
		t.Errorf("a page of %d bytes, %v", len(page), err)
	}
}

// processesWith are the command lines of all processes that name a directory; none are
// known where there is no /proc.
func processesWith(t *testing.T, dir string) (found []string) {
	t.Helper()
	all, _ := os.ReadDir("/proc")
	for _, p := range all {
		line, err := os.ReadFile("/proc/" + p.Name() + "/cmdline")
		if err == nil && bytes.Contains(line, []byte(dir)) {
			found = append(found, p.Name()+": "+string(bytes.ReplaceAll(line, []byte{0}, []byte(" "))))
		}
	}
	return found
}
