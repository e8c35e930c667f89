package store

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/dgraph-io/badger/v4"

	"github.com/meshq/meshq/transport/wire"
)

// committer is the only writer of both instances. Its goroutine takes a group,
// writes its batches to the head segment, then its records to meta, and calls the
// callbacks in order.
//
// The head is synced before meta: after a crash records are never there without
// the batches of their commit. Where only the head has the group, Open leaves
// its batches out, so that a group is there as a whole or not at all.
type committer struct {
	s     *Store
	queue *queue
	disk  *disk
	mark  watermark
	file  *watermarkFile

	head     *segment
	headTail uint64 // batches in the head, for the group record
	number   uint64 // of the last group
	arena    []byte
	overlay  map[laneKey]wire.Runs // what is held, as the group so far changes it
	failed   error
	lastScan time.Time
	dirty    bool // SyncInterval: written since the last sync
	probed   time.Time
}

// planned is one change of the index, made once the group is synced.
type planned struct {
	op    *wire.Op
	bytes int // of a batch, as encoded
}

// run is the committer's goroutine; it ends when the queue is closed and empty.
func (c *committer) run() {
	var group []*request
	last := 0
	var tick <-chan time.Time
	if c.s.o.Sync == SyncInterval {
		t := time.NewTicker(100 * time.Millisecond)
		defer t.Stop()
		tick = t.C
	}
	for {
		group = group[:0]
		if l := c.s.o.Linger; l > 0 && last >= 2 && last < 4 && c.queue.len() < 4 {
			c.linger(l)
		}
		group, closed := c.queue.take(group, c.s.o.GroupBytes)
		if len(group) == 0 {
			if closed != nil {
				c.sync()
				return
			}
			select {
			case <-c.queue.wake:
			case <-tick:
				c.sync()
			}
			continue
		}
		select {
		case <-tick:
			c.sync()
		default:
		}
		last = len(group)
		c.commit(group)
		clear(group)
	}
}

// linger waits for company, at most so long.
func (c *committer) linger(d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	for c.queue.len() < 4 {
		select {
		case <-c.queue.wake:
			if c.queue.closing() {
				return
			}
		case <-t.C:
			return
		}
	}
}

func (q *queue) closing() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.closed != nil
}

// sync is the fsync of SyncInterval.
func (c *committer) sync() {
	if !c.dirty || c.failed != nil {
		return
	}
	c.dirty = false
	err := c.head.in.db.Sync()
	if err == nil {
		err = c.s.meta.db.Sync()
	}
	if err != nil {
		c.fail(fmt.Errorf("fsync: %w", err))
	}
}

// fail stops all commits, for good.
func (c *committer) fail(err error) {
	if c.failed != nil {
		return
	}
	c.failed = &FailedError{err}
	c.s.o.Logger.Error("store failed: the process must stop", "err", err)
	c.queue.close(c.failed)
	c.s.o.OnFailed(c.failed)
}

// probeEvery is how often a full disk is written to.
const probeEvery = time.Second

// probe writes to a disk that is full, where it needs no room. Nothing else would: that it has
// failed too would not be found.
func (c *committer) probe() error {
	if !c.disk.full || c.failed != nil || time.Since(c.probed) < probeEvery {
		return nil
	}
	c.probed = time.Now()
	_, err := c.s.lock.WriteAt([]byte(lockText), 0)
	if err == nil {
		err = c.s.lock.Sync()
	}
	if err != nil && !errors.Is(err, syscall.ENOSPC) {
		return fmt.Errorf("write to the full disk: %w", err)
	}
	return nil
}

// commit writes one group.
func (c *committer) commit(group []*request) {
	start := time.Now()
	c.disk.check()
	if err := c.probe(); err != nil {
		c.fail(err)
	}
	seal := false
	var plan []planned
	if c.failed == nil {
		plan = c.plan(group)
		for _, r := range group {
			seal = seal || r.seal
		}
	}
	batches, records := false, false
	for i := range plan {
		batches = batches || plan[i].op.Kind == wire.OpBatch
	}
	for _, r := range group {
		records = records || r.records && r.result == nil
	}
	bytes := 0
	if c.failed == nil && (batches || records) {
		c.number++
		var err error
		if batches {
			c.s.o.cut("before data commit")
			bytes, err = c.writeBatches(plan, records)
			c.s.o.cut("after data commit")
		}
		if err == nil && records {
			c.s.o.cut("before meta commit")
			var n int
			n, err = c.writeRecords(group)
			bytes += n
			c.s.o.cut("after meta commit")
		}
		if err == nil {
			c.mark.commit = c.number
			err = c.file.write(&c.mark)
		}
		if err != nil {
			c.fail(err)
		} else {
			c.dirty = true
			c.s.commit.Store(c.number)
			if slices.ContainsFunc(group, func(r *request) bool { return !r.internal && r.result == nil }) {
				c.s.settled()
			}
			c.s.metrics.committed(time.Since(start), bytes)
		}
	}
	if c.failed == nil {
		c.apply(group, plan)
		c.s.o.cut("before callbacks")
	}
	for _, r := range group {
		if r.control != nil && c.failed == nil {
			r.control()
		}
		err := r.result
		if c.failed != nil {
			err = c.failed
		}
		if r.done == nil {
			continue
		}
		if err != nil {
			r.done(0, err)
			continue
		}
		r.done(c.number, nil)
	}
	if c.failed == nil {
		c.rotate(seal)
		if now := time.Now(); now.Sub(c.lastScan) > 100*time.Millisecond {
			c.lastScan = now
			c.s.adviseWritten(c.head)
		}
	}
}

// plan checks the requests of the group and lists what changes in the index, in
// order. A request that is refused gets its result, and nothing of it is done.
func (c *committer) plan(group []*request) (plan []planned) {
	clear(c.overlay)
	for _, r := range group {
		if r.result = c.refuse(r); r.result != nil {
			continue
		}
		for i := range r.ops {
			op := &r.ops[i]
			switch op.Kind {
			case wire.OpBatch:
				k, run := laneKey{op.Batch.Partition, op.Batch.Lane}, op.Batch.Run()
				if r.from == nil {
					held := c.held(k)
					if held.Covers(run) {
						continue
					}
					held.Add(run)
					c.overlay[k] = held
				}
				plan = append(plan, planned{op: op, bytes: op.Batch.Size()})
			case wire.OpFree:
				k := laneKey{op.Partition, op.Lane}
				held := c.held(k)
				held.Remove(op.Run)
				c.overlay[k] = held
				plan = append(plan, planned{op: op})
			}
		}
	}
	return plan
}

func (c *committer) held(k laneKey) wire.Runs {
	held, ok := c.overlay[k]
	if !ok {
		held = c.s.index.held(k)
	}
	return held
}

// refuse tells why a request cannot be taken now.
func (c *committer) refuse(r *request) error {
	if r.batches && r.from == nil && c.disk.full || (r.batches || r.records) && c.disk.empty {
		return ErrFull
	}
	for i := range r.ops {
		if op := &r.ops[i]; op.Kind == wire.OpBatch && xxhash.Sum64(op.Batch.Records) != op.Batch.Checksum {
			return fmt.Errorf("store: %w: %s %s %v does not fit its checksum", wire.ErrBadBatch, op.Batch.Partition, op.Batch.Lane, op.Batch.Run())
		}
	}
	return nil
}

// writeBatches writes the batches of the plan to the head.
func (c *committer) writeBatches(plan []planned, mixed bool) (bytes int, err error) {
	total := 0
	for i := range plan {
		total += plan[i].bytes + batchKeyBytes
	}
	if cap(c.arena) < total {
		c.arena = make([]byte, 0, max(total, 1<<20))
	}
	arena := c.arena[:0]
	if cap(c.arena) > 16<<20 {
		c.arena = nil // one large group must not hold its memory for ever
	}
	g := groupRecord{group: c.number, meta: c.mark.meta}
	if mixed {
		g.flags = groupMixed
	}
	in := c.head.in
	txn := in.db.NewTransaction(true)
	defer func() { txn.Discard() }()
	finish := func(flags uint64) error {
		g.flags |= flags
		g.segment = segmentMark{c.head.id, c.number, c.headTail}
		if err := c.setRecord(txn, keySegmentGroup, g.encode()); err != nil {
			return err
		}
		if err := c.commitTxn(in, txn); err != nil {
			return fmt.Errorf("commit batches: %w", err)
		}
		g.part++
		return nil
	}
	// The count of batches is a count of keys. A key can only be there already where
	// something of the head was freed or found damaged, or is in this group.
	again := c.s.index.hasFreed(c.head)
	for i := range plan {
		again = again || plan[i].op.Kind == wire.OpFree
	}
	size, count := int64(0), int64(0)
	for i := range plan {
		if plan[i].op.Kind != wire.OpBatch {
			continue
		}
		b := &plan[i].op.Batch
		from := len(arena)
		arena = appendBatchKey(arena, &b.BatchHeader)
		key := arena[from:len(arena):len(arena)]
		from = len(arena)
		arena = append(b.AppendHeader(arena), b.Records...)
		value := arena[from:len(arena):len(arena)]
		if size+txnOverhead > in.db.MaxBatchSize() || count+8 >= in.db.MaxBatchCount() {
			if err := finish(0); err != nil {
				return bytes, err
			}
			txn = in.db.NewTransaction(true)
			size, count = 0, 0
		}
		isNew := true
		if again {
			_, err := txn.Get(key)
			isNew = errors.Is(err, badger.ErrKeyNotFound)
			if err != nil && !isNew {
				return bytes, fmt.Errorf("look for batch: %w", err)
			}
		}
		if err := txn.SetEntry(badger.NewEntry(key, value)); err != nil {
			return bytes, fmt.Errorf("write batch: %w", err)
		}
		size += batchKeyBytes + 32
		count++
		bytes += len(value)
		if isNew {
			c.headTail++
		}
	}
	if err := finish(groupLast); err != nil {
		return bytes, err
	}
	c.mark.segments[len(c.mark.segments)-1] = segmentMark{c.head.id, c.number, c.headTail}
	c.head.group = c.number
	return bytes, nil
}

// txnOverhead is room kept in a transaction for the group record.
const txnOverhead = 512

func (c *committer) setRecord(txn *badger.Txn, key, value []byte) error {
	return txn.SetEntry(badger.NewEntry(key, appendValue(nil, key, value)))
}

// commitTxn commits and tells of the errors that Badger keeps to itself.
func (c *committer) commitTxn(in *instance, txn *badger.Txn) error {
	return errors.Join(txn.Commit(), in.log.failed())
}

// writeRecords writes the records of the group to meta, one transaction if it
// fits. Transactions end between commits where they can, so that a commit of up to about
// 1 MiB of records is there as a whole or not at all.
func (c *committer) writeRecords(group []*request) (bytes int, err error) {
	w := &recordWriter{c: c, in: c.s.meta}
	w.begin()
	defer func() { w.txn.Discard() }()
	for _, r := range group {
		if !r.records || r.result != nil {
			continue
		}
		if w.size+w.cost(r) > w.in.db.MaxBatchSize()-txnOverhead {
			if err := w.flush(0); err != nil {
				return w.bytes, err
			}
		}
		owner := byte(keyRecord)
		if r.internal {
			owner = keyInternal
		}
		for i := range r.ops {
			if err := w.do(owner, &r.ops[i]); err != nil {
				return w.bytes, fmt.Errorf("write record: %w", err)
			}
		}
	}
	if err := w.flush(groupLast); err != nil {
		return w.bytes, err
	}
	c.mark.meta = c.number
	return w.bytes, nil
}

type recordWriter struct {
	c     *committer
	in    *instance
	txn   *badger.Txn
	size  int64
	count int64
	part  uint64
	bytes int
}

func (w *recordWriter) begin() {
	w.txn = w.in.db.NewTransaction(true)
	w.size, w.count = 0, 0
}

func entryCost(key, value int) int64 { return int64(key) + int64(value) + 32 }

func (w *recordWriter) cost(r *request) (n int64) {
	for i := range r.ops {
		switch op := &r.ops[i]; op.Kind {
		case wire.OpPut:
			n += entryCost(len(op.Key)+1, len(op.Value)+8)
		case wire.OpDelete:
			n += entryCost(len(op.Key)+1, 0)
		}
	}
	return n
}

func (w *recordWriter) room(cost int64) error {
	if w.count+8 < w.in.db.MaxBatchCount() && w.size+cost < w.in.db.MaxBatchSize()-txnOverhead {
		w.size += cost
		w.count++
		return nil
	}
	if err := w.flush(0); err != nil {
		return err
	}
	w.size, w.count = cost, 1
	return nil
}

// flush commits what there is and begins the next transaction.
func (w *recordWriter) flush(flags uint64) error {
	g := groupRecord{group: w.c.number, part: w.part, flags: flags, meta: w.c.number, segment: w.c.mark.segments[len(w.c.mark.segments)-1]}
	if err := w.c.setRecord(w.txn, keyGroup, g.encode()); err != nil {
		return err
	}
	if err := w.c.commitTxn(w.in, w.txn); err != nil {
		return fmt.Errorf("commit records: %w", err)
	}
	w.part++
	if flags&groupLast == 0 {
		w.c.s.o.cut("between meta transactions")
		w.begin()
	}
	return nil
}

func (w *recordWriter) do(owner byte, op *wire.Op) error {
	switch op.Kind {
	case wire.OpPut:
		key := append([]byte{owner}, op.Key...)
		if err := w.room(entryCost(len(key), len(op.Value)+8)); err != nil {
			return err
		}
		w.bytes += len(key) + len(op.Value)
		return w.c.setRecord(w.txn, key, op.Value)
	case wire.OpDelete:
		return w.delete(append([]byte{owner}, op.Key...))
	case wire.OpDeleteRange:
		return w.deleteRange(append([]byte{owner}, op.Key...))
	}
	return nil
}

func (w *recordWriter) delete(key []byte) error {
	if err := w.room(entryCost(len(key), 0)); err != nil {
		return err
	}
	w.bytes += len(key)
	return w.txn.Delete(key)
}

// deleteRange deletes all keys that begin with prefix, some thousand at a time.
func (w *recordWriter) deleteRange(prefix []byte) error {
	const chunk = 4096
	for {
		keys := make([][]byte, 0, 64)
		it := w.txn.NewIterator(badger.IteratorOptions{Prefix: prefix}) // sees what this transaction wrote
		for it.Rewind(); it.Valid() && len(keys) < chunk; it.Next() {
			keys = append(keys, it.Item().KeyCopy(nil))
		}
		it.Close()
		for _, key := range keys {
			if err := w.delete(key); err != nil {
				return err
			}
		}
		if len(keys) < chunk {
			return nil
		}
	}
}

// apply makes the plan true in the index, in order.
func (c *committer) apply(group []*request, plan []planned) {
	var from *segment
	if len(group) > 0 {
		from = group[0].from
	}
	emptied := false
	for i := range plan {
		op := plan[i].op
		switch {
		case op.Kind == wire.OpFree:
			emptied = c.s.index.free(laneKey{op.Partition, op.Lane}, op.Run) || emptied
		case from != nil:
			c.s.index.move(from, c.head, laneKey{op.Batch.Partition, op.Batch.Lane}, op.Batch.Run(), plan[i].bytes)
		default:
			c.s.index.add(c.head, laneKey{op.Batch.Partition, op.Batch.Lane}, op.Batch.Run(), plan[i].bytes)
		}
	}
	if emptied {
		c.s.wakeKeeper()
	}
}

// rotate seals the head when it is time, if the next one is ready.
func (c *committer) rotate(asked bool) {
	if !c.s.index.wantsSeal(c.head, asked, c.s.o) {
		return
	}
	var next *segment
	select {
	case next = <-c.s.prepared:
	default:
		return // it goes on growing; asked again after the next group
	}
	c.s.o.cut("sealing")
	if err := c.s.segments.use(next); err != nil {
		c.fail(fmt.Errorf("begin segment: %w", err))
		return
	}
	old := c.head
	c.s.index.rotate(next)
	c.head, c.headTail = next, 0
	c.mark.segments = append(c.mark.segments, segmentMark{id: next.id})
	if err := c.file.write(&c.mark); err != nil {
		c.fail(err)
		return
	}
	if c.s.o.Sync == SyncInterval {
		if err := old.in.db.Sync(); err != nil {
			c.fail(fmt.Errorf("fsync: %w", err))
			return
		}
	}
	c.lastScan = time.Time{} // the kernel is to hear of the new files at once
	c.s.segments.seal(old)
	c.s.wakeKeeper()
}

// forget drops the marks of segments that have a summary or are gone. Only the committer
// calls it.
func (c *committer) forget(keep func(id uint64) bool) {
	kept := c.mark.segments[:0]
	for i, m := range c.mark.segments {
		if i == len(c.mark.segments)-1 || keep(m.id) {
			kept = append(kept, m)
		}
	}
	c.mark.segments = kept
}

// disk says how much may still be written; only the committer uses it.
type disk struct {
	o     *Options
	s     *Store
	full  bool // no batches
	empty bool // no records either
}

// check looks at the free space. It costs a system call.
func (d *disk) check() {
	free, total, err := space(d.o.Dir)
	if err != nil {
		d.o.Logger.Warn("free space is not known", "err", err)
		return
	}
	d.s.free.Store(free)
	used := 1 - float64(free)/float64(max(total, 1))
	was := d.full
	if d.full {
		roomy := free > d.o.MinFree+d.o.MinFree/4 && (d.o.MaxUsed >= 1 || used < d.o.MaxUsed-0.02)
		d.full = !roomy
	} else {
		d.full = free < d.o.MinFree || d.o.MaxUsed < 1 && used > d.o.MaxUsed
	}
	d.empty = free < d.o.Reserve
	if d.full == was {
		return
	}
	d.s.full.Store(d.full)
	if d.full {
		d.o.Logger.Warn("disk is full: batches are refused", "free_bytes", free, "total_bytes", total)
	} else {
		d.o.Logger.Info("disk has room: batches are taken again", "free_bytes", free)
	}
	d.o.OnFull(d.full)
}

// ballast is a file whose only use is that it can be removed.
const ballastName = "ballast"

// makeBallast makes the ballast file if there is room for it beyond the floor.
func makeBallast(o *Options, free int64) error {
	if o.BallastBytes <= 0 || free < o.MinFree+2*o.BallastBytes {
		return nil
	}
	path := o.Dir + "/" + ballastName
	if info, err := os.Stat(path); err == nil && info.Size() == o.BallastBytes {
		return nil
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(allocate(f, o.BallastBytes), f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}
