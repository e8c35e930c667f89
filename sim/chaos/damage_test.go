package chaos

import (
	"os"
	"path/filepath"
	"testing"
)

func TestCopyTree(t *testing.T) {
	from, to := filepath.Join(t.TempDir(), "from"), filepath.Join(t.TempDir(), "to")
	must(t, os.MkdirAll(filepath.Join(from, "sub"), 0o700))
	f, err := os.Create(filepath.Join(from, "sub", "sparse"))
	must(t, err)
	_, err = f.WriteAt([]byte("begin"), 0)
	must(t, err)
	_, err = f.WriteAt([]byte("end"), 5<<20)
	must(t, err)
	must(t, f.Truncate(1<<30))
	must(t, f.Close())
	must(t, os.WriteFile(filepath.Join(from, "empty"), nil, 0o600))
	must(t, copyTree(to, from))
	copied := filepath.Join(to, "sub", "sparse")
	if extent, err := dataExtent(copied); err != nil || extent != 5<<20+3 {
		t.Errorf("content up to %d, %v", extent, err)
	}
	if info, err := os.Stat(copied); err != nil || info.Size() != 1<<30 || bytesOnDisk(info) > 4<<20 {
		t.Errorf("%v, %v", info, err)
	}
	if n := treeBytes(to); n == 0 || n > 4<<20 {
		t.Errorf("the copy takes %d bytes", n)
	}
	if _, err := os.Stat(filepath.Join(to, "empty")); err != nil {
		t.Error(err)
	}
}
