package store

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/dgraph-io/badger/v4"
	boptions "github.com/dgraph-io/badger/v4/options"
	"github.com/dgraph-io/badger/v4/table"
	"github.com/dgraph-io/ristretto/v2/z"
)

// instance is one Badger directory that is open.
type instance struct {
	db  *badger.DB
	dir string
	log *badgerLog
}

// badgerLog hands Badger's log on, and catches what Badger only logs: a failed
// fsync of the value log, after which it confirms all the same.
type badgerLog struct {
	log     *slog.Logger
	syncErr atomic.Pointer[error]
}

func (l *badgerLog) Errorf(format string, args ...any) {
	text := strings.TrimSpace(fmt.Sprintf(format, args...))
	switch {
	case strings.HasPrefix(format, "Error while curlf sync"):
		err := errors.New(text)
		l.syncErr.CompareAndSwap(nil, &err)
	case strings.HasPrefix(format, "Unable to read"), strings.HasPrefix(format, "Key:"):
		return // a damaged value: the checksums tell, and it is reported as damage
	}
	l.log.Error("badger", "text", text)
}

func (l *badgerLog) Warningf(format string, args ...any) {
	l.log.Warn("badger", "text", strings.TrimSpace(fmt.Sprintf(format, args...)))
}
func (l *badgerLog) Infof(string, ...any)  {}
func (l *badgerLog) Debugf(string, ...any) {}

func (l *badgerLog) failed() error {
	if p := l.syncErr.Load(); p != nil {
		return *p
	}
	return nil
}

// How Badger is set; research behind it was measured. Batches are always in the value log (a batch
// is at least its header); records are always in the tree. So is the record of the last group of a segment:
// in the value log it could be torn while its key is whole, and the segment would not open.
const (
	memTableBytes  = 8 << 20
	dataThreshold  = 96
	metaThreshold  = 1 << 20 // of MaxValueBytes and its checksum
	metaVlogBytes  = 16 << 20
	metaCacheBytes = 8 << 20
	dataCacheBytes = 1 << 20
)

func dataOptions(o *Options, dir string) badger.Options {
	return commonOptions(o, dir).
		WithValueThreshold(dataThreshold).
		WithValueLogFileSize(max(o.SegmentBytes, 16<<20)).
		WithValueLogMaxEntries(1 << 30). // one file, whatever the batches
		WithNumCompactors(0).WithNumLevelZeroTables(1000).WithNumLevelZeroTablesStall(2000).
		WithBlockCacheSize(dataCacheBytes)
}

func metaOptions(o *Options, dir string) badger.Options {
	return commonOptions(o, dir).
		WithValueThreshold(metaThreshold).
		WithValueLogFileSize(metaVlogBytes).
		WithNumCompactors(2).WithNumLevelZeroTables(2).WithNumLevelZeroTablesStall(10).
		WithBlockCacheSize(metaCacheBytes)
}

func commonOptions(o *Options, dir string) badger.Options {
	return badger.DefaultOptions(dir).
		WithSyncWrites(o.Sync == SyncAlways).
		WithMemTableSize(memTableBytes).WithNumMemtables(2).
		WithIndexCacheSize(0).WithCompression(boptions.None).
		WithDetectConflicts(false).WithMetricsEnabled(false).WithNumVersionsToKeep(1).
		WithVerifyValueChecksum(true). // else a damaged length in the value log panics with a lock held
		WithBypassLockGuard(true)      // the directory has one lock of its own
}

// openInstance opens a Badger directory so that damage to it is an error: nothing
// is cut off or removed by Badger that could still be read.
func openInstance(o badger.Options, log *slog.Logger) (_ *instance, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("open %s: panic: %v", o.Dir, p)
			log.Debug("badger panicked", "dir", o.Dir, "panic", p, "stack", string(debug.Stack()))
		}
	}()
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, err
	}
	if !o.ReadOnly {
		if err := removeEmpty(o.Dir); err != nil {
			return nil, err
		}
	}
	if err := checkTables(o); err != nil {
		return nil, fmt.Errorf("open %s: %w", o.Dir, err)
	}
	if !o.ReadOnly {
		if err := shieldValueLog(o.Dir); err != nil {
			return nil, err
		}
	}
	in := &instance{dir: o.Dir, log: &badgerLog{log: log.With("dir", o.Dir)}}
	in.db, err = badger.Open(o.WithLogger(in.log))
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", o.Dir, err)
	}
	return in, nil
}

// close may take tens of milliseconds: Badger flushes its memtable.
func (in *instance) close() (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("close %s: panic: %v", in.dir, p)
		}
	}()
	return errors.Join(in.db.Close(), in.log.failed())
}

// removeEmpty removes what a kill between truncate and unlink leaves: Badger
// refuses to open with it.
func removeEmpty(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if ext := filepath.Ext(e.Name()); ext != ".vlog" && ext != ".mem" {
			continue
		}
		if info, err := e.Info(); err == nil && info.Size() == 0 {
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// hasMemtables tells whether the directory was left without Close.
func hasMemtables(dir string) bool {
	mems, _ := filepath.Glob(filepath.Join(dir, "*.mem"))
	return len(mems) > 0
}

// checkTables reads all tables that the MANIFEST names, with their checksums.
// Badger would read damaged ones silently, or panic in a goroutine of its own,
// where nobody can recover.
func checkTables(o badger.Options) error {
	f, err := os.Open(filepath.Join(o.Dir, badger.ManifestFilename))
	if errors.Is(err, fs.ErrNotExist) {
		if tables, _ := filepath.Glob(filepath.Join(o.Dir, "*.sst")); len(tables) > 0 {
			return fmt.Errorf("%d tables without a MANIFEST: %w", len(tables), errDamaged)
		}
		return nil
	}
	if err != nil {
		return err
	}
	manifest, end, err := badger.ReplayManifestFile(f, o.ExternalMagicVersion, o)
	info, serr := f.Stat()
	if err = errors.Join(err, serr, f.Close()); err != nil {
		return fmt.Errorf("MANIFEST: %w: %w", errDamaged, err)
	}
	unclean := hasMemtables(o.Dir)
	if end < info.Size() && !unclean {
		return fmt.Errorf("MANIFEST ends within a record: %w", errDamaged)
	}
	names, err := filepath.Glob(filepath.Join(o.Dir, "*.sst"))
	if err != nil {
		return err
	}
	here := make(map[uint64]struct{}, len(names))
	for _, name := range names {
		id, ok := table.ParseFileID(filepath.Base(name))
		if !ok {
			continue
		}
		here[id] = struct{}{}
		// A table that is not yet, or no longer, listed is left by a kill; with it a
		// memtable. Otherwise the MANIFEST has lost its end, and Badger would remove the tables.
		if _, listed := manifest.Tables[id]; !listed && !unclean {
			return fmt.Errorf("table %d is not in the MANIFEST: %w", id, errDamaged)
		}
	}
	for id := range manifest.Tables {
		if _, ok := here[id]; !ok {
			return fmt.Errorf("table %d is missing: %w", id, errDamaged)
		}
		if err := checkTable(table.NewFilename(id, o.Dir)); err != nil {
			return fmt.Errorf("table %d: %w", id, err)
		}
	}
	return nil
}

func checkTable(name string) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: panic while it was read", errDamaged)
		}
	}()
	f, err := z.OpenMmapFile(name, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	t, err := table.OpenTable(f, table.Options{ReadOnly: true, BlockSize: 4 << 10, ChkMode: boptions.OnTableRead})
	if err != nil {
		return fmt.Errorf("%w: %w", errDamaged, err)
	}
	return t.Close(-1)
}

// shieldValueLog adds an empty value log file after the last. Badger reads the
// last file at Open and cuts it at the first entry that it cannot read: one
// flipped byte would cost all batches behind it.
func shieldValueLog(dir string) error {
	names, err := filepath.Glob(filepath.Join(dir, "*.vlog"))
	if err != nil || len(names) == 0 {
		return err
	}
	last := 0
	for _, name := range names {
		id, err := strconv.Atoi(strings.TrimSuffix(filepath.Base(name), ".vlog"))
		if err != nil {
			return fmt.Errorf("value log %s: %w", name, errDamaged)
		}
		last = max(last, id)
	}
	// 20 bytes: no key, and a random number that only encryption uses.
	path := filepath.Join(dir, fmt.Sprintf("%06d.vlog", last+1))
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(make([]byte, 20))
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return syncDir(dir)
}
