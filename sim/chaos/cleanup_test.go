package chaos

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestSweep(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	alive, err := newRun("")
	must(t, err)
	dead, err := newRun("")
	must(t, err)
	must(t, dead.record(entry{Made: madeProcess, Name: "gone", PID: 1 << 30}))
	must(t, os.WriteFile(filepath.Join(dead.dir, "n1.log"), []byte("text"), 0o600))
	_, err = dead.manifest.WriteString(`{"made":"cut sho`)
	must(t, err)
	must(t, dead.manifest.Close()) // as the kernel does it
	kept, err := newRun("")
	must(t, err)
	must(t, kept.close(true))
	must(t, Sweep(""))
	for _, c := range []struct {
		what string
		r    *run
		left bool
	}{{"alive", alive, true}, {"dead", dead, false}, {"kept", kept, true}} {
		if _, err := os.Stat(c.r.dir); (err == nil) != c.left {
			t.Errorf("%s: %v", c.what, err)
		}
	}
	must(t, alive.close(false))
	if _, err := os.Stat(alive.dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("closed: %v", err)
	}
}

func TestConfigRefuses(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	for _, c := range []Config{{}, {Binary: "meshq", Network: "wireless"}, {Binary: "meshq", DiskBytes: 1}} {
		if m, err := New(c); err == nil {
			t.Errorf("%+v is taken", c)
			_ = m.Close()
		} else {
			t.Log(err)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(os.TempDir(), "*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}
