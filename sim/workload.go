package sim

import (
	"github.com/meshq/meshq/sim/history"
	"github.com/meshq/meshq/sim/plan"
)

// producing is what sends for one producer of a plan: a raw client, or the client library.
// All durations are in nanoseconds of virtual time.
type producing interface {
	machine() *host
	start(until int64) // sends from now on, nothing new from the world's time until on
	settle()           // all faults are over: be quick
	through() bool     // nothing is under way and nothing is to come
	// stuck is the message that it cannot get an answer for, and what it waits for; "": none.
	stuck() (about msgKey, what string)

	kill(back int64)         // its process ends; another producer takes its place after back
	rush(times int, d int64) // it sends that many times as fast, for d
}

// consuming is what takes messages for one consumer of a plan.
type consuming interface {
	machine() *host
	start()
	settle() // all faults are over: nack and forget nothing more, and catch up

	kill(back int64)           // its process ends; it is started again after back
	slow(by, d int64)          // it works by longer on each message, for d
	nackAll(d int64)           // it nacks all it gets, for d
	poison(oneIn int, d int64) // one message in so many kills it, again and again, for d
}

// newProducing makes the client of a producer of the plan.
func (r *runner) newProducing(spec *plan.Producer) producing {
	if !spec.Raw {
		return r.newLibProducer(spec)
	}
	q := r.queue(spec.Queue)
	index := uint32(spec.Partition) % q.entry.Settings.Partitions
	p := r.newProducer(spec.Name, q, q.entry.Partition(index))
	p.think, p.most, p.bytes, p.timeout = int64(spec.Think), spec.Batch, spec.Bytes, uint32(int64(spec.Timeout)/millisecond)
	if spec.Count > 0 {
		p.left = spec.Count
	}
	return p
}

// newConsuming makes the client of a consumer of the plan.
func (r *runner) newConsuming(spec *plan.Consumer) consuming {
	if !spec.Raw {
		return r.newLibConsumer(spec)
	}
	c := r.newConsumer(spec.Name, r.queue(spec.Queue), spec.Group)
	c.window, c.hold = uint64(spec.Window), int64(spec.Hold)
	c.nacks = int(spec.Nack*100 + 0.5)
	c.acks = max(0, 100-c.nacks-int(spec.Forget*100+0.5))
	c.nackWait = uint32(between(r.luck(luckClient, c.h.key, 2, 0), 0, 300))
	if spec.Relay != "" {
		c.relay = r.host(spec.Relay)
	}
	return c
}

// tell adds to the history, if one is kept.
func (w *world) tell(e history.Event) {
	e.At = w.sinceLoad()
	if w.story != nil {
		w.story.told(&e)
	}
	if w.history == nil {
		return
	}
	w.history.Events = append(w.history.Events, e)
}
