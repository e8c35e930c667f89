package sim

import (
	"fmt"

	"github.com/meshq/meshq/sim/plan"
)

// hitDisk brings about a fault of disks, on each node of On that it can hit.
func (r *runner) hitDisk(f *fault) (end func(), why impossible) {
	var ends []func()
	for _, h := range f.on {
		if e, ok := r.hurt(f, h); ok {
			ends = append(ends, e)
		}
	}
	if len(ends) == 0 {
		return nil, "there is nothing to hurt, or the promises do not cover it now: another disk is not whole, or a node is away"
	}
	return func() {
		for _, e := range ends {
			e()
		}
	}, ""
}

// hurt brings a fault of disks upon one node, and tells whether it did.
func (r *runner) hurt(f *fault, h *host) (end func(), ok bool) {
	kill := func(did bool) (func(), bool) {
		if !did {
			return nil, false
		}
		h.down++
		return h.up, true
	}
	by, nothing := int64(f.By), func() {}
	switch f.Kind {
	case plan.PowerCut:
		return kill(h.powerCut())
	case plan.Torn:
		return kill(h.torn())
	case plan.Amnesia:
		return kill(h.amnesia(f.Count))
	case plan.DamageRecord:
		return kill(h.damageRecord(f.Count))
	case plan.OpenError:
		return kill(h.openError(f.Count))
	case plan.Wipe:
		return kill(h.wipe())
	case plan.KeyReturns:
		return kill(h.keyReturns())
	case plan.Rollback:
		if r.began+int64(r.plan.Length)-r.now < int64(f.For)+rollbackTime {
			return nil, false
		}
		up, ok := kill(h.rollback(by))
		if ok {
			r.lasts(max(f.For, plan.Duration(millisecond)), up)
			// The mesh may find the disk to be old, and people then take it away: until that
			// is over the fault is.
			longer := *f.Fault
			longer.For += plan.Duration(rollbackTime)
			f.Fault = &longer
			return nothing, true
		}
		return nil, false
	case plan.Damage:
		return nothing, h.damage(f.Count == 1)
	case plan.DiskError:
		if !h.diskError() {
			return nil, false
		}
		h.down++
		return func() { h.disk.failNext = false; h.up() }, true
	case plan.DiskFull:
		if f.Count == 1 {
			h.diskHeld()
		} else {
			h.diskFull(true)
		}
		return func() { h.diskFull(false) }, true
	case plan.DiskSlow:
		h.diskSlow(by)
		return func() { h.diskSlow(-by) }, true
	case plan.DiskStall:
		h.diskStall(by)
		return nothing, true
	case plan.SlowRead:
		h.slowRead(by)
		return func() { h.slowRead(-by) }, true
	}
	panic(fmt.Sprintf("%s is no fault of disks", f.Kind))
}

// rollbackTime is how long after the start of a node with an old disk all is over at the
// latest: it is told, stops, and is replaced.
const rollbackTime = 6 * second

// hitClock brings about a fault of clocks.
func (r *runner) hitClock(f *fault) (end func(), why impossible) {
	switch f.Kind {
	case plan.WallJump:
		for _, h := range f.on {
			h.wallJump(int64(f.By))
		}
		return nil, ""
	case plan.Freeze:
		for _, h := range f.on {
			h.freeze(r.span(f))
		}
		return func() {}, ""
	case plan.ClockRate:
		old := make([]int64, len(f.on))
		for i, h := range f.on {
			old[i] = h.ppm
			h.clockRate(h.ppm + int64(f.Count))
		}
		return func() {
			for i, h := range f.on {
				h.clockRate(old[i])
			}
		}, ""
	}
	return nil, impossible(fmt.Sprintf("%s is no fault of clocks", f.Kind))
}

// hitGossip brings about a fault of gossip, between all of On and all of To.
func (r *runner) hitGossip(f *fault) (end func(), why impossible) {
	each := func(do func(a, b *host, on bool)) func() {
		turn := func(on bool) {
			for _, a := range f.on {
				for _, b := range f.to {
					if a != b {
						do(a, b, on)
					}
				}
			}
		}
		turn(true)
		return func() { turn(false) }
	}
	switch f.Kind {
	case plan.FalseDeath:
		return each(r.falseDeath), ""
	case plan.StaleRevive:
		return each(r.staleRevive), ""
	case plan.GossipCut:
		return each(r.gossipCut), ""
	case plan.GossipSilent:
		for _, h := range f.on {
			h.gossipSilent(true)
		}
		return func() {
			for _, h := range f.on {
				h.gossipSilent(false)
			}
		}, ""
	}
	return nil, impossible(fmt.Sprintf("%s is no fault of gossip", f.Kind))
}
