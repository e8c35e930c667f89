package plan

import (
	"context"
	"slices"
	"sync"
)

// Shrinker makes a plan that breaks a promise smaller: it takes parts out and keeps what
// is left as long as that breaks the same promise. It is delta debugging (Zeller and
// Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", IEEE TSE 28(2), 2002)
// over faults, clients, groups, queues and nodes, and then over the values that are left.
// Each group that is left keeps a consumer.
type Shrinker struct {
	// Broken runs a plan and tells whether it breaks the promise in question. It is called
	// from Workers goroutines at once, and must not keep or change the plan.
	Broken func(*Plan) bool
	// Tries bounds the calls of Broken; 0: 2,000.
	Tries int
	// Workers is how many calls run at once; 0: 1. For one number of workers the result
	// is always the same.
	Workers int
	// Lucks is with how many other seeds a candidate is tried before its part is kept: a
	// fault that was no more than a delay can often be replaced by other luck. 0: none.
	Lucks int
	// Progress, if set, is called after each step that made the plan smaller.
	Progress func(smallest *Plan, tries int)

	best  *Plan
	tries int
}

// Shrink returns the smallest plan that it found, one equal to p if nothing can go. At is
// when the promise broke: what comes later goes first. It ends early when ctx does.
func (s *Shrinker) Shrink(ctx context.Context, p *Plan, at Duration) *Plan {
	if s.Tries == 0 {
		s.Tries = 2000
	}
	s.Workers = max(1, s.Workers)
	s.best, s.tries = p.clone(), 0
	s.smaller(ctx, []*Plan{s.best.endAt(at)})
	for {
		before := s.best
		s.drop(ctx, faultCount, withoutFaults)
		s.drop(ctx, clientCount, withoutClients)
		s.drop(ctx, groupCount, withoutGroups)
		s.drop(ctx, queueCount, withoutQueues)
		s.drop(ctx, nodeCount, withoutNodes)
		s.drop(ctx, nameCount, withoutNames)
		for _, simpler := range simplifications {
			for s.smaller(ctx, simpler(s.best)) {
				continue
			}
		}
		if s.best == before || s.over(ctx) {
			return s.best
		}
	}
}

func (s *Shrinker) over(ctx context.Context) bool { return ctx.Err() != nil || s.tries >= s.Tries }

// drop is ddmin: it takes out ever smaller chunks of the things that count counts, until
// no single one can go.
func (s *Shrinker) drop(ctx context.Context, count func(*Plan) int, without func(*Plan, span) *Plan) {
	for chunk := count(s.best); chunk > 0 && !s.over(ctx); {
		var candidates []*Plan
		n := count(s.best)
		for from := 0; from < n; from += chunk {
			candidates = append(candidates, without(s.best, span{from, min(from+chunk, n)}))
		}
		if s.smaller(ctx, candidates) {
			chunk = min(chunk, count(s.best))
		} else {
			chunk /= 2
		}
	}
}

// smaller makes the first candidate that is smaller and still broken the best, and tells
// whether there is one. nil is no candidate.
func (s *Shrinker) smaller(ctx context.Context, candidates []*Plan) bool {
	var list []*Plan
	for luck := range uint64(s.Lucks + 1) {
		for _, c := range candidates {
			if c != nil && slices.Compare(c.size(), s.best.size()) < 0 && c.Validate() == nil {
				c = c.clone()
				c.Seed += luck
				list = append(list, c)
			}
		}
	}
	for len(list) > 0 && !s.over(ctx) {
		n := min(s.Workers, len(list), s.Tries-s.tries)
		if i := slices.Index(s.run(list[:n]), true); i >= 0 {
			s.best = list[i]
			if s.Progress != nil {
				s.Progress(s.best, s.tries)
			}
			return true
		}
		list = list[n:]
	}
	return false
}

// run tries plans at once and tells which are broken.
func (s *Shrinker) run(list []*Plan) []bool {
	broken := make([]bool, len(list))
	var all sync.WaitGroup
	for i, p := range list {
		all.Go(func() { broken[i] = s.Broken(p) })
	}
	all.Wait()
	s.tries += len(list)
	return broken
}
