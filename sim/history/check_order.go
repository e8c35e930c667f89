package history

import "time"

// line is one producer's confirmed messages in one partition, for one group.
type line struct {
	producer, queue, group string
	partition              uint32
}

// place is the first delivery of a message of a line.
type place struct {
	life  int32
	event int32
}

// order checks P5. A delivery that says it is the first must not come after one of a
// message that the same producer sent later: from the same owner, whose deliveries to one
// consumer arrive in order and those to two soon after each other; or, when there is but
// one consumer which never died, from any owner.
func (k *checker) order() {
	lines := map[line][]place{}
	var names []line // in order of appearance
	for i := range k.lives {
		x := &k.lives[i]
		if !k.confirmed(x) || k.sentOf(x).Delayed {
			continue
		}
		a := k.answerOf(x)
		for j := range x.courses {
			c := &x.courses[j]
			first := int32(-1)
			for _, n := range c.events {
				if kind := k.events[n].Kind; kind == Delivered || kind == Dropped {
					first = n
					break
				}
			}
			if first < 0 {
				continue
			}
			l := line{x.message.Producer, k.sentOf(x).Queue, c.group, a.Partition}
			if lines[l] == nil {
				names = append(names, l)
			}
			lines[l] = append(lines[l], place{int32(i), first})
		}
	}
	for _, l := range names {
		k.inOrder(l, lines[l])
	}
}

// inOrder goes through a line from its end. Lives are in order of sending.
func (k *checker) inOrder(l line, places []place) {
	type by struct {
		term Term
		who  string
	}
	of := l.queue + "\x00" + l.group
	one := len(k.consumersOf[of]) == 1
	for who := range k.consumersOf[of] {
		one = one && len(k.downs[who]) == 0
	}
	earliest := map[by]place{} // of the later ones: by owner and consumer, by owner, by consumer
	note := func(b by, p place) {
		if q, ok := earliest[b]; !ok || p.event < q.event {
			earliest[b] = p
		}
	}
	byOwner := map[Term]place{} // the same, and those that say that they are not the first
	// lost tells whether another owner delivered a later message before: it had handed this
	// one out first, and the delivery never came.
	lost := func(p place, term Term) bool {
		for t, q := range byOwner { // any or none: the order does not matter
			if t != term && q.event < p.event {
				return true
			}
		}
		return false
	}
	for i := len(places) - 1; i >= 0; i-- {
		p := places[i]
		e := &k.events[p.event]
		if i < len(places)-1 {
			k.saw(5, 1)
			if e.Kind == Delivered && e.unmarked() {
				q, ok := earliest[by{e.Term, e.Who}]
				ok = ok && q.event < p.event && !lost(p, e.Term)
				// A library may have had it before, and given it back unseen when its owner went.
				if !ok && (one && !k.rules.Ahead || k.rules.Calm) {
					q, ok = earliest[by{who: e.Who}]
					ok = ok && q.event < p.event && !k.lostBetween(p, q)
				}
				if !ok {
					q, ok = earliest[by{term: e.Term}]
					ok = ok && q.event < p.event && k.faults.quiet(k.events[q.event].At, e.At, k.between(e)...) > k.rules.Flight && !lost(p, e.Term)
				}
				if ok {
					k.overtaken(l, p, q)
				}
			}
		}
		if q, ok := byOwner[e.Term]; !ok || p.event < q.event {
			byOwner[e.Term] = p
		}
		if e.unmarked() { // else it was handed out before, and this one maybe before that
			note(by{e.Term, e.Who}, p)
			note(by{who: e.Who}, p)
			note(by{term: e.Term}, p)
		}
	}
}

// between is everybody that a message passed before its consumer's program got it. One
// that was taken ahead of need waits for the program, which waits until another message
// of its own is settled, at any node (seed 31017).
func (k *checker) between(e *Event) []string {
	if k.rules.Ahead {
		return append(k.way(e), k.nodes...)
	}
	return k.way(e)
}

// lostBetween tells whether what was handed out before early may have been lost between its
// owner and a node that relayed: such a delivery comes again, from the next owner.
func (k *checker) lostBetween(late, early place) bool {
	f := &k.events[early.event]
	return f.Node == "" && k.faults.touch(k.sentOf(&k.lives[late.life]).At, f.At, k.nodes...)
}

// overtaken is the breach of P5, unless the later message had waited its time.
func (k *checker) overtaken(l line, late, early place) {
	e, f := &k.events[late.event], &k.events[early.event]
	x, y := &k.lives[late.life], &k.lives[early.life]
	if f.At-k.sentOf(y).At >= k.rules.OrderWait-time.Second {
		return
	}
	k.fail(5, e.At, x.message, l.group, "%s is first delivered to %s (%s) %v after %s, which was sent later (%s)", x.message, e.Who, e.told(), ms(e.At-f.At), y.message, f.told())
}
