package history

import (
	"fmt"
	"slices"
	"time"
)

// holding is a message in the hands of a consumer.
type holding struct {
	*Event               // its Delivered
	until  time.Duration // while the lease surely runs
	over   bool          // the consumer is through with it, or was told that its lease is over
	how    Kind          // of its end
	ended  time.Duration
}

// life checks what became of one message: P1, P2 and P11 (it arrived and was done), P3,
// P4, P9, P10.
func (k *checker) life(x *life) {
	s, a := k.sentOf(x), k.answerOf(x)
	for i := range x.courses {
		c := &x.courses[i]
		k.bytes(x, c, s)
		if a != nil && a.Kind == Refused {
			if f := k.first(c); f != nil {
				k.fail(10, max(f.At, a.At), x.message, c.group, "%s was refused with %s, which means that it is not stored, and then delivered to %s", x.message, a.Code, f.Who)
			}
		}
		k.alone(x, c, s)
		k.final(x, c)
	}
	k.arrived(x, s)
}

// bytes checks P9: what is delivered is what was sent, where it was sent to.
func (k *checker) bytes(x *life, c *course, s *Event) {
	for _, i := range c.events {
		e := &k.events[i]
		if e.Kind != Delivered {
			continue
		}
		k.saw(9, 1)
		switch {
		case e.Hash != s.Hash:
			k.fail(9, e.At, x.message, c.group, "%s got %s with other bytes than were sent (%016x, sent %016x)", e.Who, x.message, e.Hash, s.Hash)
		case e.Queue != s.Queue:
			k.fail(9, e.At, x.message, c.group, "%s got %s from queue %s, it was sent to %s", e.Who, x.message, e.Queue, s.Queue)
		}
		if a := k.answerOf(x); a != nil && a.Kind == Confirmed && a.Partition != e.Partition && a.ID != "" {
			k.fail(9, e.At, x.message, c.group, "%s got %s from partition %d, it was confirmed in %d", e.Who, x.message, e.Partition, a.Partition)
		}
		if at, purged := k.purgedAt(x); purged && k.faults.quiet(at, e.At, k.way(e)...) > k.rules.Flight {
			k.fail(11, e.At, x.message, c.group, "%s got %s, which went with its queue %v ago", e.Who, x.message, ms(e.At-at))
		}
	}
}

// final checks P3: when an ack is confirmed, no delivery starts any more. One that was
// under way may arrive: it was for a lower attempt, or comes soon, but for the time that
// a fault holds it up.
func (k *checker) final(x *life, c *course) {
	var acked *Event
	for _, i := range c.events {
		e := &k.events[i]
		switch {
		case e.Kind == Acked && acked == nil:
			acked = e
			k.saw(3, 1)
		case e.Kind == Delivered && acked != nil:
			if e.Term == acked.Term && e.Attempt < acked.Attempt {
				continue
			}
			if k.faults.quiet(acked.At, e.At, k.way(e)...) > k.rules.Flight {
				k.fail(3, e.At, x.message, c.group, "%s got %s %v after its ack by %s was confirmed (%s, acked in %s)", e.Who, x.message, ms(e.At-acked.At), acked.Who, e.told(), acked.told())
			}
		}
	}
}

// way is everybody that a delivery passed: its owner, and the node that brought it; all
// nodes when it is not known which.
func (k *checker) way(e *Event) []string {
	way := []string{e.Who, e.Node, e.Term.Node}
	if e.Node == "" {
		way = append(way, k.nodes...)
	}
	return way
}

// unmarked tells whether a delivery says that it is the first.
func (e *Event) unmarked() bool { return e.Cause == "" && e.Attempt <= 1 }

// told is how a delivery names itself.
func (e *Event) told() string {
	s := fmt.Sprintf("term %d.%s attempt %d", e.Term.Counter, e.Term.Node, e.Attempt)
	if e.Cause != "" {
		s += ", again: " + e.Cause
	}
	return s
}

// alone checks P4: one consumer at a time, and each delivery that is not the first has
// a cause that really happened.
func (k *checker) alone(x *life, c *course, s *Event) {
	var held []holding
	var dropped bool
	for _, i := range c.events {
		e := &k.events[i]
		switch e.Kind {
		case Dropped:
			dropped = true
		case Delivered:
			k.saw(4, 1)
			if len(held) > 0 || dropped {
				k.again(x, c, s, e, held)
			}
			until := forever
			if e.Lease < forever-e.At {
				until = e.At + e.Lease
			}
			held = append(held, holding{Event: e, until: until})
		case Extended:
			if h := current(held, e); h != nil {
				h.until = max(h.until, e.At+e.Lease)
			}
		case Acked, AckFailed, Nacked, Released, LeaseOver:
			if h := current(held, e); h != nil {
				h.over, h.how, h.ended = true, e.Kind, e.At
			}
		}
	}
}

// current is the delivery that an event of its consumer is about. One whose lease is over
// may be given back still: it counts if the owner thinks otherwise.
func current(held []holding, e *Event) *holding {
	for i := len(held) - 1; i >= 0; i-- {
		h := &held[i]
		late := h.how == LeaseOver && (e.Kind == Nacked || e.Kind == Released)
		if h.Who == e.Who && (!h.over || late) && (e.Term == Term{} || e.Term == h.Term && e.Attempt == h.Attempt) {
			return h
		}
	}
	return nil
}

// again checks a delivery that is not the first.
func (k *checker) again(x *life, c *course, s, e *Event, held []holding) {
	for i := range held {
		h := &held[i]
		if h.Who == e.Who || h.Lease == 0 || k.running(h, e.At) <= k.rules.Flight {
			continue
		}
		if h.Term == e.Term && h.Attempt > e.Attempt {
			continue // it was handed out before the other one, and was long under way
		}
		if k.lostBy(h, e) == "" && !k.late(s, e, h) {
			k.fail(4, e.At, x.message, c.group, "%s got %s (%s) while %s has it for %v more (%s), and nothing was wrong with %s or its owner",
				e.Who, x.message, e.told(), h.Who, ms(h.until-e.At), h.told(), h.Who)
			return
		}
	}
	if why := k.unfounded(x, s, e, held); why != "" {
		k.fail(4, e.At, x.message, c.group, "%s got %s again (%s): %s", e.Who, x.message, e.told(), why)
	}
}

// running is for how long the lease of a delivery surely runs on after a time: by
// clocks that may differ by 5 %.
func (k *checker) running(h *holding, at time.Duration) time.Duration {
	if h.over && h.ended <= at {
		return 0
	}
	if _, dead := k.diedIn(h.Who, h.At-1, at); dead {
		return 0
	}
	if h.until == forever {
		return forever
	}
	return h.At + (h.until-h.At)/20*19 - at
}

// lostBy names what may have taken a delivery from a consumer before another one got
// the message: a fault that touches the consumer or the owner, or, when the owner is
// another one, any node. "" when there is nothing.
func (k *checker) lostBy(h *holding, e *Event) string {
	from := h.At - k.rules.Flight
	if k.faults.touch(from, e.At, h.Who) {
		return "consumer"
	}
	owners := k.nodes
	if way := k.way(h.Event); h.Term == e.Term {
		owners = append(way[1:], e.Node)
	}
	if len(owners) > 0 && k.faults.touch(from, e.At, owners...) {
		return "owner"
	}
	return ""
}

// late tells whether a send that was tried again after the dedup window may have made
// a second message.
func (k *checker) late(s, e *Event, h *holding) bool {
	return e.ID != h.ID && e.At-s.At > k.rules.Dedup
}

// unfounded says why the cause that a delivery claims cannot be. "" when it can.
func (k *checker) unfounded(x *life, s, e *Event, held []holding) string {
	if len(held) == 0 {
		return "" // the client dropped the one before
	}
	last := &held[len(held)-1]
	if e.unmarked() {
		// One delivery is the first, and it may be late. An owner that got the batch only after
		// its claim cannot know what another did with it; nor is what became of a message at
		// one position said of it at another.
		if k.late(s, e, last) || !slices.ContainsFunc(held, func(h holding) bool { return h.Term == e.Term && h.ID == e.ID && h.unmarked() }) {
			return ""
		}
		return "it is not marked as delivered before"
	}
	calm := k.rules.Calm
	var nacked, released, over bool
	for i := range held {
		h := &held[i]
		_, dead := k.diedIn(h.Who, h.At-1, e.At)
		calm = calm && !dead
		nacked = nacked || h.how == Nacked || dead
		released = released || h.how == Released || dead
		over = over || h.how == LeaseOver || h.how == AckFailed || h.Lease == 0 || h.Lease > 0 && e.At >= h.At+h.Lease*95/100 || !h.over && k.running(h, e.At) <= k.rules.Flight
	}
	switch {
	case e.Cause == "nack" && !nacked:
		return "nobody nacked it"
	case !calm:
		return ""
	case e.Cause == "lease" && !over:
		return "no lease of it was over"
	case e.Cause == "released" && !released && !k.rules.Ahead:
		return "nobody gave it back"
	case e.Cause == "consumer", e.Cause == "takeover":
		if !over && !nacked && !released {
			return "there was no fault"
		}
	}
	return ""
}

// arrived checks that a confirmed message came to each group and was done there: P1
// when no group ever saw it and no node has it, P2 when it is stuck, P11 when it was
// seen and then vanished.
func (k *checker) arrived(x *life, s *Event) {
	if !k.confirmed(x) {
		return
	}
	if _, purged := k.purgedAt(x); purged {
		return
	}
	given := k.hasHealed && k.ended-k.healed > k.rules.Drain
	if !k.hasDrained && !given {
		return // the history ends too early to tell
	}
	a := k.answerOf(x)
	at := k.drained
	if !k.hasDrained {
		at = k.healed + k.rules.Drain
	}
	if a.At > at {
		return
	}
	anybody := false
	for i := range x.courses {
		anybody = anybody || k.first(&x.courses[i]) != nil
	}
	for _, g := range k.groups[s.Queue] {
		c := x.in(g)
		k.saw(2, 1)
		if k.first(c) == nil {
			promise, what := 2, "was not delivered"
			if k.hasDrained && !anybody {
				promise, what = 1, "is lost: it was never delivered"
			}
			k.fail(promise, at, x.message, g, "%s, confirmed at %v, %s to %s until %v, %v after all had healed", x.message, ms(a.At), what, g, ms(at), ms(at-k.healed))
			continue
		}
		k.saw(11, 1)
		if !k.done(c) {
			promise, what := 2, "did not come again"
			if k.hasDrained {
				promise, what = 11, "is gone: it did not come again"
			}
			k.fail(promise, at, x.message, g, "%s was delivered to %s and never acked, and %s until %v", x.message, g, what, ms(at))
		}
	}
}

// done tells whether some consumer acked, also when that was not confirmed.
func (k *checker) done(c *course) bool {
	for _, i := range c.events {
		if kind := k.events[i].Kind; kind == Acking || kind == Acked {
			return true
		}
	}
	return false
}
