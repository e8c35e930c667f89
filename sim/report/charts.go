package report

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/meshq/meshq/sim/history"
)

// charts are what happened over the whole run, by the clock: who was up, what was
// confirmed and delivered, what came again, what waits. One axis for all of them.
type charts struct {
	Width, Height, Left, Right int
	Bottom                     int // of the last one
	Faults                     []faultBar
	Lanes                      []lane // small ones, where there is no picture of a story
	Charts                     []chart
	Ticks                      []tick
	Broken                     string // where the promise broke, if it did
	BrokenA                    string
}

// chart is one of them. Its paths are drawn in units of a thousandth of the run.
type chart struct {
	Title string
	Y, H  int // of what is drawn; the title is above
	Lines []line
	Top   string // what the top means
	TopY  int
}

type line struct {
	Class, Name, Path string
	Dots              bool
}

const (
	chartHeight  = 56
	chartTitle   = 22
	smallLane    = 16
	smallRail    = 8
	chartUnits   = 1000
	mostDotTypes = 5
)

// drawCharts makes the charts of a run; nil when there is no history.
func drawCharts(r *Run, withLanes bool) *charts {
	if r.History == nil || len(r.History.Events) == 0 {
		return nil
	}
	end := r.length()
	s := countSeries(r.History, r.Plan, end)
	c := &charts{Width: pictureWidth, Left: gutter, Right: margin}
	clock := byClock(0, end)
	x := func(t time.Duration) float64 { return gutter + clock.place(t)*(pictureWidth-gutter-margin) }
	reach := func(from, to time.Duration) extent {
		return extent{msText(from), msText(to), px(x(from)), px(min(max(1.5, x(to)-x(from)), pictureWidth-x(from)))}
	}
	y := 4
	if withLanes {
		for _, l := range lanesOf(r) {
			if l.Client && len(l.Spans) == 0 {
				continue
			}
			out := lane{Name: l.Name, Client: l.Client, Y: y + smallLane/2}
			spans, _ := ends(l.Spans, mostSpans)
			for _, sp := range spans {
				out.Spans = append(out.Spans, span{reach(max(0, sp.From), min(sp.To, end)), sp.State, out.Y - smallRail/2, smallRail,
					l.Name + " " + sp.State + " from " + at(sp.From) + " to " + at(sp.To)})
			}
			c.Lanes = append(c.Lanes, out)
			y += smallLane
		}
	}
	for i, f := range faultTimes(r, end) {
		if i == mostFaults {
			break
		}
		c.Faults = append(c.Faults, faultBar{extent: reach(f[0], f[1]), Number: i + 1, Label: r.Plan.Faults[i].String()})
	}

	place := func(ch chart) {
		y += chartTitle
		ch.Y, ch.H, ch.TopY = y, chartHeight, y+9
		y += chartHeight
		c.Charts = append(c.Charts, ch)
	}
	rate := float64(time.Second) / float64(s.width)
	most := max(highest(s.confirms), highest(s.firsts), 1)
	place(chart{Title: "confirms and first deliveries a second", Top: thousands(int(float64(most) * rate)), Lines: []line{
		{Class: "confirms", Name: "confirmed", Path: steps(s.confirms, most, s.width, end, true)},
		{Class: "firsts", Name: "first delivered", Path: steps(s.firsts, most, s.width, end, false)},
	}})
	if len(s.again) > 0 {
		place(again(s, end))
	}
	waiting := max(highest(s.backlog), 1)
	place(chart{Title: "confirmed and not yet delivered", Top: thousands(waiting), Lines: []line{
		{Class: "backlog", Name: "messages", Path: steps(s.backlog, waiting, s.width, end, true)},
	}})
	c.Bottom = y
	c.Height = y + axisHeight
	for _, t := range ticks(0, end, 10) {
		if x(t) < pictureWidth-margin-10 {
			c.Ticks = append(c.Ticks, tick{px(x(t)), history.Short(t)})
		}
	}
	if v := r.Violation; v != nil {
		c.Broken, c.BrokenA = px(x(min(v.At, end))), msText(min(v.At, end))
	}
	return c
}

// again is the chart of redeliveries: a dot for each, on a scale of logarithms.
func again(s *series, end time.Duration) chart {
	const shortest = time.Millisecond
	longest := 10 * time.Millisecond
	for _, r := range s.again {
		for r.after > longest {
			longest *= 10
		}
	}
	decades := math.Log10(float64(longest) / float64(shortest))
	out := chart{Title: "delivered again: the time since the delivery before", Top: history.Short(longest)}
	causes := s.causes()
	for i, cause := range causes {
		if i >= mostDotTypes {
			break
		}
		var b strings.Builder
		n := 0
		for _, r := range s.again {
			if r.cause != cause && !(i == mostDotTypes-1 && !slices.Contains(causes[:i], r.cause)) {
				continue
			}
			n++
			up := math.Log10(max(1, float64(r.after)/float64(shortest))) / decades
			fmt.Fprintf(&b, "M%.1f %.1fh0", unit(r.at, end), chartHeight*(1-up))
		}
		name := cause
		switch {
		case i == mostDotTypes-1 && len(causes) > mostDotTypes:
			name = "other causes"
		case name == "":
			name = "no cause"
		}
		out.Lines = append(out.Lines, line{Class: fmt.Sprintf("dots dots%d", i+1), Name: fmt.Sprintf("%s %s", thousands(n), name), Path: b.String(), Dots: true})
	}
	return out
}

func unit(t, end time.Duration) float64 {
	return min(chartUnits, max(0, float64(t)/float64(end)*chartUnits))
}

// steps is a path of bins; closed, it is an area.
func steps(bins []int, most int, width, end time.Duration, closed bool) string {
	var b strings.Builder
	h := func(n int) float64 { return chartHeight * (1 - float64(n)/float64(most)) }
	if closed {
		fmt.Fprintf(&b, "M0 %dV%.1f", chartHeight, h(bins[0]))
	} else {
		fmt.Fprintf(&b, "M0 %.1f", h(bins[0]))
	}
	for i, n := range bins {
		if i > 0 && n != bins[i-1] {
			fmt.Fprintf(&b, "V%.1f", h(n))
		}
		if i+1 == len(bins) || bins[i+1] != n {
			fmt.Fprintf(&b, "H%.1f", unit(time.Duration(i+1)*width, end))
		}
	}
	if closed {
		fmt.Fprintf(&b, "V%dZ", chartHeight)
	}
	return b.String()
}

func highest(bins []int) int {
	most := 0
	for _, n := range bins {
		most = max(most, n)
	}
	return most
}
