package chaos

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/meshq/meshq/client"
	"github.com/meshq/meshq/sim/history"
	"github.com/meshq/meshq/sim/plan"
)

// RunRandom runs random plans on one mesh, one after the other, until the time is over or
// a promise is broken. Each result is handed to done as soon as it is there. The first
// rounds of two runs of one seed have the same plans, on the same kind of machine.
func RunRandom(ctx context.Context, seed uint64, length time.Duration, shape Shape, o Options, done func(*Result)) error {
	config := o.config(&plan.Plan{Seed: seed})
	can := shape.Can
	shape.Can = func(k plan.Kind) bool { return (can == nil || can(k)) && config.Can(k) == nil }
	r := round{seed: seed, number: 1, shape: shape}
	for i := range orElse(shape.Nodes, 4) {
		r.nodes = append(r.nodes, fmt.Sprintf("n%d", i+1))
	}
	end := time.Now().Add(length)
	first := r.draw()
	if err := first.Validate(); err != nil {
		return err
	}
	s, err := newStage(ctx, first, o)
	if err != nil {
		return err
	}
	err = s.rounds(ctx, r, end, done)
	return errors.Join(err, s.close())
}

func (s *stage) rounds(ctx context.Context, r round, end time.Time, done func(*Result)) error {
	memory := map[string]int64{} // after the first round
	var before []plan.Queue
	for {
		r.last = time.Until(end) < 2*roundLength
		p := r.draw()
		if err := p.Validate(); err != nil {
			return err
		}
		s.opts.say("round %d: %d faults of seed %d", r.number, len(p.Faults), r.seed)
		result, err := s.run(ctx, p)
		if err != nil {
			return err
		}
		if ctx.Err() == nil {
			s.over(ctx, before, result)
			s.flat(memory, result)
		}
		before = p.Queues
		done(result)
		if r.last || result.Stopped || !result.Passed() {
			return nil
		}
		r.number++
		r.nodes = nil
		for _, n := range s.mesh.Nodes() {
			r.nodes = append(r.nodes, n.Name())
			r.lost = r.lost || n.Called() != n.Name()
		}
		r.joined = len(r.nodes) - orElse(r.shape.Nodes, 4)
	}
}

// over looks at queues that were drained a round ago, and deletes them: an ack is final
// through all that has happened since.
func (s *stage) over(ctx context.Context, queues []plan.Queue, r *Result) {
	broken := func(promise, format string, args ...any) {
		v := history.Violation{Promise: promise, Text: fmt.Sprintf(format, args...), At: s.recorder().now()}
		s.opts.say("BROKEN %s: %s", promise, v.Text)
		r.Verdict.Violations = append(r.Verdict.Violations, v)
	}
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	for _, q := range queues {
		state, err := s.observer.DescribeQueue(ctx, q.Name)
		if err != nil {
			broken("P10", "%v", err)
			continue
		}
		if left := state.Ready + state.InFlight + state.Delayed; left > 0 {
			broken("P3", "%d messages of %s, which was drained a round ago, are there again", left, q.Name)
		}
		err = poll(ctx, "delete "+q.Name, func() error {
			err := s.observer.DeleteQueue(ctx, q.Name)
			if errors.Is(err, client.ErrNoQueue) {
				return nil
			}
			return err
		})
		if err != nil {
			broken("P10", "%v", err)
		}
	}
}

// flat checks that the memory of nodes is what it was after the first round (P8).
func (s *stage) flat(memory map[string]int64, r *Result) {
	for _, u := range r.Usage {
		if before, ok := memory[u.Node]; !ok {
			memory[u.Node] = u.MemoryLast
		} else if grown := u.MemoryLast - before; grown > memoryGrowth {
			r.Verdict.Violations = append(r.Verdict.Violations, history.Violation{
				Promise: "P8", Text: fmt.Sprintf("the memory of %s has grown by %d MiB since the first round", u.Node, grown>>20), At: s.recorder().now(),
			})
		}
	}
}
