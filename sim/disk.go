package sim

import (
	"encoding/binary"
	"slices"

	"github.com/meshq/meshq/node/core"
	"github.com/meshq/meshq/transport/wire"
)

// diskModel is how long disks take, in nanoseconds.
type diskModel struct {
	sync, jitter int64 // fsync: minimum, and mean of the exponential part
	stall        int   // one fsync in so many takes up to stallBy; 0: none
	stallBy      int64
	read         int64 // minimum of a read, and mean of the exponential part
	// interval: commits are confirmed when they are written; fsyncs follow each 100 ms.
	interval bool
}

const (
	writeTime    = 40 * microsecond // of a group that is not fsynced
	syncInterval = 100 * millisecond
	// endAfterError is the longest time in which a process whose fsync failed still runs.
	endAfterError = 20 * millisecond
	// scrubAfter is the longest time after a boot in which the scrubber finds a damaged record.
	scrubAfter = second
	// maxValueBytes is the longest value of a record that the store takes (store.MaxValueBytes).
	maxValueBytes = 512 << 10
	// fullAfter is the longest time after which a node knows that its disk is full, or not.
	fullAfter = 200 * millisecond
)

// disk is the model of a store on a machine: it executes ops in groups, keeps what it
// must, and says at boot what it knows to be missing.
type disk struct {
	h *host
	contents
	base    contents    // what was there when log began
	log     []diskGroup // all groups that were confirmed since
	synced  int         // how many of them are fsynced
	commit  uint64      // number of the last group that is there
	highest uint64      // number of any group that it has heard of; the next is above
	boot    uint64      // number of the last boot; on disk before the node runs
	marks   []diskMark  // where the boots were, for copies of it
	segment int         // that is written; counts the boots of this machine

	damaged  bool // it knows that it lost something, and nothing was committed since it said so
	where    []wire.PartitionID
	reported map[string]bool // rotten records that this life has told of
	old      bool            // it was set back to a copy
	forgot   bool            // it lost something without a word, and its node has not been told yet
	hurt     bool            // it lost something that was confirmed

	queued    []core.Persist
	syncing   []core.Persist
	syncs     uint64 // counts for luck, over all lives of the machine
	reads     uint64
	wounds    uint64
	repaired  int
	stallNext int64 // extra time of the next fsync
	slow      int64 // extra time of each fsync
	slowReads int64 // extra time of each read
	full      bool  // no room for enqueues
	held      bool  // nor for any batch: commits wait
	failNext  bool  // the next fsync fails
	failed    bool  // nothing is written any more
	ticking   bool
}

// diskMark is a boot: copies that were made before the next one are of that boot.
type diskMark struct {
	at     int64
	boot   uint64
	groups int // of log
}

func newDisk(h *host) *disk {
	return &disk{h: h, contents: newContents(), base: newContents()}
}

// copyFor is a copy of the disk, as it is at this moment, for another machine.
func (d *disk) copyFor(h *host) *disk {
	c := newDisk(h)
	c.contents, c.base, c.log, c.synced = d.clone(), d.base.clone(), slices.Clone(d.log), d.synced
	c.commit, c.highest, c.boot, c.segment = d.commit, d.highest, d.boot, d.segment
	c.marks, c.damaged, c.where = slices.Clone(d.marks), d.damaged, slices.Clone(d.where)
	return c
}

// countBoot counts a boot, durably, and gives its number.
func (d *disk) countBoot() uint64 {
	d.boot++
	d.segment++
	d.marks = append(d.marks, diskMark{d.h.w.now, d.boot, len(d.log)})
	d.failed, d.failNext, d.ticking, d.reported = false, false, false, nil
	return d.boot
}

func (d *disk) persist(p core.Persist) {
	for _, op := range p.Ops {
		if len(op.Value) > maxValueBytes {
			d.h.w.fail("P10", msgKey{}, "%s writes a record of %d bytes, key %x: its store refuses that and the node ends", d.h.name, len(op.Value), op.Key)
		}
	}
	d.queued = append(d.queued, p)
	if d.syncing == nil {
		d.sync()
	}
}

// sync takes the slot and drains the queue: all that waits is one group. Without room for
// batches what has none may go on, as far as nothing waits before it.
func (d *disk) sync() {
	w := d.h.w
	n := len(d.queued)
	if d.held {
		if i := slices.IndexFunc(d.queued, hasBatch); i >= 0 {
			n = i
		}
	}
	if n == 0 || d.failed {
		return
	}
	d.syncing, d.queued = slices.Clone(d.queued[:n]), slices.Clone(d.queued[n:])
	d.syncs++
	life := d.h.life
	w.after(d.syncTime(), func() {
		if d.h.life != life {
			return
		}
		if d.failNext {
			d.fail()
			return
		}
		done := d.syncing
		d.syncing = nil
		d.complete(done)
		commit := d.commit
		d.sync()
		for _, p := range done {
			if p.Token != 0 {
				d.h.give(life, core.Persisted{Token: p.Token, Commit: commit})
			}
		}
	})
}

func hasBatch(p core.Persist) bool {
	return slices.ContainsFunc(p.Ops, func(op wire.Op) bool { return op.Kind == wire.OpBatch })
}

func (d *disk) syncTime() int64 {
	w := d.h.w
	t := w.disks.sync + exponential(w.luck(luckSync, d.h.key, 0, d.syncs), w.disks.jitter)
	if w.disks.stall > 0 && w.luck(luckSync, d.h.key, 1, d.syncs)%uint64(w.disks.stall) == 0 {
		t += between(w.luck(luckSync, d.h.key, 2, d.syncs), 20*millisecond, w.disks.stallBy)
	}
	t += d.slow + d.stallNext
	d.stallNext = 0
	if w.disks.interval && t < 20*millisecond {
		t = writeTime // the fsync is not waited for
	}
	return t
}

// complete makes a group one that is confirmed.
func (d *disk) complete(group []core.Persist) {
	w := d.h.w
	g := diskGroup{segment: d.segment, at: w.now}
	for _, p := range group {
		g.ops = append(g.ops, p.Ops...)
	}
	writes := false
	for i := range g.ops {
		writes = d.apply(&g.ops[i]) || writes
	}
	if writes { // else it has the number of the one before
		d.highest++
		d.commit = d.highest
		d.damaged, d.where = false, nil // who must act on it knows
	}
	g.commit = d.commit
	d.log = append(d.log, g)
	if w.disks.interval {
		d.syncLater()
	} else {
		d.synced = len(d.log)
	}
	w.hashIn(hashCommit, d.h.key, d.commit, uint64(len(g.ops)))
}

// syncLater is the fsync of sync: interval.
func (d *disk) syncLater() {
	if d.ticking {
		return
	}
	d.ticking = true
	life, w := d.h.life, d.h.w
	w.after(syncInterval, func() {
		if d.h.life != life {
			return
		}
		n := len(d.log)
		w.after(w.disks.sync+d.slow, func() {
			if d.h.life != life {
				return
			}
			if d.ticking = false; d.failNext {
				d.fail()
				return
			}
			if d.synced = n; len(d.log) > n {
				d.syncLater()
			}
		})
	})
}

// apply executes an op, and tells whether it wrote something to the disk.
func (d *disk) apply(op *wire.Op) bool {
	w := d.h.w
	what := d.write(op, d.segment)
	switch {
	case op.Kind == wire.OpFree:
		w.check.freed(d.h, op)
		return false
	case op.Kind != wire.OpBatch:
		return true
	case what == held:
		return false
	}
	switch what {
	case clashes:
		w.fail("P9", key(&op.Batch, 0), "%s overwrites %s with other bytes", d.h.name, w.names.batch(&op.Batch))
		return true
	case mended:
		d.repaired++
	}
	w.check.holds(d.h, &op.Batch)
	if w.tracing {
		w.tracef("%s synced %s", d.h.name, w.names.batch(&op.Batch))
	}
	return true
}

// fail is a failed fsync: nothing is confirmed any more, and the process ends within
// some milliseconds. What the kernel did with the group under way nobody knows.
func (d *disk) fail() {
	d.failNext, d.failed = false, true
	life, w := d.h.life, d.h.w
	if w.tracing {
		w.tracef("%s fsync failed", d.h.name)
	}
	w.after(between(w.luck(luckDisk, d.h.key, 20, d.syncs), 0, endAfterError), func() {
		if d.h.life == life {
			d.h.crash()
		}
	})
}

// crash is SIGKILL.
func (d *disk) crash() { d.end(killed, 0) }

// end leaves on the disk what one of the survivors has.
func (d *disk) end(e demise, lose int) {
	w := d.h.w
	at := ended{synced: d.synced, confirmed: len(d.log), written: len(d.log), interval: w.disks.interval}
	under := d.syncing
	d.syncing, d.queued = nil, nil
	if under != nil {
		at.written++
	}
	list := survivors(e, at, d.log, lose)
	s := list[w.luck(luckCrash, d.h.key, uint64(e), d.syncs)%uint64(len(list))]
	if under != nil && max(s.records, s.batches) > at.confirmed {
		d.complete(under)
	}
	if s.told {
		d.damaged = true
	}
	if min(s.records, s.batches) < len(d.log) {
		d.keep(s.records, s.batches, s.told)
	}
	d.synced = len(d.log)
}

// keep loses all records but those of so many groups of the log, and all batches but
// those of so many.
func (d *disk) keep(records, batches int, told bool) {
	k := d.h.w.check
	d.contents = replay(&d.base, d.log, records, batches)
	d.log = slices.Clip(slices.Clone(d.log[:max(records, batches)]))
	if n := len(d.log); n > 0 {
		d.commit = d.log[n-1].commit
	} else {
		d.commit = 0
	}
	if !told {
		d.highest = d.commit
	}
	if records != batches {
		d.rebase() // the log no longer says what is there
	}
	d.synced = len(d.log)
	d.wound()
	k.forgets(d.h)
	d.eachHeld(func(b *wire.Batch) { k.holds(d.h, b) })
}

// eachHeld calls f for what the checkers take for held: all that is there, and all
// that was freed since the log began.
func (d *disk) eachHeld(f func(*wire.Batch)) {
	for _, k := range d.base.laneKeys() {
		for i := range d.base.lanes[k] {
			if b := &d.base.lanes[k][i]; !b.bad {
				f(&b.Batch)
			}
		}
	}
	for _, g := range d.log {
		for i := range g.ops {
			if g.ops[i].Kind == wire.OpBatch {
				f(&g.ops[i].Batch)
			}
		}
	}
}

// rebase begins the log anew: older copies of the disk are no more.
func (d *disk) rebase() {
	d.base, d.log, d.synced = d.contents.clone(), nil, 0
	d.marks = []diskMark{{d.h.w.now, d.boot, 0}}
}

// wound notes that something is lost that was confirmed.
func (d *disk) wound() {
	d.hurt = true
	d.wounds++
}

// recover is what the store gives at boot.
func (d *disk) recover() core.Recovered {
	w := d.h.w
	d.reopen(func(k diskLane, b *diskBatch) bool {
		return w.luck(luckDisk, d.h.key, uint64(b.Base), k.lane.Epoch)%3 == 0 // its segment still has life
	})
	w.check.returned(d.h)
	r := core.Recovered{Commit: d.commit, DamagedAll: d.damaged, Damaged: slices.Clone(d.where)}
	for _, k := range d.keys() {
		if !d.rotten[k] || core.LazyPrefix[0] == k[0] {
			continue
		}
		if p := recordPartition(k); p == 0 {
			r.DamagedAll = true
		} else if !slices.Contains(r.Damaged, p) {
			r.Damaged = append(r.Damaged, p)
		}
	}
	slices.Sort(r.Damaged)
	d.damaged, d.where = r.DamagedAll, slices.Clone(r.Damaged)
	r.Records = d.loaded()
	r.Refs = d.refs(func(b *diskBatch) bool {
		return w.luck(luckDisk, d.h.key, uint64(b.Base), b.Lane.Epoch)%2 == 0
	})
	return r
}

// recordPartition is what the store takes for the partition of a record: the 8 bytes
// after the first. 0: it has none.
func recordPartition(k string) wire.PartitionID {
	if len(k) < 9 {
		return 0
	}
	return wire.PartitionID(binary.BigEndian.Uint64([]byte(k[1:9])))
}

// began tells a node that has booted what its shell finds out soon after.
func (d *disk) began() {
	w, life := d.h.w, d.h.life
	if d.full {
		w.after(between(w.luck(luckDisk, d.h.key, 21, d.boot), 0, fullAfter), func() {
			d.h.give(life, core.Disk{Full: d.full})
		})
	}
	for i, k := range d.keys() {
		if !d.rotten[k] {
			continue
		}
		w.after(between(w.luck(luckDisk, d.h.key, 22, uint64(i)), millisecond, scrubAfter), func() {
			if d.h.life == life && d.rotten[k] {
				d.report(k)
			}
		})
	}
	for _, k := range d.laneKeys() {
		for i := range d.lanes[k] {
			if d.lanes[k][i].bad {
				d.scrubLater(k, d.lanes[k][i].Base)
			}
		}
	}
	if d.boot > 1 {
		w.after(between(w.luck(luckDisk, d.h.key, 27, d.boot), millisecond, second), func() {
			if d.h.life == life && !d.failed {
				d.own()
			}
		})
	}
}

// scrubLater lets the pass of the scrubber after a boot find a bad batch.
func (d *disk) scrubLater(k diskLane, base wire.Offset) {
	w, life := d.h.w, d.h.life
	w.after(between(w.luck(luckDisk, d.h.key, 28, uint64(base)), millisecond, scrubAfter), func() {
		if d.h.life != life {
			return
		}
		for i := range d.lanes[k] {
			if b := &d.lanes[k][i]; b.Base == base && b.bad {
				d.scrub(k, b)
				return
			}
		}
	})
}

// own counts a commit of the store itself: it notes what the segment of the boot before holds.
func (d *disk) own() {
	d.highest++
	d.commit = d.highest
	d.log = append(d.log, diskGroup{commit: d.commit, segment: d.segment, at: d.h.w.now})
	if !d.h.w.disks.interval {
		d.synced = len(d.log)
	}
}

// scrub finds that a batch is bad.
func (d *disk) scrub(k diskLane, b *diskBatch) {
	if runs := b.live(); len(runs) > 0 {
		b.found = true
		d.h.step(core.Damage{Partition: k.partition, Lane: k.lane, Runs: runs})
	}
}

// report tells the node of a rotten record, once in a life.
func (d *disk) report(k string) {
	if d.reported[k] {
		return
	}
	if d.reported == nil {
		d.reported = map[string]bool{}
	}
	d.reported[k] = true
	d.h.step(core.Damage{Partition: recordPartition(k)})
}

func (d *disk) readTime() int64 {
	d.reads++
	w := d.h.w
	return w.disks.read + exponential(w.luck(luckRead, d.h.key, 0, d.reads), w.disks.read) + d.slowReads
}

func (d *disk) readLater(e core.Read) {
	life := d.h.life
	d.h.w.after(d.readTime(), func() {
		if d.h.life != life {
			return
		}
		done := core.ReadDone{Token: e.Token}
		done.Batches, done.Damaged = d.read(diskLane{e.Partition, e.Lane}, e.Runs, e.MaxBytes)
		d.h.give(life, done)
	})
}

func (d *disk) scanLater(e core.Scan) {
	life := d.h.life
	d.h.w.after(d.readTime(), func() {
		if d.h.life != life {
			return
		}
		done := core.ScanDone{Token: e.Token}
		var rotten []string
		done.Records, done.More, rotten = d.scan(e.Prefix, e.After, e.Limit)
		for _, k := range rotten {
			d.report(k)
		}
		d.h.give(life, done)
	})
}
