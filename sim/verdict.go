package sim

import (
	"slices"
	"time"

	"github.com/meshq/meshq/sim/history"
	"github.com/meshq/meshq/sim/plan"
)

// Rules are those that the history of a simulated plan is checked by.
func Rules(p *plan.Plan) history.Rules {
	p = p.Filled()
	r := history.Rules{
		Calm: len(p.Faults) == 0, Beyond: p.Beyond, Groups: map[string][]string{}, Quorum: map[string]int{},
		Flight: 500 * time.Millisecond, Drain: time.Duration(settlingLimit), Converge: time.Duration(convergeLimit),
	}
	first := 0 // nodes that are there before the load
	for i := range p.Mesh.Nodes {
		if p.Mesh.Nodes[i].Joins == 0 {
			first++
		} else {
			r.Calm = false
		}
	}
	for i := range p.Queues {
		q := &p.Queues[i]
		r.Groups[q.Name] = q.Groups
		if q.WriteQuorum <= first {
			r.Quorum[q.Name] = q.WriteQuorum
		}
	}
	// A library keeps what it was handed until its program takes it. What its program has not
	// taken in a lease it gives back; it looks each third of one.
	lease := map[string]time.Duration{}
	for i := range p.Queues {
		lease[p.Queues[i].Name] = time.Duration(p.Queues[i].Lease)
		if slices.ContainsFunc(p.Faults, func(f plan.Fault) bool { return f.Kind == plan.UpdateQueue }) {
			lease[p.Queues[i].Name] = max(lease[p.Queues[i].Name], mostLease)
		}
	}
	var wait time.Duration
	for i := range p.Consumers {
		c := &p.Consumers[i]
		if c.Raw {
			continue
		}
		r.Ahead = true
		wait = max(wait, lease[c.Queue]*4/3)
	}
	r.Flight += wait
	return r
}
