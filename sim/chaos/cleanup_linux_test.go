//go:build mesh

package chaos

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/meshq/meshq/sim/plan"
)

func init() { jobs["mesh"] = holdMesh }

// trace is what a mesh has left in the system while it is there.
type trace struct {
	Dir        string
	PIDs       []int
	Namespaces []string // "net:[4026532212]"
}

// holdMesh makes a mesh with all that there is, says what it made, and closes it at the
// first signal, or panics.
func holdMesh() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := func() (err error) {
		m, err := New(Config{Binary: os.Getenv("MESHQ_BINARY"), Network: Switched, Disks: true, DiskBytes: 256 << 20})
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, m.Close(), m.Close()) }()
		var t trace
		t.Dir = m.Dir()
		for i := range 2 {
			n, err := m.Add(plan.Node{Name: fmt.Sprintf("n%d", i+1)})
			if err == nil {
				err = n.Start()
			}
			if err != nil {
				return err
			}
			t.PIDs = append(t.PIDs, n.PID())
			for _, kind := range []string{"net", "mnt"} {
				ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", n.PID(), kind))
				if err != nil {
					return err
				}
				t.Namespaces = append(t.Namespaces, ns)
			}
		}
		c, err := m.Client("c1")
		if err != nil {
			return err
		}
		child := exec.Command("sleep", "600")
		if err := c.Start(child); err != nil {
			return err
		}
		go func() { _ = child.Wait() }()
		t.PIDs = append(t.PIDs, child.Process.Pid)
		// The hardest to end: one stands still, the disk of the other does.
		if err := m.Node("n1").Pause(); err != nil {
			return err
		}
		if _, err := m.Node("n2").StallDisk(); err != nil {
			return err
		}
		if err := json.NewEncoder(os.Stdout).Encode(t); err != nil {
			return err
		}
		if os.Getenv("MESHQ_CHAOS_TEST_PANIC") != "" {
			go panic("on purpose")
		}
		<-ctx.Done()
		return nil
	}()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// left lists what is still there of a mesh, but its directory.
func (t *trace) left() (found []string) {
	for _, pid := range t.PIDs {
		if f := statFields(pid); len(f) > 0 {
			found = append(found, fmt.Sprintf("process %d in state %s", pid, f[0]))
		}
	}
	links, _ := filepath.Glob("/proc/[0-9]*/task/[0-9]*/ns/*")
	for _, link := range links {
		if ns, err := os.Readlink(link); err == nil && slices.Contains(t.Namespaces, ns) {
			found = append(found, link+" is "+ns)
		}
	}
	mounts, _ := filepath.Glob("/proc/[0-9]*/mountinfo")
	for _, path := range mounts {
		if text, _ := os.ReadFile(path); strings.Contains(string(text), t.Dir) {
			found = append(found, "mounted in "+path)
		}
	}
	return append(found, loopsBelow(t.Dir)...)
}

func TestCleanup(t *testing.T) {
	for _, c := range []struct {
		name  string
		end   syscall.Signal
		panic bool
		clean bool // it cleans up itself
	}{
		{"SIGINT", syscall.SIGINT, false, true},
		{"SIGTERM", syscall.SIGTERM, false, true},
		{"SIGKILL", syscall.SIGKILL, false, false},
		{"panic", 0, true, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			newMesh(t, Config{Network: Switched, Disks: true}) // or skip
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), "MESHQ_CHAOS_TEST_JOB=mesh", "MESHQ_BINARY="+meshqBinary(t))
			if c.panic {
				cmd.Env = append(cmd.Env, "MESHQ_CHAOS_TEST_PANIC=1")
			} else {
				cmd.Stderr = os.Stderr
			}
			out, err := cmd.StdoutPipe()
			must(t, err)
			must(t, cmd.Start())
			late := time.AfterFunc(50*time.Second, func() { _ = cmd.Process.Kill() })
			defer late.Stop()
			var made trace
			if err := json.NewDecoder(bufio.NewReader(out)).Decode(&made); err != nil {
				t.Fatalf("no mesh: %v", err)
			}
			if !c.panic {
				if found := made.left(); len(found) < 8 {
					t.Errorf("this test does not see what there is: %q", found)
				}
				must(t, Sweep("")) // of no effect: its owner lives
				if _, err := os.Stat(made.Dir); err != nil || statFields(made.PIDs[0]) == nil {
					t.Errorf("a mesh that lives was swept away: %v", err)
				}
				must(t, cmd.Process.Signal(c.end))
			}
			err = cmd.Wait()
			if c.clean && err != nil {
				t.Errorf("%v", err)
			}
			if !c.clean {
				must(t, Sweep(""))
			}
			if _, err := os.Stat(made.Dir); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s is left: %v", made.Dir, err)
			}
			// The kernel takes namespaces away a moment after their last process.
			err = poll(patience(t), "nothing is left", func() error {
				if found := made.left(); len(found) > 0 {
					return fmt.Errorf("%q", found)
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
}
