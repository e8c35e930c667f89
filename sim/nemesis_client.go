package sim

import (
	"fmt"
	"slices"

	"github.com/meshq/meshq/sim/plan"
)

// hitClient brings about a fault of producers or consumers.
func (r *runner) hitClient(f *fault) (end func(), why impossible) {
	d := r.span(f)
	for _, name := range f.On {
		switch c := r.byClient[name].(type) {
		case producing:
			switch f.Kind {
			case plan.ProducerCrash:
				c.kill(d)
			case plan.Burst:
				c.rush(f.Count, d)
			default:
				return nil, impossible(fmt.Sprintf("%s is a producer", name))
			}
		case consuming:
			switch f.Kind {
			case plan.ConsumerCrash:
				c.kill(d)
			case plan.ConsumerPause:
				c.machine().pause(d)
			case plan.ConsumerSlow:
				c.slow(int64(f.By), d)
			case plan.NackStorm:
				c.nackAll(d)
			case plan.Poison:
				c.poison(f.Count, d)
			default:
				return nil, impossible(fmt.Sprintf("%s is a consumer", name))
			}
		default:
			return nil, impossible(fmt.Sprintf("%s is no client", name))
		}
	}
	return func() {}, ""
}

// hurry are the bursts under way of a producer: it thinks as many times as fast as the
// greatest says.
type hurry []int

// up begins a burst; what it returns ends it.
func (h *hurry) up(times int) (end func()) {
	*h = append(*h, times)
	return func() {
		i := slices.Index(*h, times)
		*h = slices.Delete(*h, i, i+1)
	}
}

func (h hurry) times() int64 {
	if len(h) == 0 {
		return 1
	}
	return int64(slices.Max(h))
}
