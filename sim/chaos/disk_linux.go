package chaos

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// disk is an ext4 of a node's own, in an image file on a loop device. It is mounted in
// the mount namespace of the node's host; all methods run on that thread. The loop device
// detaches itself with the mount.
type disk struct {
	image, dir string
	mounted    bool
	cut        bool     // shut down: nothing can be written until it is mounted again
	frozen     *os.File // the directory, while all that writes waits
	noted      bool     // the manifest knows that it may be frozen
	filled     bool     // it should be full
}

func missingForDisks(need string, err error) error {
	return &MissingError{What: "a file system for each node", Need: need, Hint: "run as root, or with --disks plain", Err: err}
}

// checkDisks looks for all that disks need, without leaving anything.
func checkDisks() error {
	if os.Geteuid() != 0 {
		return missingForDisks("root", nil)
	}
	if _, err := exec.LookPath("mkfs.ext4"); err != nil {
		return missingForDisks("mkfs.ext4 (package e2fsprogs)", err)
	}
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return missingForDisks("loop devices (/dev/loop-control)", err)
	}
	_ = control.Close()
	t, err := newThread(isolateMounts)
	if err != nil {
		return missingForDisks("mount namespaces (CAP_SYS_ADMIN)", err)
	}
	t.close()
	return nil
}

// newDisk makes and mounts the file system of a host.
func (m *Mesh) newDisk(h *host) (*disk, error) {
	d := &disk{
		image: filepath.Join(m.run.dir, h.name+".ext4"),
		dir:   filepath.Join(m.run.dir, h.name+".disk"),
	}
	f, err := os.OpenFile(d.image, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(f.Truncate(m.config.DiskBytes), f.Close(), os.Mkdir(d.dir, 0o700)); err != nil {
		return nil, err
	}
	if out, err := exec.Command("mkfs.ext4", "-q", "-F", "-m", "0", d.image).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("mkfs.ext4: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return d, h.thread.do(d.mount)
}

func (d *disk) mount() error {
	device, err := attachLoop(d.image)
	if err != nil {
		return fmt.Errorf("loop device of %s: %w", d.image, err)
	}
	defer device.Close() // from now on the mount alone keeps it
	if err := unix.Mount(device.Name(), d.dir, "ext4", unix.MS_NOATIME, ""); err != nil {
		return fmt.Errorf("mount %s: %w", d.image, err)
	}
	d.mounted, d.cut = true, false
	return nil
}

// attachLoop finds a free loop device and gives it an image; with the last use it
// detaches itself.
func attachLoop(image string) (*os.File, error) {
	backing, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer backing.Close()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	for {
		number, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("no free loop device: %w", err)
		}
		device, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", number), os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		config := unix.LoopConfig{Fd: uint32(backing.Fd())}
		config.Info.Flags = unix.LO_FLAGS_AUTOCLEAR
		copy(config.Info.File_name[:len(config.Info.File_name)-1], image)
		err = unix.IoctlLoopConfigure(int(device.Fd()), &config)
		if err == nil {
			return device, nil
		}
		_ = device.Close()
		if !errors.Is(err, unix.EBUSY) {
			return nil, err
		}
		// Somebody else has taken it between the two calls.
	}
}

func (d *disk) unmount() error {
	if !d.mounted {
		return nil
	}
	if err := d.thaw(); err != nil {
		return err
	}
	err := unix.Unmount(d.dir, 0)
	if errors.Is(err, unix.EBUSY) {
		// Nobody should have a file open any more; do not leave it, but say so.
		err = errors.Join(fmt.Errorf("unmount %s: %w", d.dir, err), unix.Unmount(d.dir, unix.MNT_DETACH))
	} else if err != nil {
		return fmt.Errorf("unmount %s: %w", d.dir, err)
	}
	d.mounted = false
	return err
}

// cutPower takes away the disk: what is not synced is gone, and what is written from now
// on fails.
func (d *disk) cutPower() error {
	const shutdown, noLogFlush = 0x8004587d, 2 // EXT4_IOC_SHUTDOWN, EXT4_GOING_FLAGS_NOLOGFLUSH
	f, err := os.Open(d.dir)
	if err != nil {
		return err
	}
	defer f.Close()
	flags := uint32(noLogFlush)
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, f.Fd(), shutdown, uintptr(unsafe.Pointer(&flags))); e != 0 {
		return fmt.Errorf("shut down %s: %w", d.dir, e)
	}
	d.cut = true
	return nil
}

// repower mounts a disk again that was cut; its processes have ended.
func (d *disk) repower() error {
	if !d.cut {
		return nil
	}
	if err := d.unmount(); err != nil {
		return err
	}
	if err := d.mount(); err != nil || d.filled {
		return err
	}
	return d.empty() // it was to be emptied while it was cut
}

// Requests of fs.h that package unix lacks.
const (
	fiFreeze = 0xc0045877
	fiThaw   = 0xc0045878
)

// freeze lets all that writes to the disk wait, until thaw. A file system that stands
// still outlives its mounts: a sweep has to know.
func (d *disk) freeze(r *run) error {
	f, err := os.Open(d.dir)
	if err != nil {
		return err
	}
	if !d.noted {
		err = r.record(entry{Made: madeFreeze, Name: filepath.Base(d.image), Path: d.image})
		d.noted = err == nil
	}
	if err == nil {
		err = unix.IoctlSetInt(int(f.Fd()), fiFreeze, 0)
	}
	if err != nil {
		_ = f.Close()
		return fmt.Errorf("freeze %s: %w", d.dir, err)
	}
	d.frozen = f
	return nil
}

// thawStray ends the freeze of a file system of a dead run. Its mount is gone with its
// namespace, but a new one of the same device is one of the same file system.
func thawStray(image string) error {
	for _, device := range loopsBelow(filepath.Dir(image)) {
		backing, err := os.ReadFile("/sys/block/" + filepath.Base(device) + "/loop/backing_file")
		if err != nil || strings.TrimSpace(string(backing)) != image {
			continue
		}
		dir, err := os.MkdirTemp(filepath.Dir(image), "thaw")
		if err != nil {
			return err
		}
		d := &disk{image: image, dir: dir, mounted: true}
		t, err := newThread(func() error {
			if err := isolateMounts(); err != nil {
				return err
			}
			if err := unix.Mount(device, d.dir, "ext4", unix.MS_NOATIME, ""); err != nil {
				return fmt.Errorf("mount %s: %w", device, err)
			}
			defer unix.Unmount(d.dir, unix.MNT_DETACH)
			if d.frozen, err = os.Open(d.dir); err != nil {
				return err
			}
			if err := d.thaw(); err != nil && !errors.Is(err, unix.EINVAL) { // it was thawed already
				return err
			}
			return nil
		})
		if err != nil {
			return err
		}
		t.close()
	}
	return nil
}

// thaw may run on any thread: that of the host may be what waits.
func (d *disk) thaw() error {
	if d.frozen == nil {
		return nil
	}
	defer d.frozen.Close()
	f := d.frozen
	d.frozen = nil
	if err := unix.IoctlSetInt(int(f.Fd()), fiThaw, 0); err != nil {
		return fmt.Errorf("thaw %s: %w", d.dir, err)
	}
	return nil
}

// fill makes a file that leaves so many bytes free; called again it makes the file larger.
func (d *disk) fill(leave int64) error {
	d.filled = true
	f, err := os.OpenFile(filepath.Join(d.dir, "ballast"), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	var st unix.Statfs_t
	if err := unix.Statfs(d.dir, &st); err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if more := int64(st.Bavail)*st.Bsize - leave; more > 0 {
		return unix.Fallocate(int(f.Fd()), 0, info.Size(), more)
	}
	return nil
}

// empty takes the file away again; that of a disk that is cut, when it has power again.
func (d *disk) empty() error {
	d.filled = false
	if d.cut {
		return nil
	}
	if err := os.Remove(filepath.Join(d.dir, "ballast")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// remove unmounts the disk and removes the image.
func (d *disk) remove() error {
	return errors.Join(d.unmount(), os.Remove(d.image), os.Remove(d.dir))
}
