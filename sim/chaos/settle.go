package chaos

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/meshq/meshq/sim/history"
	"github.com/meshq/meshq/sim/plan"
)

const (
	convergePatience = 75 * time.Second
	// listenAfter is how long consumers go on when all is done: what comes then has come
	// back.
	listenAfter = 3 * time.Second
)

// drainPatience is how long it may take until all is delivered and acked: leases and
// backoffs of the last faults run out first.
func drainPatience(p *plan.Plan) time.Duration {
	d := 90 * time.Second
	for _, q := range p.Queues {
		d = max(d, 60*time.Second+orElse(time.Duration(q.Lease), defaultLease)+orElse(time.Duration(q.BackoffMax), 5*time.Minute))
	}
	return d
}

// look is what the nodes say of the queues of a plan at one moment.
type look struct {
	states []history.Event // kind State
	left   uint64          // messages that some group has not done
	why    string          // what keeps the replicas from being at rest; "": nothing
}

// settle waits until all is delivered and acked, and then until the replicas are equal.
func (t *trial) settle(ctx context.Context) {
	began := time.Now()
	told := -1
	drained := t.until(ctx, drainPatience(t.plan)+5*time.Second, func(l look, err error) string {
		// Twice the same: a message that is on its way from one place to another is in
		// neither, and a client's word for what it got may still be in a pipe.
		before := told
		told = t.record.sum()
		switch {
		case err != nil:
			return err.Error()
		case l.left > 0:
			return fmt.Sprintf("%d messages are left", l.left)
		case told != before:
			return "the last messages are acked"
		}
		return ""
	})
	if drained != "" {
		if ctx.Err() == nil {
			t.breach("P2", "%v after all had healed: %s", time.Since(began).Round(time.Second), drained)
		}
		return
	}
	t.tell(history.Event{Kind: history.Drained})
	t.opts.say("%s  drained: all is delivered and acked, %v after all had healed", clock(t.record.now()), time.Since(began).Round(100*time.Millisecond))
	t.opts.status("listening whether anything comes back")
	if !wait(ctx, listenAfter) {
		return
	}
	equal := t.until(ctx, convergePatience, func(l look, err error) string {
		if err != nil {
			return err.Error()
		}
		for _, e := range l.states {
			t.record.tell(e)
		}
		return l.why
	})
	if equal != "" {
		if ctx.Err() == nil {
			t.breach("P7", "%v after all was delivered: %s", convergePatience, equal)
		}
		return
	}
	t.opts.say("%s  converged: replicas are equal, no hints are left", clock(t.record.now()))
}

// until looks again and again until judge has nothing to say, and returns its last word.
func (t *trial) until(ctx context.Context, patience time.Duration, judge func(look, error) string) (why string) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		l, err := t.look(ctx)
		if ctx.Err() != nil && why != "" {
			return why // what was wrong before the time was over says more
		}
		if why = judge(l, err); why == "" {
			return ""
		}
		t.opts.status("%s  %s", clock(t.record.now()), why)
		if !wait(ctx, 500*time.Millisecond) {
			return why
		}
	}
}

// look asks all home replicas of all queues of the plan.
func (t *trial) look(ctx context.Context) (l look, err error) {
	for _, q := range t.allQueues() {
		state, err := t.observer.DescribeQueue(ctx, q.Name)
		if err != nil {
			return l, err
		}
		l.left += state.Ready + state.InFlight + state.Delayed
		if state.Unowned > 0 {
			return l, fmt.Errorf("%s: nobody owns %d of its %d partitions", q.Name, state.Unowned, len(state.Partitions))
		}
		for _, p := range state.Partitions {
			want, digest := len(p.Home), ""
			for _, r := range p.Replicas {
				at := fmt.Sprintf("%s/%d on %s", q.Name, p.Partition, r.Node)
				if t.gone(r.Node) { // it will not answer; who has its address now might
					want--
					continue
				}
				if r.Err != nil {
					return l, fmt.Errorf("%s: %w", at, r.Err)
				}
				replica := &history.Replica{
					Home: true, Owns: r.Owns, Repairing: r.Repairing, Hints: int(r.Hints), Digest: fmt.Sprintf("%016x", r.Digest), Messages: r.Messages,
				}
				switch {
				case r.Repairing:
					l.why = at + ": still under repair"
				case r.Hints > 0:
					l.why = fmt.Sprintf("%s: %d hints are left", at, r.Hints)
				case digest != "" && digest != replica.Digest:
					l.why = at + ": another state than the other replicas"
				}
				digest = replica.Digest
				if r.Owns {
					for _, g := range p.Groups {
						replica.Groups = append(replica.Groups, history.GroupState{Name: g.Name, Done: g.Done, Ready: g.Ready, InFlight: g.InFlight, Delayed: g.Delayed})
					}
				}
				l.states = append(l.states, history.Event{
					Kind: history.State, Who: t.called(r.Node), Node: t.called(r.Node), Queue: q.Name, Partition: uint32(p.Partition), Replica: replica,
				})
			}
			for i := len(l.states) - 1; i >= 0 && l.states[i].Queue == q.Name && l.states[i].Partition == uint32(p.Partition); i-- {
				l.states[i].Want = want
			}
		}
	}
	if t.remote != "" {
		return l, nil // hints that its nodes keep may be others'
	}
	nodes, err := t.observer.Nodes(ctx)
	if err != nil {
		return l, err
	}
	var hints []string
	for _, n := range nodes {
		if n.Err == nil && n.Hints > 0 && !t.gone(n.Name) {
			hints = append(hints, fmt.Sprintf("%s keeps %d hints", n.Name, n.Hints))
		}
	}
	if len(hints) > 0 && l.why == "" {
		l.why = strings.Join(hints, ", ")
	}
	return l, nil
}
