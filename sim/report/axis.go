package report

import (
	"math"
	"slices"
	"sort"
	"time"
)

// axis maps moments to places from 0 to 1, in a straight line between knots.
type axis struct{ knots []knot }

type knot struct {
	at time.Duration
	x  float64
}

// byClock is an axis on which equal times are equally long.
func byClock(from, to time.Duration) axis {
	return axis{[]knot{{from, 0}, {max(to, from+1), 1}}}
}

// byEvent is an axis that gives room to moments rather than to time: frames take
// milliseconds and leases seconds, and by the clock either is not to be seen. A gap is as
// long as the logarithm of its time.
func byEvent(from, to time.Duration, moments []time.Duration) axis {
	all := append(slices.Clone(moments), from, max(to, from+1))
	slices.Sort(all)
	all = slices.Compact(all)
	var knots []knot
	x := 0.0
	for i, t := range all {
		if t < from || t > max(to, from+1) {
			continue
		}
		if len(knots) > 0 {
			gap := float64(t-all[i-1]) / float64(50*time.Microsecond)
			x += 0.6 + math.Log10(1+gap)
		}
		knots = append(knots, knot{t, x})
	}
	for i := range knots {
		knots[i].x /= x
	}
	return axis{knots}
}

// place is where t is, within 0 and 1.
func (a axis) place(t time.Duration) float64 {
	k := a.knots
	i := sort.Search(len(k), func(i int) bool { return k[i].at >= t })
	switch {
	case i == 0:
		return 0
	case i == len(k):
		return 1
	}
	part := float64(t-k[i-1].at) / float64(k[i].at-k[i-1].at)
	return k[i-1].x + part*(k[i].x-k[i-1].x)
}

// ticks are round moments, some n of them, that divide the time from from to to.
func ticks(from, to time.Duration, n int) []time.Duration {
	step := time.Duration(math.Pow(10, math.Floor(math.Log10(max(1, float64(to-from)/float64(n))))))
	for _, m := range []time.Duration{1, 2, 5, 10} {
		if (to-from)/(step*m) <= time.Duration(n) {
			step *= m
			break
		}
	}
	var out []time.Duration
	for t := (from + step - 1) / step * step; t <= to; t += step {
		out = append(out, t)
	}
	return out
}
