package sim

import (
	"fmt"
	"slices"
	"testing"

	"github.com/cespare/xxhash/v2"

	"github.com/meshq/meshq/node/core"
	"github.com/meshq/meshq/ring"
	"github.com/meshq/meshq/transport/wire"
)

// testLog is a disk with groups of one record each; every other one has a batch, too.
func testLog(t *testing.T, seed uint64, groups int) (*world, *disk) {
	t.Helper()
	w := newWorld(seed)
	d := w.addNode("a", 1).disk
	d.countBoot()
	for i := range groups {
		d.persist(testPersist(i))
		w.runFor(second)
	}
	if len(d.log) != groups || d.commit != uint64(groups) {
		t.Fatalf("%d groups, commit %d, of %d", len(d.log), d.commit, groups)
	}
	return w, d
}

func testPersist(i int) core.Persist {
	ops := []wire.Op{{Kind: wire.OpPut, Key: fmt.Appendf(nil, "k%02d", i), Value: []byte{byte(i)}}}
	if i%2 == 1 {
		ops = append(ops, wire.Op{Kind: wire.OpBatch, Batch: testBatch(wire.Offset(i))})
	}
	return core.Persist{Ops: ops}
}

func testBatch(base wire.Offset) wire.Batch {
	records := []byte(fmt.Sprint("body ", base))
	return wire.Batch{
		BatchHeader: wire.BatchHeader{Partition: 7, Lane: wire.Lane{Node: 1, Epoch: 1}, Base: base, Count: 1, Producer: 9, Sequence: uint64(base), Checksum: xxhash.Sum64(records)},
		Records:     records,
	}
}

// kept tells of how many groups the records and the batches came back.
func kept(t *testing.T, r core.Recovered, groups int) (records, batches []int) {
	t.Helper()
	for i := range groups {
		if slices.ContainsFunc(r.Records, func(x wire.StoredRecord) bool { return string(x.Key) == fmt.Sprintf("k%02d", i) }) {
			records = append(records, i)
		}
		if i%2 == 1 && slices.ContainsFunc(r.Refs, func(x wire.BatchRef) bool {
			return x.Base <= wire.Offset(i) && wire.Offset(i) < x.Base+wire.Offset(x.Count)
		}) {
			batches = append(batches, i)
		}
	}
	return records, batches
}

func upTo(n int) (records, batches []int) {
	for i := range n {
		if records = append(records, i); i%2 == 1 {
			batches = append(batches, i)
		}
	}
	return records, batches
}

// TestEndings ends disks at a moment in which one group is under way and another waits.
func TestEndings(t *testing.T) {
	const confirmed = 5
	for _, x := range []struct {
		name string
		how  demise
		lose int
		keep []int // of how many groups, each must come up
		told bool
	}{
		{"kill", killed, 0, []int{confirmed, confirmed + 1}, false},
		{"power cut", unpowered, 0, []int{confirmed, confirmed + 1}, false},
		{"torn", torn, 0, []int{confirmed - 1}, true},
		{"amnesia", forgetful, 3, []int{confirmed - 3}, false},
	} {
		t.Run(x.name, func(t *testing.T) {
			seen := map[int]bool{}
			for seed := range uint64(40) {
				w, d := testLog(t, seed, confirmed)
				d.persist(testPersist(confirmed))     // under way
				d.persist(testPersist(confirmed + 1)) // waits
				d.end(x.how, x.lose)
				d.h.life++
				w.runFor(second)
				d.countBoot()
				r := d.recover()
				n := int(r.Commit)
				seen[n] = true
				wantRecords, wantBatches := upTo(n)
				records, batches := kept(t, r, confirmed+2)
				if !slices.Contains(x.keep, n) || !slices.Equal(records, wantRecords) || !slices.Equal(batches, wantBatches) || r.DamagedAll != x.told {
					t.Fatalf("seed %d: commit %d, records of %v, batches of %v, told: %t", seed, n, records, batches, r.DamagedAll)
				}
			}
			for _, n := range x.keep {
				if !seen[n] {
					t.Errorf("never kept %d groups", n)
				}
			}
		})
	}
}

// TestSilentLoss: a disk forgets no less than what all the others can notice.
func TestSilentLoss(t *testing.T) {
	var log []diskGroup
	for i := range 10 {
		log = append(log, diskGroup{commit: uint64(i + 1)})
	}
	for _, x := range []struct {
		atLeast    int
		remembered []uint64
		lose       int
		ok         bool
	}{
		{1, []uint64{10, 10}, 1, true},
		{0, []uint64{10, 8}, 3, true}, // who remembers 8 misses it when 8, 9 and 10 are gone
		{5, []uint64{10, 8}, 5, true},
		{1, []uint64{10, 0}, 0, false},
		{1, nil, 0, false},
	} {
		if lose, ok := silentLoss(log, x.atLeast, x.remembered); ok != x.ok || ok && lose != x.lose {
			t.Errorf("at least %d, remembered %v: %d, %t", x.atLeast, x.remembered, lose, ok)
		}
	}
}

// TestTornFiles: records and batches of a group are in two files. Where the last group
// has both, either may be torn, and the store always says so.
func TestTornFiles(t *testing.T) {
	both := 0
	for seed := range uint64(40) {
		_, d := testLog(t, seed, 4)
		d.end(torn, 0)
		d.countBoot()
		r := d.recover()
		records, batches := kept(t, r, 4)
		if !r.DamagedAll || len(batches) != 1 || len(records) < 3 {
			t.Fatalf("seed %d: records of %v, batches of %v, told: %t", seed, records, batches, r.DamagedAll)
		}
		if len(records) == 4 {
			both++
		}
		// It says so until a commit is done.
		if d.countBoot(); !d.recover().DamagedAll {
			t.Fatal("the second boot knows of nothing")
		}
		d.persist(testPersist(9))
		d.h.w.runFor(second)
		if d.countBoot(); d.recover().DamagedAll {
			t.Fatal("it is told after a commit, too")
		}
		if d.commit != 5 {
			t.Fatalf("commit %d after one that was torn; numbers are not used twice", d.commit)
		}
	}
	if both == 0 || both == 40 {
		t.Errorf("the records of the torn group came back %d times of 40", both)
	}
}

// TestInterval: without fsyncs a kill loses nothing, and a power cut some end of what was
// written since the last fsync, of each file its own; the store says so.
func TestInterval(t *testing.T) {
	uneven := 0
	for seed := range uint64(60) {
		for _, how := range []demise{killed, unpowered} {
			w := newWorld(seed)
			w.disks.interval = true
			d := w.addNode("a", 1).disk
			d.countBoot()
			for i := range 8 {
				d.persist(testPersist(i))
				if w.runFor(millisecond); i == 3 {
					w.runFor(second)
				}
			}
			if d.synced != 4 || len(d.log) != 8 {
				t.Fatalf("%d of %d groups are fsynced", d.synced, len(d.log))
			}
			d.end(how, 0)
			d.countBoot()
			r := d.recover()
			records, batches := kept(t, r, 8)
			if how == killed {
				if len(records) != 8 || len(batches) != 4 || r.DamagedAll {
					t.Fatalf("seed %d: a kill left records of %v, batches of %v, told: %t", seed, records, batches, r.DamagedAll)
				}
				continue
			}
			if len(records) < 4 || len(batches) < 2 || !r.DamagedAll {
				t.Fatalf("seed %d: a power cut left records of %v, batches of %v, told: %t", seed, records, batches, r.DamagedAll)
			}
			for i, n := range records {
				if i != n {
					t.Fatalf("seed %d: records of %v are no prefix", seed, records)
				}
			}
			if len(records)/2 != len(batches) {
				uneven++
			}
		}
	}
	if uneven == 0 {
		t.Error("both files always ended at the same group")
	}
}

// TestFreed: what was freed is not read, and may be back after a boot.
func TestFreed(t *testing.T) {
	back := 0
	for seed := range uint64(30) {
		_, d := testLog(t, seed, 4)
		k := diskLane{7, wire.Lane{Node: 1, Epoch: 1}}
		d.write(&wire.Op{Kind: wire.OpFree, Partition: 7, Lane: k.lane, Run: wire.Span(0, 2)}, 1)
		if got, _ := d.read(k, wire.Runs{wire.Span(0, 10)}, 1<<20); len(got) != 1 || got[0].Base != 3 {
			t.Fatalf("read %v", got)
		}
		d.end(killed, 0)
		d.countBoot()
		switch _, batches := kept(t, d.recover(), 4); len(batches) {
		case 2:
			back++
		case 1:
		default:
			t.Fatalf("batches of %v", batches)
		}
	}
	if back == 0 || back == 30 {
		t.Errorf("it came back %d times of 30", back)
	}
}

// TestRotten: a record that fails its checksum is left out, and its partition counts as
// damaged at every boot until it is written again.
func TestRotten(t *testing.T) {
	_, d := testLog(t, 1, 2)
	k := "t" + string([]byte{0, 0, 0, 0, 0, 0, 0, 7})
	d.write(&wire.Op{Kind: wire.OpPut, Key: []byte(k), Value: []byte("term")}, 1)
	d.rotten[k] = true
	for range 2 {
		d.countBoot()
		r := d.recover()
		if len(r.Damaged) != 1 || r.Damaged[0] != 7 || r.DamagedAll || len(r.Records) != 2 {
			t.Fatalf("damaged %v, all: %t, %d records", r.Damaged, r.DamagedAll, len(r.Records))
		}
	}
	d.write(&wire.Op{Kind: wire.OpPut, Key: []byte(k), Value: []byte("term")}, 1)
	d.persist(testPersist(3))
	d.h.w.runFor(second)
	d.countBoot()
	if r := d.recover(); len(r.Damaged) != 0 || len(r.Records) != 4 {
		t.Fatalf("damaged %v, %d records", r.Damaged, len(r.Records))
	}
}

// TestHeld: without room for batches commits with records alone go on, until one with a
// batch waits before them.
func TestHeld(t *testing.T) {
	w, d := testLog(t, 1, 2)
	d.held = true
	for _, i := range []int{2, 3, 4} { // 3 has a batch
		d.persist(testPersist(i))
		w.runFor(second)
	}
	if d.commit != 3 || len(d.queued) != 2 {
		t.Fatalf("commit %d, %d wait", d.commit, len(d.queued))
	}
	d.h.diskFull(false)
	d.sync()
	w.runFor(second)
	if len(d.queued) != 0 || len(d.records) != 5 {
		t.Fatalf("%d wait, %d records", len(d.queued), len(d.records))
	}
}

// testMesh is a mesh of n nodes without load.
func testMesh(t *testing.T, seed uint64, n int) *world {
	t.Helper()
	w := newWorld(seed)
	for i := range n {
		h := w.addNode(string(rune('a'+i)), ring.NodeID(100+i))
		h.founder = i == 0
		h.seeds = w.others(h)
		h.start()
	}
	w.check.idle = true
	for range 600 {
		if w.runFor(100 * millisecond); !slices.ContainsFunc(w.nodes(), func(h *host) bool { return len(h.core.Table().Members) < n || !h.core.Ready() }) {
			w.runFor(10 * second) // for gossip
			return w
		}
	}
	t.Fatalf("%d nodes made no mesh: %v", n, w.failure)
	return nil
}

// TestDiskError: a failed fsync ends the process, and nothing is confirmed any more.
func TestDiskError(t *testing.T) {
	w := testMesh(t, 1, 3)
	h := w.nodes()[1]
	h.diskError()
	w.runFor(10 * second)
	if h.running {
		t.Fatal("it still runs")
	}
	commit := h.disk.commit
	h.start()
	if got := h.core.Commit(); got < commit || got > commit+1 {
		t.Fatalf("it came back with commit %d, after %d", got, commit)
	}
	w.runFor(10 * second)
	if w.failure != nil || !h.core.Ready() {
		t.Fatal(w.failure)
	}
}

// TestWipe: who starts on an empty disk is another node, which joins; the founder does
// not found again. Nobody can spare a second disk then.
func TestWipe(t *testing.T) {
	w := testMesh(t, 1, 3)
	h := w.nodes()[0]
	id := h.id
	if !h.wipe() {
		t.Fatal("not covered")
	}
	if h.id == id || w.node(id) != nil || w.node(h.id) != h {
		t.Fatalf("node %v is %v", id, h.id)
	}
	h.start()
	w.runFor(30 * second)
	if w.failure != nil || h.boot != 1 || len(h.core.Table().Members) != 4 || h.core.Mesh() != w.nodes()[2].core.Mesh() {
		t.Fatalf("boot %d in a mesh of %d: %v", h.boot, len(h.core.Table().Members), w.failure)
	}
	if w.nodes()[1].wipe() {
		t.Fatal("a second disk was lost")
	}
}

// TestRollback: an old copy of a disk has an old boot number. Where the mesh remembers a
// higher one the node stops, and a new one takes its place.
func TestRollback(t *testing.T) {
	w := testMesh(t, 2, 3)
	h := w.nodes()[1]
	id, copied := h.id, w.now
	for range 2 {
		w.runFor(second)
		h.crash()
		h.start()
		w.runFor(20 * second)
	}
	if h.boot != 3 {
		t.Fatalf("boot %d", h.boot)
	}
	if !h.rollback(w.now - copied) {
		t.Fatal("not covered")
	}
	if h.disk.boot != 1 {
		t.Fatalf("the copy is of boot %d", h.disk.boot)
	}
	h.start()
	w.runFor(30 * second)
	if w.failure != nil || h.id == id || h.stopped != nil || h.boot != 1 || !h.core.Ready() {
		t.Fatalf("boot %d as %v: %v %v", h.boot, h.id, w.failure, h.stopped)
	}
}

// TestOpenError: a store without its records is the same node, finds its mesh again, and
// says that it is damaged.
func TestOpenError(t *testing.T) {
	w := testMesh(t, 1, 3)
	h := w.nodes()[0]
	id, mesh := h.id, h.core.Mesh()
	if !h.openError(1) {
		t.Fatal("not covered")
	}
	if r := h.disk.recover(); len(r.Records) != 0 || !r.DamagedAll {
		t.Fatalf("%d records, told: %t", len(r.Records), r.DamagedAll)
	}
	h.start()
	w.runFor(30 * second)
	if w.failure != nil || h.id != id || h.core.Mesh() != mesh || !h.core.Ready() {
		t.Fatalf("%v in mesh %v: %v", h.id, h.core.Mesh(), w.failure)
	}
}

// A copy from the boot before comes up with the boot number that the others remember; what
// they remember of its commits tells that it is old, and it stops.
func TestRollbackByOneBoot(t *testing.T) {
	w := testMesh(t, 2, 3)
	h := w.nodes()[1]
	copied, id := w.now, h.id
	w.runFor(second)
	h.crash()
	h.start()
	w.runFor(20 * second)
	if !h.rollback(w.now - copied) {
		t.Fatal("the copy was not taken")
	}
	h.start()
	w.runFor(10 * second)
	if h.id == id {
		t.Errorf("%s runs on its old copy, in boot %d", h.name, h.boot)
	}
	if w.failure != nil {
		t.Error(w.failure)
	}
}
