package sim

import (
	"math"
	"testing"

	"github.com/meshq/meshq/node/core"
)

// TestClock: the monotonic clock never goes back, whatever happens to it, and worldTime
// is the first moment of an instant.
func TestClock(t *testing.T) {
	c := clock{}
	c.reset(5*second, 100*second)
	c.ppm = -20_000
	now, last := 5*second, core.Instant(0)
	steps := []struct {
		do  func()
		ppm int64 // in force afterwards; at a standstill -1,000,000
	}{
		{func() {}, -20_000},
		{func() { c.setRate(now, 24_000) }, 24_000},
		{func() { c.halt(now) }, -1_000_000},
		{func() { c.goOn(now) }, 24_000},
		{func() { c.setRate(now, 0) }, 0},
	}
	for i, s := range steps {
		before := c.monoAt(now)
		if before < last {
			t.Fatalf("step %d: %d after %d", i, before, last)
		}
		s.do()
		if got := c.monoAt(now); got != before {
			t.Fatalf("step %d: a jump from %d to %d", i, before, got)
		}
		if got, want := int64(c.monoAt(now+10*second)-before), 10*second+10*second*s.ppm/1_000_000; got != want {
			t.Fatalf("step %d: 10 s take %d, want %d", i, got, want)
		}
		if at := c.worldTime(before + 1); c.frozen && at != math.MaxInt64 || !c.frozen && (c.monoAt(at) < before+1 || c.monoAt(at-1) >= before+1) {
			t.Fatalf("step %d: the next instant is at %d, it is %d", i, at, now)
		}
		now, last = now+10*second, before
	}
}

// TestFreeze: a node that was suspended has not seen the time pass, others have.
func TestFreeze(t *testing.T) {
	w := testMesh(t, 1, 3)
	a, b := w.nodes()[0], w.nodes()[1]
	from := [2]core.Time{a.time(), b.time()}
	a.freeze(5 * second)
	b.pause(5 * second)
	w.runFor(6 * second)
	for i, h := range []*host{a, b} {
		mono := int64(h.time().Mono - from[i].Mono)
		if want := []int64{second, 6 * second}[i]; mono < want*97/100 || mono > want*103/100 {
			t.Errorf("%s has seen %d ns of 6 s", h.name, mono)
		}
		if wall := h.time().Wall - from[i].Wall; wall != 6000 {
			t.Errorf("the wall clock of %s went on by %d ms", h.name, wall)
		}
	}
	if w.failure != nil {
		t.Error(w.failure)
	}
}

// TestClockRate: what the promises cover is the limit, unless the plan goes beyond.
func TestClockRate(t *testing.T) {
	w := testMesh(t, 1, 3)
	h := w.nodes()[0]
	h.clockRate(400_000)
	if h.ppm != maxDrift {
		t.Errorf("%d ppm", h.ppm)
	}
	w.beyond = true
	h.clockRate(400_000)
	if h.ppm != 400_000 {
		t.Errorf("%d ppm", h.ppm)
	}
	from := h.time()
	w.runFor(10 * second)
	if d := int64(h.time().Mono - from.Mono); d != 14*second {
		t.Errorf("10 s took %d ns", d)
	}
	h.wallJump(-3600 * second)
	if d := int64(h.time().Wall) - int64(from.Wall); d != 10_000-3_600_000 {
		t.Errorf("the wall clock went on by %d ms", d)
	}
}
