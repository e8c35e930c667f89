package sim

import (
	"fmt"
	"slices"

	"github.com/meshq/meshq/ring"
	"github.com/meshq/meshq/transport/wire"
)

// unacked are the confirmed messages that nobody acked. What was acked and not
// confirmed is done or comes again: converged sees to it.
func (k *checker) unacked() []groupKey {
	var out []groupKey
	for _, m := range k.order {
		s := k.messages[m]
		if s.confirmed == 0 || s.q.gone {
			continue
		}
		for _, g := range s.q.entry.Groups {
			gk := groupKey{wire.Group(g.Name, g.Generation), m}
			if k.acked[gk] == 0 && !k.acking[gk] {
				out = append(out, gk)
			}
		}
	}
	return out
}

func (k *checker) delivered() {
	left := k.unacked()
	if len(left) == 0 {
		return
	}
	g := left[0]
	s := k.messages[g.key]
	what := "was never delivered"
	if x, ok := k.first[g]; ok {
		what = fmt.Sprintf("was first delivered %d ms ago, and is not acked", (k.w.now-x.at)/millisecond)
	}
	owner := "nobody"
	if h := k.owner(s.partition); h != nil {
		owner = h.name
	}
	k.w.fail("P2", g.key, "%s of %s, confirmed %d ms ago, %s to %s; %d like it; %s owns it; held by %s", k.about(g.key), k.w.names.partition(s.partition),
		(k.w.now-s.confirmed)/millisecond, what, k.w.names.group(g.group), len(left), owner, k.holding(g.key))
}

// converged checks P7 and P11 by what the nodes say of themselves.
func (k *checker) converged(states map[*host]*wire.Inspected, ps []wire.PartitionID) error {
	blocked := false // a partition waits for a node that is gone for ever, and with it all who want to join
	for _, h := range k.w.nodes() {
		if h.running && h.core.Mesh() != 0 {
			for _, p := range h.core.Moving() {
				sets := h.core.OpenHomes(p)
				if slices.ContainsFunc(sets[len(sets)-1], func(id ring.NodeID) bool { return k.w.node(id) == nil }) {
					blocked = true
					continue
				}
				// The queue may be one of which nobody was told that it is there.
				return fmt.Errorf("%s says that %s is still moving to ring %d, with home replicas %s", h.name, k.w.names.partition(p), h.core.Table().Number, k.w.names.list(sets[len(sets)-1]))
			}
		}
	}
	for i, p := range ps {
		q := k.queueOf(p)
		var first *wire.PartitionState
		var firstAt *host
		owned := 0
		for _, h := range k.w.nodes() {
			in := states[h]
			if in == nil {
				if h.running && (h.core.Mesh() != 0 || !blocked) {
					return fmt.Errorf("%s does not answer Inspect", h.name)
				}
				continue
			}
			if len(in.States) != len(ps) {
				return fmt.Errorf("%s answers Inspect of %d partitions with %d states", h.name, len(ps), len(in.States))
			}
			s := &in.States[i]
			if s.Hints != 0 {
				return fmt.Errorf("%s keeps %d hints of %s", h.name, s.Hints, k.w.names.partition(p))
			}
			if !slices.Contains(k.w.homeIDs(q, p), h.id) {
				if s.Owns && k.w.gone > 0 && len(h.core.OpenHomes(p)) > 1 {
					owned++ // by an older ring, which stays open while who is gone for ever is not forgotten
				}
				continue
			}
			if !s.Home {
				return fmt.Errorf("%s does not know that it is a home replica of %s", h.name, k.w.names.partition(p))
			}
			if s.Repairing {
				return fmt.Errorf("%s is still repairing %s", h.name, k.w.names.partition(p))
			}
			if first == nil {
				first, firstAt = s, h
			} else if s.Digest != first.Digest {
				return fmt.Errorf("digests of %s differ: %s has %x, %s has %x (messages %d and %d)", k.w.names.partition(p), firstAt.name, first.Digest, h.name, s.Digest, first.Messages, s.Messages)
			}
			if s.Owns {
				owned++
				for _, g := range s.Groups {
					if g.Ready+g.InFlight+g.Delayed != 0 || g.Done != s.Messages {
						return fmt.Errorf("all is acked, but the owner %s of %s says for %s: %d ready, %d in flight, %d delayed, %d done of %d",
							h.name, k.w.names.partition(p), k.w.names.group(g.Group), g.Ready, g.InFlight, g.Delayed, g.Done, s.Messages)
					}
				}
			}
		}
		if owned == 0 && k.lostMajority(q, p) {
			continue // the dead must be forgotten first
		}
		if owned != 1 {
			return fmt.Errorf("%d nodes say that they own %s", owned, k.w.names.partition(p))
		}
	}
	return nil
}
