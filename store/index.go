package store

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"github.com/meshq/meshq/transport/wire"
)

// laneKey names a lane in all maps.
type laneKey struct {
	partition wire.PartitionID
	lane      wire.Lane
}

// index knows which offsets are live and in which segments. Its memory goes with
// lanes and runs, not with batches or messages (P8).
type index struct {
	mu       sync.Mutex // guards all below, and the fields of segments that say so
	lanes    map[laneKey]*laneIndex
	segments []*segment // ascending; the last is the head
	damaged  uint64     // batches and records found damaged since Open
}

type laneIndex struct {
	held wire.Runs  // live in some segment
	in   []*segment // with live offsets of the lane, in no order
}

// part is what one segment has of one lane.
type part struct {
	live    wire.Runs
	count   uint64 // of live
	offsets uint64 // stored, to estimate the bytes of those that are live
	bytes   uint64
}

// add makes run live in s; it was stored there in so many bytes.
func (x *index) add(s *segment, k laneKey, run wire.Run, bytes int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.addLocked(s, k, wire.Runs{run}, run.Len(), uint64(bytes))
	s.bytes += int64(bytes)
	s.batches++
}

func (x *index) addLocked(s *segment, k laneKey, runs wire.Runs, offsets, bytes uint64) {
	lane := x.lanes[k]
	if lane == nil {
		lane = &laneIndex{}
		x.lanes[k] = lane
	}
	p := s.parts[k]
	if p == nil {
		p = &part{}
		s.parts[k] = p
		lane.in = append(lane.in, s)
	}
	s.liveBytes -= p.estimate()
	p.offsets += offsets
	p.bytes += bytes
	n := p.live.AddAll(runs)
	p.count += n
	s.liveOffsets += n
	s.liveBytes += p.estimate()
	lane.held.AddAll(runs)
}

func (p *part) estimate() int64 {
	if p.offsets == 0 {
		return 0
	}
	return int64(float64(p.bytes) * min(1, float64(p.count)/float64(p.offsets)))
}

// free takes run out of every segment and tells whether a segment became empty.
func (x *index) free(k laneKey, run wire.Run) (emptied bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	lane := x.lanes[k]
	if lane == nil {
		return false
	}
	for _, s := range slices.Clone(lane.in) { // dropPart changes it
		emptied = x.removeLocked(s, k, run) || emptied
	}
	lane.held.Remove(run)
	if len(lane.in) == 0 {
		delete(x.lanes, k)
	}
	return emptied
}

// remove takes run out of one segment: it was moved, or is damaged there.
func (x *index) remove(s *segment, k laneKey, run wire.Run) {
	x.mu.Lock()
	defer x.mu.Unlock()
	lane := x.lanes[k]
	if lane == nil {
		return
	}
	x.removeLocked(s, k, run)
	lane.held.Remove(run)
	for _, o := range lane.in {
		lane.held.AddAll(o.parts[k].live.Overlap(run))
	}
	if len(lane.in) == 0 {
		delete(x.lanes, k)
	}
}

func (x *index) removeLocked(s *segment, k laneKey, run wire.Run) (emptied bool) {
	p := s.parts[k]
	if p == nil {
		return false
	}
	gone := p.live.Overlap(run).Count()
	if gone == 0 {
		return false
	}
	s.liveBytes -= p.estimate()
	p.live.Remove(run)
	p.count -= gone
	s.liveOffsets -= gone
	s.freed = true
	if len(p.live) > 0 {
		s.liveBytes += p.estimate()
	} else {
		lane := x.lanes[k]
		delete(s.parts, k)
		if i := slices.Index(lane.in, s); i >= 0 {
			lane.in = slices.Delete(lane.in, i, i+1)
		}
	}
	return s.liveOffsets == 0
}

// move makes live in to what is still live of run in from.
func (x *index) move(from, to *segment, k laneKey, run wire.Run, bytes int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	to.bytes += int64(bytes)
	to.batches++
	p := from.parts[k]
	if p == nil {
		return // freed while it was copied
	}
	if runs := p.live.Overlap(run); len(runs) > 0 {
		x.addLocked(to, k, runs, run.Len(), uint64(bytes))
		x.removeLocked(from, k, run)
	}
}

// hasFreed tells whether anything of s was freed or lost.
func (x *index) hasFreed(s *segment) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return s.freed
}

// earlySeal is the size from which a head without live batches is sealed.
const earlySeal = 64 << 20

// wantsSeal tells whether the head should be sealed now.
func (x *index) wantsSeal(head *segment, asked bool, o *Options) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	switch {
	case head.batches == 0:
		return false
	case asked, head.bytes >= o.SegmentBytes:
		return true
	case !head.freed:
		return false
	}
	return head.liveOffsets == 0 && head.bytes >= min(earlySeal, o.SegmentBytes/4) || time.Since(head.created) >= o.SegmentAge
}

// rotate seals the head and puts next in its place.
func (x *index) rotate(next *segment) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if n := len(x.segments); n > 0 {
		x.segments[n-1].sealed = true
		x.segments[n-1].sealedAt = time.Now()
	}
	next.created = time.Now()
	x.segments = append(x.segments, next)
}

// drop forgets a segment, whatever is live in it.
func (x *index) drop(s *segment) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for k, p := range s.parts {
		for _, run := range slices.Clone(p.live) {
			x.removeLocked(s, k, run)
		}
	}
	x.segments = slices.DeleteFunc(x.segments, func(o *segment) bool { return o == s })
}

// held is what is live of the lane anywhere; a copy.
func (x *index) held(k laneKey) wire.Runs {
	x.mu.Lock()
	defer x.mu.Unlock()
	if lane := x.lanes[k]; lane != nil {
		return lane.held.Clone()
	}
	return nil
}

// liveIn is what is live of run in one segment; a copy.
func (x *index) liveIn(s *segment, k laneKey, run wire.Run) wire.Runs {
	x.mu.Lock()
	defer x.mu.Unlock()
	if p := s.parts[k]; p != nil {
		return p.live.Overlap(run)
	}
	return nil
}

// piece is a run to be read from one segment.
type piece struct {
	segment *segment
	run     wire.Run
}

// find is where the live offsets of runs are, in order of offsets. Of what is in
// two segments the newer one is named.
func (x *index) find(k laneKey, runs wire.Runs) (pieces []piece) {
	x.mu.Lock()
	defer x.mu.Unlock()
	lane := x.lanes[k]
	if lane == nil {
		return nil
	}
	newest := slices.Clone(lane.in)
	slices.SortFunc(newest, func(a, b *segment) int { return cmp.Compare(b.id, a.id) })
	var taken wire.Runs
	for _, s := range newest {
		for _, run := range s.parts[k].live.Intersect(runs) {
			for _, rest := range taken.Missing(run) {
				pieces = append(pieces, piece{s, rest})
			}
			taken.Add(run)
		}
	}
	slices.SortFunc(pieces, func(a, b piece) int { return cmp.Compare(a.run.From, b.run.From) })
	return pieces
}

// segment is one data instance. Its files are managed by segments (segments.go).
type segment struct {
	id  uint64
	dir string

	// Guarded by index.mu.
	parts       map[laneKey]*part
	liveOffsets uint64
	liveBytes   int64 // estimate
	bytes       int64 // of batches, as encoded
	batches     uint64
	freed       bool // something of it was freed
	sealed      bool
	summarised  bool // its file says what it holds
	recorded    bool // meta says that it is there
	created     time.Time
	sealedAt    time.Time

	// Guarded by segments.mu.
	in      *instance
	refs    int
	used    uint64 // order of the last use
	gone    bool   // dropped; not to be opened again
	opening chan struct{}

	group uint64 // last group in it; the committer's, while it is the head
}
