package sim

import (
	"math"

	"github.com/meshq/meshq/node/core"
)

// clock is the two clocks of a machine. The monotonic one runs at its own rate, also
// while the process stands still; a suspended machine's stands still with it.
type clock struct {
	from   int64 // world time at which mono was what it says
	mono   int64 // ns
	ppm    int64 // how much faster than the world's, parts per million
	wall   int64 // offset of the wall clock, ms
	frozen bool
}

// epoch is the wall clock of a machine without offset when the world begins, ms since 1970.
const epoch = 1_700_000_000_000

// maxDrift bounds the drift of a clock, in parts per million: two nodes differ by less
// than 5 % (the promises rest on it).
const maxDrift = 24_999

// reset makes the monotonic clock begin at mono, as at a boot.
func (c *clock) reset(now, mono int64) { c.from, c.mono, c.frozen = now, mono, false }

func (c *clock) monoAt(t int64) core.Instant {
	if c.frozen {
		return core.Instant(c.mono)
	}
	d := t - c.from
	return core.Instant(c.mono + d + d*c.ppm/1_000_000)
}

// worldTime is the first moment at which the monotonic clock is at least i.
func (c *clock) worldTime(i core.Instant) int64 {
	d := int64(i) - c.mono
	if d > 1_000_000*second {
		return math.MaxInt64
	}
	if d <= 0 {
		return c.from
	}
	if c.frozen {
		return math.MaxInt64
	}
	t := c.from + int64(float64(d)/(1+float64(c.ppm)/1e6))
	for c.monoAt(t) < i {
		t++
	}
	return t
}

// setRate changes the rate without a jump.
func (c *clock) setRate(now, ppm int64) {
	c.mono, c.from = int64(c.monoAt(now)), now
	c.ppm = ppm
}

// halt and goOn make the monotonic clock stand still in between.
func (c *clock) halt(now int64) {
	c.mono, c.from = int64(c.monoAt(now)), now
	c.frozen = true
}

func (c *clock) goOn(now int64) {
	if c.frozen {
		c.from, c.frozen = now, false
	}
}

func (h *host) time() core.Time {
	return core.Time{Mono: h.monoAt(h.w.now), Wall: uint64(epoch + h.wall + h.w.now/millisecond)}
}

// The faults of clocks.

// clockRate makes the monotonic clock of h run ppm faster than the world's from now on.
// Beyond what the promises cover it goes only where the plan says so.
func (h *host) clockRate(ppm int64) {
	if !h.w.beyond {
		ppm = min(max(ppm, -maxDrift), maxDrift)
	}
	h.setRate(h.w.now, ppm)
	h.clockChanged()
}

// wallJump moves the wall clock of h by so many nanoseconds; what it was given stays whole milliseconds.
func (h *host) wallJump(by int64) { h.wall += by / millisecond }

// freeze suspends the machine of h for d: no step is taken, and its monotonic clock stands
// still, so that it takes leases for running that have ended (a named cause of P4).
func (h *host) freeze(d int64) {
	if !h.running || h.paused || d <= 0 {
		return
	}
	life := h.life
	h.halt(h.w.now)
	h.w.after(d, func() { // before the pause ends
		if h.life == life {
			h.goOn(h.w.now)
			h.clockChanged()
		}
	})
	h.pause(d)
}

// clockChanged makes all that was computed from the clock be computed again.
func (h *host) clockChanged() {
	if !h.running {
		return
	}
	k := h.w.check
	for _, o := range k.owned[h.index] {
		delete(k.owners[o.Partition], h.index)
	}
	delete(k.owned, h.index)
	h.tickAt = math.MaxInt64
	if !h.paused {
		k.stepped(h)
		h.scheduleTick()
	}
}
