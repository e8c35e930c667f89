package chaos

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func isMainThread() bool { return unix.Gettid() == os.Getpid() }

// bind ties a process to the thread that starts it.
func bind(cmd *exec.Cmd) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	cmd.SysProcAttr.Setpgid = true
}

// startedAt tells apart two processes that have had one number: the start in ticks since
// boot. Empty when there is no such process.
func startedAt(pid int) string {
	fields := statFields(pid)
	if len(fields) < 20 {
		return ""
	}
	return fields[19]
}

// statFields are those of /proc/PID/stat from the state on (field 3 of proc(5)).
func statFields(pid int) []string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil
	}
	return strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
}

// waitStopped waits until all threads of a process stand still after SIGSTOP.
func waitStopped(pid int) error {
	deadline := time.Now().Add(5 * time.Second)
	for {
		states, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		if err != nil || len(states) == 0 {
			return fmt.Errorf("process %d is gone", pid)
		}
		running := ""
		for _, path := range states {
			text, _ := os.ReadFile(path)
			if _, after, ok := strings.Cut(string(text), ") "); ok && after[0] != 'T' && after[0] != 'X' && after[0] != 'Z' {
				running = after[:1]
			}
		}
		if running == "" {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("process %d does not stand still: a thread is in state %s", pid, running)
		}
		time.Sleep(time.Millisecond)
	}
}

// anonymousBytes is the memory of a process that no file backs: the mapped files of the
// store belong to the page cache.
func anonymousBytes(pid int) (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			return kib << 10, err
		}
	}
	return 0, errors.New("no RssAnon in /proc/PID/status")
}

// isolateMounts gives the calling thread a mount namespace of its own, from which no
// mount gets out.
func isolateMounts() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("mount namespace: %w", err)
	}
	return nil
}

// unmountBelow unmounts all that this process sees mounted below dir. Mounts of a run are
// in namespaces that end with it; this is for those that got out.
func unmountBelow(dir string) error {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var errs []error
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			if err := unix.Unmount(f[4], unix.MNT_DETACH); err != nil {
				errs = append(errs, fmt.Errorf("unmount %s: %w", f[4], err))
			}
		}
	}
	return errors.Join(errs...)
}

// loopsBelow are the loop devices of images below dir.
func loopsBelow(dir string) (devices []string) {
	files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err == nil && strings.HasPrefix(string(text), dir+"/") {
			devices = append(devices, "/dev/"+strings.Split(f, "/")[3])
		}
	}
	return devices
}

// freeLoopsBelow detaches the loop devices of images below dir and waits until they are
// free: one whose mount is just going away takes a moment.
func freeLoopsBelow(dir string) error {
	deadline := time.Now().Add(10 * time.Second)
	for {
		devices := loopsBelow(dir)
		if len(devices) == 0 {
			return nil
		}
		for _, d := range devices {
			if f, err := os.OpenFile(d, os.O_RDONLY, 0); err == nil {
				_ = unix.IoctlSetInt(int(f.Fd()), unix.LOOP_CLR_FD, 0)
				_ = f.Close()
			}
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("loop devices are in use: %s", strings.Join(devices, ", "))
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// nextData is where a file has content next, from an offset on; io.EOF: nowhere.
func nextData(f *os.File, at int64) (int64, error) {
	next, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		return 0, io.EOF
	}
	return next, err
}
