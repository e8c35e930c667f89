package sim

import (
	"bytes"
	"cmp"
	"maps"
	"slices"
	"sort"

	"github.com/meshq/meshq/node/core"
	"github.com/meshq/meshq/transport/wire"
)

// contents is what a store holds: records by key, and batches by lane. It is plain data.
type contents struct {
	records map[string][]byte
	lanes   map[diskLane][]diskBatch // by base
	// deleted are records that were deleted and not written again. A store may bring them
	// back at a boot (dgraph-io/badger#2286).
	deleted map[string][]byte
	// rotten are records on which a bit has flipped: they fail their checksum until they
	// are written again.
	rotten map[string]bool
}

type diskLane struct {
	partition wire.PartitionID
	lane      wire.Lane
}

type diskBatch struct {
	wire.Batch
	segment int  // in which it is: each boot begins one
	bad     bool // a bit has flipped
	// found says that the store knows that it is bad: it is not read any more, and does not
	// count as held. It knows it in memory alone; so it does with freed, the offsets that are
	// not read any more. After a boot what is in a segment that is still there is back.
	found bool
	freed wire.Runs
}

// live are the offsets that may be read.
func (b *diskBatch) live() wire.Runs {
	if b.found {
		return nil
	}
	return b.freed.Missing(b.Run())
}

func (b *diskBatch) gone() bool { return len(b.live()) == 0 }

// diskGroup is what was written with one fsync: commits that are there as a whole or
// not at all.
type diskGroup struct {
	commit  uint64
	segment int
	at      int64 // world time when it was confirmed
	ops     []wire.Op
}

func newContents() contents {
	return contents{map[string][]byte{}, map[diskLane][]diskBatch{}, map[string][]byte{}, map[string]bool{}}
}

// clone shares only bytes that nobody changes.
func (c *contents) clone() contents {
	out := contents{maps.Clone(c.records), make(map[diskLane][]diskBatch, len(c.lanes)), maps.Clone(c.deleted), maps.Clone(c.rotten)}
	for k, l := range c.lanes {
		out.lanes[k] = slices.Clone(l)
	}
	return out
}

// change is what writing a batch did.
type change uint8

const (
	added   change = iota
	held           // it was there already
	mended         // the one that was there was damaged
	clashes        // another one is there
)

// write executes one op in a segment.
func (c *contents) write(op *wire.Op, segment int) change {
	switch op.Kind {
	case wire.OpPut:
		k := string(op.Key)
		c.records[k] = op.Value
		delete(c.deleted, k)
		delete(c.rotten, k)
	case wire.OpDelete:
		c.remove(string(op.Key))
	case wire.OpDeleteRange:
		for k := range c.records { // each by itself: the order does not matter
			if bytes.HasPrefix([]byte(k), op.Key) {
				c.remove(k)
			}
		}
	case wire.OpBatch:
		return c.add(&op.Batch, segment)
	case wire.OpFree:
		l := c.lanes[diskLane{op.Partition, op.Lane}]
		for i := range l {
			if r := wire.Span(max(l[i].Base, op.Run.From), min(l[i].Run().To, op.Run.To)); r.From < r.To {
				l[i].freed = l[i].freed.Clone() // others share it
				l[i].freed.Add(r)
			}
		}
	}
	return added
}

func (c *contents) remove(k string) {
	if v, ok := c.records[k]; ok {
		c.deleted[k] = v
		delete(c.records, k)
		delete(c.rotten, k)
	}
}

func (c *contents) add(b *wire.Batch, segment int) change {
	k := diskLane{b.Partition, b.Lane}
	l := c.lanes[k]
	i := sort.Search(len(l), func(i int) bool { return l[i].Base >= b.Base })
	if i == len(l) || l[i].Base != b.Base {
		c.lanes[k] = slices.Insert(l, i, diskBatch{Batch: *b, segment: segment})
		return added
	}
	switch old := &l[i]; {
	case old.Checksum != b.Checksum || old.Count != b.Count || old.Producer != b.Producer || old.Sequence != b.Sequence:
		return clashes
	case !old.found && len(old.freed) == 0:
		return held // also if a bit has flipped and nobody has noticed
	case old.bad:
		l[i] = diskBatch{Batch: *b, segment: segment}
		return mended
	}
	l[i] = diskBatch{Batch: *b, segment: segment}
	return added
}

// sound tells whether all that may be read fits its checksum.
func (c *contents) sound() bool {
	if len(c.rotten) > 0 {
		return false
	}
	for _, l := range c.lanes {
		for i := range l {
			if l[i].bad && !l[i].gone() {
				return false
			}
		}
	}
	return true
}

// reopen makes what is not read any more come back where stays says so of it, and go for good where
// not. Of what is still read in part all comes back.
func (c *contents) reopen(stays func(k diskLane, b *diskBatch) bool) {
	for _, k := range c.laneKeys() {
		l := slices.DeleteFunc(c.lanes[k], func(b diskBatch) bool { return b.gone() && !stays(k, &b) })
		for i := range l {
			l[i].freed, l[i].found = nil, false
		}
		if c.lanes[k] = l; len(l) == 0 {
			delete(c.lanes, k)
		}
	}
}

// refs are the batches in key order; join says whether one may share a ref with the one before it.
func (c *contents) refs(join func(b *diskBatch) bool) []wire.BatchRef {
	var out []wire.BatchRef
	for _, k := range c.laneKeys() {
		var last *wire.BatchRef
		for i := range c.lanes[k] {
			b := &c.lanes[k][i]
			if b.gone() {
				last = nil
				continue
			}
			if last != nil && last.Base+wire.Offset(last.Count) == b.Base && last.Producer == b.Producer && last.Sequence+last.Count == b.Sequence && join(b) {
				last.Count += uint64(b.Count)
				last.Stamp = b.Stamp
				continue
			}
			out = append(out, wire.BatchRef{
				Partition: b.Partition, Lane: b.Lane, Base: b.Base, Count: uint64(b.Count),
				Producer: b.Producer, Sequence: b.Sequence, Stamp: b.Stamp,
			})
			last = &out[len(out)-1]
		}
	}
	return out
}

// loaded are the records that are read at boot: whole, and not lazy.
func (c *contents) loaded() []wire.StoredRecord {
	var out []wire.StoredRecord
	for _, k := range c.keys() {
		if !bytes.HasPrefix([]byte(k), core.LazyPrefix) && !c.rotten[k] {
			out = append(out, wire.StoredRecord{Key: []byte(k), Value: bytes.Clone(c.records[k])})
		}
	}
	return out
}

// read gives whole batches of which something in runs is live, and what of them is damaged; the
// store does not count that as held any more.
func (c *contents) read(k diskLane, runs wire.Runs, maxBytes int) (batches []wire.Batch, damaged wire.Runs) {
	size := 0
	for i := range c.lanes[k] {
		b := &c.lanes[k][i]
		if len(runs.Intersect(b.live())) == 0 {
			continue
		}
		if len(batches) > 0 && size+b.Size() > maxBytes {
			break
		}
		if b.bad {
			damaged.AddAll(b.live())
			b.found = true
			continue
		}
		size += b.Size()
		batches = append(batches, b.Batch)
	}
	return batches, damaged
}

// scan gives records below prefix and after a key, at most limit, and the rotten ones
// that it came across and left out.
func (c *contents) scan(prefix, after []byte, limit int) (records []wire.StoredRecord, more bool, rotten []string) {
	for _, k := range c.keys() {
		if !bytes.HasPrefix([]byte(k), prefix) || after != nil && k <= string(after) {
			continue
		}
		if len(records) == limit {
			return records, true, rotten
		}
		if c.rotten[k] {
			rotten = append(rotten, k)
			continue
		}
		records = append(records, wire.StoredRecord{Key: []byte(k), Value: bytes.Clone(c.records[k])})
	}
	return records, false, rotten
}

func (c *contents) keys() []string { return slices.Sorted(maps.Keys(c.records)) }

func (c *contents) laneKeys() []diskLane {
	return slices.SortedFunc(maps.Keys(c.lanes), func(a, b diskLane) int {
		return cmp.Or(cmp.Compare(a.partition, b.partition), a.lane.Compare(b.lane))
	})
}

// segments are those that hold batches, oldest first.
func (c *contents) segments() []int {
	var out []int
	for _, l := range c.lanes {
		for i := range l {
			if !slices.Contains(out, l[i].segment) {
				out = append(out, l[i].segment)
			}
		}
	}
	slices.Sort(out)
	return out
}

// replay is what a store holds that began with base and has the records of so many
// groups, and the batches of so many.
func replay(base *contents, log []diskGroup, records, batches int) contents {
	c := base.clone()
	for i, g := range log {
		for j := range g.ops {
			op := &g.ops[j]
			body := op.Kind == wire.OpBatch || op.Kind == wire.OpFree
			if body && i < batches || !body && i < records {
				c.write(op, g.segment)
			}
		}
	}
	return c
}
