package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// Who is not root is told what he lacks and what to do, before anything is started.
func TestChaosWithoutPrivileges(t *testing.T) {
	const nobody = 65534
	for _, c := range []struct {
		args     []string
		out, err string
	}{
		{[]string{"--scenario", "S00", "--network", "switched"}, "", "meshq: chaos: a switched network needs root\nmeshq: hint: run as root, or use --network loopback\n"},
		{[]string{"--scenario", "S00", "--disks", "own"}, "", "meshq: chaos: a file system for each node needs root\nmeshq: hint: run as root, or with --disks plain\n"},
		{[]string{"--scenario", "S12"}, "", "skipped: power-cut: the nodes have no file systems of their own (run as root on Linux with --disks own)\n"},
		{[]string{"--list"}, "23 of them possible here\n", ""},
	} {
		// The directories of the test's binary may be closed to others: it is run by its
		// descriptor.
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		binary, err := os.Open(self)
		if err != nil {
			t.Fatal(err)
		}
		defer binary.Close()
		var out, said bytes.Buffer
		cmd := exec.Command("/proc/self/fd/3", append([]string{"chaos"}, c.args...)...)
		cmd.Args[0], cmd.Dir = "meshq", "/"
		cmd.ExtraFiles, cmd.Stdout, cmd.Stderr = []*os.File{binary}, &out, &said
		if os.Geteuid() == 0 {
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		}
		var exit *exec.ExitError
		if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		if want := c.err != ""; want != (cmd.ProcessState.ExitCode() == exitFailed) || !strings.Contains(said.String(), c.err) || !strings.HasSuffix(out.String(), c.out) {
			t.Errorf("%s: exit code %d, out %q, err %q", strings.Join(c.args, " "), cmd.ProcessState.ExitCode(), out.String(), said.String())
		}
	}
}
