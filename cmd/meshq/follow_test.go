package main

import (
	"bufio"
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// meshq runs one command of a client to its end.
func (m *meshProcess) meshq(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	cmd := m.command(args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		code = exit.ExitCode()
	case err != nil:
		t.Fatal(err)
	}
	return code, out.String(), errs.String()
}

func (m *meshProcess) command(args ...string) *exec.Cmd {
	cmd := exec.Command("meshq", args...)
	cmd.Env = append(os.Environ(), "MESHQ_SERVERS="+strings.Join(m.addrs, ","))
	return cmd
}

// follower is a "meshq receive --follow" under way.
type follower struct {
	*exec.Cmd
	lines *bufio.Scanner
}

// follow starts a receive; it is killed when it has not ended in a minute.
func (m *meshProcess) follow(t *testing.T, args ...string) *follower {
	t.Helper()
	f := &follower{Cmd: m.command(append([]string{"receive"}, args...)...)}
	f.Stderr = &tail{}
	out, err := f.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	f.lines = bufio.NewScanner(out)
	if err := f.Start(); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(time.Minute, func() { _ = f.Process.Kill() })
	t.Cleanup(func() { timer.Stop(); _ = f.Process.Kill(); _ = f.Wait() })
	return f
}

// line waits for the next line.
func (f *follower) line(t *testing.T) string {
	t.Helper()
	if !f.lines.Scan() {
		t.Fatalf("it ended: %v: %s", f.Wait(), f.Stderr)
	}
	return f.lines.Text()
}

func (f *follower) end(t *testing.T, sig os.Signal) error {
	t.Helper()
	if err := f.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
	return f.Wait()
}

func TestFollow(t *testing.T) {
	dir := t.TempDir()
	m, err := startMesh("3", filepath.Join(dir, "data"), dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.end(syscall.SIGTERM); err != nil {
			t.Error(err)
		}
	})
	must := func(args ...string) string {
		t.Helper()
		code, stdout, stderr := m.meshq(t, args...)
		if code != exitDone {
			t.Fatalf("%v: exit code %d: %s", args, code, stderr)
		}
		return stdout
	}

	t.Run("interrupted", func(t *testing.T) {
		must("queue", "create", "live")
		f := m.follow(t, "live", "--follow")
		for _, body := range []string{"one", "two"} {
			must("send", "live", body)
			if got := f.line(t); got != body {
				t.Fatalf("received %q, want %q", got, body)
			}
		}
		if err := f.end(t, os.Interrupt); err != nil {
			t.Errorf("SIGINT is the end of --follow: %v: %s", err, f.Stderr)
		}
		// What was printed is acked.
		if code, stdout, _ := m.meshq(t, "receive", "live", "--wait", "300ms"); code != exitNothing {
			t.Errorf("exit code %d, received again: %q", code, stdout)
		}
	})

	t.Run("held messages come back at once", func(t *testing.T) {
		must("queue", "create", "held")
		must("send", "held", "x")
		f := m.follow(t, "held", "--follow", "--no-ack")
		f.line(t)
		if err := f.end(t, os.Interrupt); err != nil {
			t.Fatalf("%v: %s", err, f.Stderr)
		}
		if got := must("receive", "held", "--json", "--wait", "10s"); !strings.Contains(got, `"body":"x"`) {
			t.Errorf("received %s", got)
		}
	})

	t.Run("a killed consumer's messages come back, marked", func(t *testing.T) {
		must("queue", "create", "killed")
		must("send", "killed", "x")
		f := m.follow(t, "killed", "--follow", "--no-ack")
		f.line(t)
		_ = f.end(t, os.Kill)
		if got := must("receive", "killed", "--json", "--wait", "10s"); !strings.Contains(got, `"redelivered":true,"cause":"consumer"`) {
			t.Errorf("received %s", got)
		}
	})
}

// A send that waits for its stdin ends at the first signal, with what was confirmed.
func TestSendInterrupted(t *testing.T) {
	dir := t.TempDir()
	m, err := startMesh("1", filepath.Join(dir, "data"), dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.end(syscall.SIGTERM); err != nil {
			t.Error(err)
		}
	})
	if code, _, stderr := m.meshq(t, "queue", "create", "q"); code != exitDone {
		t.Fatal(stderr)
	}
	cmd := m.command("send", "q", "--file", "-", "--json")
	errs := &tail{}
	cmd.Stderr = errs
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(time.Minute, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	if _, err := in.Write([]byte("one\n")); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n') // printed while stdin is still open
	if err != nil || !strings.Contains(line, `"line":1`) {
		t.Fatalf("%q, %v: %s", line, err, errs)
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != exitFailed || !strings.Contains(errs.String(), "interrupted") {
		t.Errorf("%v: %s", err, errs)
	}
}
