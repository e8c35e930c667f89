package store

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/meshq/meshq/transport/wire"
)

// loopMount makes a small ext4 of its own, or skips the test where that cannot be done.
func loopMount(t *testing.T, mib int) (dir, image string) {
	t.Helper()
	if testing.Short() {
		t.Skip("mounts a file system: not with -short")
	}
	if os.Getuid() != 0 {
		t.Skip("needs root to mount a file system")
	}
	if out, err := exec.Command("losetup", "-f").CombinedOutput(); err != nil {
		t.Skipf("no loop devices: %v %s", err, out)
	}
	root := t.TempDir()
	image, dir = filepath.Join(root, "image"), filepath.Join(root, "mount")
	f, err := os.Create(image)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(int64(mib)<<20), f.Close(), os.Mkdir(dir, 0o700)); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", "-m", "0", image).CombinedOutput(); err != nil {
		t.Skipf("no mkfs.ext4: %v %s", err, out)
	}
	mount(t, image, dir)
	t.Cleanup(func() { unmount(t, dir) })
	return dir, image
}

func mount(t *testing.T, image, dir string) {
	t.Helper()
	if out, err := exec.Command("mount", "-o", "loop", image, dir).CombinedOutput(); err != nil {
		t.Skipf("no loop mounts: %v %s", err, out)
	}
}

func unmount(t *testing.T, dir string) {
	t.Helper()
	var st, up unix.Stat_t
	if unix.Stat(dir, &st) != nil || unix.Stat(filepath.Dir(dir), &up) != nil || st.Dev == up.Dev {
		return // not mounted
	}
	// A store that has failed keeps its files mapped, and the file system busy, until the
	// process ends.
	out, err := exec.Command("umount", "--lazy", dir).CombinedOutput()
	if err != nil {
		t.Errorf("umount: %v %s", err, out)
	}
}

// TestPowerCut: what was not fsynced is lost with the page cache, what was confirmed is
// not.
func TestPowerCut(t *testing.T) {
	for round := range 3 {
		t.Run(strconv.Itoa(round), func(t *testing.T) {
			dir, image := loopMount(t, 400)
			data := filepath.Join(dir, "data")
			seed := uint64(round + 100)
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), fmt.Sprintf("MESHQ_STORE_CHILD=%s|/dev/stdout|none|0|%d", data, seed))
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			var j journal
			cut := false
			for sc := bufio.NewScanner(out); sc.Scan(); {
				f := strings.Fields(sc.Text())
				switch f[0] {
				case "asked":
					j.asked, _ = strconv.Atoi(f[1])
				case "done":
					j.done, _ = strconv.Atoi(f[1])
					j.commit, _ = strconv.ParseUint(f[2], 10, 64)
				}
				if !cut && j.done >= 150+100*round {
					cut = true
					powerCut(t, dir)
					if err := cmd.Process.Signal(syscall.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
						t.Fatal(err)
					}
				}
			}
			err = cmd.Wait()
			if !cut {
				t.Fatalf("the child ended early: %v %s", err, stderr.String())
			}
			// A copy, because the mounts of others may hold the file system that was shut down: what is
			// mounted from the image then is the same one, and has nothing but errors.
			after, again := image+".after", dir+".again"
			if out, err := exec.Command("cp", "--sparse=always", image, after).CombinedOutput(); err != nil {
				t.Fatalf("cp: %v %s", err, out)
			}
			if err := os.Mkdir(again, 0o700); err != nil {
				t.Fatal(err)
			}
			mount(t, after, again)
			t.Cleanup(func() { unmount(t, again) })
			t.Logf("%d asked, %d confirmed", j.asked, j.done)
			checkAfterKill(t, filepath.Join(again, "data"), j, seed, Options{})
		})
	}
}

// TestFullDiskFails: a disk that is full and then fails is found to have failed, though
// nothing is committed to it any more.
func TestFullDiskFails(t *testing.T) {
	dir, _ := loopMount(t, 400)
	failed := make(chan error, 1)
	s, _ := mustOpen(t, Options{
		Dir: filepath.Join(dir, "data"), SegmentBytes: 8 << 20, MinFree: 1 << 40, Reserve: 1 << 40, ScrubRate: -1,
		OnFailed: func(err error) { failed <- err },
	})
	defer func() { _ = s.Close() }()
	if _, err := tryCommit(s, putOp("k", nil)); !errors.Is(err, ErrFull) {
		t.Fatalf("record on a full disk: %v", err)
	}
	powerCut(t, dir)
	select {
	case err := <-failed:
		if !errors.Is(err, ErrFailed) {
			t.Errorf("failed with %v", err)
		}
	case <-time.After(30 * time.Second):
		t.Error("a disk that has failed is taken for a full one")
	}
}

// powerCut shuts the file system down without flushing its log.
func powerCut(t *testing.T, dir string) {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	const shutdown, noLogFlush = 0x8004587d, 2
	flags := uint32(noLogFlush)
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, f.Fd(), shutdown, uintptr(unsafe.Pointer(&flags))); e != 0 {
		t.Skipf("the file system cannot be shut down: %v", e)
	}
}

// TestFullDisk: batches are refused, then records; neither a panic nor a loss; with room again
// all goes on; and a full disk does not keep the store from opening.
func TestFullDisk(t *testing.T) {
	dir, _ := loopMount(t, 400)
	full := make(chan bool, 100)
	data := filepath.Join(dir, "data")
	o := Options{
		Dir: data, SegmentBytes: 8 << 20, MinFree: 96 << 20, Reserve: 48 << 20, BallastBytes: 16 << 20, ScrubRate: -1,
		OnFull: func(f bool) { full <- f },
	}
	s, _ := mustOpen(t, o)
	defer func() { _ = s.Close() }() // before the file system goes
	var kept []wire.Batch
	var err error
	for i := 0; i < 1000 && err == nil; i++ {
		b := testBatch(5, laneA, wire.Offset(i), 1, 1<<20)
		if _, err = tryCommit(s, batchOp(b)); err == nil {
			kept = append(kept, b)
		}
	}
	if !errors.Is(err, ErrFull) || len(kept) < 50 {
		t.Fatalf("after %d batches: %v", len(kept), err)
	}
	if !<-full {
		t.Error("told that there is room")
	}
	mustCommit(t, s, putOp("k", []byte("records go on")))

	// Others fill the rest: records are refused as well, and the process lives.
	free, _, err := space(dir)
	if err != nil {
		t.Fatal(err)
	}
	other, err := os.Create(filepath.Join(dir, "other"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Close() }()
	if err := allocate(other, free-(4<<20)); err != nil {
		t.Fatal(err)
	}
	if _, err := tryCommit(s, putOp("k2", nil)); !errors.Is(err, ErrFull) {
		t.Errorf("record on a full disk: %v", err)
	}
	got, damaged, err := s.Read(5, laneA, all, 1<<30)
	if err != nil || len(damaged) > 0 || len(got) != len(kept) {
		t.Errorf("%d of %d batches, damaged %v, %v", len(got), len(kept), damaged, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := other.Seek(0, io.SeekEnd); err != nil {
		t.Fatal(err)
	}
	if err := fill(other, 400<<20); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("the disk is not full: %v", err)
	}

	var rec *Recovered
	s, rec = mustOpen(t, o) // the ballast makes the room for it
	if rec.DamagedAll || len(rec.Records) != 1 {
		t.Errorf("recovered %+v", rec)
	}
	if !s.Usage().Full || !<-full {
		t.Error("not told that the disk is full")
	}
	if err := errors.Join(other.Close(), os.Remove(other.Name())); err != nil {
		t.Fatal(err)
	}
	mustCommit(t, s, freeOp(5, laneA, 0, wire.Offset(len(kept))))
	select {
	case f := <-full:
		if f {
			t.Error("told twice")
		}
	case <-time.After(30 * time.Second):
		t.Fatal("freed batches gave no room back")
	}
	mustCommit(t, s, batchOp(testBatch(5, laneB, 0, 1, 1<<20)))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}
