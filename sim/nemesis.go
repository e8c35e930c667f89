package sim

import (
	"fmt"
	"slices"

	"github.com/meshq/meshq/sim/history"
	"github.com/meshq/meshq/sim/plan"
)

// fault is one fault of the plan when its time has come.
type fault struct {
	*plan.Fault
	number int    // its place in the plan
	key    uint64 // of its luck: what it is and when, not where it stands in the plan
	on, to []*host
	// over tells that it is over. A fault that ends by itself calls it and is itself.
	over   func()
	itself bool
}

// ending is the end of a fault that is not over.
type ending struct {
	r  *runner
	do func()
}

func (e *ending) end() {
	if i := slices.Index(e.r.ends, e); i >= 0 {
		e.r.ends = slices.Delete(e.r.ends, i, i+1)
		e.do()
	}
}

// lasts lets end happen after d, or (0) when all is healed; then at the latest.
func (r *runner) lasts(d plan.Duration, end func()) {
	e := &ending{r, end}
	r.ends = append(r.ends, e)
	if d > 0 {
		r.after(int64(d), e.end)
	}
}

// impossible says why a fault is not brought about.
type impossible string

// strike brings about a fault of the plan.
func (r *runner) strike(number int) {
	f := &fault{Fault: &r.plan.Faults[number], number: number}
	f.key = nameKey(fmt.Sprint(f.Kind, f.At, f.On, f.To))
	why := f.resolve(r)
	if why == "" {
		r.say("%s", f)
		e := history.Event{Kind: history.FaultBegin, Code: string(f.Kind), Number: number, Text: f.String()}
		for _, h := range append(slices.Clone(f.on), f.to...) {
			e.On = append(e.On, h.name)
			if f.Kind == plan.Twin {
				e.On = append(e.On, twinOf(h))
			}
		}
		r.tell(e)
		f.over = func() {
			r.say("over: %s", f)
			r.tell(history.Event{Kind: history.FaultEnd, Number: number})
		}
		var end func()
		if end, why = r.begin(f); why == "" {
			r.reach(string(f.Kind))
		}
		switch {
		case why == "" && end != nil:
			r.lasts(f.For, func() { end(); f.over() })
		case why == "" && !f.itself:
			f.over()
		case why != "":
			r.tell(history.Event{Kind: history.FaultEnd, Number: number})
		}
	}
	if why != "" {
		r.say("skipped: %s: %s", f, why)
		r.skipped = append(r.skipped, Skipped{number, string(why)})
	}
}

// resolve finds the hosts of the fault.
func (f *fault) resolve(r *runner) impossible {
	for _, side := range []struct {
		names []string
		hosts *[]*host
	}{{f.On, &f.on}, {f.To, &f.to}} {
		for _, n := range side.names {
			h := r.host(n)
			if h == nil {
				return impossible(n + " is not there yet")
			}
			*side.hosts = append(*side.hosts, h)
		}
	}
	return ""
}

// begin brings about the fault. It returns what ends it, nil when it is over at once or ends by itself.
func (r *runner) begin(f *fault) (end func(), why impossible) {
	switch f.Kind {
	case plan.Crash, plan.Restart, plan.Pause, plan.SlowNode, plan.Twin, plan.Join:
		return r.hitProcess(f)
	case plan.Cut, plan.CutOneWay, plan.Split, plan.RingCut, plan.Bridge, plan.Flap, plan.Swizzle, plan.SlowLink, plan.Late,
		plan.Loss, plan.Bandwidth, plan.Reset, plan.HalfOpen, plan.Corrupt, plan.AnswerLost:
		return r.hitNetwork(f)
	case plan.ConsumerCrash, plan.ConsumerPause, plan.ConsumerSlow, plan.ProducerCrash, plan.NackStorm, plan.Poison, plan.Burst:
		return r.hitClient(f)
	case plan.PowerCut, plan.Torn, plan.Amnesia, plan.Damage, plan.DamageRecord, plan.OpenError, plan.Rollback, plan.Wipe, plan.KeyReturns,
		plan.DiskSlow, plan.DiskStall, plan.DiskFull, plan.DiskError, plan.SlowRead:
		return r.hitDisk(f)
	case plan.DeleteQueue:
		return r.deleteQueue(f), ""
	case plan.UpdateQueue:
		return r.updateQueue(f), ""
	case plan.PauseQueue:
		return r.pauseQueue(f)
	case plan.WallJump, plan.ClockRate, plan.Freeze:
		return r.hitClock(f)
	case plan.FalseDeath, plan.GossipCut, plan.GossipSilent, plan.StaleRevive:
		return r.hitGossip(f)
	}
	return nil, impossible(fmt.Sprintf("%s is not simulated", f.Kind))
}

// span is how long the fault lasts: For, or until all is healed.
func (r *runner) span(f *fault) int64 {
	if f.For > 0 {
		return int64(f.For)
	}
	return max(0, r.began+int64(r.plan.Length)-r.now)
}
