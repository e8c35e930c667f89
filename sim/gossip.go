package sim

import (
	"cmp"
	"slices"

	"github.com/meshq/meshq/node/core"
	"github.com/meshq/meshq/ring"
)

// What memberlist does with the settings of node/gossip.go, as measured: probes each
// 300 ms, and a suspicion that runs for 1.2 s, or up to twice as long where nobody else
// confirms it.
const (
	probeEvery   = 300 * millisecond
	suspicion    = 1200 * millisecond
	spreadAtMost = 300 * millisecond // from the first who knows to the others; seldom twice that
	// stretch is how much longer a node that reaches nobody takes: it doubts its own health.
	stretch = 9 * second
	// Refuting: from when the suspected can be reached again to when all know.
	refuteFrom, refuteTo = 100 * millisecond, 850 * millisecond
	// A node that is back from a false death hears of it by what is still in flight, or
	// else by the next rejoin of any who miss it.
	hearFrom, hearTo = 200 * millisecond, 1200 * millisecond
	rejoinEvery      = 5 * second
	joinFrom, joinTo = 10 * millisecond, 600 * millisecond // from a join to when all know of it
	leaveTo          = 400 * millisecond                   // from a farewell to when all know of it
)

// detection is how long a node takes to call another dead that nobody on its side can
// reach any more, in a mesh of n nodes. side is how many of them are on its side, itself too;
// first is the coin of the side, own that of the node.
func detection(n, side int, first, own uint64) int64 {
	// Each of the side probes one of n-1 in each interval, in an order of its own. The first to
	// meet the dead suspects it when the interval is over; a probe may be under way. Now and then
	// nobody's turn comes for some intervals.
	wait := probeEvery*2/3 + between(first, 0, probeEvery*int64(n-1)/int64(max(1, side))+probeEvery/3)
	if mix(first, 1)%4 == 0 {
		wait += between(mix(first, 2), 0, probeEvery*int64(min(n-1, 3))/int64(min(side, 2)))
	}
	// Who is confirmed by two others waits least; their word may come late.
	least := suspicion
	switch {
	case n < 4: // nobody is waited for
	case side == 1:
		least = 2 * suspicion
	case side == 2:
		least = between(mix(first, 3), suspicion*6/5, 2*suspicion)
	case side == 3 && mix(first, 4)%2 == 0:
		least = between(mix(first, 3), suspicion, 2*suspicion)
	case side == 3, mix(first, 4)%4 == 0:
		least = between(mix(first, 3), suspicion, suspicion*4/3)
	}
	// Who fails to reach many doubts its own health, and probes less often.
	if n > 2 && 2*side <= n {
		wait += between(mix(first, 5), 0, stretch/int64(side))
	}
	spread := spreadAtMost
	if mix(own, 4)%32 == 0 { // the news passes one by
		spread *= 2
	}
	return wait + least + between(mix(own, 2), 0, spread)
}

// rumours is what the gossip of one node says of the others, and what it has told its core.
type rumours struct {
	of     []*opinion // by node ID
	told   []ring.NodeID
	at     []ring.Member
	silent int // faults that keep all news from it
	count  uint64
	wakes  uint64
}

// opinion is what one node takes another for.
type opinion struct {
	id    ring.NodeID
	host  *host
	life  int // of its process, as it was heard of
	alive bool
	doubt uint64 // number of the change of mind that is under way; 0: none
	fixed int    // faults that say alive (positive) or dead (negative)
}

func (o *opinion) says() bool { return o.fixed > 0 || o.fixed == 0 && o.alive }

func (r *rumours) opinion(of *host) *opinion {
	i, ok := slices.BinarySearchFunc(r.of, of.id, func(o *opinion, id ring.NodeID) int { return cmp.Compare(o.id, id) })
	if !ok {
		r.of = slices.Insert(r.of, i, &opinion{id: of.id, host: of})
	}
	r.of[i].host = of // which may be another process of the same node
	return r.of[i]
}

// gossip is called when who can reach whom has changed; it looks once all that happens
// at this moment has happened.
func (w *world) gossip() {
	if w.listening {
		return
	}
	w.listening = true
	w.at(w.now, func() {
		w.listening = false
		for _, h := range w.nodes() {
			w.ponder(h)
		}
	})
}

// begin forgets what an earlier process had heard. Faults that are on stay on.
func (r *rumours) begin() {
	for _, o := range r.of {
		o.alive, o.life, o.doubt = false, 0, 0
	}
	r.told, r.at, r.wakes = nil, nil, 0
}

// left tells whether the process of h has said farewell.
func (h *host) left() bool { return !h.running && h.drained }

// takesPart tells whether gossip runs on h.
func (h *host) takesPart() bool { return h.running && h.core.Mesh() != 0 && h.w.node(h.id) == h }

// ponder makes h doubt those whom nobody on its side can reach, and stop to doubt those
// who can be.
func (w *world) ponder(h *host) {
	if !h.takesPart() || h.paused {
		return
	}
	side := w.side(h)
	for _, o := range h.gossip.of {
		there := slices.Contains(side, o.host) && o.host.id == o.id && o.host.life == o.life
		switch {
		case !o.alive:
			// A join, or what is in flight, brings it back.
		case !there && o.doubt == 0:
			d := detection(len(w.nodes()), len(side), w.luck(luckGossip, o.host.key, uint64(w.now), 1), w.luck(luckGossip, h.key, o.host.key, h.gossip.count))
			if o.host.left() {
				d = between(w.luck(luckGossip, h.key, o.host.key, h.gossip.count), millisecond, leaveTo)
			}
			h.change(o, d, func() { h.hears(o, false) })
		case there && o.doubt != 0 && !o.host.left():
			// It refutes, unless the suspicion ends before that comes around.
			doubt := o.doubt
			d := between(w.luck(luckGossip, h.key, o.host.key, h.gossip.count), refuteFrom, refuteTo)
			h.gossip.count++
			h.later(d, func() {
				if o.doubt == doubt && w.reaches(h, o) {
					o.doubt = 0
				}
			})
		}
	}
}

// change makes something happen to an opinion of h after d, unless it changes its mind before.
func (h *host) change(o *opinion, d int64, do func()) {
	h.gossip.count++
	o.doubt = h.gossip.count
	doubt := o.doubt
	h.later(d, func() {
		if o.doubt == doubt {
			o.doubt = 0
			do()
			h.w.ponder(h)
		}
	})
}

// reaches tells whether gossip passes between h and the process that o is about.
func (w *world) reaches(h *host, o *opinion) bool {
	return o.host.id == o.id && o.host.life == o.life && slices.Contains(w.side(h), o.host)
}

// hears changes what h takes another for.
func (h *host) hears(o *opinion, alive bool) {
	w := h.w
	o.alive = alive
	if w.tracing {
		word := "dead"
		if alive {
			word = "alive"
		}
		w.tracef("%s hears that %s is %s", h.name, w.names.of(o.id), word)
	}
	if !alive && w.reaches(h, o) && w.luck(luckGossip, h.key, o.host.key, h.gossip.count)%4 != 0 {
		// A false death: it hears of it, and says that it lives.
		h.change(o, between(w.luck(luckGossip, h.key, o.host.key, h.gossip.count), hearFrom, hearTo), func() {
			if w.reaches(h, o) {
				h.hears(o, true)
			}
		})
	}
	h.tell()
}

// tell gives the core of h the list of the living when it has changed, as the shell does.
func (h *host) tell() {
	w, g := h.w, &h.gossip
	if g.silent > 0 || !h.takesPart() {
		return
	}
	alive := []ring.NodeID{h.id}
	var at []ring.Member
	for _, o := range g.of {
		if o.says() && o.id != h.id {
			alive = append(alive, o.id)
			at = append(at, ring.Member{ID: o.id, Address: o.host.member().Address, HTTP: o.host.member().HTTP})
		}
	}
	slices.Sort(alive)
	if slices.Equal(alive, g.told) && slices.Equal(at, g.at) {
		return
	}
	g.told, g.at = alive, at
	w.hashIn(hashGossip, h.key, uint64(len(alive)))
	h.step(core.Members{Alive: slices.Clone(alive), Addresses: slices.Clone(at)})
}

// rejoin is the shell's loop, from the boot of h on: once the mesh is known it joins all that it
// misses, and then each 5 s. memberlist itself never dials the dead again.
func (h *host) rejoin() {
	wait := rejoinEvery
	if !h.takesPart() {
		wait = 50 * millisecond // until the mesh is known
	} else if !h.w.noRejoin || h.gossip.wakes == 0 {
		h.gossip.wakes++
		h.joinMissing()
	}
	h.later(wait, h.rejoin)
}

// joinMissing tries each member of the ring that is not alive. Whom it reaches, all on
// this side and it hear of each other.
func (h *host) joinMissing() {
	w := h.w
	h.tell()
	for _, m := range h.core.Table().Members {
		o := w.node(m.ID)
		if o == nil || o == h || h.gossip.opinion(o).alive && h.gossip.opinion(o).life == o.life {
			continue
		}
		if o.takesPart() && !o.paused && !w.gossipIsCut(h, o) {
			w.meet(h)
		}
	}
}

// meet spreads among all on the side of h who lives there: two groups that thought each other
// dead are one again.
func (w *world) meet(h *host) {
	side := w.side(h)
	for _, a := range side {
		for _, b := range side {
			if a == b {
				continue
			}
			o := a.gossip.opinion(b)
			if o.alive && o.life == b.life {
				continue
			}
			if o.doubt != 0 && !o.alive && o.life == b.life {
				continue // it is on its way
			}
			o.life = b.life // the old process does not matter any more
			a.change(o, between(w.luck(luckGossip, a.key, b.key, a.gossip.count), joinFrom, joinTo), func() {
				if w.reaches(a, o) {
					a.hears(o, true)
				}
			})
		}
	}
}

// side are the nodes that gossip of h reaches, over others too, itself first.
func (w *world) side(h *host) []*host {
	side := []*host{h}
	for i := 0; i < len(side); i++ {
		for _, o := range w.nodes() {
			if o.takesPart() && !o.paused && !slices.Contains(side, o) && !w.gossipIsCut(side[i], o) {
				side = append(side, o)
			}
		}
	}
	return side
}

func (w *world) gossipIsCut(a, b *host) bool {
	return w.isCut(a, b) || w.isCut(b, a) || w.unheard[pair(a, b)] > 0
}

func pair(a, b *host) [2]int { return [2]int{min(a.index, b.index), max(a.index, b.index)} }

// The faults of gossip; on begins one, and not on ends it.

// gossipCut lets no gossip pass between a and b, while connections hold.
func (w *world) gossipCut(a, b *host, on bool) {
	if on {
		w.unheard[pair(a, b)]++
	} else if w.unheard[pair(a, b)]--; w.unheard[pair(a, b)] == 0 {
		delete(w.unheard, pair(a, b))
	}
	w.gossip()
}

// falseDeath makes gossip tell h that of is dead.
func (w *world) falseDeath(h, of *host, on bool) { h.insist(of, on, -1) }

// staleRevive makes gossip tell h that of lives, whether it does or not.
func (w *world) staleRevive(h, of *host, on bool) { h.insist(of, on, 1) }

func (h *host) insist(of *host, on bool, what int) {
	if !on {
		what = -what
	}
	h.gossip.opinion(of).fixed += what
	h.now(h.tell)
}

// gossipSilent keeps all news from h.
func (h *host) gossipSilent(on bool) {
	if on {
		h.gossip.silent++
		return
	}
	h.gossip.silent--
	h.now(h.tell)
}
