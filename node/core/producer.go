package core

import (
	"slices"

	"github.com/meshq/meshq/transport/wire"
)

// producer is what is known of one producer in a partition: where its messages are.
type producer struct {
	segments []wire.Segment // in the order in which they became known
	seen     Instant        // when the last of them did
}

// alias says that the messages of two runs of equal length are the same: a retry came
// to another acceptor. Done at one position is done at both (DESIGN section 6).
type alias struct {
	a, b   wire.Lane
	ra, rb wire.Run
}

// laneRun is a run of a lane.
type laneRun struct {
	lane wire.Lane
	run  wire.Run
}

// dedupWindow is how long a batch is remembered after its body has gone, by this node's
// monotonic clock: a wall clock that jumps must not make it forget.
const dedupWindow = 600 * Second

// remember takes where messages of a producer are, and says whether that is news. A
// bounded number of segments is kept per partition; the oldest are forgotten first.
func (p *partition) remember(s wire.Segment) bool {
	if s.Producer == 0 || s.Count == 0 {
		return false
	}
	q := p.producers[s.Producer]
	if q == nil {
		q = &producer{}
		p.producers[s.Producer] = q
	}
	for i := len(q.segments) - 1; i >= 0; i-- {
		t := &q.segments[i]
		from, to := max(s.Sequence, t.Sequence), min(s.Sequence+s.Count, t.Sequence+t.Count)
		if from >= to {
			continue
		}
		mine := s.Base + wire.Offset(from-s.Sequence)
		theirs := t.Base + wire.Offset(from-t.Sequence)
		n := wire.Offset(to - from)
		if s.Lane != t.Lane || mine != theirs {
			p.addAlias(alias{a: s.Lane, ra: wire.Span(mine, mine+n), b: t.Lane, rb: wire.Span(theirs, theirs+n)})
			continue
		}
		if uint64(n) == s.Count {
			t.Stamp = max(t.Stamp, s.Stamp)
			return false
		}
	}
	if n := len(q.segments); n > 0 {
		t := &q.segments[n-1]
		if t.Lane == s.Lane && t.Base+wire.Offset(t.Count) == s.Base && t.Sequence+t.Count == s.Sequence {
			t.Count += s.Count
			t.Stamp = max(t.Stamp, s.Stamp)
			q.seen = p.core.now.Mono
			return true
		}
	}
	q.segments = append(q.segments, s)
	q.seen = p.core.now.Mono
	if p.segments++; p.segments > p.core.cfg.Limits.Segments {
		p.forgetOldest()
	}
	return true
}

// rememberHeader remembers messages whose bodies may not be here; then what is known of
// them is saved with the next fold.
func (p *partition) rememberHeader(s wire.Segment) {
	here := p.lane(s.Lane).held.Covers(wire.Span(s.Base, s.Base+wire.Offset(s.Count)))
	if !here && p.core.planted(bugAckWithoutHeader) {
		return
	}
	if p.remember(s) && !here {
		p.headers = append(p.headers, s)
	}
}

// addAlias records an alias once, and carries what is done at one position over.
func (p *partition) addAlias(x alias) {
	if p.core.planted(bugNoDuplicateCheck) {
		return
	}
	if slices.Contains(p.aliases, x) || slices.Contains(p.aliases, alias{a: x.b, ra: x.rb, b: x.a, rb: x.ra}) {
		return
	}
	p.aliases = append(p.aliases, x)
	p.core.stats.Duplicates += x.ra.Len()
	for _, g := range sortedKeys(p.groups) {
		for _, run := range p.group(g).runs(x.a).Overlap(x.ra) {
			p.markOne(g, x.b, shift(run, x.ra, x.rb))
		}
		for _, run := range p.group(g).runs(x.b).Overlap(x.rb) {
			p.markOne(g, x.a, shift(run, x.rb, x.ra))
		}
	}
}

// shift moves run from where it is in one run to the same place in another.
func shift(run, from, to wire.Run) wire.Run {
	return wire.Span(to.From+(run.From-from.From), to.From+(run.To-from.From))
}

// aliasesOf returns the other positions of the messages in run.
func (p *partition) aliasesOf(l wire.Lane, run wire.Run) []laneRun {
	var out []laneRun
	add := func(mine, theirs wire.Run, lane wire.Lane) {
		from, to := max(run.From, mine.From), min(run.To, mine.To)
		if from < to {
			out = append(out, laneRun{lane: lane, run: shift(wire.Span(from, to), mine, theirs)})
		}
	}
	for _, x := range p.aliases {
		if x.a == l {
			add(x.ra, x.rb, x.b)
		}
		if x.b == l {
			add(x.rb, x.ra, x.a)
		}
	}
	return out
}

// find says where the messages [sequence, sequence+count) of a producer are, if all
// of them are known to lie together.
func (p *partition) find(id wire.ProducerID, sequence, count uint64) (laneRun, bool) {
	q := p.producers[id]
	if q == nil {
		return laneRun{}, false
	}
	for i := len(q.segments) - 1; i >= 0; i-- {
		t := &q.segments[i]
		if t.Sequence <= sequence && sequence+count <= t.Sequence+t.Count {
			from := t.Base + wire.Offset(sequence-t.Sequence)
			return laneRun{lane: t.Lane, run: wire.Span(from, from+wire.Offset(count))}, true
		}
	}
	return laneRun{}, false
}

// rememberFromNow lets the dedup window of what was read at boot begin.
func (p *partition) rememberFromNow() {
	for _, q := range p.producers { // each by itself: the order does not matter
		q.seen = p.core.now.Mono
	}
	for i := range p.headerLog {
		p.headerLog[i].saved = p.core.now.Mono
	}
}

// forgetOldest drops the older quarter of all segments.
func (p *partition) forgetOldest() {
	stamps := make([]uint64, 0, p.segments)
	for _, q := range p.producers { // sorted below: the order does not matter
		for _, s := range q.segments {
			stamps = append(stamps, s.Stamp)
		}
	}
	slices.Sort(stamps)
	p.forgetBelow(stamps[len(stamps)/4] + 1)
}

// expireProducers forgets, once a minute, the producers that have been silent for the
// dedup window.
func (p *partition) expireProducers() {
	c := p.core
	if len(p.producers) == 0 || c.now.Mono < p.expireAt {
		return
	}
	p.expireAt = c.now.Mono + 60*Second
	for _, id := range sortedKeys(p.producers) {
		if q := p.producers[id]; c.now.Mono-q.seen > dedupWindow {
			p.segments -= len(q.segments)
			delete(p.producers, id)
		}
	}
}

func (p *partition) forgetBelow(stamp uint64) {
	p.segments = 0
	for _, id := range sortedKeys(p.producers) {
		q := p.producers[id]
		q.segments = slices.DeleteFunc(q.segments, func(s wire.Segment) bool { return s.Stamp < stamp })
		if len(q.segments) == 0 {
			delete(p.producers, id)
		}
		p.segments += len(q.segments)
	}
}

// headerRecord is a record of where messages are, or were, whose bodies are not here: a
// retry may come when the body has gone, and must not be taken for a new message.
type headerRecord struct {
	number uint64
	saved  Instant // or read, at the boot
	count  int
}

// saveHeaders returns the records of the segments whose bodies are not here and that are
// not on disk yet, and removes the records that are past the window or the bound.
func (p *partition) saveHeaders() []wire.Op {
	c := p.core
	var ops []wire.Op
	n := uint64(1)
	if last := len(p.headerLog) - 1; last >= 0 {
		n = p.headerLog[last].number + 1
	}
	for some := range slices.Chunk(p.headers, maxRecordItems) {
		ops = append(ops, put(key(recordSegments, uint64(p.id), n), some))
		p.headerSaved(n, some)
		n++
	}
	p.headers = nil
	for len(p.headerLog) > 0 {
		first := p.headerLog[0]
		if c.now.Mono-first.saved <= dedupWindow && p.headerCount <= c.cfg.Limits.Segments {
			break
		}
		ops = append(ops, remove(key(recordSegments, uint64(p.id), first.number)))
		p.headerCount -= first.count
		p.headerLog = p.headerLog[1:]
	}
	return ops
}

// headerSaved counts a record that is on disk.
func (p *partition) headerSaved(number uint64, segments []wire.Segment) {
	p.headerLog = append(p.headerLog, headerRecord{number: number, saved: p.core.now.Mono, count: len(segments)})
	p.headerCount += len(segments)
}

// keepHeaders has what is known of the messages in runs saved with the next fold: their
// bodies go.
func (p *partition) keepHeaders(l wire.Lane, runs wire.Runs) {
	for _, id := range sortedKeys(p.producers) {
		for _, s := range p.producers[id].segments {
			if s.Lane != l {
				continue
			}
			for _, run := range runs.Overlap(wire.Span(s.Base, s.Base+wire.Offset(s.Count))) {
				part := s
				part.Base, part.Count = run.From, run.Len()
				part.Sequence += uint64(run.From - s.Base)
				p.headers = append(p.headers, part)
			}
		}
	}
}

// allSegments is what a replica that asks for the state gets.
func (p *partition) allSegments() []wire.Segment {
	var out []wire.Segment
	for _, id := range sortedKeys(p.producers) {
		out = append(out, p.producers[id].segments...)
	}
	return out
}
