package chaos

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// Harm is what is done to a file.
type Harm string

const (
	Flip  Harm = "flip"  // all bits of a byte in the middle of its content flip
	Tear  Harm = "tear"  // the last Bytes of its content are 0, as if never written
	Halve Harm = "halve" // the second half of its content is cut off
	Erase Harm = "erase" // it is removed
)

// Damage is harm to one file of a node.
type Damage struct {
	// Files are patterns of filepath.Match for paths in the data directory, such as
	// "segments/*/*.vlog". The first that matches a file with content counts. Of the files
	// that match it the one that was written last is taken by Tear, else the fullest.
	Files []string
	Harm  Harm
	Bytes int64 // of Tear; default 1
}

// ErrNoFile says that no file matched with content in it: nothing was harmed.
var ErrNoFile = errors.New("no such file with content")

// Damage harms a file of a node and says which, and where. Only Flip is for a node that
// runs; it is as if the disk had done it.
func (n *Node) Damage(d Damage) (what string, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	err = n.usable()
	if err == nil && n.proc.running() && d.Harm != Flip {
		err = fmt.Errorf("%s a file: it runs", d.Harm)
	}
	if err == nil {
		err = n.files(func() (err error) { what, err = d.inflict(n.data()); return err })
	}
	if err != nil {
		return "", fmt.Errorf("chaos: damage of %s: %w", n.name, err)
	}
	n.mesh.logger.Info("damaged", "node", n.name, "what", what)
	return what, nil
}

func (d Damage) inflict(data string) (string, error) {
	for _, pattern := range d.Files {
		path, err := choose(data, pattern, d.Harm == Tear)
		if err != nil {
			return "", err
		}
		if path == "" {
			continue
		}
		where, err := d.harm(path)
		if err != nil {
			return "", err
		}
		relative, _ := filepath.Rel(data, path)
		return filepath.ToSlash(relative) + ": " + where, nil
	}
	return "", fmt.Errorf("%q: %w", d.Files, ErrNoFile)
}

// harm does it and says where.
func (d Damage) harm(path string) (string, error) {
	extent, err := dataExtent(path)
	if err != nil {
		return "", err
	}
	if d.Harm == Erase {
		return fmt.Sprintf("erased, %d bytes", extent), os.Remove(path)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	where := ""
	switch d.Harm {
	case Flip:
		at := extent / 2
		var b [1]byte
		if _, err = f.ReadAt(b[:], at); err == nil {
			b[0] = ^b[0]
			_, err = f.WriteAt(b[:], at)
		}
		where = fmt.Sprintf("byte %d of %d flipped", at, extent)
	case Tear:
		n := min(max(1, d.Bytes), extent)
		_, err = f.WriteAt(make([]byte, n), extent-n)
		where = fmt.Sprintf("the last %d of %d bytes torn off", n, extent)
	case Halve:
		err = f.Truncate(extent / 2)
		where = fmt.Sprintf("cut off at byte %d of %d", extent/2, extent)
	default:
		return "", fmt.Errorf("unknown harm %q", d.Harm)
	}
	return where, errors.Join(err, f.Sync())
}

// choose finds the file that matches and has the most content, or was written last. ""
// is none.
func choose(root, pattern string, last bool) (best string, err error) {
	if _, err := filepath.Match(pattern, ""); err != nil {
		return "", fmt.Errorf("pattern %q: %w", pattern, err)
	}
	var most, newest int64
	err = filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // of a node that runs
		}
		if err != nil || entry.IsDir() {
			return err
		}
		relative, _ := filepath.Rel(root, path)
		if ok, _ := filepath.Match(filepath.FromSlash(pattern), relative); !ok {
			return nil
		}
		info, err := entry.Info()
		if err != nil {
			return nil
		}
		extent, err := dataExtent(path)
		if err != nil || extent == 0 {
			return nil
		}
		written := info.ModTime().UnixNano()
		if last && written >= newest || !last && extent > most {
			best, most, newest = path, extent, written
		}
		return nil
	})
	return best, err
}

// block is how files are read in search of their content.
const block = 1 << 20

// dataExtent is where the content of a file ends; after it there are only zeros, as in
// files whose room is taken ahead.
func dataExtent(path string) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	extent := int64(0)
	err = content(f, func(at int64, b []byte) error {
		if used := len(bytes.TrimRight(b, "\x00")); used > 0 {
			extent = at + int64(used)
		}
		return nil
	})
	return extent, err
}

// content calls f with the parts of a file in order, without its holes.
func content(file *os.File, f func(at int64, b []byte) error) error {
	buffer := make([]byte, block)
	for at := int64(0); ; {
		next, err := nextData(file, at)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		n, err := file.ReadAt(buffer, next)
		if n == 0 {
			if err == io.EOF {
				return nil
			}
			return err
		}
		if err := f(next, buffer[:n]); err != nil {
			return err
		}
		at = next + int64(n)
	}
}

// copyTree copies a directory without holes and zeros of its files.
func copyTree(to, from string) error {
	return filepath.WalkDir(from, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, relative)
		switch {
		case entry.IsDir():
			return os.MkdirAll(target, 0o700)
		case entry.Type().IsRegular():
			return copyFile(target, path)
		}
		return nil
	})
}

func copyFile(to, from string) error {
	source, err := os.Open(from)
	if err != nil {
		return err
	}
	defer source.Close()
	info, err := source.Stat()
	if err != nil {
		return err
	}
	target, err := os.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer target.Close()
	err = content(source, func(at int64, b []byte) error {
		used := bytes.TrimRight(b, "\x00")
		_, err := target.WriteAt(used, at)
		return err
	})
	return errors.Join(err, target.Truncate(info.Size()))
}

// treeBytes is what the files of a directory take.
func treeBytes(root string) (sum int64) {
	_ = filepath.WalkDir(root, func(_ string, entry fs.DirEntry, err error) error {
		if err == nil && entry.Type().IsRegular() {
			if info, err := entry.Info(); err == nil {
				sum += bytesOnDisk(info)
			}
		}
		return nil // a file that has just gone takes nothing
	})
	return sum
}
