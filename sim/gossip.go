package sim

import (
	"slices"

	"github.com/meshq/meshq/node/core"
	"github.com/meshq/meshq/ring"
)

// Gossip: after some time everybody knows who can be reached, over others too.
func (w *world) gossip() {
	for _, h := range w.nodes() {
		h.rumours++
		d := between(w.luck(luckGossip, h.key, h.rumours, 0), 200*millisecond, 2500*millisecond)
		life := h.life
		w.after(d, func() {
			if h.life != life || !h.running || h.core.Mesh() == 0 {
				return
			}
			alive := w.reachable(h)
			if !slices.Equal(alive, h.alive) {
				h.alive = alive
				h.step(core.Members{Alive: slices.Clone(alive)})
			}
		})
	}
}

func (w *world) reachable(from *host) []ring.NodeID {
	nodes := w.nodes()
	seen := map[*host]bool{from: true}
	todo := []*host{from}
	for len(todo) > 0 {
		h := todo[0]
		todo = todo[1:]
		for _, o := range nodes {
			if !seen[o] && o.running && !o.paused && o.core.Mesh() != 0 && !w.isCut(h, o) && !w.isCut(o, h) {
				seen[o] = true
				todo = append(todo, o)
			}
		}
	}
	var out []ring.NodeID
	for h := range seen {
		out = append(out, h.id)
	}
	slices.Sort(out)
	return out
}
