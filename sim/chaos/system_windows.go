package chaos

import (
	"io/fs"
	"os"

	"golang.org/x/sys/windows"
)

const signals = false

var (
	sigStop = os.Kill // never sent: Can refuses what needs it
	sigCont = os.Kill
	sigTerm = os.Kill // Windows knows no other
)

// lockFile takes the lock of a manifest, if nobody has it: a byte far behind its end, for
// what is locked cannot be read by others.
func lockFile(f *os.File) error {
	return windows.LockFileEx(windows.Handle(f.Fd()), windows.LOCKFILE_EXCLUSIVE_LOCK|windows.LOCKFILE_FAIL_IMMEDIATELY, 0, 1, 0,
		&windows.Overlapped{OffsetHigh: 1 << 20})
}

func killStray(pid int) error {
	p, err := os.FindProcess(pid)
	if err != nil {
		return nil
	}
	_ = p.Kill()
	return p.Release()
}

func bytesOnDisk(info fs.FileInfo) int64 { return info.Size() }
