package core

import (
	"container/heap"
	"slices"
	"sort"

	"github.com/meshq/meshq/transport/wire"
)

// retry is a run of messages of one batch that waits for its time.
type retry struct {
	wire.Retry
	at      Instant // when it is due, by this node's monotonic clock
	key     []byte  // of its record on disk; nil: it has none
	loaded  *cached
	reading bool
	seq     uint64
	index   int
}

// part is the retry of some of r. It has no record on disk; a read for r is not for it.
func (r *retry) part(run wire.Run) *retry {
	p := &retry{Retry: r.Retry, at: r.at}
	p.Run = run
	if r.loaded != nil && r.loaded.batch.Run().Has(run.From) {
		p.loaded = r.loaded
	}
	return p
}

// retryHeap has the retry that is due first on top.
type retryHeap []*retry

func (h retryHeap) Len() int { return len(h) }
func (h retryHeap) Less(i, j int) bool {
	return h[i].at < h[j].at || h[i].at == h[j].at && h[i].seq < h[j].seq
}
func (h retryHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}
func (h *retryHeap) Push(x any) {
	r := x.(*retry)
	r.index = len(*h)
	*h = append(*h, r)
}
func (h *retryHeap) Pop() any {
	old := *h
	r := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	r.index = -1
	return r
}

// takeBack ends a delivery, or part of it, without an ack: the runs wait for their next delivery.
// wait is in milliseconds. spread puts the retry on disk, here and on the other home
// replicas, unawaited, so that attempts and backoff survive a takeover.
func (f *feed) takeBack(d *delivery, runs wire.Runs, cause wire.Cause, wait uint64, attempt uint32, spread bool) {
	p, c := f.o.p, f.o.p.core
	old := d.retry
	d.retry = nil
	f.settled(d, runs)
	var ops []wire.Op
	if old != nil {
		ops = append(ops, remove(old))
	}
	var items []wire.Retry
	for _, run := range runs {
		r := &retry{Retry: wire.Retry{
			Group: f.id, Lane: d.receipt.Lane, Run: run, Attempt: attempt, Due: c.now.Wall + wait, Wait: wait, Cause: cause,
			Term: d.receipt.Term, Serial: d.receipt.Serial,
		}}
		if spread {
			r.key = retryKey(p.id, r.Retry)
			ops = append(ops, put(r.key, r.Retry))
			items = append(items, r.Retry)
		}
		ops = append(ops, f.wait(r)...)
	}
	f.persist(ops)
	if len(items) > 0 {
		m := &wire.Retries{Partition: p.id, Items: items}
		for _, id := range p.otherHomes() {
			c.send(id, m)
		}
	}
}

// persist commits changes of retry records. What was left on disk is looked for again when it
// is there.
func (f *feed) persist(ops []wire.Op) {
	if len(ops) == 0 {
		return
	}
	o, n := f.o, f.spilled
	f.spilled = 0
	f.writing += n
	o.p.core.persistThen(ops, func() {
		f.writing -= n
		if n == 0 || o.p.own != o {
			return
		}
		f.after, f.rescan = nil, f.loading
		f.refill()
	})
}

// wait puts a retry into memory, or leaves it on disk if there are too many (P8). The caller
// persists what it returns, and the record of r.
func (f *feed) wait(r *retry) []wire.Op {
	p := f.o.p
	f.lane(r.Lane).handed.Add(r.Run)
	if len(f.retries) < p.core.cfg.Limits.Retries {
		f.enqueue(r)
		return nil
	}
	f.onDisk++
	f.spilled++
	f.after = nil // it may be due before what was loaded last
	f.rescan = f.loading
	if r.key != nil {
		return nil
	}
	return []wire.Op{put(retryKey(p.id, r.Retry), r.Retry)}
}

func (f *feed) enqueue(r *retry) {
	c := f.o.p.core
	c.names++
	r.seq = c.names
	wait := uint64(0)
	if r.Due > c.now.Wall {
		wait = min(r.Due-c.now.Wall, r.Wait)
	}
	r.at = c.now.Mono + Instant(wait)*Millisecond
	fl := f.lane(r.Lane)
	fl.waiting = slices.Insert(fl.waiting, fl.waitingFrom(r.Run.From), r)
	heap.Push(&f.retries, r)
	f.armDue()
}

// armDue pumps when the next retry is due.
func (f *feed) armDue() {
	c := f.o.p.core
	c.timers.stop(f.due)
	f.due = nil
	if len(f.retries) == 0 {
		return
	}
	f.due = c.timers.add(max(c.now.Mono, f.retries[0].at), func() {
		f.due = nil
		f.o.pump()
		if f.due == nil && len(f.retries) > 0 && f.retries[0].at > c.now.Mono {
			f.armDue()
		}
	})
}

// pop takes the first retry out of memory, and reads more from disk when few are left.
func (f *feed) pop() *retry {
	r := f.retries[0]
	f.forget(r)
	f.refill()
	return r
}

// forget takes a retry out of memory.
func (f *feed) forget(r *retry) {
	heap.Remove(&f.retries, r.index)
	fl := f.lane(r.Lane)
	for i := fl.waitingFrom(r.Run.From); i < len(fl.waiting); i++ {
		if fl.waiting[i] == r {
			fl.waiting = slices.Delete(fl.waiting, i, i+1)
			return
		}
	}
}

// waitingFrom is where the first of the waiting retries that begins at o or later is.
func (fl *feedLane) waitingFrom(o wire.Offset) int {
	return sort.Search(len(fl.waiting), func(i int) bool { return fl.waiting[i].Run.From >= o })
}

// waitingIn are the retries in memory that overlap a run, in order.
func (f *feed) waitingIn(l wire.Lane, run wire.Run) []*retry {
	fl := f.lane(l)
	i := fl.waitingFrom(run.From)
	for i > 0 && fl.waiting[i-1].Run.To > run.From {
		i--
	}
	j := i
	for j < len(fl.waiting) && fl.waiting[j].Run.From < run.To {
		j++
	}
	return slices.Clone(fl.waiting[i:j])
}

// refill brings retries from disk into memory when few are left there.
func (f *feed) refill() {
	if f.onDisk > 0 && len(f.retries) <= f.o.p.core.cfg.Limits.Retries/2 {
		f.loadMore()
	}
}

// redeliver hands out a retry that is due.
func (f *feed) redeliver(s *sub) (wire.Delivery, bool) {
	p, c := f.o.p, f.o.p.core
	for len(f.retries) > 0 && f.retries[0].at <= c.now.Mono {
		r := f.retries[0]
		done := p.group(f.id).runs(r.Lane)
		open := wire.Runs{r.Run}.Minus(done)
		if len(open) == 0 {
			f.pop()
			if r.key != nil {
				c.persistThen([]wire.Op{remove(r.key)}, nil)
			}
			continue
		}
		if len(open) > 1 || open[0] != r.Run { // some of it was done meanwhile
			f.pop()
			for _, run := range open {
				f.enqueue(r.part(run))
			}
			if r.key != nil {
				c.persistThen([]wire.Op{remove(r.key)}, nil)
			}
			continue
		}
		if until := f.copyHeld(r.Lane, r.Run); until > c.now.Mono { // one message, two positions
			f.pop()
			r.Wait = uint64((until-c.now.Mono)/Millisecond) + 1
			r.Due = c.now.Wall + r.Wait
			f.enqueue(r)
			continue
		}
		if r.loaded == nil {
			r.loaded = c.cache.get(p.id, r.Lane, r.Run.From)
		}
		if r.loaded == nil {
			f.fetchRetry(r)
			return wire.Delivery{}, false
		}
		f.pop()
		run := r.Run
		if left := wire.Offset(s.left()); wire.Offset(run.Len()) > left {
			f.enqueue(r.part(wire.Span(run.From+left, run.To)))
			run.To = run.From + left
		}
		if end := r.loaded.batch.Run().To; run.To > end { // records of more than one batch
			f.enqueue(r.part(wire.Span(end, run.To)))
			run.To = end
		}
		f.lane(r.Lane).handed.Remove(run) // give adds it
		d, ok := f.give(s, r.loaded, run, r.Attempt+1, r.Cause, r.key)
		f.armDue()
		return d, ok
	}
	return wire.Delivery{}, false
}

// copyHeld is until when somebody holds messages of a run at another position, at most;
// 0: nobody does. What comes of them there counts here: done is done at both, and what is
// given back waits there as well, and then the first to be handed out holds up the other.
func (f *feed) copyHeld(l wire.Lane, run wire.Run) (until Instant) {
	for _, other := range f.o.p.aliasesOf(l, run) {
		for _, d := range deliveriesIn(f.lane(other.lane), other.run) {
			until = max(until, d.until)
		}
	}
	return until
}

// fetchRetry reads the batch of a retry from disk.
func (f *feed) fetchRetry(r *retry) {
	p, c, o := f.o.p, f.o.p.core, f.o
	if r.reading {
		return
	}
	r.reading = true
	c.read(p.id, r.Lane, wire.Runs{r.Run}, 1, func(done ReadDone) {
		r.reading = false
		if p.own != o {
			return
		}
		if len(done.Batches) > 0 && done.Batches[0].Run().Has(r.Run.From) {
			r.loaded = &cached{batch: done.Batches[0]}
			o.pump()
			return
		}
		if len(done.Damaged) > 0 {
			p.lost(r.Lane, done.Damaged)
			return
		}
		// It is not on disk yet, or comes from another replica. Until then it waits as the retry
		// that it is: handed out as new it would have neither attempt nor cause (P4).
		wait := uint64(absentWait)
		if !p.lane(r.Lane).held.Contains(r.Run.From) {
			wait = missingWait
			p.pullAll()
		}
		if r.index >= 0 && r.index < len(f.retries) && f.retries[r.index] == r {
			f.forget(r)
			if wait == missingWait && f.copyHere(r) {
				f.unhand(r.Lane, r.Run)
				o.pump()
				return
			}
			r.Wait, r.Due = wait, c.now.Wall+wait
			f.enqueue(r)
		}
	})
}

// copyHere tells whether the messages of a retry are here at another position. Where they are
// not here at their own, which may be lost, they are handed out there, and do not wait.
func (f *feed) copyHere(r *retry) bool {
	return slices.ContainsFunc(f.o.p.aliasesOf(r.Lane, r.Run), func(other laneRun) bool {
		return other.run.Len() == r.Run.Len() && f.o.p.lane(other.lane).held.Covers(other.run)
	})
}

// How long a retry waits, in milliseconds, for its batch to be on disk, or here at all.
const (
	absentWait  = 100
	missingWait = 1000
)

// postpone puts delayed messages at the front of a run aside and returns up to where
// the run can be handed out now; from if it cannot.
func (f *feed) postpone(x *cached, from, to wire.Offset) wire.Offset {
	p, c := f.o.p, f.o.p.core
	b := &x.batch
	rest, err := x.records(wire.Span(from, to))
	if err != nil {
		p.lost(b.Lane, wire.Runs{b.Run()})
		return from
	}
	var ops []wire.Op
	at := from
	for ; at < to; at++ {
		delay, next, err := wire.RecordDelay(rest)
		if err != nil {
			p.lost(b.Lane, wire.Runs{b.Run()})
			return from
		}
		due := b.Stamp>>16 + uint64(delay.Milliseconds())
		if due <= c.now.Wall {
			if at == from {
				// Hand out up to the next one that is delayed.
				for at++; at < to; at++ {
					rest = next
					if delay, next, err = wire.RecordDelay(rest); err != nil || b.Stamp>>16+uint64(delay.Milliseconds()) > c.now.Wall {
						break
					}
				}
				return at
			}
			break
		}
		r := &retry{Retry: wire.Retry{Group: f.id, Lane: b.Lane, Run: wire.Span(at, at+1), Due: due, Wait: uint64(delay.Milliseconds())}}
		ops = append(ops, f.wait(r)...)
		rest = next
	}
	f.persist(ops)
	return from
}

// load reads the retry records that an earlier owner, or this one, has left. Nothing
// is handed out before: a message that was given back must not come too early.
func (f *feed) load() {
	f.o.scans++
	f.loadFrom(nil, func() {
		f.o.scans--
		f.armDue()
		f.o.pump()
	})
}

// retryPage is how many records are read at a time.
const retryPage = 1000

func (f *feed) loadFrom(after []byte, then func()) {
	p, c, o := f.o.p, f.o.p.core, f.o
	prefix := key(recordRetry, uint64(p.id), uint64(f.id))
	c.scan(prefix, after, retryPage, func(done ScanDone) {
		if p.own != o {
			return
		}
		var ops []wire.Op
		for _, record := range done.Records {
			ops = append(ops, f.loadRecord(record)...)
		}
		if len(ops) > 0 {
			c.persistThen(ops, nil)
		}
		if done.More && len(done.Records) > 0 {
			f.loadFrom(done.Records[len(done.Records)-1].Key, then)
			return
		}
		then()
	})
}

// loadRecord takes one record. Of two for the same message the higher attempt wins, and
// what is in flight has one of its own: a disk may bring back what was deleted.
func (f *feed) loadRecord(record wire.StoredRecord) []wire.Op {
	p := f.o.p
	r, err := decodeRetry(record.Value)
	if err != nil || r.Group != f.id || p.group(f.id).runs(r.Lane).Covers(r.Run) {
		return []wire.Op{remove(record.Key)}
	}
	open := wire.Runs{r.Run}
	for _, d := range deliveriesIn(f.lane(r.Lane), r.Run) {
		if string(d.retry) == string(record.Key) {
			return nil // it goes when the delivery has ended
		}
		open = open.Minus(d.runs)
	}
	for _, known := range f.waitingIn(r.Lane, r.Run) {
		if string(known.key) == string(record.Key) {
			return nil // it was loaded before
		}
		if known.Attempt >= r.Attempt {
			open.Remove(known.Run)
		}
	}
	if len(open) == 0 {
		return []wire.Op{remove(record.Key)}
	}
	f.lane(r.Lane).handed.AddAll(open)
	if len(f.retries) >= p.core.cfg.Limits.Retries {
		f.onDisk++
		return nil
	}
	for _, run := range open {
		for _, known := range f.waitingIn(r.Lane, run) {
			f.dropRetry(known, run)
		}
	}
	f.after = record.Key
	if len(open) == 1 && open[0] == r.Run {
		f.enqueue(&retry{Retry: r, key: slices.Clone(record.Key)})
		return nil
	}
	whole := &retry{Retry: r}
	for _, run := range open {
		f.enqueue(whole.part(run))
	}
	return []wire.Op{remove(record.Key)}
}

// loadMore brings the next retries from disk into memory.
func (f *feed) loadMore() {
	p, c, o := f.o.p, f.o.p.core, f.o
	if f.loading {
		return
	}
	f.loading = true
	c.scan(key(recordRetry, uint64(p.id), uint64(f.id)), f.after, retryPage, func(done ScanDone) {
		f.loading = false
		if p.own != o {
			return
		}
		var ops []wire.Op
		limit := c.cfg.Limits.Retries
		before, all, more := len(f.retries), !done.More, true
		for _, record := range done.Records {
			if len(f.retries) >= limit { // the rest stays on disk
				all = false
				break
			}
			ops = append(ops, f.loadRecord(record)...)
			f.after = record.Key
		}
		f.onDisk = max(1, f.onDisk-(len(f.retries)-before))
		switch {
		case f.rescan:
			f.rescan, f.after = false, nil
		case all && f.writing > 0: // what is being written comes when it is there
			f.after = nil
			more = false
		case all:
			f.onDisk, f.after = 0, nil
		}
		if len(ops) > 0 {
			c.persistThen(ops, nil)
		}
		if more {
			f.refill()
		}
		o.pump()
	})
}

// backoff is how long a message waits after a nack: exponential, with jitter.
func (p *partition) backoff(attempt uint32) uint64 {
	s := p.entry.Settings.InForce()
	wait := uint64(s.BackoffMin) << min(attempt-1, 24)
	wait = min(wait, uint64(s.BackoffMax))
	return wait/2 + uint64(p.core.jitter(Instant(wait/2+1)))
}

// sweepRetries removes the retry records of messages that are done. It runs with
// anti-entropy as long as there are any.
func (p *partition) sweepRetries(after []byte) {
	c := p.core
	c.scan(key(recordRetry, uint64(p.id)), after, retryPage, func(done ScanDone) {
		if c.parts[p.id] != p {
			return
		}
		var ops []wire.Op
		for _, record := range done.Records {
			if r, err := decodeRetry(record.Value); err != nil || p.group(r.Group).runs(r.Lane).Covers(r.Run) {
				ops = append(ops, remove(record.Key))
			}
		}
		if len(ops) > 0 {
			c.persistThen(ops, nil)
		}
		if done.More && len(done.Records) > 0 {
			p.sweepRetries(done.Records[len(done.Records)-1].Key)
		} else if len(done.Records) == len(ops) {
			p.swept = true
		}
	})
}

// dropRetry takes what a retry has in a run out of memory and off the disk. The rest waits on.
func (f *feed) dropRetry(r *retry, run wire.Run) {
	p := f.o.p
	if r.index >= 0 && r.index < len(f.retries) && f.retries[r.index] == r {
		f.forget(r)
	}
	var ops []wire.Op
	if r.key != nil {
		ops = append(ops, remove(r.key))
	}
	for _, rest := range (wire.Runs{r.Run}).Minus(wire.Runs{run}) {
		part := r.part(rest)
		if r.key != nil {
			part.key = retryKey(p.id, part.Retry)
			ops = append(ops, put(part.key, part.Retry))
		}
		f.enqueue(part)
	}
	if len(ops) > 0 {
		p.core.persistThen(ops, nil)
	}
}
