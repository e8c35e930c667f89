package sim

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/meshq/meshq/node/core"
	"github.com/meshq/meshq/store"
	"github.com/meshq/meshq/transport/wire"
)

// These tests run the same operations on the model of a disk and on what it is a model of:
// the real store, on Badger. Where both are free to differ (what of the freed comes back,
// which commits of its own the store counts) the model follows the real one, if it could have
// done so by itself.

// realOptions are those of a node, but for small segments and no care for the free space
// of the machine that runs the tests.
func realOptions(dir string) store.Options {
	return store.Options{
		Dir: dir, LazyPrefixes: [][]byte{core.LazyPrefix}, SegmentBytes: 1 << 20, MinFree: 2 << 20, Reserve: 1 << 20, MaxUsed: 1,
		BallastBytes: -1, ScrubRate: -1, Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
}

// The slots of batches: slot i of a lane holds offsets from 4i on, and its bytes follow from
// where it is, as those of a lane do.
const (
	slots     = 10
	slotWidth = 4
)

var (
	slotPartitions = []wire.PartitionID{5, 6}
	slotLanes      = []wire.Lane{{Node: 11, Epoch: 1}, {Node: 12, Epoch: 3}}
	recordKeys     = []string{"a", "ab", "b\x00\x00\x00\x00\x00\x00\x00\x05x", "b\x00\x00\x00\x00\x00\x00\x00\x06", "c", "", string(core.LazyPrefix) + "1", string(core.LazyPrefix) + "2"}
)

func slotBatch(p wire.PartitionID, l wire.Lane, i int) wire.Batch {
	r := rand.New(rand.NewPCG(uint64(p)<<8|uint64(l.Node), uint64(i)))
	records := make([]byte, 100+r.IntN(2000))
	for j := range records {
		records[j] = byte(r.Uint32())
	}
	base := wire.Offset(slotWidth * i)
	return wire.Batch{BatchHeader: wire.BatchHeader{
		Count: uint32(1 + (i+int(l.Epoch))%slotWidth), Partition: p, Lane: l, Base: base, Stamp: uint64(base) << 16,
		Producer: wire.ProducerID(77 + i/5), Sequence: uint64(base) + 1000, Length: uint64(len(records)), Checksum: wire.Checksum(records),
	}, Records: records}
}

func drawRun(t *rapid.T) wire.Run {
	from := rapid.IntRange(0, slots*slotWidth-1).Draw(t, "from")
	return wire.Span(wire.Offset(from), wire.Offset(from+rapid.IntRange(1, 3*slotWidth).Draw(t, "length")))
}

// drawOps draws one commit.
func drawOps(t *rapid.T) []wire.Op {
	var ops []wire.Op
	for range rapid.IntRange(1, 4).Draw(t, "ops") {
		op := wire.Op{Kind: rapid.SampledFrom([]wire.OpKind{wire.OpBatch, wire.OpBatch, wire.OpBatch, wire.OpPut, wire.OpPut, wire.OpDelete, wire.OpDeleteRange, wire.OpFree}).Draw(t, "kind")}
		p, l := rapid.SampledFrom(slotPartitions).Draw(t, "partition"), rapid.SampledFrom(slotLanes).Draw(t, "lane")
		key := rapid.SampledFrom(recordKeys).Draw(t, "key")
		switch op.Kind {
		case wire.OpBatch:
			op.Batch = slotBatch(p, l, rapid.IntRange(0, slots-1).Draw(t, "slot"))
		case wire.OpPut:
			op.Key, op.Value = []byte(key), fmt.Appendf(nil, "%s=%d", key, rapid.IntRange(0, 99).Draw(t, "value"))
		case wire.OpDelete:
			op.Key = []byte(key)
		case wire.OpDeleteRange:
			op.Key = []byte(key)[:min(1, len(key))]
			if len(op.Key) == 0 {
				continue
			}
		case wire.OpFree:
			op.Partition, op.Lane, op.Run = p, l, drawRun(t)
		}
		ops = append(ops, op)
	}
	return ops
}

// twins are a real store and the model, which have been told the same.
type twins struct {
	t      rapid.TB
	dir    string
	real   *store.Store
	fake   *disk
	number uint64 // of the last commit of the real one
	commit uint64 // the same of the model
}

// newTwins opens both on an empty disk.
func newTwins(t rapid.TB, dir string) *twins {
	w := newWorld(1)
	x := &twins{t: t, dir: dir, fake: w.addNode("a", 1).disk}
	x.boot()
	return x
}

// boot opens both, and compares what they find.
func (x *twins) boot() *store.Recovered {
	x.t.Helper()
	s, rec, err := store.Open(realOptions(x.dir))
	if err != nil {
		x.t.Fatalf("open: %v", err)
	}
	x.real = s
	d := x.fake
	d.h.life++
	if boot := d.countBoot(); boot != rec.Boot {
		x.t.Fatalf("boot %d, the model counts %d", rec.Boot, boot)
	}
	found := offsetsOf(rec.Refs)
	d.reopen(func(k diskLane, b *diskBatch) bool {
		_, ok := found[offsetKey{k.partition, k.lane, b.Base}]
		return ok
	})
	want := d.recover()
	if !slices.EqualFunc(rec.Records, want.Records, sameRecord) {
		x.t.Fatalf("records %s, the model has %s", recordsText(rec.Records), recordsText(want.Records))
	}
	if offsets := offsetsOf(want.Refs); !equalMaps(found, offsets) {
		x.t.Fatalf("batches %v, the model has %v", found, offsets)
	}
	if rec.DamagedAll != want.DamagedAll || !slices.Equal(rec.Damaged, want.Damaged) {
		x.t.Fatalf("damaged %v, all: %t; the model says %v, all: %t", rec.Damaged, rec.DamagedAll, want.Damaged, want.DamagedAll)
	}
	return rec
}

func (x *twins) close() {
	x.t.Helper()
	if err := x.real.Close(); err != nil {
		x.t.Fatalf("close: %v", err)
	}
}

// reopen is an orderly end and the next boot. Numbers only grow: the store counts commits of its
// own, too.
func (x *twins) reopen() {
	x.close()
	x.fake.end(killed, 0)
	if rec := x.boot(); rec.Commit < x.number {
		x.t.Fatalf("commit %d came back, %d was confirmed", rec.Commit, x.number)
	}
	x.commit = x.fake.commit
}

func (x *twins) do(ops []wire.Op) {
	x.t.Helper()
	number, err := commitReal(x.real, ops)
	if err != nil {
		x.t.Fatalf("commit: %v", err)
	}
	x.fake.persist(core.Persist{Ops: ops})
	x.fake.h.w.runFor(second)
	if f := x.fake.h.w.failure; f != nil {
		x.t.Fatalf("the model: %v", f)
	}
	if grew := x.fake.commit > x.commit; grew && number <= x.number || number < x.number {
		x.t.Fatalf("commit %d after %d; in the model %d after %d", number, x.number, x.fake.commit, x.commit)
	} else if !grew && x.fake.commit != x.commit {
		x.t.Fatalf("the model counts backwards: %d after %d", x.fake.commit, x.commit)
	}
	x.number, x.commit = number, x.fake.commit
}

func commitReal(s *store.Store, ops []wire.Op) (uint64, error) {
	type result struct {
		number uint64
		err    error
	}
	done := make(chan result, 1)
	if err := s.Commit(ops, func(n uint64, err error) { done <- result{n, err} }); err != nil {
		return 0, err
	}
	r := <-done
	return r.number, r.err
}

func (x *twins) read(p wire.PartitionID, l wire.Lane, runs wire.Runs, maxBytes int) {
	x.t.Helper()
	got, damaged, err := x.real.Read(p, l, runs, maxBytes)
	if err != nil {
		x.t.Fatalf("read: %v", err)
	}
	want, bad := x.fake.read(diskLane{p, l}, runs, maxBytes)
	same := slices.EqualFunc(got, want, func(a, b wire.Batch) bool {
		return a.BatchHeader == b.BatchHeader && bytes.Equal(a.Records, b.Records)
	})
	if !same || !damaged.Equal(bad) {
		x.t.Fatalf("read of %s %s %v, %d bytes: %v, damaged %v; the model: %v, damaged %v", p, l, runs, maxBytes, batchesText(got), damaged, batchesText(want), bad)
	}
}

func (x *twins) scan(prefix, after []byte, limit int) {
	x.t.Helper()
	got, more, err := x.real.Scan(prefix, after, limit)
	if err != nil {
		x.t.Fatalf("scan: %v", err)
	}
	want, wantMore, _ := x.fake.scan(prefix, after, limit)
	if !slices.EqualFunc(got, want, sameRecord) || more != wantMore {
		x.t.Fatalf("scan of %q after %q, %d: %s, more: %t; the model: %s, more: %t", prefix, after, limit, recordsText(got), more, recordsText(want), wantMore)
	}
}

// flip damages a batch that lies in one place on both disks, if there is one; the store is closed.
func (x *twins) flip(p wire.PartitionID, l wire.Lane, i int) bool {
	x.t.Helper()
	list := x.fake.lanes[diskLane{p, l}]
	at := slices.IndexFunc(list, func(b diskBatch) bool { return b.Base == wire.Offset(slotWidth*i) })
	if at < 0 || list[at].bad {
		return false
	}
	logs, err := filepath.Glob(filepath.Join(x.dir, "segments", "*", "*.vlog"))
	if err != nil {
		x.t.Fatal(err)
	}
	b, where, offset := slotBatch(p, l, i), "", 0
	for _, path := range logs {
		data, err := os.ReadFile(path)
		if err != nil {
			x.t.Fatal(err)
		}
		switch n := bytes.Count(data, b.Records); {
		case n > 1 || n == 1 && where != "":
			return false
		case n == 1:
			where, offset = path, bytes.Index(data, b.Records)+50
		}
	}
	if where == "" {
		x.t.Fatalf("slot %d of %s %s is in no value log", i, p, l)
	}
	flipByte(x.t, where, int64(offset))
	list[at].bad = true
	return true
}

func flipByte(t rapid.TB, path string, at int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	var b [1]byte
	_, err = f.ReadAt(b[:], at)
	b[0] ^= 0x10
	_, werr := f.WriteAt(b[:], at)
	if err := errors.Join(err, werr, f.Close()); err != nil {
		t.Fatal(err)
	}
}

type offsetKey struct {
	partition wire.PartitionID
	lane      wire.Lane
	offset    wire.Offset
}

type offsetOwner struct {
	producer wire.ProducerID
	sequence uint64
}

// offsetsOf says whose each offset is. Refs may be coalesced or not; that means the same.
func offsetsOf(refs []wire.BatchRef) map[offsetKey]offsetOwner {
	out := map[offsetKey]offsetOwner{}
	for _, r := range refs {
		for i := range r.Count {
			out[offsetKey{r.Partition, r.Lane, r.Base + wire.Offset(i)}] = offsetOwner{r.Producer, r.Sequence + i}
		}
	}
	return out
}

func equalMaps[K, V comparable](a, b map[K]V) bool {
	for k, v := range a {
		if w, ok := b[k]; !ok || w != v {
			return false
		}
	}
	return len(a) == len(b)
}

func sameRecord(a, b wire.StoredRecord) bool {
	return bytes.Equal(a.Key, b.Key) && bytes.Equal(a.Value, b.Value)
}

func recordsText(l []wire.StoredRecord) string {
	var b strings.Builder
	for _, r := range l {
		fmt.Fprintf(&b, "%q=%q ", r.Key, r.Value)
	}
	return b.String()
}

func batchesText(l []wire.Batch) (out []wire.Run) {
	for i := range l {
		out = append(out, l[i].Run())
	}
	return out
}

// fewerChecks makes rapid check so often, unless the command line says how often.
func fewerChecks(t *testing.T, n int) {
	t.Helper()
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "rapid.checks" })
	if given {
		return
	}
	before := flag.Lookup("rapid.checks").Value.String()
	set := func(to string) {
		if err := flag.Lookup("rapid.checks").Value.Set(to); err != nil {
			t.Fatal(err)
		}
	}
	set(strconv.Itoa(n))
	t.Cleanup(func() { set(before) })
}

// TestValueBound holds the model's bound of a value to that of the store.
func TestValueBound(t *testing.T) {
	if maxValueBytes != store.MaxValueBytes {
		t.Errorf("the model takes values of %d bytes, the store of %d", maxValueBytes, store.MaxValueBytes)
	}
}

// TestDiskAgrees: without a crash, and with batches on which a bit has flipped, the model
// and the store answer the same.
func TestDiskAgrees(t *testing.T) {
	if testing.Short() {
		t.Skip("opens many stores: not with -short")
	}
	fewerChecks(t, 20)
	rapid.Check(t, func(t *rapid.T) {
		dir, err := os.MkdirTemp("", "meshq-fidelity-")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = os.RemoveAll(dir) }()
		x := newTwins(t, filepath.Join(dir, "data"))
		defer func() { _ = x.real.Close() }()
		boots := 0
		for range rapid.IntRange(10, 60).Draw(t, "steps") {
			what := rapid.SampledFrom([]string{"commit", "commit", "commit", "read", "read", "scan", "reopen", "rot"}).Draw(t, "what")
			if (what == "reopen" || what == "rot") && boots == 2 {
				what = "commit" // opening takes most of the time
			}
			p, l := rapid.SampledFrom(slotPartitions).Draw(t, "partition"), rapid.SampledFrom(slotLanes).Draw(t, "lane")
			switch what {
			case "commit":
				if ops := drawOps(t); len(ops) > 0 {
					x.do(ops)
				}
			case "read":
				var runs wire.Runs
				for range rapid.IntRange(1, 3).Draw(t, "runs") {
					runs.Add(drawRun(t))
				}
				x.read(p, l, runs, rapid.SampledFrom([]int{0, 1, 1500, 3000, 6000, 1 << 20}).Draw(t, "bytes"))
			case "scan":
				key := []byte(rapid.SampledFrom(recordKeys).Draw(t, "prefix"))
				var after []byte
				if rapid.Bool().Draw(t, "on") {
					after = []byte(rapid.SampledFrom(recordKeys).Draw(t, "after"))
				}
				x.scan(key[:min(len(key), 1)], after, rapid.IntRange(1, 4).Draw(t, "limit"))
			case "reopen":
				boots++
				x.reopen()
			case "rot":
				boots++
				x.close()
				x.fake.end(killed, 0)
				x.flip(p, l, rapid.IntRange(0, slots-1).Draw(t, "slot"))
				x.boot()
			}
		}
		x.everything()
		x.reopen()
		x.everything()
	})
}

// everything compares all that can be read.
func (x *twins) everything() {
	x.t.Helper()
	for _, p := range slotPartitions {
		for _, l := range slotLanes {
			x.read(p, l, wire.Runs{wire.Span(0, slots*slotWidth)}, 1<<30)
		}
	}
	x.scan(nil, nil, 1000)
}
