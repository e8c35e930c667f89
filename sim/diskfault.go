package sim

import (
	"errors"
	"maps"
	"math/bits"
	"slices"

	"github.com/meshq/meshq/node/core"
	"github.com/meshq/meshq/ring"
	"github.com/meshq/meshq/transport/wire"
)

// The faults of disks. Those that hurt a disk tell whether they did: they do not where
// the promises would not cover it, and where there is nothing to hurt. Those that end the
// process leave it to the caller to start it again.

// powerCut ends the machine of h: what was not fsynced is gone, but for what happened to
// be whole.
func (h *host) powerCut() bool {
	if !h.running || h.w.disks.interval && !h.w.mayLose(h) {
		return false
	}
	behind := h.disk.behind()
	h.endBy(unpowered, 0)
	h.disk.hollow(behind)
	return true
}

// behind are the batches that may not be fsynced yet, each as written as those before it.
func (d *disk) behind() (out []wire.Batch) {
	if !d.h.w.disks.interval {
		return nil
	}
	add := func(ops []wire.Op) {
		for i := range ops {
			if ops[i].Kind == wire.OpBatch {
				out = append(out, ops[i].Batch)
			}
		}
	}
	for _, g := range d.log[d.synced:] {
		add(g.ops)
	}
	for _, p := range d.syncing {
		add(p.Ops)
	}
	return out
}

// hollow makes some of what is left of these batches bad: keys and bodies are in different files, and
// of those the bodies were not written back.
func (d *disk) hollow(behind []wire.Batch) {
	some := false
	for i := range behind {
		k := diskLane{behind[i].Partition, behind[i].Lane}
		for j := range d.lanes[k] {
			b := &d.lanes[k][j]
			if b.Base != behind[i].Base || b.bad || d.h.w.luck(luckDisk, d.h.key, 30, d.wounds<<16|uint64(i))%4 > 0 {
				continue
			}
			b.bad, some = true, true
			d.h.w.check.lost(d.h, &b.Batch)
			if d.h.w.tracing {
				d.h.w.tracef("%s damaged %s", d.h.name, d.h.w.names.batch(&b.Batch))
			}
		}
	}
	if some {
		d.wound()
		d.rebase()
	}
}

// torn ends the process of h and tears the log of some of the last groups that it confirmed; the store knows.
func (h *host) torn() bool {
	if !h.running || len(h.disk.log) == 0 || !h.w.mayLose(h) {
		return false
	}
	h.endBy(torn, int(1+h.w.luck(luckDisk, h.key, 29, h.disk.wounds)%3))
	return true
}

// amnesia ends the process of h and loses the last groups that it confirmed without a
// word: at least so many, and as many as it takes that all others remember one of them.
func (h *host) amnesia(n int) bool {
	w := h.w
	if !h.running || len(h.disk.log) == 0 || !w.mayLose(h) {
		return false
	}
	lose, ok := silentLoss(h.disk.log, n, w.remembered(h))
	if !ok && w.beyond {
		lose, ok = max(1, n), true
	}
	if !ok || lose >= len(h.disk.log) { // an empty disk would be a new node
		return false
	}
	if !w.beyond && h.disk.alone(len(h.disk.log)-lose) {
		return false
	}
	h.endBy(forgetful, lose)
	h.disk.forgot = true
	return true
}

// alone tells whether the first so many groups are of the time when the node was the only
// one of its mesh. A disk that has silently lost all since cannot be told from one of a mesh
// of one node: it knows of nobody to ask, and is a majority by itself. P12 does not cover
// that (seed 33098).
func (d *disk) alone(groups int) bool {
	kept := replay(&d.base, d.log, groups, groups)
	rings, _, _ := kept.scan([]byte{'R'}, nil, 2)
	return len(rings) == 1
}

// remembered is the last commit of h that each of the others remembers.
func (w *world) remembered(h *host) []uint64 {
	var out []uint64
	for _, o := range w.nodes() {
		if o != h && o.core != nil {
			out = append(out, o.core.RememberedCommit(h.id))
		}
	}
	return out
}

// endBy ends the process so that the disk keeps what that demise leaves.
func (h *host) endBy(e demise, lose int) {
	if h.w.tracing {
		h.w.tracef("%s %s", h.name, [...]string{"is killed", "loses power", "is killed, its last group torn", "is killed and forgets"}[e])
	}
	h.disk.end(e, lose)
	h.crash()
}

// rollback ends the process of h and sets its disk back to what it was so long ago, its
// boot number too.
func (h *host) rollback(by int64) bool {
	w, d := h.w, h.disk
	if !h.running || !w.mayLose(h) || !w.mayGo() { // it may be found to be old, and taken away
		return false
	}
	to := w.now - by
	i, _ := slices.BinarySearchFunc(d.marks, to+1, func(m diskMark, t int64) int {
		if m.at < t {
			return -1
		}
		return 1
	})
	n, _ := slices.BinarySearchFunc(d.log, to+1, func(g diskGroup, t int64) int {
		if g.at < t {
			return -1
		}
		return 1
	})
	if i == 0 || n == 0 {
		return false // it was not there yet
	}
	mark := d.marks[i-1]
	lost := len(d.log) - n
	if mark.boot == d.boot && !w.beyond {
		// Only what the others remember of it tells that it is old.
		if least, ok := silentLoss(d.log, lost, w.remembered(h)); !ok || least != lost {
			return false
		}
	}
	if mark.boot < d.boot && w.now-h.boots < 2*second && !w.beyond {
		return false // nor does anybody know of its boot
	}
	if !w.beyond && d.alone(n) {
		return false
	}
	h.crash()
	d.keep(n, n, false)
	d.boot, d.marks = mark.boot, d.marks[:i]
	d.old = true
	if w.tracing {
		w.tracef("%s has the disk of %d ms ago again: boot %d, commit %d", h.name, by/millisecond, d.boot, d.commit)
	}
	return true
}

// wipe ends the process of h and loses its disk; a new node will be in its place.
func (h *host) wipe() bool {
	if !h.running || !h.w.mayLose(h) || !h.w.mayGo() {
		return false
	}
	h.crash()
	h.replace()
	return true
}

// replace puts an empty disk into the machine of h: what starts there is a node with
// another ID, which joins by way of the others.
func (h *host) replace() {
	w, d := h.w, h.disk
	*d = disk{h: h, contents: newContents(), base: newContents(), segment: d.segment, syncs: d.syncs, reads: d.reads, wounds: d.wounds + 1, slow: d.slow, slowReads: d.slowReads, full: d.full, held: d.held}
	w.check.forgets(h)
	w.gone++
	h.replaced++
	w.setID(h, ring.NodeID(w.luck(luckBoot, h.key, d.wounds, 4)|1))
	h.founder = false
	if w.tracing {
		w.tracef("%s is empty and becomes another node", h.name)
	}
}

// stop ends the process of h because its core said so. A disk that was set back is found
// to be old: people then take it away and start with an empty one, within some seconds.
func (h *host) stop(err error) {
	h.crash()
	if h.down > 0 && errors.Is(err, wire.ErrOlderData) && h.w.node(h.id) != h {
		h.w.reach("twin-fenced")
		return // its twin is the node now
	}
	if !h.disk.old || !errors.Is(err, wire.ErrOlderData) {
		h.stopped = err
		return
	}
	h.replace()
	h.down++
	h.w.after(2*second, h.up)
}

// turnsAway tells whether the door of h refuses the Hello of another: it is of a lower boot than
// one that was seen.
func (h *host) turnsAway(from *host) bool {
	if from.boot < h.bootSeen[from.id] {
		return true
	}
	if h.bootSeen == nil {
		h.bootSeen = map[ring.NodeID]uint64{}
	}
	h.bootSeen[from.id] = from.boot
	return false
}

// others are all nodes but h.
func (w *world) others(h *host) []*host {
	return slices.DeleteFunc(slices.Clone(w.nodes()), func(o *host) bool { return o == h })
}

// damage flips a bit in some batch of h. A scrubber that finds it at once tells the core;
// otherwise the next read does.
func (h *host) damage(scrub bool) bool {
	if !h.running || h.paused || !h.w.mayLose(h) {
		return false
	}
	h.disk.wounds++
	return h.disk.damage(h.w.luck(luckDisk, h.key, 23, h.disk.wounds), scrub)
}

// damageRecord ends the process of h and flips bits of so many records, at least one.
func (h *host) damageRecord(n int) bool {
	w, d := h.w, h.disk
	keys := d.keys()
	if !h.running || len(keys) == 0 || !w.mayLose(h) {
		return false
	}
	h.crash()
	keys = d.keys()
	for i := range max(1, n) {
		k := keys[w.luck(luckDisk, h.key, 24, d.wounds<<8|uint64(i))%uint64(len(keys))]
		d.rotten[k] = true
		if w.tracing {
			w.tracef("%s has a damaged record %q", h.name, k)
		}
	}
	d.wound()
	d.rebase()
	return true
}

// openError ends the process of h and takes from its store what is in one segment (n 0), or
// all records (n 1): it does not open any more, and the store sets it aside and says so.
func (h *host) openError(n int) bool {
	w, d := h.w, h.disk
	if !h.running || n == 0 && len(d.segments()) == 0 || !w.mayLose(h) {
		return false
	}
	h.crash()
	if n == 0 {
		list := d.segments()
		aside := list[w.luck(luckDisk, h.key, 25, d.wounds)%uint64(len(list))]
		for _, k := range d.laneKeys() {
			d.lanes[k] = slices.DeleteFunc(d.lanes[k], func(b diskBatch) bool {
				if b.segment == aside {
					w.check.lost(h, &b.Batch)
				}
				return b.segment == aside
			})
			if len(d.lanes[k]) == 0 {
				delete(d.lanes, k)
			}
		}
	} else {
		d.loseRecords()
	}
	d.damaged = true
	d.wound()
	d.rebase()
	if w.tracing {
		w.tracef("%s sets aside %s", h.name, [...]string{"a segment", "its records"}[min(n, 1)])
	}
	return true
}

// loseRecords loses the instance with the records. The last commit is the last of the others then.
func (d *disk) loseRecords() {
	fresh := newContents()
	d.records, d.deleted, d.rotten = fresh.records, fresh.deleted, fresh.rotten
	d.commit = 0
	for i := range d.log {
		if _, batches := d.log[i].parts(); batches {
			d.commit = d.log[i].commit
		}
	}
}

// keyReturns ends the process of h; records that were deleted, each with a chance of one
// half, are there again.
func (h *host) keyReturns() bool {
	w, d := h.w, h.disk
	if !h.running || len(d.deleted) == 0 {
		return false
	}
	h.crash()
	for i, k := range slices.Sorted(maps.Keys(d.deleted)) {
		if w.luck(luckDisk, h.key, d.boot, uint64(i))%2 == 0 {
			d.records[k] = d.deleted[k]
			delete(d.deleted, k)
		}
	}
	d.rebase()
	return true
}

// diskFull takes the room for enqueues, or gives it back. The node learns of it soon.
func (h *host) diskFull(on bool) {
	d := h.disk
	d.full = on
	if !on {
		d.held = false
	}
	if !h.running {
		return
	}
	life, w := h.life, h.w
	w.after(between(w.luck(luckDisk, h.key, 26, d.syncs), 0, fullAfter), func() {
		h.give(life, core.Disk{Full: d.full})
	})
	if !on && d.syncing == nil {
		d.sync()
	}
}

// diskHeld takes the room for all batches at once, faster than the node learns of it:
// commits that have some wait, and all after them, until diskFull gives it back.
func (h *host) diskHeld() {
	h.disk.held = true
	h.diskFull(true)
}

// diskError makes the next fsync of h fail: the process then ends by itself.
func (h *host) diskError() bool {
	if !h.running {
		return false
	}
	h.disk.failNext = true
	return true
}

// diskSlow makes each fsync take that much longer than before, from now on.
func (h *host) diskSlow(by int64) { h.disk.slow += by }

// diskStall makes the next fsync take that much longer.
func (h *host) diskStall(by int64) { h.disk.stallNext = max(h.disk.stallNext, by) }

// slowRead makes each read take that much longer than before, from now on.
func (h *host) slowRead(by int64) { h.disk.slowReads += by }

// damage flips a bit of some batch that may still be read, chosen by coin, and tells
// whether there was one.
func (d *disk) damage(coin uint64, scrub bool) bool {
	type at struct {
		k diskLane
		i int
	}
	var whole []at
	for _, k := range d.laneKeys() {
		for i := range d.lanes[k] {
			if b := &d.lanes[k][i]; !b.bad && !b.gone() {
				whole = append(whole, at{k, i})
			}
		}
	}
	if len(whole) == 0 {
		return false
	}
	x := whole[coin%uint64(len(whole))]
	b := &d.lanes[x.k][x.i]
	b.bad = true
	d.hurt = true
	d.h.w.check.lost(d.h, &b.Batch)
	if d.h.w.tracing {
		d.h.w.tracef("%s damaged %s", d.h.name, d.h.w.names.batch(&b.Batch))
	}
	if scrub {
		d.scrub(x.k, b)
	}
	return true
}

// ailing tells whether something is missing that the node may not know of yet.
func (d *disk) ailing() bool { return d.damaged || len(d.where) > 0 || d.old || d.forgot || !d.sound() }

// mayGo tells whether a node may be gone for ever: each partition has a majority of its
// home replicas without it.
func (w *world) mayGo() bool {
	return w.beyond || !slices.ContainsFunc(w.check.queues, func(q *queue) bool {
		return min(int(q.entry.Settings.Replicas), len(w.nodes())) < 3
	})
}

// mayLose tells whether the promises cover that the disk of h loses something now: any
// W-1 disks may (P1), one after the other once what was lost is whole again, votes and catalog
// too, while a majority of the others remembers (P3, P12).
func (w *world) mayLose(h *host) bool {
	if w.beyond {
		return true
	}
	if w.gone > 0 {
		return false // a member is gone for ever: nobody can spare another
	}
	var number uint64
	for _, o := range w.nodes() {
		if !o.running || o.paused || o.core.Mesh() == 0 || len(o.core.Moving()) > 0 || o != h && (o.disk.ailing() || o.core.LostVotes() || o.core.LostCatalog()) {
			return false
		}
		if number == 0 {
			number = o.core.Table().Number
		}
		if o.core.Table().Number != number || len(o.core.Table().Members) != len(w.nodes()) {
			return false
		}
	}
	for _, q := range w.check.queues {
		if q.entry.Settings.WriteQuorum < 2 || len(w.nodes()) < 3 {
			return false
		}
		for _, p := range q.partitions() {
			for _, o := range w.nodes() {
				if o.core.Repairing(p) {
					return false
				}
			}
		}
	}
	for _, m := range w.check.order {
		if s := w.check.messages[m]; s.confirmed == 0 || w.check.allDone(m) {
			continue
		}
		need := min(int(w.check.messages[m].q.entry.Settings.WriteQuorum), len(w.nodes())) // with that of h
		if n := w.check.holders[m]; bits.OnesCount64(n|1<<h.place) < need {
			return false
		}
	}
	return true
}
