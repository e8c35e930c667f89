package report

import (
	"cmp"
	"slices"
	"time"

	"github.com/meshq/meshq/sim/history"
	"github.com/meshq/meshq/sim/plan"
)

// series is what happened over time in a run, counted from its history.
type series struct {
	width     time.Duration // of one bin
	confirms  []int         // by bin
	firsts    []int         // first deliveries to a group, by bin
	backlog   []int         // confirmed, and not yet delivered to a group that has consumers, at the end of each bin
	again     []redelivery
	leftAgain int // redeliveries that were left out
}

// redelivery is a delivery that is not the first one of its message to its group.
type redelivery struct {
	at    time.Duration
	after time.Duration // since the last delivery of that message to that group
	cause string
}

const (
	mostBins  = 600
	mostAgain = 2000 // dots; a picture with more is a blot and megabytes
)

// countSeries counts a history, in bins of 100 ms, or longer ones if those were too many.
func countSeries(h *history.History, p *plan.Plan, end time.Duration) *series {
	s := &series{width: 100 * time.Millisecond}
	for end/s.width >= mostBins {
		s.width *= 2
	}
	n := int(end/s.width) + 1
	s.confirms, s.firsts, s.backlog = make([]int, n), make([]int, n), make([]int, n)
	groups := map[string]int{}
	taken := map[[2]string]bool{}
	for _, c := range p.Consumers { // what no consumer takes waits for ever
		if of := [2]string{c.Queue, cmp.Or(c.Group, "default")}; !taken[of] {
			taken[of] = true
			groups[c.Queue]++
		}
	}
	type delivered struct {
		message history.Message
		group   string
	}
	type state struct {
		confirmed bool
		seen      int // groups that it was delivered to
	}
	last := map[delivered]time.Duration{}
	states := map[history.Message]state{}
	change := make([]int, n)
	for i := range h.Events {
		e := &h.Events[i]
		bin := min(max(int(e.At/s.width), 0), n-1)
		switch e.Kind {
		case history.Confirmed:
			s.confirms[bin]++
			st := states[e.Message]
			if !st.confirmed {
				st.confirmed = true
				change[bin] += max(1, groups[e.Queue]) - st.seen
				states[e.Message] = st
			}
		case history.Delivered:
			d := delivered{e.Message, e.Group}
			before, seen := last[d]
			last[d] = e.At
			if seen {
				s.again = append(s.again, redelivery{e.At, e.At - before, e.Cause})
				continue
			}
			s.firsts[bin]++
			st := states[e.Message]
			st.seen++
			if st.confirmed {
				change[bin]--
			}
			states[e.Message] = st
		}
	}
	sum := 0
	for i, c := range change {
		sum = max(0, sum+c)
		s.backlog[i] = sum
	}
	if over := len(s.again) - mostAgain; over > 0 { // the slowest say most
		slices.SortStableFunc(s.again, func(a, b redelivery) int { return int(b.after - a.after) })
		s.again, s.leftAgain = s.again[:mostAgain], over
	}
	return s
}

// causes are those of the redeliveries, the most frequent first.
func (s *series) causes() []string {
	times := map[string]int{}
	for _, r := range s.again {
		times[r.cause]++
	}
	var out []string
	for c := range times {
		out = append(out, c)
	}
	slices.SortFunc(out, func(a, b string) int {
		if times[a] != times[b] {
			return times[b] - times[a]
		}
		if a < b {
			return -1
		}
		return 1
	})
	return out
}
