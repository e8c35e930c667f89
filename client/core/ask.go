package core

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/meshq/meshq/ring"
	"github.com/meshq/meshq/transport/wire"
)

// ask is a request that changes nothing when repeated: it is tried at one node after
// the other until it is answered.
type ask struct {
	ticket Ticket
	done   func(now Instant, msg wire.Message, err error) // instead of a ticket
	node   ring.NodeID                                    // 0: any
	msg    wire.Message
	until  Instant

	tried     map[LinkID]bool // in this round
	round     int
	pending   int // tries that are not answered
	patientTo Instant
	holdUntil Instant
	pinned    bool // a node said that it has too much: wait
	over      bool
	last      *link // of the last try
	err       error // what came of the last try that is over
}

func (c *Core) ask(now Instant, a *ask) {
	if c.closing && a.ticket != nil {
		c.emit(Replied{Ticket: a.ticket, Err: ErrClosed})
		return
	}
	a.tried = map[LinkID]bool{}
	c.asks = append(c.asks, a)
	if a.until != Never {
		c.at(a.until, func(now Instant) {
			if !a.over {
				c.finish(now, a, nil, cmp.Or(a.err, c.unreachable(a.last)))
			}
		})
	}
	c.drive(now, a)
}

// drive makes the next try of an ask, if it is time.
func (c *Core) drive(now Instant, a *ask) {
	if a.over || now < a.holdUntil || a.pending > 0 && now < a.patientTo {
		return
	}
	var l *link
	if a.node != 0 {
		l = c.linkTo(a.node)
		if l == nil {
			c.finish(now, a, nil, ErrUnreachable)
			return
		}
		a.last = l
		c.want(now, l)
		if l.state == linkIdle && l.fails > 1 {
			c.finish(now, a, nil, c.unreachable(l))
			return
		}
		if l.state != linkUp || a.pending > 0 {
			return // kick comes back
		}
	} else {
		l = c.anyLink(now, a.tried)
		if l == nil {
			if len(a.tried) > 0 && a.pending == 0 { // all have been asked: others may know better
				a.round++
				clear(a.tried)
				c.holdAsk(now, a)
				c.widen(now)
			}
			c.reach(now)
			return
		}
	}
	a.last = l
	a.tried[l.id] = true
	a.pinned = false
	a.pending++
	a.patientTo = now.Add(askPatience)
	c.at(a.patientTo, func(now Instant) { c.drive(now, a) })
	c.request(now, l, a.msg, func(now Instant, msg wire.Message) {
		a.pending--
		c.tried(now, a, msg)
	}, func(now Instant) {
		a.pending--
		a.patientTo = now
		a.err = c.unreachable(l)
		c.drive(now, a)
	})
}

// unreachableError is ErrUnreachable with the reason.
type unreachableError struct{ err error }

func (e *unreachableError) Error() string   { return ErrUnreachable.Error() + ": " + e.err.Error() }
func (e *unreachableError) Unwrap() []error { return []error{ErrUnreachable, e.err} }

// unreachable is ErrUnreachable with what is known of it: which address, and why. l is the
// link that was to answer. nil: nothing was asked of any; then the reason is that of the
// one that failed last, as text, for it is no answer (P10: a timeout means "outcome unknown").
func (c *Core) unreachable(l *link) error {
	asked := l != nil
	if !asked {
		for _, x := range c.links {
			if x.state != linkUp && (l == nil || x.downAt > l.downAt) {
				l = x
			}
		}
	}
	switch {
	case l == nil || l.err == nil && l.state == linkIdle:
		return ErrUnreachable
	case l.err == nil:
		return &unreachableError{fmt.Errorf("%s has not answered", l.addr)}
	case !asked:
		return &unreachableError{errors.New(l.err.Error())}
	}
	return &unreachableError{l.err}
}

// anyLink is the first link that is up, with those passed by last.
func (c *Core) anyLink(now Instant, tried map[LinkID]bool) *link {
	var avoided *link
	for _, l := range c.links {
		if l.state != linkUp || tried[l.id] {
			continue
		}
		if l.usable(now) {
			return l
		}
		if avoided == nil {
			avoided = l
		}
	}
	return avoided
}

func (c *Core) holdAsk(now Instant, a *ask) {
	a.holdUntil = now.Add(c.backoff(a.round, backoffMin, backoffMax))
	c.at(a.holdUntil, func(now Instant) { c.drive(now, a) })
}

// tried looks at an answer.
func (c *Core) tried(now Instant, a *ask, msg wire.Message) {
	if a.over {
		return
	}
	e, failed := msg.(*wire.Error)
	if !failed {
		switch m := msg.(type) {
		case *wire.QueueInfo:
			c.catalog = max(c.catalog, m.Catalog)
		case *wire.Queues:
			c.catalog = max(c.catalog, m.Catalog)
		case *wire.Mesh:
			if a.ticket != nil {
				c.learn(now, m)
			}
			if a.ticket == nil && len(m.Table.Members) == 0 {
				e, failed = wire.ErrNotReady, true
			}
		}
	}
	if !failed {
		c.finish(now, a, msg, nil)
		return
	}
	a.err = e
	if !e.Retryable() {
		c.finish(now, a, nil, e)
		return
	}
	if e.Code == wire.CodeOverloaded { // not elsewhere
		clear(a.tried)
		a.round++
		a.pinned = true
		a.holdUntil = now.Add(max(e.Wait(), c.backoff(a.round, backoffMin, backoffMax)))
		c.at(a.holdUntil, func(now Instant) { c.drive(now, a) })
		return
	}
	if a.node != 0 {
		a.round++
		c.holdAsk(now, a)
		return
	}
	a.patientTo = now
	c.drive(now, a)
}

func (c *Core) finish(now Instant, a *ask, msg wire.Message, err error) {
	c.replied(a, msg, err)
	if a.done != nil {
		a.done(now, msg, err)
	}
}

// replied takes an ask off the list and answers its ticket.
func (c *Core) replied(a *ask, msg wire.Message, err error) {
	a.over = true
	if i := slices.Index(c.asks, a); i >= 0 {
		c.asks = slices.Delete(c.asks, i, i+1)
	}
	if a.ticket != nil {
		c.emit(Replied{Ticket: a.ticket, Msg: msg, Err: err})
	}
}

// sortBy sorts by a key that is unique.
func sortBy[T any](list []T, key func(T) uint64) {
	slices.SortFunc(list, func(a, b T) int { return cmp.Compare(key(a), key(b)) })
}
