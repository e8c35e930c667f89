package sim

import (
	"math"

	"github.com/meshq/meshq/node/core"
)

func (h *host) monoAt(t int64) core.Instant {
	d := t - h.boots
	return core.Instant(h.mono + d + d*h.ppm/1_000_000)
}

func (h *host) time() core.Time {
	return core.Time{Mono: h.monoAt(h.w.now), Wall: uint64(1_700_000_000_000 + h.wall + h.w.now/millisecond)}
}

// worldTime is the first moment at which the monotonic clock of h is at least i.
func (h *host) worldTime(i core.Instant) int64 {
	d := int64(i) - h.mono
	if d > 1_000_000*second {
		return math.MaxInt64
	}
	if d <= 0 {
		return h.boots
	}
	t := h.boots + int64(float64(d)/(1+float64(h.ppm)/1e6))
	for h.monoAt(t) < i {
		t++
	}
	return t
}
