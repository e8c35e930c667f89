package core

import (
	"slices"

	"github.com/meshq/meshq/transport/wire"
)

// producer is what is known of one producer in a partition: where its messages are.
type producer struct {
	segments []wire.Segment // in the order in which they became known
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

// dedupWindow is how long a batch is remembered after its body has gone, in
// milliseconds.
const dedupWindow = 600_000

// remember says where messages of a producer are. At most limit segments are kept per
// partition; the oldest are forgotten first.
func (p *partition) remember(s wire.Segment, limit int) {
	if s.Producer == 0 || s.Count == 0 {
		return
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
			return // known
		}
	}
	if n := len(q.segments); n > 0 {
		t := &q.segments[n-1]
		if t.Lane == s.Lane && t.Base+wire.Offset(t.Count) == s.Base && t.Sequence+t.Count == s.Sequence {
			t.Count += s.Count
			t.Stamp = max(t.Stamp, s.Stamp)
			return
		}
	}
	q.segments = append(q.segments, s)
	if p.segments++; p.segments > limit {
		p.forgetOldest()
	}
}

// addAlias records an alias once, and carries what is done at one position over.
func (p *partition) addAlias(x alias) {
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

// forgetOldest drops the older quarter of all segments.
func (p *partition) forgetOldest() {
	stamps := make([]uint64, 0, p.segments)
	for _, q := range p.producers { // sorted below
		for _, s := range q.segments {
			stamps = append(stamps, s.Stamp)
		}
	}
	slices.Sort(stamps)
	p.forgetBelow(stamps[len(stamps)/4] + 1)
}

// expireProducers forgets what is older than the dedup window.
func (p *partition) expireProducers() {
	if wall := p.core.now.Wall; wall > dedupWindow && p.segments > 256 {
		p.forgetBelow((wall - dedupWindow) << 16)
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

// maxProducerRecords bounds the record of last segments.
const maxProducerRecords = 4096

// lastSegments is where the last batch of each producer is: a producer has one batch
// under way, so that is the one that a retry asks for.
func (p *partition) lastSegments() []wire.Segment {
	var out []wire.Segment
	for _, id := range sortedKeys(p.producers) {
		segments := p.producers[id].segments
		out = append(out, segments[len(segments)-1])
	}
	if len(out) > maxProducerRecords {
		slices.SortFunc(out, func(a, b wire.Segment) int {
			if a.Stamp != b.Stamp {
				return int(min(1, max(-1, int64(b.Stamp-a.Stamp))))
			}
			return int(min(1, max(-1, int64(a.Producer-b.Producer))))
		})
		out = out[:maxProducerRecords]
	}
	return out
}

// allSegments is what a replica that asks for the state gets.
func (p *partition) allSegments() []wire.Segment {
	var out []wire.Segment
	for _, id := range sortedKeys(p.producers) {
		out = append(out, p.producers[id].segments...)
	}
	return out
}
