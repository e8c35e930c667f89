package sim

import (
	"slices"
	"testing"

	"github.com/meshq/meshq/node/core"
	"github.com/meshq/meshq/ring"
)

// untilHeard runs the world until the gossip of h takes id for alive, or not, at most for d, and
// gives the time it took; -1: it did not.
func (w *world) untilHeard(h *host, id ring.NodeID, alive bool, d int64) int64 {
	from := w.now
	for w.now < from+d {
		if slices.Contains(h.gossip.told, id) == alive {
			return w.now - from
		}
		w.runFor(10 * millisecond)
	}
	return -1
}

// TestDetection: with the settings of the node all know of a death within 2 s most of the time in a
// mesh of 3 to 9 (of 4 a little later: all three others must suspect it), within 3.6 s always, and
// nobody before a suspicion has run.
func TestDetection(t *testing.T) {
	for n := 3; n <= 9; n++ {
		var all []int64
		for seed := range uint64(200) {
			last := int64(0)
			for i := range uint64(n - 1) {
				last = max(last, detection(n, n-1, mix(seed, 1), mix(seed, 10+i)))
			}
			all = append(all, last)
		}
		slices.Sort(all)
		if p50, most := all[100], all[199]; all[0] < suspicion+probeEvery/2 || p50 < 1500*millisecond || p50 > 2000*millisecond && n != 4 || p50 > 2400*millisecond || most > 3600*millisecond {
			t.Errorf("%d nodes: all know after %d, %d, %d ms (least, median, most)", n, all[0]/millisecond, p50/millisecond, most/millisecond)
		}
	}
}

// TestDeath: all hear of a node that died, within the time of a detection, and of its return.
func TestDeath(t *testing.T) {
	for seed := range uint64(10) {
		w := testMesh(t, seed, 5)
		h := w.nodes()[int(seed)%5]
		h.crash()
		for _, o := range w.others(h) {
			if o.gossip.told == nil {
				t.Fatalf("seed %d: %s was told nothing", seed, o.name)
			}
		}
		from := w.now
		for _, o := range w.others(h) {
			if w.untilHeard(o, h.id, false, 3*second) < 0 || w.now-from > 3000*millisecond {
				t.Fatalf("seed %d: %s knows after %d ms", seed, o.name, (w.now-from)/millisecond)
			}
		}
		h.start()
		from = w.now
		for _, o := range w.others(h) {
			if w.untilHeard(o, h.id, true, 3*second) < 0 || w.now-from > 1500*millisecond {
				t.Fatalf("seed %d: %s knows that it is back after %d ms", seed, o.name, (w.now-from)/millisecond)
			}
		}
	}
}

// TestFastRestart: a restart that is faster than detection is no event.
func TestFastRestart(t *testing.T) {
	w := testMesh(t, 1, 3)
	h := w.nodes()[1]
	h.crash()
	w.runFor(400 * millisecond)
	h.start()
	for _, o := range w.others(h) {
		if w.untilHeard(o, h.id, false, 5*second) >= 0 {
			t.Errorf("%s was told that it is dead", o.name)
		}
	}
}

// TestFarewell: who leaves is known to be gone at once.
func TestFarewell(t *testing.T) {
	w := testMesh(t, 1, 3)
	h := w.nodes()[1]
	h.step(core.Drain{})
	w.runFor(5 * second)
	if !h.drained {
		t.Fatal("it did not drain")
	}
	h.crash()
	from := w.now
	for _, o := range w.others(h) {
		if w.untilHeard(o, h.id, false, second) < 0 || w.now-from > leaveTo+20*millisecond {
			t.Errorf("%s knows after %d ms", o.name, (w.now-from)/millisecond)
		}
	}
}

// TestPauses: half a second is never called a death, two seconds always, and one about
// every other time. It is alive again soon after.
func TestPauses(t *testing.T) {
	for _, x := range []struct {
		pause       int64
		least, most int // of 40 that somebody takes for dead
	}{{500 * millisecond, 0, 0}, {second, 8, 34}, {2 * second, 36, 40}} {
		dead := 0
		for seed := range uint64(40) {
			w := testMesh(t, seed, 5)
			h := w.nodes()[int(seed)%5]
			h.pause(x.pause)
			wrong, from := false, w.now
			for w.now < from+x.pause+rejoinEvery+2*second {
				w.runFor(20 * millisecond)
				for _, o := range w.others(h) {
					wrong = wrong || !slices.Contains(o.gossip.told, h.id)
				}
			}
			if wrong {
				dead++
			}
			for _, o := range w.others(h) {
				if !slices.Contains(o.gossip.told, h.id) {
					t.Fatalf("seed %d: %s still takes it for dead %d ms after a pause of %d", seed, o.name, (w.now-from-x.pause)/millisecond, x.pause/millisecond)
				}
			}
		}
		if dead < x.least || dead > x.most {
			t.Errorf("a pause of %d ms was called a death in %d of 40 runs", x.pause/millisecond, dead)
		}
	}
}

// TestRejoin: after a long split nobody dials the dead but the shell's own loop: with it
// the mesh is whole within seconds, without it never.
func TestRejoin(t *testing.T) {
	for _, rejoin := range []bool{true, false} {
		w := testMesh(t, 1, 5)
		w.noRejoin = !rejoin
		h := w.nodes()[2]
		for _, o := range w.others(h) {
			w.cut(h, o)
			w.cut(o, h)
		}
		w.runFor(60 * second)
		if len(h.gossip.told) != 1 {
			t.Fatalf("who is alone takes %d for alive", len(h.gossip.told))
		}
		for _, o := range w.others(h) {
			if len(o.gossip.told) != 4 {
				t.Fatalf("%s takes %d for alive", o.name, len(o.gossip.told))
			}
			w.heal(h, o)
			w.heal(o, h)
		}
		w.runFor(rejoinEvery + second)
		if !rejoin {
			w.runFor(600 * second)
		}
		for _, o := range w.nodes() {
			if whole := len(o.gossip.told) == 5; whole != rejoin {
				t.Errorf("rejoin %t: %s takes %d for alive", rejoin, o.name, len(o.gossip.told))
			}
		}
	}
}

// TestViews: faults of gossip change the view of one node, and nothing else; when they
// end it is right again.
func TestViews(t *testing.T) {
	w := testMesh(t, 1, 3)
	a, b, c := w.nodes()[0], w.nodes()[1], w.nodes()[2]
	alive := func(h, of *host) bool { return slices.Contains(h.gossip.told, of.id) }

	w.falseDeath(a, b, true)
	if alive(a, b) || !alive(c, b) || !alive(b, a) {
		t.Error("a alone takes b for dead")
	}
	w.falseDeath(a, b, false)
	if !alive(a, b) {
		t.Error("b is alive again")
	}

	a.gossipSilent(true)
	c.crash()
	w.staleRevive(b, c, true)
	w.runFor(5 * second)
	if !alive(a, c) || !alive(b, c) {
		t.Error("a hears nothing, and b is told that c lives")
	}
	a.gossipSilent(false)
	w.staleRevive(b, c, false)
	if alive(a, c) || alive(b, c) {
		t.Error("c is dead")
	}
	c.start()
	w.runFor(2 * second)

	w.gossipCut(a, b, true)
	w.runFor(20 * second)
	if !alive(a, b) {
		t.Error("a hears of b by way of c")
	}
	w.gossipCut(a, c, true)
	w.runFor(20 * second)
	if alive(a, b) || alive(a, c) || alive(b, a) || alive(c, a) || !alive(b, c) {
		t.Error("no gossip reaches a")
	}
	if a.outTo(b.id) == nil || b.outTo(a.id) == nil {
		t.Error("connections hold")
	}
	w.gossipCut(a, b, false)
	w.runFor(rejoinEvery + second)
	if !alive(a, b) || !alive(a, c) || !alive(c, a) {
		t.Error("b brings a back")
	}
	if w.failure != nil {
		t.Error(w.failure)
	}
}
