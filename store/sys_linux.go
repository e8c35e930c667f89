package store

import (
	"bufio"
	"bytes"
	"errors"
	"os"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// advise tells the kernel how the mapped *.mem and *.vlog files in dirs are used:
// written at random, or (sealed) read in order. Without the first, each msync of a file that
// is being written rewrites whole large folios of the page cache: up to 40 times
// the bytes. done has the mappings that it was told of already; advise keeps it.
func advise(dirs []string, sealed bool, done map[string]struct{}) error {
	f, err := os.Open("/proc/self/maps")
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	advice := uintptr(unix.MADV_RANDOM)
	if sealed {
		advice = unix.MADV_NORMAL
	}
	seen := make(map[string]struct{}, len(done))
	var errs []error
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		line := sc.Bytes()
		at := bytes.IndexByte(line, '/')
		if at < 0 || !mapped(line[at:], dirs) {
			continue
		}
		from, to, ok := mapRange(line)
		if !ok {
			continue
		}
		key := string(line[:bytes.IndexByte(line, ' ')]) + string(line[at:])
		seen[key] = struct{}{}
		if _, ok := done[key]; ok {
			continue
		}
		// A mapping that went away in between gives ENOMEM, which harms nobody.
		if _, _, e := unix.Syscall(unix.SYS_MADVISE, from, to-from, advice); e != 0 && e != unix.ENOMEM {
			errs = append(errs, e)
		}
	}
	clear(done)
	for key := range seen {
		done[key] = struct{}{}
	}
	return errors.Join(append(errs, sc.Err())...)
}

// mapped tells whether path is a file that Badger writes in one of dirs.
func mapped(path []byte, dirs []string) bool {
	if !bytes.HasSuffix(path, []byte(".mem")) && !bytes.HasSuffix(path, []byte(".vlog")) {
		return false
	}
	for _, dir := range dirs {
		if len(path) > len(dir) && path[len(dir)] == '/' && string(path[:len(dir)]) == dir {
			return true
		}
	}
	return false
}

// mapRange reads "from-to " at the front of a line of /proc/self/maps.
func mapRange(line []byte) (from, to uintptr, ok bool) {
	end := bytes.IndexByte(line, ' ')
	if end < 0 {
		return 0, 0, false
	}
	a, b, found := bytes.Cut(line[:end], []byte("-"))
	x, err1 := strconv.ParseUint(string(a), 16, int(unsafe.Sizeof(from))*8)
	y, err2 := strconv.ParseUint(string(b), 16, int(unsafe.Sizeof(from))*8)
	return uintptr(x), uintptr(y), found && err1 == nil && err2 == nil && x < y
}

// allocate makes f size bytes long with all blocks taken.
func allocate(f *os.File, size int64) error {
	err := unix.Fallocate(int(f.Fd()), 0, 0, size)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
		return fill(f, size)
	}
	return err
}

// machineBoot names this boot of the machine.
func machineBoot() string {
	b, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return string(bytes.TrimSpace(b))
}
