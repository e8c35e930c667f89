package sim

import (
	"fmt"
	"slices"
	"time"

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

// mostLease is the longest delivery lease that an update gives a queue.
const mostLease = 4 * time.Second

// updates are what settings are changed to: any of one go together with any of another. No
// message of a plan is as large as the least bound.
var updates = []struct {
	name   string
	lo, hi uint64
}{
	{"lease", 1000, uint64(mostLease / time.Millisecond)},
	{"max_message_bytes", 2 << 20, 4 << 20},
	{"backoff_min", 1, 500},
	{"backoff_max", 500, 4000},
}

// mostGrown is up to how many partitions updates give a queue.
const mostGrown = 4

// changer changes a queue, one change at a time.
type changer struct {
	r     *runner
	f     *fault
	q     *queue
	admin *admin
	count uint64 // of changes
	ended bool
}

// changerOf is for the queue of the client that the fault names.
func (r *runner) changerOf(f *fault) *changer {
	c := &changer{r: r, f: f, q: r.queue(r.plan.QueueOf(f.On[0]))}
	c.admin = r.newAdminCalled(fmt.Sprintf("%s-of-%s-%d", f.Kind, f.On[0], int64(f.At)/millisecond))
	return c
}

func (c *changer) coin(n uint64) uint64 { return c.r.luck(luckFault, c.f.key, c.count, n) }

// updateQueue changes settings, some of them each time, until it is ended.
func (r *runner) updateQueue(f *fault) (end func()) {
	c := r.changerOf(f)
	c.update()
	return func() { c.ended = true }
}

func (c *changer) update() {
	if c.ended {
		return
	}
	c.count++
	m := &wire.UpdateQueue{Name: c.q.entry.Name}
	for i, u := range updates {
		first := c.count == 1 && u.name == "backoff_max" // what the plan says may be below the least
		if first || c.coin(uint64(i))%2 == 0 {
			m.Set = append(m.Set, wire.Setting{Name: u.name, Value: u.lo + c.coin(10+uint64(i))%(u.hi-u.lo+1)})
		}
	}
	if grown := c.q.entry.Settings.Partitions + 1; grown <= mostGrown && !c.q.growing && c.coin(21)%4 == 0 {
		c.grow(m, grown)
	}
	again := func() { c.r.after(between(c.coin(20), 0, 2*int64(c.f.By)), c.update) }
	if len(m.Set) == 0 {
		again()
		return
	}
	var asked []*queueChange
	for _, x := range m.Set {
		if x.Name == "lease" {
			c.q.lowest = min(c.q.lowest, uint32(x.Value))
		}
		asked = append(asked, c.r.check.changing(c.q, false, x.Name, x.Value))
	}
	c.ask(fmt.Sprintf("update %d of queue %s", c.count, m.Name), asked, func(e *wire.QueueEntry) wire.Message {
		m.Generation, m.Seen = e.Generation, e.Seen()
		return m
	}, func() {
		for _, x := range m.Set {
			if x.Name == "partitions" {
				c.grew(uint32(x.Value))
			}
		}
		again()
	})
}

// grow adds to an update that the queue has another partition. Clients of the library may learn
// of it, and use it, before it is confirmed.
func (c *changer) grow(m *wire.UpdateQueue, partitions uint32) {
	c.q.growing = true
	m.Set = append(m.Set, wire.Setting{Name: "partitions", Value: uint64(partitions)})
	e := c.q.entry
	e.Settings.Partitions = partitions
	c.r.names.queue(&e)
	c.r.check.places[e.Partition(partitions-1)] = partitionPlace{c.q, partitions - 1}
}

func (c *changer) grew(partitions uint32) {
	c.r.reach("grown")
	c.q.growing, c.q.entry.Settings.Partitions = false, partitions
	c.r.check.ownerAt[c.q.entry.Partition(partitions-1)] = c.r.now
}

// pauseQueue pauses a queue or group. What it returns ends the pause, if its end has not come.
func (r *runner) pauseQueue(f *fault) (end func(), why impossible) {
	group := ""
	if f.Count != 1 {
		for i := range r.plan.Consumers {
			if x := &r.plan.Consumers[i]; x.Name == f.On[0] {
				group = x.Group
			}
		}
		if group == "" {
			return nil, impossible(f.On[0] + " is no consumer")
		}
	}
	c := r.changerOf(f)
	until := uint64(wire.PauseForever)
	if f.By > 0 {
		until = c.admin.h.time().Wall + uint64(int64(f.By)/millisecond)
	}
	c.pause(group, until, func() {
		r.reach("paused")
		if c.ended {
			c.resume(group, until)
		}
	})
	end = func() {
		if c.ended = true; c.admin.msg == nil {
			c.resume(group, until)
		}
	}
	r.resumes = append(r.resumes, end) // a clock that jumps back may bring the pause back
	return end, ""
}

func (c *changer) pause(group string, until uint64, then func()) {
	c.count++
	asked := []*queueChange{c.r.check.changing(c.q, true, group, until)}
	c.ask(fmt.Sprintf("pause %d of queue %s", c.count, c.q.entry.Name), asked, func(e *wire.QueueEntry) wire.Message {
		return &wire.PauseQueue{Name: c.q.entry.Name, Group: group, Until: until, Generation: e.Generation, Seen: e.Seen()}
	}, then)
}

// resume ends a pause that does not end by itself by the clocks of all nodes.
func (c *changer) resume(group string, until uint64) {
	if slices.ContainsFunc(c.r.nodes(), func(h *host) bool { return runs(h, until) }) {
		c.pause(group, 0, func() {})
	}
}

// ask looks at the queue, as a program does, and asks for a change of what it saw; again, if
// it was changed meanwhile.
func (c *changer) ask(what string, asked []*queueChange, change func(*wire.QueueEntry) wire.Message, then func()) {
	r := c.r
	r.changing = append(r.changing, what)
	var look func()
	changed := func(answer wire.Message) bool {
		switch m := answer.(type) {
		case *wire.QueueUpdated, *wire.QueueInfo:
			for _, x := range asked {
				r.check.changed(x)
			}
			r.changing = slices.DeleteFunc(r.changing, func(x string) bool { return x == what })
			then()
			return true
		case *wire.Error:
			switch m.Code {
			case wire.CodeExists:
				look()
				return true
			case wire.CodeBadRequest, wire.CodeNoGroup:
				r.fail("P10", msgKey{}, "%s is refused: %v", what, m)
			}
		}
		return false
	}
	look = func() {
		c.admin.ask(&wire.DescribeQueue{Name: c.q.entry.Name}, func(answer wire.Message) bool {
			info, ok := answer.(*wire.QueueInfo)
			if ok {
				c.admin.ask(change(&info.Entry), changed)
			}
			return ok
		})
	}
	look()
}
