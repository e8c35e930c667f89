package sim

import (
	"bytes"
	"cmp"
	"slices"
	"sort"

	"github.com/meshq/meshq/node/core"
	"github.com/meshq/meshq/transport/wire"
)

type diskModel struct {
	sync, jitter int64 // fsync: minimum, and mean of the exponential part
	stall        int   // one fsync in so many takes up to stallBy; 0: none
	stallBy      int64
	read         int64
}

// disk is the model of a store: it executes ops, keeps what was synced, and
// forgets the rest in a crash, but for a group that happened to be complete.
type disk struct {
	h         *host
	records   map[string][]byte
	lanes     map[diskLane][]diskBatch // by base
	commit    uint64
	log       []diskGroup // all groups that were synced since the disk was new
	queued    []core.Persist
	syncing   []core.Persist
	syncs     uint64 // counts for luck
	damaged   bool   // it knows that it lost something
	reads     uint64
	repaired  int
	stallNext int64 // extra time of the next fsync
}

type diskLane struct {
	partition wire.PartitionID
	lane      wire.Lane
}

type diskBatch struct {
	wire.Batch
	bad bool
}

type diskGroup struct {
	commit uint64
	ops    []wire.Op
}

func newDisk(h *host) *disk {
	return &disk{h: h, records: map[string][]byte{}, lanes: map[diskLane][]diskBatch{}}
}

func (d *disk) persist(p core.Persist) {
	d.queued = append(d.queued, p)
	if d.syncing == nil {
		d.sync()
	}
}

// sync takes the slot and drains the queue: all that waits is one group.
func (d *disk) sync() {
	w := d.h.w
	d.syncing, d.queued = d.queued, nil
	d.syncs++
	t := w.disks.sync + exponential(w.luck(luckSync, d.h.key, 0, d.syncs), w.disks.jitter)
	if w.disks.stall > 0 && w.luck(luckSync, d.h.key, 1, d.syncs)%uint64(w.disks.stall) == 0 {
		t += between(w.luck(luckSync, d.h.key, 2, d.syncs), 20*millisecond, w.disks.stallBy)
	}
	t += d.stallNext
	d.stallNext = 0
	life := d.h.life
	w.after(t, func() {
		if d.h.life != life {
			return
		}
		done := d.syncing
		d.syncing = nil
		d.complete(done)
		commit := d.commit
		if len(d.queued) > 0 {
			d.sync()
		}
		for _, p := range done {
			if p.Token != 0 {
				d.h.give(life, core.Persisted{Token: p.Token, Commit: commit})
			}
		}
	})
}

// complete makes a group durable.
func (d *disk) complete(group []core.Persist) {
	d.commit++
	g := diskGroup{commit: d.commit}
	for _, p := range group {
		g.ops = append(g.ops, p.Ops...)
	}
	d.log = append(d.log, g)
	for i := range g.ops {
		d.apply(&g.ops[i], true)
	}
	d.h.w.hashIn(6, d.h.key, d.commit, uint64(len(g.ops)))
}

func (d *disk) apply(op *wire.Op, first bool) {
	w := d.h.w
	switch op.Kind {
	case wire.OpPut:
		d.records[string(op.Key)] = op.Value
	case wire.OpDelete:
		delete(d.records, string(op.Key))
	case wire.OpDeleteRange:
		for k := range d.records {
			if len(k) >= len(op.Key) && k[:len(op.Key)] == string(op.Key) {
				delete(d.records, k)
			}
		}
	case wire.OpBatch:
		k := diskLane{op.Batch.Partition, op.Batch.Lane}
		l := d.lanes[k]
		i := sort.Search(len(l), func(i int) bool { return l[i].Base >= op.Batch.Base })
		if i < len(l) && l[i].Base == op.Batch.Base {
			if !l[i].bad {
				if l[i].Checksum != op.Batch.Checksum || l[i].Count != op.Batch.Count || l[i].Producer != op.Batch.Producer || l[i].Sequence != op.Batch.Sequence {
					w.fail("P9", key(&op.Batch, 0), "%s overwrites %s with other bytes", d.h.name, w.names.batch(&op.Batch))
				}
				return
			}
			d.repaired++
			l[i] = diskBatch{Batch: op.Batch}
		} else {
			d.lanes[k] = slices.Insert(l, i, diskBatch{Batch: op.Batch})
		}
		w.check.holds(d.h, &op.Batch)
		if first && w.tracing {
			w.tracef("%s synced %s", d.h.name, w.names.batch(&op.Batch))
		}
	case wire.OpFree:
		k := diskLane{op.Partition, op.Lane}
		if w.luck(luckDisk, d.h.key, uint64(op.Run.From), op.Lane.Epoch)%3 == 0 {
			return // the segment still has life: the body stays a while
		}
		d.lanes[k] = slices.DeleteFunc(d.lanes[k], func(b diskBatch) bool {
			r := b.Run()
			return op.Run.From <= r.From && r.To <= op.Run.To
		})
		if len(d.lanes[k]) == 0 {
			delete(d.lanes, k)
		}
	}
}

// crash keeps what was synced; of the group under way all or nothing.
func (d *disk) crash() {
	w := d.h.w
	if d.syncing != nil && w.luck(luckCrash, d.h.key, d.syncs, 0)%2 == 0 {
		d.complete(d.syncing)
	}
	d.syncing, d.queued = nil, nil
}

// rollBack loses the last synced groups, all but n.
func (d *disk) rollBack(n int) {
	log := d.log[:min(n, len(d.log))]
	d.records, d.lanes, d.commit, d.log = map[string][]byte{}, map[diskLane][]diskBatch{}, 0, nil
	d.h.w.check.forgets(d.h)
	for _, g := range log {
		for i := range g.ops {
			d.apply(&g.ops[i], false)
		}
		d.commit = g.commit
	}
	d.log = slices.Clip(slices.Clone(log))
}

// recover is what the store gives at boot.
func (d *disk) recover() core.Recovered {
	w := d.h.w
	r := core.Recovered{Commit: d.commit, DamagedAll: d.damaged}
	d.damaged = false
	for _, k := range d.keys() {
		if k[0] != 'r' {
			r.Records = append(r.Records, wire.StoredRecord{Key: []byte(k), Value: bytes.Clone(d.records[k])})
		}
	}
	for _, k := range d.laneKeys() {
		var last *wire.BatchRef
		for _, b := range d.lanes[k] {
			if last != nil && last.Base+wire.Offset(last.Count) == b.Base && last.Producer == b.Producer && last.Sequence+last.Count == b.Sequence &&
				w.luck(luckDisk, d.h.key, uint64(b.Base), b.Lane.Epoch)%2 == 0 {
				last.Count += uint64(b.Count)
				last.Stamp = b.Stamp
				continue
			}
			r.Refs = append(r.Refs, wire.BatchRef{
				Partition: b.Partition, Lane: b.Lane, Base: b.Base, Count: uint64(b.Count),
				Producer: b.Producer, Sequence: b.Sequence, Stamp: b.Stamp,
			})
			last = &r.Refs[len(r.Refs)-1]
		}
	}
	return r
}

func (d *disk) keys() []string {
	keys := make([]string, 0, len(d.records))
	for k := range d.records {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func (d *disk) laneKeys() []diskLane {
	var keys []diskLane
	for k := range d.lanes {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b diskLane) int {
		return cmp.Or(cmp.Compare(a.partition, b.partition), a.lane.Compare(b.lane))
	})
	return keys
}

func (d *disk) readTime() int64 {
	d.reads++
	w := d.h.w
	return w.disks.read + exponential(w.luck(luckRead, d.h.key, 0, d.reads), w.disks.read)
}

func (d *disk) readLater(e core.Read) {
	life := d.h.life
	d.h.w.after(d.readTime(), func() {
		if d.h.life != life {
			return
		}
		done := core.ReadDone{Token: e.Token}
		size := 0
		for _, b := range d.lanes[diskLane{e.Partition, e.Lane}] {
			if len(e.Runs.Overlap(b.Run())) == 0 {
				continue
			}
			if b.bad {
				done.Damaged.Add(b.Run())
				continue
			}
			if size > 0 && size+b.Size() > e.MaxBytes {
				break
			}
			size += b.Size()
			done.Batches = append(done.Batches, b.Batch)
		}
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
		for _, k := range d.keys() {
			if !bytes.HasPrefix([]byte(k), e.Prefix) || e.After != nil && k <= string(e.After) {
				continue
			}
			if len(done.Records) == e.Limit {
				done.More = true
				break
			}
			done.Records = append(done.Records, wire.StoredRecord{Key: []byte(k), Value: bytes.Clone(d.records[k])})
		}
		d.h.give(life, done)
	})
}

// damage flips a byte of some batch, chosen by coin, and tells whether there was one.
// A scrubber that finds it at once tells the core; otherwise the next read does.
func (d *disk) damage(coin uint64, scrub bool) bool {
	keys := d.laneKeys()
	if len(keys) == 0 {
		return false
	}
	k := keys[coin%uint64(len(keys))]
	l := d.lanes[k]
	b := &l[coin/7%uint64(len(l))]
	b.bad = true
	d.h.w.check.lost(d.h, &b.Batch)
	if d.h.w.tracing {
		d.h.w.tracef("%s damaged %s", d.h.name, d.h.w.names.batch(&b.Batch))
	}
	if scrub {
		d.h.step(core.Damage{Partition: k.partition, Lane: k.lane, Runs: wire.Runs{b.Run()}})
	}
	return true
}
