package store

import (
	"bytes"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/meshq/meshq/transport/wire"
)

// filled makes a directory with sealed segments and tables, and says what is in it.
func filled(t *testing.T) (dir string, m *model, sc *script) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "data")
	m, sc = newModel(), newScript(7, 20_000)
	for range 2 {
		s, _ := mustOpen(t, Options{Dir: dir, ScrubRate: -1})
		for range 120 {
			ops := slices.DeleteFunc(sc.next(), func(op wire.Op) bool { return op.Kind == wire.OpFree })
			mustCommit(t, m, ops...)
			mustCommit(t, s, ops...)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return dir, m, sc
}

func copyDir(t *testing.T, from string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "copy")
	if out, err := exec.Command("cp", "-r", "--sparse=always", from, to).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v: %s", err, out)
	}
	return to
}

// reports collects what a store reports as damaged.
type reports struct {
	mu         sync.Mutex
	all        bool
	partitions map[wire.PartitionID]bool
	runs       map[laneKey]*wire.Runs
	scrubbed   chan struct{}
	once       sync.Once
}

func newReports() *reports {
	return &reports{partitions: make(map[wire.PartitionID]bool), runs: make(map[laneKey]*wire.Runs), scrubbed: make(chan struct{})}
}

func (r *reports) add(p wire.PartitionID, l wire.Lane, runs wire.Runs) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case len(runs) > 0:
		k := laneKey{p, l}
		if r.runs[k] == nil {
			r.runs[k] = &wire.Runs{}
		}
		r.runs[k].AddAll(runs)
	case p == 0:
		r.all = true
	default:
		r.partitions[p] = true
	}
}

func (r *reports) cut(label string) {
	if label == "scrubbed" {
		r.once.Do(func() { close(r.scrubbed) })
	}
}

func (r *reports) wait(t *testing.T) {
	t.Helper()
	select {
	case <-r.scrubbed:
	case <-time.After(30 * time.Second):
		t.Fatal("no pass of the scrubber within 30 s")
	}
}

// checkDamaged opens a directory that was tampered with. It must open, never give a wrong
// byte, and report all that is not there any more. It tells whether anything was reported.
func checkDamaged(t *testing.T, dir string, m *model, ends map[laneKey]wire.Offset, read bool) bool {
	t.Helper()
	r := newReports()
	o := Options{Dir: dir, OnDamage: r.add, cut: r.cut, ScrubFirstRate: 1 << 30}
	if read {
		o.ScrubRate = -1 // find it by reading
	}
	s, rec := mustOpen(t, o)
	defer func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	}()
	if !read {
		r.wait(t)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	any := rec.DamagedAll || len(rec.Damaged) > 0 || r.all || len(r.partitions) > 0 || len(r.runs) > 0
	known := rec.DamagedAll || r.all
	for k := range ends {
		got, damaged, err := s.Read(k.partition, k.lane, all, 1<<30)
		if err != nil {
			t.Fatal(err)
		}
		any = any || len(damaged) > 0
		lane := m.lane(k)
		var have wire.Runs
		for _, b := range got {
			i := slices.IndexFunc(lane.batches, func(w wire.Batch) bool { return w.Base == b.Base })
			if i < 0 || lane.batches[i].BatchHeader != b.BatchHeader || !bytes.Equal(lane.batches[i].Records, b.Records) {
				t.Fatalf("%v: wrong batch at %d", k, b.Base)
			}
			have.Add(b.Run())
		}
		if runs := r.runs[k]; runs != nil {
			have.AddAll(*runs)
		}
		have.AddAll(damaged)
		if missing := lane.live.Minus(have); len(missing) > 0 && !known && !r.partitions[k.partition] && !slices.Contains(rec.Damaged, k.partition) {
			t.Errorf("%v: %v is gone and was not reported", k, missing)
		}
	}
	records, _, err := s.Scan(nil, nil, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range records {
		want, ok := m.records[string(x.Key)]
		if ok && bytes.Equal(want, x.Value) {
			continue
		}
		// Where the end of the log is lost, what was true before it comes back.
		if !known || !m.history[string(x.Key)+"="+string(x.Value)] {
			t.Errorf("wrong record %q", x.Key)
		}
	}
	if len(records) != len(m.records) && !known {
		t.Errorf("%d records of %d, and it was not reported", len(records), len(m.records))
	}
	return any
}

// files lists all non-empty files below dir, relative.
func files(t *testing.T, dir string) (out []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if info, err := d.Info(); err == nil && info.Size() > 0 {
			rel, _ := filepath.Rel(dir, path)
			out = append(out, rel)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func flip(t *testing.T, path string, at int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	var b [1]byte
	if _, err := f.ReadAt(b[:], at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1 << rand.IntN(8)
	if _, err := f.WriteAt(b[:], at); err != nil {
		t.Fatal(err)
	}
}

// TestFlippedByte flips a byte in each file of a closed store, at its ends and
// somewhere between.
func TestFlippedByte(t *testing.T) {
	dir, m, sc := filled(t)
	for i, name := range files(t, dir) {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		places := map[string]int64{"head": rand.Int64N(min(20, info.Size())), "middle": rand.Int64N(info.Size()), "tail": info.Size() - 1 - rand.Int64N(min(40, info.Size()))}
		for where, at := range places {
			if testing.Short() && where != "middle" {
				continue
			}
			t.Run(fmt.Sprintf("%s/%s", strings.ReplaceAll(name, "/", "_"), where), func(t *testing.T) {
				bad := copyDir(t, dir)
				flip(t, filepath.Join(bad, name), at)
				found := checkDamaged(t, bad, m, sc.ends, i%2 == 0)
				t.Logf("byte %d of %d: reported: %v", at, info.Size(), found)
				if strings.HasSuffix(name, ".vlog") && at > 20 && info.Size() > 100 && !found {
					// Batches fill the file; only Badger's own framing of them is not covered by their checksums.
					t.Log("nothing was reported: the byte is of no batch")
				}
			})
		}
	}
}

// TestFlippedByteUnclean does the same to what a killed process leaves.
func TestFlippedByteUnclean(t *testing.T) {
	dir := t.TempDir()
	data, notes := filepath.Join(dir, "data"), filepath.Join(dir, "journal")
	runChild(t, data, notes, "before callbacks", 100, 3)
	j := readJournal(t, notes)
	// What the group under way when it was killed did is known from the store itself.
	s, rec := mustOpen(t, Options{Dir: copyDir(t, data), ScrubRate: -1})
	reached := 0
	for _, r := range rec.Records {
		if string(r.Key) == "n" {
			if _, err := fmt.Sscan(string(r.Value), &reached); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if reached < j.done {
		t.Fatalf("%d of %d", reached, j.done)
	}
	m, sc := newModel(), newScript(3, 30_000)
	for range reached {
		mustCommit(t, m, sc.next()...)
	}
	for i, name := range files(t, data) {
		ext := filepath.Ext(name)
		if ext != ".mem" && (ext != ".vlog" || i%3 > 0) {
			continue
		}
		b, err := os.ReadFile(filepath.Join(data, name))
		if err != nil {
			t.Fatal(err)
		}
		used := int64(len(bytes.TrimRight(b, "\x00")))
		for i, at := range []int64{rand.Int64N(max(used, 1)), max(0, used-10)} {
			if testing.Short() && i > 0 {
				continue
			}
			t.Run(fmt.Sprintf("%s/%d", strings.ReplaceAll(name, "/", "_"), at), func(t *testing.T) {
				bad := copyDir(t, data)
				flip(t, filepath.Join(bad, name), at)
				checkDamaged(t, bad, m, sc.ends, i%2 == 0)
			})
		}
	}
}

// TestPartsMissing takes away whole parts.
func TestPartsMissing(t *testing.T) {
	dir, m, sc := filled(t)
	segments, err := os.ReadDir(filepath.Join(dir, "segments"))
	if err != nil {
		t.Fatal(err)
	}
	parts := []string{"meta", "watermark", "identity", "segments/" + segments[0].Name(), "segments/" + segments[len(segments)-1].Name()}
	for _, name := range files(t, dir) {
		if ext := filepath.Ext(name); ext == ".sst" || ext == ".vlog" || filepath.Base(name) == "MANIFEST" || filepath.Base(name) == "summary" {
			parts = append(parts, name)
		}
	}
	for i, name := range parts {
		t.Run(strings.ReplaceAll(name, "/", "_"), func(t *testing.T) {
			bad := copyDir(t, dir)
			if err := os.RemoveAll(filepath.Join(bad, name)); err != nil {
				t.Fatal(err)
			}
			checkDamaged(t, bad, m, sc.ends, i%2 == 0)
		})
		if info, err := os.Stat(filepath.Join(dir, name)); err == nil && !info.IsDir() {
			t.Run(strings.ReplaceAll(name, "/", "_")+"_cut", func(t *testing.T) {
				bad := copyDir(t, dir)
				if err := os.Truncate(filepath.Join(bad, name), rand.Int64N(info.Size())); err != nil {
					t.Fatal(err)
				}
				checkDamaged(t, bad, m, sc.ends, i%2 == 1)
			})
		}
	}
}

// TestIdentityGone: a directory that does not know who it is becomes a new node.
func TestIdentityGone(t *testing.T) {
	dir, _, _ := filled(t)
	before, err := loadIdentity(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range identityFiles {
		flip(t, filepath.Join(dir, name), 10)
	}
	s, rec := mustOpen(t, Options{Dir: dir})
	defer func() { _ = s.Close() }()
	if rec.Node == before.node || rec.Boot != 1 || !rec.DamagedAll || len(rec.Records) > 0 || len(rec.Refs) > 0 {
		t.Errorf("recovered %+v", rec)
	}
}

// TestRepair: a good copy of a damaged batch is taken again, wins over the bad
// one, and stays good through the next boots.
func TestRepair(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	s, _ := mustOpen(t, Options{Dir: dir, ScrubRate: -1})
	a, b, c := testBatch(5, laneA, 0, 4, 3000), testBatch(5, laneA, 4, 4, 3000), testBatch(5, laneA, 8, 4, 3000)
	mustCommit(t, s, batchOp(a), batchOp(b), batchOp(c))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	vlogs, _ := filepath.Glob(filepath.Join(dir, "segments", "*", "*.vlog"))
	hit := false
	for _, path := range vlogs {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if at := bytes.Index(data, b.Records); at >= 0 {
			flip(t, path, int64(at+1500))
			hit = true
		}
	}
	if !hit {
		t.Fatal("the batch is in no value log")
	}
	r := newReports()
	s, rec := mustOpen(t, Options{Dir: dir, OnDamage: r.add, cut: r.cut})
	if rec.DamagedAll || len(rec.Refs) != 1 || rec.Refs[0].Count != 12 {
		t.Fatalf("recovered %+v", rec)
	}
	r.wait(t)
	r.mu.Lock()
	if runs := r.runs[laneKey{5, laneA}]; runs == nil || !runs.Equal(wire.Runs{b.Run()}) {
		t.Fatalf("reported %v", r.runs)
	}
	r.mu.Unlock()
	wantBatches(t, s, 5, laneA, all, 1<<20, a, c)
	if u := s.Usage(); u.Damaged != 1 {
		t.Errorf("%d damaged", u.Damaged)
	}
	mustCommit(t, s, batchOp(b))
	wantBatches(t, s, 5, laneA, all, 1<<20, a, b, c)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	r = newReports()
	s, rec = mustOpen(t, Options{Dir: dir, OnDamage: r.add, cut: r.cut})
	defer func() { _ = s.Close() }()
	r.wait(t)
	if len(r.runs) > 0 || len(rec.Refs) != 1 || rec.Refs[0].Count != 12 {
		t.Errorf("after the repair: reported %v, recovered %+v", r.runs, rec)
	}
	wantBatches(t, s, 5, laneA, all, 1<<20, a, b, c)
}

// TestDamageIsRepeated: until a commit is done, the next boot reports it again.
func TestDamageIsRepeated(t *testing.T) {
	dir, _, _ := filled(t)
	if err := os.RemoveAll(filepath.Join(dir, "meta")); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		// The store's own commits (summaries of the last head) must not count.
		s, rec := mustOpen(t, Options{Dir: dir})
		if !rec.DamagedAll {
			t.Error("not reported")
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	s, rec := mustOpen(t, Options{Dir: dir})
	if !rec.DamagedAll {
		t.Error("not reported")
	}
	mustCommit(t, s, putOp("noted", nil))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s, rec = mustOpen(t, Options{Dir: dir})
	defer func() { _ = s.Close() }()
	if rec.DamagedAll || len(rec.Damaged) > 0 {
		t.Errorf("reported after a commit: %+v", rec)
	}
}

// TestOlderCopy: a directory that was put back to an earlier state, but for its watermark, is noticed.
func TestOlderCopy(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	s, _ := mustOpen(t, Options{Dir: dir})
	mustCommit(t, s, putOp("a", nil), batchOp(testBatch(5, laneA, 0, 4, 3000)))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	old := copyDir(t, dir)
	s, _ = mustOpen(t, Options{Dir: dir})
	n := mustCommit(t, s, putOp("b", nil))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(dir, "meta")); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(filepath.Join(dir, "meta"), os.DirFS(filepath.Join(old, "meta"))); err != nil {
		t.Fatal(err)
	}
	s, rec := mustOpen(t, Options{Dir: dir})
	defer func() { _ = s.Close() }()
	if !rec.DamagedAll || rec.Commit >= n {
		t.Errorf("recovered %+v after commit %d", rec, n)
	}
	if next := mustCommit(t, s, putOp("c", nil)); next <= n {
		t.Errorf("commit %d after %d", next, n)
	}
}

// TestKilledWhileMended: a batch of which some offsets were freed is committed again, and the process is killed
// within. The group is left out; the batch that was there before it is not.
func TestKilledWhileMended(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	var left string
	s, _ := mustOpen(t, Options{Dir: dir, ScrubRate: -1, cut: func(label string) {
		if label == "before meta commit" {
			left = copyDir(t, dir) // the last time: within the second commit
		}
	}})
	a, b, c := testBatch(5, laneA, 0, 4, 3000), testBatch(5, laneA, 4, 4, 3000), testBatch(5, laneA, 8, 4, 3000)
	n := mustCommit(t, s, batchOp(a), batchOp(b), putOp("k", []byte("1")))
	mustCommit(t, s, freeOp(5, laneA, 0, 2))
	mustCommit(t, s, batchOp(a), batchOp(c), putOp("k", []byte("2")))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time by its summary
		s, rec := mustOpen(t, Options{Dir: left, ScrubRate: -1})
		if rec.DamagedAll || rec.Commit < n || len(rec.Records) != 1 || string(rec.Records[0].Value) != "1" {
			t.Errorf("recovered %+v after commit %d", rec, n)
		}
		wantBatches(t, s, 5, laneA, all, 1<<20, a, b)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestTornValueLog: what is torn of a value log is damage of the batches in it, and costs no others.
func TestTornValueLog(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	s, _ := mustOpen(t, Options{Dir: dir, ScrubRate: -1})
	a, b := testBatch(5, laneA, 0, 4, 3000), testBatch(5, laneA, 4, 4, 3000)
	mustCommit(t, s, batchOp(a))
	before := copyDir(t, dir)
	mustCommit(t, s, batchOp(b))
	left := copyDir(t, dir)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, name := range files(t, before) {
		if strings.HasPrefix(name, "segments/00000001/") && filepath.Ext(name) == ".vlog" {
			if err := os.Rename(filepath.Join(before, name), filepath.Join(left, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	s, rec := mustOpen(t, Options{Dir: left, ScrubRate: -1})
	defer func() { _ = s.Close() }()
	if rec.DamagedAll || len(rec.Refs) != 1 || rec.Refs[0].Count != 8 {
		t.Errorf("recovered %+v", rec)
	}
	got, damaged, err := s.Read(5, laneA, all, 1<<20)
	if err != nil || len(got) != 1 || got[0].Base != 0 || !damaged.Equal(wire.Runs{b.Run()}) {
		t.Errorf("read %d batches, damaged %v, %v", len(got), damaged, err)
	}
}
