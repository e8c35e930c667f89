package sim

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/meshq/meshq/sim/history"
	"github.com/meshq/meshq/sim/plan"
)

// Swarm runs the plans of many seeds: swarm testing (Groce et al., "Swarm Testing",
// ISSTA 2012), a random subset of faults for each.
type Swarm struct {
	First    uint64 // seed
	Seeds    int    // how many; 0: until the context ends
	Workers  int    // seeds that run at once; 0: GOMAXPROCS
	Generate plan.GenerateOptions
	Options  Options
	// Twice has one seed in so many run a second time, and compares the hashes; 0: none.
	Twice int
	// KeepGoing goes on after a seed that broke a promise.
	KeepGoing bool
	// Done, if set, is called after each seed, by one goroutine at a time.
	Done func(*Result)
}

// SwarmResult is what came of a swarm.
type SwarmResult struct {
	Seeds   int
	Twice   int // of them run twice, with equal hashes
	Steps   int
	Virtual time.Duration
	Kinds   map[plan.Kind]int // faults that came about
	Skipped map[plan.Kind]int // faults that were not possible when their time came
	Reached map[string]int    // seeds that reached a situation
	Checked map[string]int    // promises: how often the histories put them to the test
	Failed  int               // seeds that broke a promise
	Bad     []*Result         // those of the lowest seeds, in order; at most maxBad
	Hash    uint64            // of all hashes; the order in which seeds end does not matter
}

const maxBad = 20

// Run runs the seeds. It ends early, without an error, when ctx ends.
func (s *Swarm) Run(ctx context.Context) *SwarmResult {
	var (
		mu   sync.Mutex // guards what follows
		next = s.First
		over bool
		out  = &SwarmResult{Kinds: map[plan.Kind]int{}, Skipped: map[plan.Kind]int{}, Reached: map[string]int{}, Checked: map[string]int{}}
		all  sync.WaitGroup
	)
	take := func() (uint64, bool) {
		mu.Lock()
		defer mu.Unlock()
		if over || ctx.Err() != nil || s.Seeds > 0 && next-s.First >= uint64(s.Seeds) {
			return 0, false
		}
		next++
		return next - 1, true
	}
	workers := s.Workers
	if workers == 0 {
		workers = runtime.GOMAXPROCS(0)
	}
	for range workers { // seeds share nothing
		all.Go(func() {
			for seed, ok := take(); ok; seed, ok = take() {
				r, twice := s.one(seed)
				mu.Lock()
				out.add(r, twice)
				over = over || r.Violation != nil && !s.KeepGoing
				if s.Done != nil {
					s.Done(r)
				}
				mu.Unlock()
			}
		})
	}
	all.Wait()
	return out
}

// one runs a seed, and now and then twice.
func (s *Swarm) one(seed uint64) (r *Result, twice bool) {
	p := plan.Generate(seed, s.Generate)
	r = Run(p, s.Options)
	if s.Twice == 0 || seed%uint64(s.Twice) != 0 || r.Violation != nil {
		return r, false
	}
	if again := Run(p, s.Options); again.Hash != r.Hash {
		r.Violation = &history.Violation{
			Promise: "determinism", Text: fmt.Sprintf("the plan was run twice: the hashes are %016x and %016x", r.Hash, again.Hash),
		}
	}
	return r, true
}

func (o *SwarmResult) add(r *Result, twice bool) {
	o.Seeds++
	if twice {
		o.Twice++
	}
	o.Steps += r.Steps
	o.Virtual += r.Time
	o.Hash ^= r.Hash
	skipped := map[int]bool{}
	for _, s := range r.Skipped {
		skipped[s.Fault] = true
	}
	for i := range r.Plan.Faults {
		if skipped[i] {
			o.Skipped[r.Plan.Faults[i].Kind]++
		} else {
			o.Kinds[r.Plan.Faults[i].Kind]++
		}
	}
	for name, n := range r.Reached {
		if n > 0 {
			o.Reached[name]++
		}
	}
	if r.Verdict != nil {
		for _, p := range r.Verdict.Promises {
			o.Checked[p.Name] += p.Checked
		}
	}
	if r.Violation == nil {
		return
	}
	o.Failed++
	o.Bad = append(o.Bad, r)
	slices.SortFunc(o.Bad, func(a, b *Result) int {
		if a.Plan.Seed < b.Plan.Seed {
			return -1
		}
		return 1
	})
	o.Bad = o.Bad[:min(len(o.Bad), maxBad)]
}
