package sim

import (
	"fmt"
	"slices"

	"github.com/meshq/meshq/sim/history"
	"github.com/meshq/meshq/transport/wire"
)

// fillFor is how long a generation of an own queue is filled.
const fillFor = 1500 * millisecond

// ownQueue is a queue that is created, filled, deleted and created again. It always has
// the same name, so that each is another generation of it: no message of an old one may
// come back.
type ownQueue struct {
	r        *runner
	name     string
	admin    *admin
	q        *queue
	lives    int // generations
	ended    bool
	consumer *consumer
}

// deleteQueue begins the cycle; what it returns ends it with a queue that stays, and is
// drained like all queues.
func (r *runner) deleteQueue(f *fault) (end func()) {
	o := &ownQueue{r: r, name: fmt.Sprintf("%s-own%d", r.plan.Queues[0].Name, int64(f.At)/millisecond)}
	o.admin = r.newAdminCalled(o.name + "-admin")
	o.create()
	return func() { o.ended = true }
}

func (o *ownQueue) create() {
	s := wire.DefaultSettings()
	s.Partitions, s.Lease, s.BackoffMin, s.BackoffMax = 2, 2000, 100, 1000
	o.admin.create(o.name, s, nil, o.fill)
}

// fill sends to the queue and takes from it, for a while.
func (o *ownQueue) fill(q *queue) {
	r := o.r
	o.q = q
	o.lives++
	r.say("%s is generation %d", o.name, q.entry.Generation)
	for _, p := range q.partitions() {
		r.check.ownerAt[p] = r.now
	}
	o.consumer = r.newConsumer(fmt.Sprintf("%s-consumer-%d", o.name, o.lives), q, "default")
	o.consumer.hold = 10 * millisecond
	o.consumer.start()
	r.consumers = append(r.consumers, o.consumer)
	var mine []*producer
	for i, p := range q.partitions() {
		pr := r.newProducer(fmt.Sprintf("%s-producer-%d-%d", o.name, o.lives, i), q, p)
		mine = append(mine, pr)
		r.producers = append(r.producers, pr)
		pr.start(min(r.now+fillFor, r.began+int64(r.plan.Length)))
	}
	var wait func()
	wait = func() {
		switch {
		case o.ended: // this generation stays
		case slices.ContainsFunc(mine, func(p *producer) bool { return !p.done }):
			r.after(20*millisecond, wait)
		default:
			o.delete()
		}
	}
	wait()
}

// delete deletes the queue. What was sent to it before is gone when that is confirmed.
func (o *ownQueue) delete() {
	r := o.r
	r.check.leaving(o.q)
	r.deleting = append(r.deleting, o.name)
	o.admin.ask(&wire.DeleteQueue{Name: o.name, Generation: o.q.entry.Generation}, func(answer wire.Message) bool {
		switch m := answer.(type) {
		case *wire.Done:
		case *wire.Error:
			if m.Code != wire.CodeNoQueue { // else the try before has done it
				return false
			}
		default:
			return false
		}
		r.deleting = slices.DeleteFunc(r.deleting, func(name string) bool { return name == o.name })
		r.reach("queue-deleted")
		r.tell(history.Event{Kind: history.Purged, Who: o.name, Queue: o.name})
		o.consumer.crash(-1)
		r.after(between(r.luck(luckFault, nameKey(o.name), uint64(o.lives), 0), millisecond, 500*millisecond), o.create)
		return true
	})
}
