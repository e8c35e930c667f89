package history

import "time"

// sends checks what producers were told: P1 (copies, positions), P6, P10.
func (k *checker) sends() {
	type position struct{ queue, id string }
	at := map[position]Message{}
	for i := range k.lives {
		x := &k.lives[i]
		s, a := k.sentOf(x), k.answerOf(x)
		k.answered(x, s, a)
		if a == nil {
			continue
		}
		k.writable(x, s, a)
		if a.Kind != Confirmed {
			continue
		}
		k.saw(1, 1)
		want := max(a.Want, k.rules.Quorum[s.Queue])
		if a.Copies < want {
			k.fail(1, a.At, x.message, "", "%s was confirmed with %d copies of %d", x.message, a.Copies, want)
		}
		if a.ID == "" {
			continue
		}
		p := position{s.Queue, a.ID}
		if other, taken := at[p]; taken {
			k.fail(1, a.At, x.message, "", "%s was confirmed at the position of %s, %s", x.message, other, a.ID)
		}
		at[p] = x.message
	}
	for _, i := range k.doubled {
		e := &k.events[i]
		if e.Kind == Sent {
			k.fail(10, e.At, e.Message, "", "%s was sent twice: its producer's names are not unique", e.Message)
			continue
		}
		k.fail(10, e.At, e.Message, "", "%s was answered twice, the second time with %s %s", e.Message, e.Kind, e.Code)
	}
}

// answered checks P10: one answer, in time, of a kind that is allowed.
func (k *checker) answered(x *life, s, a *Event) {
	if a == nil {
		if _, dead := k.diedIn(s.Who, s.At-1, forever); dead {
			return
		}
		if s.Within > 0 {
			if late := k.faults.quiet(s.At, k.ended, s.Who) - s.Within - k.rules.Tolerance; late > 0 {
				k.saw(10, 1)
				k.fail(10, s.At+s.Within+k.rules.Tolerance, x.message, "", "%s was never answered, and should have been in %v", x.message, ms(s.Within))
			}
			return
		}
		if since := k.ended - k.healed; k.hasHealed && since > k.rules.Drain {
			k.fail(6, k.ended, x.message, "", "%s was not confirmed in %v after all had healed", x.message, ms(since))
		}
		return
	}
	k.saw(10, 1)
	if took := a.At - s.At; s.Within > 0 && took > s.Within+k.rules.Tolerance {
		if quiet := k.faults.quiet(s.At, a.At, s.Who); quiet > s.Within+k.rules.Tolerance {
			k.fail(10, a.At, x.message, "", "%s was answered after %v, and should have been in %v", x.message, ms(took), ms(s.Within))
		}
	}
	is := meaning(a.Code)
	switch {
	case a.Kind == Confirmed && a.Code != "":
		k.fail(10, a.At, x.message, "", "%s was confirmed with an error, %s", x.message, a.Code)
	case a.Kind != Confirmed && is == unlisted:
		k.fail(10, a.At, x.message, "", "%s was answered with %q, which is no code", x.message, a.Code)
	case a.Kind != Confirmed && is == wrong:
		if _, purged := k.purgedAt(x); !purged || a.Code != CodeName(5) {
			k.fail(10, a.At, x.message, "", "%s was answered with %s, and nothing is wrong with it", x.message, a.Code)
		}
	case a.Kind == Refused && is == unknown:
		k.fail(10, a.At, x.message, "", "%s was refused with %s, which means that it may be stored", x.message, a.Code)
	}
}

// writable checks P6: while no fault touches a node or the producer, sends succeed. A
// node without room may say so.
func (k *checker) writable(x *life, s, a *Event) {
	k.saw(6, 1)
	if a.Kind == Confirmed {
		return
	}
	if is := meaning(a.Code); is != unknown && is != retry {
		return
	}
	quiet := k.faults.quiet(s.At, a.At, append([]string{s.Who}, k.nodes...)...)
	least := k.rules.Writable
	if s.Within > 0 {
		least = min(least, s.Within)
	}
	if quiet >= least && quiet > 0 && quiet >= a.At-s.At-time.Millisecond {
		k.fail(6, a.At, x.message, "", "%s failed after %v with %s, and nothing was wrong with any node", x.message, ms(a.At-s.At), a.Code)
	}
}
