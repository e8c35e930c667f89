package sim

import (
	"fmt"

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
