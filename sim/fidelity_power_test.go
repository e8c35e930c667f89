package sim

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cespare/xxhash/v2"

	"github.com/meshq/meshq/store"
	"github.com/meshq/meshq/transport/wire"
)

// These tests make the directories that a power cut, a kill or a lying disk leaves of the real
// store, from pictures of its files before and after a commit: of the file that is being
// written some sectors are new, of those that come after it in the order of the store's fsyncs
// none. No privileges are needed, and every moment of a commit is within reach.

var powerSeeds = flag.Int("power.seeds", 4, "how many sequences each test of power cuts tries")

// picture is what the files of a store hold at one moment, by path in its directory.
type picture map[string]filmed

type filmed struct {
	size int64
	data []byte // without the zeros at its end
}

// zerosEnd is how many zeros end what Badger has written of a file that it made larger beforehand.
const zerosEnd = 1 << 20

// takePicture is of what is in dir now. The store may be preparing its next segment: where a
// file goes meanwhile, the picture is taken again.
func takePicture(t testing.TB, dir string) picture {
	t.Helper()
	for try := 0; ; try++ {
		p, err := filesOf(dir)
		if err == nil {
			return p
		}
		if !errors.Is(err, fs.ErrNotExist) || try > 100 {
			t.Fatal(err)
		}
	}
}

// filesOf is what is in the files of a directory.
func filesOf(dir string) (picture, error) {
	p := picture{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || e.Name() == "LOCK" {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }()
		info, err := f.Stat()
		if err != nil {
			return err
		}
		var data []byte
		buf := make([]byte, zerosEnd)
		for int64(len(data)) < info.Size() {
			n, err := f.ReadAt(buf, int64(len(data)))
			part := buf[:n]
			if len(bytes.TrimRight(part, "\x00")) == 0 {
				break
			}
			if data = append(data, part...); err != nil {
				break // its end
			}
		}
		name, err := filepath.Rel(dir, path)
		p[filepath.ToSlash(name)] = filmed{info.Size(), bytes.TrimRight(data, "\x00")}
		return err
	})
	return p, err
}

// put makes a directory that holds p.
func (p picture) put(t testing.TB) (dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "data")
	for name, f := range p {
		path := filepath.Join(dir, filepath.FromSlash(name))
		err := os.MkdirAll(filepath.Dir(path), 0o700)
		if err == nil {
			err = os.WriteFile(path, f.data, 0o600)
		}
		if err == nil {
			err = os.Truncate(path, f.size)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// at is the file with zeros up to n.
func (f filmed) at(n int) []byte {
	return append(slices.Clone(f.data), make([]byte, max(0, n-len(f.data)))...)
}

// blend is old, but that what take says of the pieces in which it differs is as in the new one. Pieces
// are sectors, or bytes.
func blend(old, young filmed, piece int, take func() bool) filmed {
	n := max(len(old.data), len(young.data))
	out, want := old.at(n), young.at(n)
	for i := 0; i < n; i += piece {
		j := min(i+piece, n)
		if !bytes.Equal(out[i:j], want[i:j]) && take() {
			copy(out[i:j], want[i:j])
		}
	}
	return filmed{max(old.size, young.size), bytes.TrimRight(out, "\x00")}
}

const sector = 512

// The steps of a commit: each ends with an fsync, but for the last.
const (
	stepBodies    = iota // the value log of the segment
	stepBatches          // the log of its keys
	stepRecords          // the log of the records
	stepWatermark        // what was confirmed
	steps
)

var stepNames = [steps]string{"bodies", "batches", "records", "watermark"}

// stepOf is the step in which a file is written; false: in none.
func stepOf(name string) (step int, ok bool) {
	switch ext := filepath.Ext(name); {
	case strings.HasPrefix(name, "segments/") && ext == ".vlog":
		return stepBodies, true
	case strings.HasPrefix(name, "segments/") && ext == ".mem":
		return stepBatches, true
	case strings.HasPrefix(name, "meta/") && ext == ".mem":
		return stepRecords, true
	case name == "watermark":
		return stepWatermark, true
	}
	return 0, false
}

// within is the directory within a step of the commit between old and young: the files of the steps
// before it are new, those after it old, and those of the step what some makes of them.
func within(old, young picture, step int, some func(old, young filmed) filmed) picture {
	out := maps.Clone(young)
	for name, o := range old {
		switch s, ok := stepOf(name); {
		case !ok || s > step:
			out[name] = o
		case s == step:
			out[name] = some(o, young[name])
		}
	}
	return out
}

// oneLife is a store that has done commits one by one, and the same in the model's words.
type oneLife struct {
	log      []diskGroup // a commit each
	pictures []picture   // of the last commits: the last has all, each before one less
}

// lastCommits is of how many commits there are pictures.
const lastCommits = 4

// liveOnce lets a store do so many commits.
func liveOnce(t testing.TB, seed, commits int, mode store.SyncMode) *oneLife {
	t.Helper()
	o := realOptions(filepath.Join(t.TempDir(), "data"))
	o.Sync = mode
	dir := o.Dir
	s, _, err := store.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	l := &oneLife{}
	for i := range commits {
		if i >= commits-lastCommits {
			l.pictures = append(l.pictures, takePicture(t, dir))
		}
		ops := killedOps(seed, i)
		number, err := commitReal(s, ops)
		if err != nil {
			t.Fatal(err)
		}
		if number != uint64(i+1) {
			t.Fatalf("commit %d has the number %d: something else is in the pictures", i+1, number)
		}
		l.log = append(l.log, diskGroup{commit: number, segment: 1, ops: ops})
	}
	l.pictures = append(l.pictures, takePicture(t, dir))
	return l
}

// before is the picture with so many commits less than all.
func (l *oneLife) before(commits int) picture { return l.pictures[len(l.pictures)-1-commits] }

// opened is what a store finds in a directory, and what can be read of it.
type opened struct {
	rec     *store.Recovered
	batches map[diskLane][]wire.Batch
	damaged map[diskLane]wire.Runs
	next    uint64 // number of a commit that is done then
}

func openReal(t testing.TB, o store.Options) opened {
	t.Helper()
	s, rec, err := store.Open(o)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	}()
	x := opened{rec: rec, batches: map[diskLane][]wire.Batch{}, damaged: map[diskLane]wire.Runs{}}
	for _, p := range slotPartitions {
		for _, l := range slotLanes {
			k := diskLane{p, l}
			var bad wire.Runs
			if x.batches[k], bad, err = s.Read(p, l, wire.Runs{wire.Span(0, slots*slotWidth)}, 1<<30); err != nil {
				t.Fatalf("read: %v", err)
			}
			if len(bad) > 0 {
				x.damaged[k] = bad
			}
		}
	}
	if x.next, err = commitReal(s, []wire.Op{{Kind: wire.OpPut, Key: []byte("next"), Value: []byte("life")}}); err != nil {
		t.Fatalf("commit: %v", err)
	}
	return x
}

// agrees tells how what was found differs from one state of the model: "" if not at all. Where bad says
// so of a batch, it may be damaged, which is found when it is read.
func (x *opened) agrees(c contents, told bool, bad func(k diskLane, b *diskBatch) bool) string {
	found := offsetsOf(x.rec.Refs)
	c = c.clone()
	c.reopen(func(k diskLane, b *diskBatch) bool {
		_, ok := found[offsetKey{k.partition, k.lane, b.Base}]
		return ok
	})
	if told != x.rec.DamagedAll || len(x.rec.Damaged) > 0 {
		return fmt.Sprintf("damaged: %t %v, the model says %t", x.rec.DamagedAll, x.rec.Damaged, told)
	}
	if want := c.loaded(); !slices.EqualFunc(x.rec.Records, want, sameRecord) {
		return fmt.Sprintf("records %s, the model has %s", recordsText(x.rec.Records), recordsText(want))
	}
	if want := offsetsOf(c.refs(func(*diskBatch) bool { return true })); !equalMaps(found, want) {
		return fmt.Sprintf("batches %v, the model has %v", found, want)
	}
	for k, list := range c.lanes {
		for i := range list {
			if b := &list[i]; len(x.damaged[k].Intersect(wire.Runs{b.Run()})) > 0 && bad != nil && bad(k, b) {
				b.bad = true
			}
		}
	}
	for _, p := range slotPartitions {
		for _, l := range slotLanes {
			k := diskLane{p, l}
			want, damaged := c.read(k, wire.Runs{wire.Span(0, slots*slotWidth)}, 1<<30)
			same := slices.EqualFunc(x.batches[k], want, func(a, b wire.Batch) bool {
				return a.BatchHeader == b.BatchHeader && bytes.Equal(a.Records, b.Records)
			})
			if !same || !x.damaged[k].Equal(damaged) {
				return fmt.Sprintf("read %v, damaged %v; the model: %v, damaged %v", batchesText(x.batches[k]), x.damaged[k], batchesText(want), damaged)
			}
		}
	}
	return ""
}

// among looks for what was found among the states of the model; without it, why tells of each.
func (x *opened) among(base *contents, log []diskGroup, states []survivor, bad func(s survivor) func(k diskLane, b *diskBatch) bool) (s survivor, why string) {
	var all strings.Builder
	for _, s := range states {
		var b func(k diskLane, b *diskBatch) bool
		if bad != nil {
			b = bad(s)
		}
		why := x.agrees(replay(base, log, s.records, s.batches), s.told, b)
		if why == "" {
			return s, ""
		}
		fmt.Fprintf(&all, "\n  %+v: %s", s, why)
	}
	return survivor{}, "none of the states of the model:" + all.String()
}

// TestTornAgrees: what a power cut, a kill, or a disk that lies leaves of the files of the real
// store is a state that the model may leave.
func TestTornAgrees(t *testing.T) {
	if testing.Short() {
		t.Skip("opens many stores: not with -short")
	}
	for seed := range *powerSeeds {
		t.Run(strconv.Itoa(seed), func(t *testing.T) {
			l := liveOnce(t, 100+seed, 20+7*seed, store.SyncAlways)
			r := rand.New(rand.NewPCG(uint64(seed), 1))
			n := len(l.log)
			old, young := l.before(1), l.before(0)
			coin := func() bool { return r.IntN(2) == 0 }
			some := func(o, y filmed) filmed { return blend(o, y, sector, coin) }
			prefix := func(o, y filmed) filmed {
				total := 0
				blend(o, y, 1, func() bool { total++; return false })
				left := r.IntN(total + 1)
				return blend(o, y, 1, func() bool { left--; return left >= 0 })
			}
			under := ended{synced: n - 1, confirmed: n - 1, written: n}
			for step := range steps {
				t.Run("power cut within "+stepNames[step], func(t *testing.T) {
					l.check(t, within(old, young, step, some), survivors(unpowered, under, l.log, 0), nil)
				})
				t.Run("kill within "+stepNames[step], func(t *testing.T) {
					l.check(t, within(old, young, step, prefix), survivors(killed, under, l.log, 0), nil)
				})
			}

			// All is confirmed, and the disk has lied: some sectors are as they were.
			all := ended{synced: n, confirmed: n, written: n}
			unhurt := survivor{n, n, false} // where what was torn is of no group
			for step := range stepWatermark {
				t.Run("torn "+stepNames[step], func(t *testing.T) {
					states := append(survivors(torn, all, l.log, 0), unhurt)
					l.check(t, lying(old, young, step, some), states, func(survivor) func(diskLane, *diskBatch) bool {
						return l.bodiesOf(n-1, n) // damaged: what a flipped bit in a batch is in the model
					})
				})
			}
			for step := stepBatches; step <= stepRecords; step++ {
				lose := 2 + r.IntN(lastCommits-1)
				t.Run(fmt.Sprintf("the log of %s ends %d groups before", stepNames[step], lose), func(t *testing.T) {
					before := func(o, _ filmed) filmed { return o }
					states := append(survivors(torn, all, l.log, lose), unhurt)
					for k := range lose { // not each group has written to that log
						states = append(states, survivors(torn, all, l.log, k)...)
					}
					l.check(t, lying(l.before(lose), young, step, before), states, nil)
				})
			}
			lose := 1 + r.IntN(lastCommits)
			t.Run(fmt.Sprintf("forgets %d groups", lose), func(t *testing.T) {
				forgot := maps.Clone(l.before(lose))
				for name, f := range young { // what is in no log any more may be in the bodies
					if s, ok := stepOf(name); ok && s == stepBodies {
						forgot[name] = f
					}
				}
				l.check(t, forgot, survivors(forgetful, all, l.log, lose), nil)
			})
		})
	}
}

// lying is young, but for the files of a step: of those are the sectors that some leaves as they were.
func lying(old, young picture, step int, some func(young, old filmed) filmed) picture {
	out := maps.Clone(young)
	for name, o := range old {
		if s, ok := stepOf(name); ok && s == step {
			out[name] = some(young[name], o)
			if step != stepBodies && bytes.Equal(out[name].data, young[name].data) {
				out[name] = o
			}
		}
	}
	return out
}

// bodiesOf tells whether a batch is of the groups from up to but not including to.
func (l *oneLife) bodiesOf(from, to int) func(k diskLane, b *diskBatch) bool {
	return func(k diskLane, b *diskBatch) bool {
		for _, g := range l.log[from:to] {
			for i := range g.ops {
				if x := &g.ops[i].Batch; g.ops[i].Kind == wire.OpBatch && x.Base == b.Base && (diskLane{x.Partition, x.Lane}) == k {
					return true
				}
			}
		}
		return false
	}
}

// check opens a directory, and looks for what it finds among states.
func (l *oneLife) check(t *testing.T, p picture, states []survivor, bad func(s survivor) func(diskLane, *diskBatch) bool) (opened, survivor) {
	t.Helper()
	x := openReal(t, realOptions(p.put(t)))
	base := newContents()
	s, why := x.among(&base, l.log, states, bad)
	if why != "" {
		t.Fatal(why)
	}
	// A store that is not sure may count a group of which it left the batches out.
	if last := uint64(max(s.records, s.batches)); x.rec.Commit > uint64(len(l.log)) || !s.told && x.rec.Commit != last {
		t.Errorf("commit %d came back with %d groups", x.rec.Commit, last)
	}
	// Who is told of a number must not see it again.
	if last := uint64(len(l.log)); s.told && x.next <= last {
		t.Errorf("the number %d is used twice: the store knew of %d", x.next, last)
	}
	t.Logf("records of %d, batches of %d of %d groups, told: %t, damaged: %v", s.records, s.batches, len(l.log), s.told, x.damaged)
	return x, s
}

// TestBehindAgrees: where fsyncs are behind (sync: interval) a power cut leaves any sectors of what was
// written since the last of them. The store says so, and what of it is read is whole.
func TestBehindAgrees(t *testing.T) {
	if testing.Short() {
		t.Skip("opens many stores: not with -short")
	}
	for seed := range *powerSeeds {
		t.Run(strconv.Itoa(seed), func(t *testing.T) {
			l := liveOnce(t, 200+seed, 15+4*seed, store.SyncInterval)
			n := len(l.log)
			at := ended{synced: n - lastCommits, confirmed: n, written: n, interval: true}
			for try := range 4 {
				t.Run(strconv.Itoa(try), func(t *testing.T) {
					r := rand.New(rand.NewPCG(uint64(seed), uint64(try)))
					cut := maps.Clone(l.before(0))
					for name, o := range l.before(lastCommits) {
						if _, ok := stepOf(name); ok {
							share := r.IntN(101)
							cut[name] = blend(o, cut[name], sector, func() bool { return r.IntN(100) < share })
						}
					}
					for _, name := range []string{"identity", "identity.copy"} {
						cut[name] = ofAnotherMachine(cut[name])
					}
					l.check(t, cut, survivors(unpowered, at, l.log, 0), func(s survivor) func(diskLane, *diskBatch) bool {
						return l.bodiesOf(at.synced, s.batches)
					})
				})
			}
		})
	}
}

// ofAnotherMachine is an identity file as it is after the machine has started again.
func ofAnotherMachine(f filmed) filmed {
	b := f.at(int(f.size))
	b[24] ^= 1
	binary.BigEndian.PutUint64(b[56:], xxhash.Sum64(b[:56]))
	return filmed{f.size, b}
}

// TestOpenAgrees: a file or folder that is missing, empty, cut or garbage when the real store opens has one of
// the outcomes that the model has for it, and what is lost is told and kept aside.
func TestOpenAgrees(t *testing.T) {
	if testing.Short() {
		t.Skip("opens many stores: not with -short")
	}
	dir := filepath.Join(t.TempDir(), "data")
	x := newTwins(t, dir)
	defer func() { _ = x.real.Close() }()
	for boot := range 2 {
		if boot > 0 {
			x.reopen()
		}
		for i := range 12 {
			ops := slices.DeleteFunc(killedOps(300+boot, i), func(op wire.Op) bool { return op.Kind == wire.OpFree })
			x.do(ops)
		}
	}
	x.close()
	p, fake := takePicture(t, dir), x.fake
	names := append(slices.Sorted(maps.Keys(p)), "meta", "segments/00000001")
	identities := []string{"identity", "identity.copy"}
	r := rand.New(rand.NewPCG(1, 1))
	for _, name := range append(names, "identity and identity.copy") {
		for _, what := range []string{"missing", "empty", "cut", "garbage"} {
			_, isFile := p[name]
			hit := []string{name}
			if strings.Contains(name, " and ") {
				hit, isFile = identities, true
			}
			if !isFile && what != "missing" || isFile && p[hit[0]].size == 0 {
				continue
			}
			t.Run(what+" "+strings.ReplaceAll(name, "/", "_"), func(t *testing.T) {
				bad := maps.Clone(p)
				for _, h := range hit {
					f, ok := bad[h]
					switch {
					case !ok:
						maps.DeleteFunc(bad, func(k string, _ filmed) bool { return strings.HasPrefix(k, h+"/") })
					case what == "missing":
						delete(bad, h)
					case what == "empty":
						bad[h] = filmed{}
					case what == "cut":
						to := r.IntN(max(1, len(f.data)))
						bad[h] = filmed{int64(to), f.data[:to]}
					case what == "garbage":
						g := make([]byte, max(len(f.data), 64))
						for i := range g {
							g[i] = byte(r.Uint32())
						}
						bad[h] = filmed{f.size, g[:min(int64(len(g)), f.size)]}
					}
				}
				openHurt(t, fake, bad.put(t))
			})
		}
	}
}

// openHurt opens a directory of which a part is not what it was, and looks for what came of it among the
// outcomes of the model.
func openHurt(t *testing.T, d *disk, dir string) {
	var log bytes.Buffer
	o := realOptions(dir)
	o.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelWarn}))
	x := openReal(t, o)
	aside, _ := os.ReadDir(filepath.Join(dir, "aside"))
	type outcome struct {
		name string
		told bool
		c    contents
		bad  func(diskLane, *diskBatch) bool
	}
	outcomes := []outcome{{"nothing is lost", false, d.contents, nil}, {"nothing is lost, but it is not sure", true, d.contents, nil}, {"wiped", true, newContents(), nil}}
	fresh := newContents()
	for _, segment := range d.segments() {
		in := func(_ diskLane, b *diskBatch) bool { return b.segment == segment }
		gone := d.clone()
		for k, l := range gone.lanes {
			gone.lanes[k] = slices.DeleteFunc(l, func(b diskBatch) bool { return b.segment == segment })
		}
		outcomes = append(outcomes,
			outcome{fmt.Sprintf("batches of segment %d are damaged", segment), false, d.contents, in},
			outcome{fmt.Sprintf("batches of segment %d are damaged, and it is not sure", segment), true, d.contents, in},
			outcome{fmt.Sprintf("segment %d is lost", segment), true, gone, nil})
	}
	lost := d.clone()
	lost.records, lost.deleted, lost.rotten = fresh.records, fresh.deleted, fresh.rotten
	outcomes = append(outcomes, outcome{"the records are lost", true, lost, nil})
	var all strings.Builder
	for _, oc := range outcomes {
		why := x.agrees(oc.c, oc.told, oc.bad)
		if why != "" {
			fmt.Fprintf(&all, "\n  %s: %s", oc.name, why)
			continue
		}
		if oc.name == "wiped" && x.rec.Boot != 1 {
			t.Errorf("empty, and still boot %d of its node", x.rec.Boot)
		}
		if oc.told && log.Len() == 0 {
			t.Error("nothing is in the log")
		}
		t.Logf("%s; %d things aside", oc.name, len(aside))
		return
	}
	t.Fatalf("none of the outcomes of the model:%s\n%s", all.String(), log.String())
}
