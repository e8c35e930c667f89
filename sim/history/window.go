package history

import (
	"cmp"
	"math"
	"slices"
	"strings"
	"time"
)

// forever is the end of what has none.
const forever = time.Duration(math.MaxInt64)

// window is a time in which something is wrong with somebody.
type window struct {
	from, to time.Duration
	kind     string   // of a fault; "" is a process that is down
	on       []string // none: everybody
}

type span struct{ from, to time.Duration }

// windows are the times in which something was wrong: faults, and processes that were
// down. A fault counts for some time after it is over.
type windows struct {
	list   []window
	after  time.Duration
	merged map[string][]span // by whom they touch
}

// newWindows takes them from a history in order of time.
func newWindows(events []Event, after time.Duration) *windows {
	w := &windows{after: after, merged: map[string][]span{}}
	open := map[int]int{}    // faults
	down := map[string]int{} // processes
	for i := range events {
		e := &events[i]
		switch e.Kind {
		case FaultBegin:
			open[e.Number] = len(w.list)
			w.list = append(w.list, window{e.At, forever, cmp.Or(e.Code, "fault"), e.On})
		case FaultEnd:
			if n, ok := open[e.Number]; ok {
				w.list[n].to = e.At
				delete(open, e.Number)
			}
		case NodeDown, ClientDown:
			if _, ok := down[e.Who]; !ok {
				down[e.Who] = len(w.list)
				w.list = append(w.list, window{e.At, forever, "", []string{e.Who}})
			}
		case NodeUp, ClientUp:
			if n, ok := down[e.Who]; ok {
				w.list[n].to = e.At
				delete(down, e.Who)
			}
		case Healed:
			for _, n := range open {
				w.list[n].to = e.At
			}
			clear(open)
		}
	}
	return w
}

// on are the times in which something was wrong with any of these; without names:
// with anybody.
func (w *windows) on(who ...string) []span {
	slices.Sort(who)
	key := strings.Join(who, "\x00")
	if s, ok := w.merged[key]; ok {
		return s
	}
	var out []span
	for _, x := range w.list {
		if len(who) > 0 && len(x.on) > 0 && !slices.ContainsFunc(x.on, func(n string) bool { _, ok := slices.BinarySearch(who, n); return ok }) {
			continue
		}
		to := forever
		if x.to < forever-w.after {
			to = x.to + w.after
		}
		out = append(out, span{x.from, to})
	}
	out = union(out)
	w.merged[key] = out
	return out
}

// union sorts spans and joins those that overlap.
func union(list []span) []span {
	slices.SortFunc(list, func(a, b span) int { return cmp.Compare(a.from, b.from) })
	out := list[:0]
	for _, s := range list {
		if n := len(out); n > 0 && s.from <= out[n-1].to {
			out[n-1].to = max(out[n-1].to, s.to)
			continue
		}
		out = append(out, s)
	}
	return out
}

// touch tells whether something was wrong with any of these at some time of
// [from, to]; without names: with anybody.
func (w *windows) touch(from, to time.Duration, who ...string) bool {
	list := w.on(who...)
	i, _ := slices.BinarySearchFunc(list, from, func(s span, t time.Duration) int { return cmp.Compare(s.to, t) })
	return i < len(list) && list[i].from <= to
}

// quiet is how much of [from, to] nothing was wrong with any of these.
func (w *windows) quiet(from, to time.Duration, who ...string) time.Duration {
	list := w.on(who...)
	i, _ := slices.BinarySearchFunc(list, from, func(s span, t time.Duration) int { return cmp.Compare(s.to, t) })
	left := to - from
	for ; i < len(list) && list[i].from < to; i++ {
		left -= min(list[i].to, to) - max(list[i].from, from)
	}
	return left
}

// planned tells whether a fault, not only that its process is down, touches one at
// a time.
func (w *windows) planned(at time.Duration, who string) bool {
	return slices.ContainsFunc(w.list, func(x window) bool {
		return x.kind != "" && x.from <= at && (x.to == forever || at <= x.to+w.after) && (len(x.on) == 0 || slices.Contains(x.on, who))
	})
}

// last is when the latest fault of [from, to] that touches one of these began.
func (w *windows) last(from, to time.Duration, who ...string) (at time.Duration, ok bool) {
	for i := len(w.list) - 1; i >= 0; i-- {
		x := &w.list[i]
		if x.from > to || x.to < from {
			continue
		}
		if len(who) == 0 || len(x.on) == 0 || slices.ContainsFunc(x.on, func(n string) bool { return slices.Contains(who, n) }) {
			return x.from, true
		}
	}
	return 0, false
}
