package chaos

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

const (
	runPrefix    = "meshq-chaos-" // of directories of runs
	manifestName = "manifest"
)

// run is the directory of one run. In it is the manifest: a line for each thing outside
// of the directory that could outlive this process. It is locked for as long as its
// owner lives, and the kernel unlocks it however that ends.
type run struct {
	dir      string
	mu       sync.Mutex // protects the fields below
	manifest *os.File
	random   *rand.Rand
	made     int // by number
}

// entry is a line of a manifest.
type entry struct {
	Made  string `json:"made"`
	Name  string `json:"name"`
	PID   int    `json:"pid,omitempty"`
	Since string `json:"since,omitempty"` // when the process was started, as its system says it
	Path  string `json:"path,omitempty"`
}

const (
	madeProcess = "process"
	madeFreeze  = "freeze" // of a file system: who writes to it does not even die
)

// ErrNoDir means that no directory can be made for a run.
var ErrNoDir = errors.New("no directory for the run")

func newRun(in string) (*run, error) {
	dir, err := os.MkdirTemp(in, runPrefix)
	if err != nil {
		return nil, fmt.Errorf("chaos: %w: %w", ErrNoDir, err)
	}
	r := &run{dir: dir, random: rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), uint64(os.Getpid())))}
	r.manifest, err = os.OpenFile(filepath.Join(dir, manifestName), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err == nil {
		err = lockFile(r.manifest)
	}
	if err != nil {
		_ = os.RemoveAll(dir)
		return nil, fmt.Errorf("chaos: %w", err)
	}
	return r, nil
}

// next is a random number.
func (r *run) next() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.random.Int()
}

// number is another one each time, for names.
func (r *run) number() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.made++
	return r.made
}

// record notes what was made, or is about to be.
func (r *run) record(e entry) error {
	if e.PID != 0 {
		e.Since = startedAt(e.PID)
	}
	line, err := json.Marshal(e)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	_, err = r.manifest.Write(append(line, '\n'))
	return err
}

// close removes the directory, unless it is kept, and lets go of the manifest.
func (r *run) close(keep bool) error {
	defer r.manifest.Close()
	if keep {
		return os.Remove(r.manifest.Name()) // it is nobody's now: no sweep may take it
	}
	return removeRun(r.dir)
}

// removeRun removes a directory with the manifest as the last of it, so that a removal
// that was cut short is taken up by the next sweep.
func removeRun(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	errs := []error{err}
	for _, e := range entries {
		if e.Name() != manifestName {
			errs = append(errs, os.RemoveAll(filepath.Join(dir, e.Name())))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("chaos: %w", err)
	}
	return os.RemoveAll(dir)
}

// Sweep removes what runs with that Config.Dir have left whose process is gone: it ends
// processes, unmounts, frees loop devices and removes directories, all as the manifests
// say. New calls it.
func Sweep(in string) error {
	dirs, err := filepath.Glob(filepath.Join(cmp.Or(in, os.TempDir()), runPrefix+"*"))
	if err != nil {
		return err
	}
	var errs []error
	for _, dir := range dirs {
		errs = append(errs, sweep(dir))
	}
	return errors.Join(errs...)
}

func sweep(dir string) error {
	f, err := os.OpenFile(filepath.Join(dir, manifestName), os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) {
		return nil // just being made, kept for a person, or somebody else's
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if lockFile(f) != nil {
		return nil // its owner lives
	}
	text, err := os.ReadFile(f.Name())
	if err != nil {
		return err
	}
	var entries []entry
	for line := range strings.Lines(string(text)) {
		var e entry
		if json.Unmarshal([]byte(line), &e) == nil { // else cut short as its owner died
			entries = append(entries, e)
		}
	}
	var errs []error
	for _, e := range entries {
		if e.Made == madeFreeze {
			errs = append(errs, thawStray(e.Path))
		}
	}
	for _, e := range entries {
		if e.Made == madeProcess && e.PID > 0 && e.Since != "" && startedAt(e.PID) == e.Since {
			errs = append(errs, killStray(e.PID))
		}
	}
	errs = append(errs, unmountBelow(dir), freeLoopsBelow(dir))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("chaos: sweep %s: %w", dir, err)
	}
	return removeRun(dir)
}
