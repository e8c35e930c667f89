package sim

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestPowerCutAgrees: a process commits on a file system of its own, which is shut down without its journal. What is
// there after it is mounted again is a state that the model may leave after a power cut.
func TestPowerCutAgrees(t *testing.T) {
	if testing.Short() {
		t.Skip("mounts file systems: not with -short")
	}
	if os.Getuid() != 0 {
		t.Skip("needs root to mount a file system")
	}
	for seed := range *powerSeeds {
		t.Run(strconv.Itoa(seed), func(t *testing.T) {
			root := t.TempDir()
			image, dir := filepath.Join(root, "image"), filepath.Join(root, "mount")
			f, err := os.Create(image)
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(f.Truncate(400<<20), f.Close()); err != nil {
				t.Fatal(err)
			}
			if out, err := exec.Command("mkfs.ext4", "-q", "-m", "0", image).CombinedOutput(); err != nil {
				t.Skipf("no mkfs.ext4: %v %s", err, out)
			}
			mountImage(t, image, dir)
			asked, done, number := endStore(t, filepath.Join(dir, "data"), 500+seed, 15+60*seed, func(p *os.Process) error {
				return errors.Join(shutDown(dir), p.Kill())
			})
			// A copy, because the mounts of others may hold the file system that was shut down.
			after := filepath.Join(root, "after")
			if out, err := exec.Command("cp", "--sparse=always", image, after).CombinedOutput(); err != nil {
				t.Fatalf("cp: %v %s", err, out)
			}
			again := filepath.Join(root, "again")
			mountImage(t, after, again)

			l := &oneLife{}
			for i := range asked {
				l.log = append(l.log, diskGroup{commit: uint64(i + 1), segment: 1, ops: killedOps(500+seed, i)})
			}
			x := openReal(t, realOptions(filepath.Join(again, "data")))
			base := newContents()
			s, why := x.among(&base, l.log, survivors(unpowered, ended{synced: done, confirmed: done, written: asked}, l.log, 0), nil)
			if why != "" {
				t.Fatal(why)
			}
			if x.rec.Commit < number || x.next <= number {
				t.Errorf("commit %d came back and then %d was done; %d was confirmed", x.rec.Commit, x.next, number)
			}
			t.Logf("%d asked for, %d confirmed, %d there", asked, done, s.records)
		})
	}
}

// mountImage mounts an image for the time of the test.
func mountImage(t *testing.T, image, dir string) {
	t.Helper()
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mount", "-o", "loop", image, dir).CombinedOutput(); err != nil {
		t.Skipf("no loop mounts: %v %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Error(fmt.Errorf("umount: %w %s", err, out))
		}
	})
}

// shutDown is a power cut of the file system at dir: its journal is not flushed.
func shutDown(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	const shutdown, noLogFlush = 0x8004587d, 2
	flags := uint32(noLogFlush)
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, f.Fd(), shutdown, uintptr(unsafe.Pointer(&flags))); e != 0 {
		err = fmt.Errorf("the file system cannot be shut down: %w", e)
	}
	return errors.Join(err, f.Close())
}
