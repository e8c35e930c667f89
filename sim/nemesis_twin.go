package sim

import (
	"github.com/meshq/meshq/sim/plan"
)

// twinCalm is how long nothing else may be wrong when a twin is started: until then the
// older of the two has heard of the other's boot, and has stopped itself. A mesh that
// cannot tell it counts one node twice.
const twinCalm = 3 * second

// twin starts a second process on a copy of the disk of a node. Who connects to the node
// from then on connects to the twin, as to the higher boot of two that gossip knows. What
// it returns ends both and starts the first one again, whose disk is an old copy by now.
func (r *runner) twin(f *fault) (end func(), why impossible) {
	h := f.on[0]
	if !h.running || h.paused || h.twinOf != nil || r.node(h.id) != h {
		return nil, impossible(h.name + " does not run, or has a twin")
	}
	if !r.beyond && (!r.mayLose(h) || !r.calm(twinCalm)) {
		return nil, "it is covered by the promises only while nothing else is wrong"
	}
	t := r.addHost(twinOf(h))
	t.place = r.places
	r.places++
	t.id, t.zone, t.ppm, t.wall, t.limits, t.twinOf = h.id, h.zone, h.ppm, h.wall, h.limits, h
	t.seeds = r.others(h)
	t.disk = h.disk.copyFor(t)
	r.mesh = append(r.mesh, t)
	r.byID[h.id] = t
	r.check.copied(h, t)
	h.down++
	t.start()
	return func() {
		t.crash()
		r.byID[h.id] = h
		r.mesh = remove(r.mesh, t)
		r.check.forgets(t)
		h.crash() // if nobody has told it yet: the mesh knows of a higher boot than its own
		h.disk.old = true
		h.up()
	}, ""
}

// calm tells whether no other fault is under way, and none is to come for d.
func (r *runner) calm(d int64) bool {
	now := plan.Duration(r.now - r.began)
	for i := range r.plan.Faults {
		if at := r.plan.Faults[i].At; at > now && at < now+plan.Duration(d) {
			return false
		}
	}
	return len(r.ends) == 0
}

// twinOf is the name of the second process of a node.
func twinOf(h *host) string { return h.name + "-twin" }
