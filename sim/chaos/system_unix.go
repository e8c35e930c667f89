//go:build unix

package chaos

import (
	"errors"
	"io/fs"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// signals says that processes can be stopped and continued.
const signals = true

var (
	sigStop = syscall.SIGSTOP
	sigCont = syscall.SIGCONT
	sigTerm = syscall.SIGTERM
)

// lockFile takes the lock of a manifest, if nobody has it.
func lockFile(f *os.File) error { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) }

// killStray ends a process that is no child of this one.
func killStray(pid int) error {
	if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	for deadline := time.Now().Add(10 * time.Second); unix.Kill(pid, 0) == nil; {
		if time.Now().After(deadline) {
			return &os.SyscallError{Syscall: "kill", Err: unix.EBUSY}
		}
		time.Sleep(5 * time.Millisecond)
	}
	return nil
}

// bytesOnDisk is what a file takes: a sparse one less than its size.
func bytesOnDisk(info fs.FileInfo) int64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Blocks * 512
	}
	return info.Size()
}
