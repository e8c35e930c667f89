package report

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/meshq/meshq/sim/history"
)

// The picture of a story: the faults above, then a lane for each node and client, time
// from left to right. Sizes are in pixels. The script of the page lays it out again for
// the width of the window and for what is zoomed to; it finds the times of each element,
// in milliseconds, in its data-a and data-b.
const (
	pictureWidth = 1000
	gutter       = 96 // names of lanes, on the left
	margin       = 24 // on the right
	laneHeight   = 42
	railHeight   = 12
	faultHeight  = 20
	thinFault    = 6 // of a fault where there are many
	axisHeight   = 24
	scrubHeight  = 24

	mostNamed   = 12 // faults with a row and words of their own
	mostFaults  = 60 // faults that are drawn at all
	mostSpans   = 300
	mostArrows  = 1500
	mostLines   = 500
	mostMoments = 90 // that are shown at once to begin with
)

// picture is a story with a place for each thing.
type picture struct {
	Width, Height, Left, Right int
	Top, Bottom                int // of the lanes
	Axis, Scrub                int // where they are
	Thin                       bool
	Faults                     []faultBar
	Lanes                      []lane
	Arrows                     []arrow
	Marks                      []mark
	Broken                     *mark // where the promise broke
	Ticks                      []tick
	States, Sorts              []legend // what is to be seen
	Script                     script

	axis axis
	lane map[string]int // its middle
}

// script is what the page's script has to know.
type script struct {
	Knots [][2]float64 `json:"knots"` // milliseconds, and where that is, from 0 to 1
	From  float64      `json:"from"`  // what is shown first, from 0 to 1
	To    float64      `json:"to"`
	End   float64      `json:"end"` // of the run, in milliseconds
}

// extent is what is between two moments.
type extent struct {
	A, B string // milliseconds
	X, W string // pixels
}

type faultBar struct {
	extent
	Number   int // its place in the plan, from 1
	Y        int
	FromLeft bool // its words begin where it begins; otherwise they end where it ends
	LabelX   string
	Label    string
}

type lane struct {
	Name   string
	Client bool
	Y      int // its middle
	Spans  []span
}

type span struct {
	extent
	State string
	Y, H  int
	Title string
}

type arrow struct {
	Number int // from 1
	A, B   string
	X1, X2 string
	Y1, Y2 int
	Sort   string
	Lost   bool
	Told   bool // the biography has a line for it
	Title  string
}

type mark struct {
	Label string
	Lines string // their numbers
	A, X  string
	Y     int
	Half  int // of its width
	Bad   bool
	Title string
}

type tick struct{ X, Label string }

type legend struct{ Class, Text string }

// draw makes the picture of a run; nil when there is no message to tell of.
func draw(r *Run) *picture {
	lines, arrows := r.told()
	if len(lines) == 0 {
		return nil
	}
	p := &picture{Width: pictureWidth, Left: gutter, Right: margin, lane: map[string]int{}}
	end := r.length()
	for _, a := range arrows { // those that were on their way when it stopped
		end = max(end, min(a.Got, r.length()+50*time.Millisecond))
	}
	lanes := takingPart(r, lanesOf(r), lines, arrows)
	p.placeFaults(r)
	p.Top = p.Bottom + 14
	for i, l := range lanes {
		p.lane[l.Name] = p.Top + i*laneHeight + laneHeight/2
	}
	p.Bottom = p.Top + len(lanes)*laneHeight
	p.Axis = p.Bottom + 4
	p.Scrub = p.Axis + axisHeight
	p.Height = p.Scrub + scrubHeight + 4

	faults := faultTimes(r, end)
	moments := momentsOf(lines, arrows, faults, end)
	p.axis = byEvent(0, end, moments)
	p.begin(lines, moments, end)
	for i := range p.Faults {
		p.extendFault(i, faults[i], r.Plan.Faults[i].String())
	}
	for _, l := range lanes {
		p.Lanes = append(p.Lanes, p.placeLane(l, end))
	}
	p.placeArrows(lines, arrows)
	p.placeMarks(lines)
	p.legend()
	last := -100.0
	for _, k := range p.axis.knots {
		if x := p.x(k.at); x-last >= 70 && x <= pictureWidth-margin-20 {
			p.Ticks = append(p.Ticks, tick{px(x), at(k.at)})
			last = x
		}
	}
	return p
}

// told is the biography and the arrows, without those that are too many: what is near to
// the end says most.
func (r *Run) told() ([]history.Line, []history.Arrow) {
	lines := r.biography()
	var arrows []history.Arrow
	if r.Story != nil {
		arrows = r.Story.Arrows
	}
	lines, _ = ends(lines, mostLines)
	if len(arrows) <= mostArrows {
		return lines, arrows
	}
	kept, cut := ends(arrows, mostArrows)
	lines = slices.Clone(lines)
	for i := range lines {
		switch n := lines[i].Arrow; {
		case n > mostArrows/4+cut:
			lines[i].Arrow -= cut
		case n > mostArrows/4:
			lines[i].Arrow = 0
		}
	}
	return lines, kept
}

// ends keeps most things: a quarter of the first and three quarters of the last; and tells how many it left out.
func ends[T any](all []T, most int) (kept []T, cut int) {
	cut = len(all) - most
	if cut <= 0 {
		return all, 0
	}
	return append(slices.Clone(all[:most/4]), all[most/4+cut:]...), cut
}

// lanesOf are the lanes of the story, or what the history tells of nodes and clients.
func lanesOf(r *Run) []history.Lane {
	if r.Story != nil && len(r.Story.Lanes) > 0 {
		return r.Story.Lanes
	}
	var lanes []history.Lane
	place := map[string]int{}
	add := func(name string, client bool) int {
		i, ok := place[name]
		if !ok {
			i = len(lanes)
			place[name] = i
			lanes = append(lanes, history.Lane{Name: name, Client: client})
		}
		return i
	}
	for _, n := range r.Plan.Mesh.Nodes {
		add(n.Name, false)
	}
	for _, c := range r.Plan.Producers {
		add(c.Name, true)
	}
	for _, c := range r.Plan.Consumers {
		add(c.Name, true)
	}
	if r.History == nil {
		return lanes
	}
	open := map[int]time.Duration{}
	for i := range r.History.Events {
		e := &r.History.Events[i]
		switch e.Kind {
		case history.NodeDown, history.ClientDown:
			l := add(e.Who, e.Kind == history.ClientDown)
			if _, down := open[l]; !down {
				open[l] = e.At
			}
		case history.NodeUp, history.ClientUp:
			l := add(e.Who, e.Kind == history.ClientUp)
			if from, down := open[l]; down {
				lanes[l].Spans = append(lanes[l].Spans, history.Span{From: from, To: e.At, State: "down"})
				delete(open, l)
			}
		}
	}
	end := r.length()
	for i := range lanes {
		if from, down := open[i]; down {
			lanes[i].Spans = append(lanes[i].Spans, history.Span{From: from, To: end, State: "down"})
		}
	}
	return lanes
}

// takingPart are all nodes, and the clients that have to do with the message: producers
// above the nodes, consumers below, so that a life goes down the page.
func takingPart(r *Run, lanes []history.Lane, lines []history.Line, arrows []history.Arrow) []history.Lane {
	part := map[string]bool{}
	for _, l := range lines {
		part[l.Where] = true
	}
	for _, a := range arrows {
		part[a.From], part[a.To] = true, true
	}
	rank := func(l history.Lane) int {
		for _, p := range r.Plan.Producers {
			if l.Name == p.Name || strings.HasPrefix(l.Name, p.Name+".") {
				return 0
			}
		}
		if !l.Client {
			return 1
		}
		return 2
	}
	var out []history.Lane
	for _, l := range lanes {
		if !l.Client || part[l.Name] {
			out = append(out, l)
		}
		delete(part, l.Name)
	}
	var others []string // that the lanes do not name
	for name := range part {
		if name != "" {
			others = append(others, name)
		}
	}
	slices.Sort(others)
	for _, name := range others {
		out = append(out, history.Lane{Name: name, Client: true})
	}
	slices.SortStableFunc(out, func(a, b history.Lane) int { return cmp.Compare(rank(a), rank(b)) })
	return out
}

// momentsOf are all moments that the picture has to tell apart.
func momentsOf(lines []history.Line, arrows []history.Arrow, faults [][2]time.Duration, end time.Duration) []time.Duration {
	var out []time.Duration
	for _, l := range lines {
		out = append(out, l.At)
	}
	for _, a := range arrows {
		out = append(out, a.Sent, a.Got)
	}
	for _, f := range faults[:min(len(faults), mostFaults)] {
		out = append(out, f[0], f[1])
	}
	out = slices.DeleteFunc(out, func(t time.Duration) bool { return t < 0 || t > end })
	slices.Sort(out)
	return slices.Compact(out)
}

// faultTimes are when each fault of the plan was there, as the history tells or the plan.
func faultTimes(r *Run, end time.Duration) [][2]time.Duration {
	out := make([][2]time.Duration, len(r.Plan.Faults))
	for i, f := range r.Plan.Faults {
		out[i] = [2]time.Duration{time.Duration(f.At), time.Duration(f.At + f.For)}
	}
	if r.History != nil {
		for i := range r.History.Events {
			e := &r.History.Events[i]
			switch {
			case e.Number < 0 || e.Number >= len(out):
			case e.Kind == history.FaultBegin:
				out[e.Number] = [2]time.Duration{e.At, max(e.At, out[e.Number][1])}
			case e.Kind == history.FaultEnd:
				out[e.Number][1] = e.At
			}
		}
	}
	for i := range out {
		out[i] = [2]time.Duration{min(out[i][0], end), min(max(out[i][0], out[i][1]), end)}
	}
	return out
}

// begin chooses what is shown first: the life of the message, or the end of a long one.
func (p *picture) begin(lines []history.Line, moments []time.Duration, end time.Duration) {
	p.Script.End = ms(end)
	for _, k := range p.axis.knots {
		p.Script.Knots = append(p.Script.Knots, [2]float64{ms(k.at), k.x})
	}
	p.Script.To = 1
	from, last := max(lines[0].At, 0), min(lines[len(lines)-1].At, end)
	inside := slices.DeleteFunc(slices.Clone(moments), func(t time.Duration) bool { return t < from || t > last })
	if len(inside) < 5 {
		return
	}
	if over := len(inside) - mostMoments; over > 0 {
		from = inside[over]
	}
	a, b := p.axis.place(from), p.axis.place(last)
	p.Script.From, p.Script.To = max(0, a-(b-a)/20), min(1, b+(b-a)/20)
}

func (p *picture) x(t time.Duration) float64 {
	return gutter + p.axis.place(t)*(pictureWidth-gutter-margin)
}

func (p *picture) extent(from, to time.Duration) extent {
	x := p.x(from)
	return extent{msText(from), msText(to), px(x), px(min(max(2, p.x(to)-x), pictureWidth-margin-x+2))}
}

func (p *picture) placeFaults(r *Run) {
	shown := min(len(r.Plan.Faults), mostFaults)
	p.Thin = shown > mostNamed
	height := faultHeight
	if p.Thin {
		height = thinFault
	}
	for i := range shown {
		p.Faults = append(p.Faults, faultBar{Number: i + 1, Y: 4 + i*height})
	}
	p.Bottom = 4 + shown*height
}

func (p *picture) extendFault(i int, times [2]time.Duration, label string) {
	f := &p.Faults[i]
	from, to := times[0], times[1]
	f.extent = p.extent(from, to)
	f.Label = label
	f.FromLeft = p.x(from) < gutter+0.55*(pictureWidth-gutter-margin)
	f.LabelX = px(p.x(from))
	if !f.FromLeft {
		f.LabelX = px(max(p.x(to), p.x(from)+2))
	}
}

// states are those of a lane, in words, the most serious first, and where on the rail
// they are drawn.
var states = []struct {
	name, text string
	y, h       int // from the middle of the rail
}{
	{"down", "down", -railHeight / 2, railHeight},
	{"paused", "paused", -railHeight / 2, railHeight},
	{"cut", "cut off", -railHeight/2 - 3, 3},
	{"hurt", "its disk lost something", railHeight / 2, 3},
	{"slow", "slow", -railHeight / 2, railHeight},
}

func (p *picture) placeLane(l history.Lane, end time.Duration) lane {
	y := p.lane[l.Name]
	out := lane{Name: l.Name, Client: l.Client, Y: y}
	spans, _ := ends(l.Spans, mostSpans)
	for _, s := range spans {
		for _, st := range states {
			if st.name != s.State || s.From > end {
				continue
			}
			title := l.Name + " " + st.text + " from " + at(s.From) + " to " + at(s.To)
			if s.Text != "" {
				title += ": " + s.Text
			}
			out.Spans = append(out.Spans, span{p.extent(max(0, s.From), min(s.To, end)), s.State, y + st.y, st.h, title})
		}
	}
	return out
}

// sorts of arrows, by the first word of their label.
var sorts = []struct {
	name, text string
	words      []string
}{
	{"store", "store and confirm", []string{"enqueue", "batch", "hint", "synced", "confirm", "batches", "get", "not"}},
	{"deliver", "deliver", []string{"deliver", "resume"}},
	{"settle", "ack or give back", []string{"ack", "acks", "nack", "release", "extend", "settled", "retries"}},
	{"other", "other", nil},
}

func sortOf(label string) string {
	word, _, _ := strings.Cut(label, " ")
	word = strings.TrimRight(word, ",:;")
	for _, s := range sorts {
		if slices.Contains(s.words, word) {
			return s.name
		}
	}
	return "other"
}

func (p *picture) placeArrows(lines []history.Line, arrows []history.Arrow) {
	told := map[int]bool{}
	for _, l := range lines {
		told[l.Arrow] = true
	}
	for i, a := range arrows {
		title := fmt.Sprintf("%s to %s at %s: %s", a.From, a.To, at(a.Sent), a.Label)
		if a.Lost {
			title += " (lost)"
		} else {
			title += fmt.Sprintf(" (arrives after %s)", history.Short(a.Got-a.Sent))
		}
		p.Arrows = append(p.Arrows, arrow{
			Number: i + 1, A: msText(a.Sent), B: msText(a.Got), X1: px(p.x(a.Sent)), X2: px(p.x(a.Got)),
			Y1: p.lane[a.From], Y2: p.lane[a.To], Sort: sortOf(a.Label), Lost: a.Lost, Told: told[i+1], Title: title,
		})
	}
}

// placeMarks gives each line of the biography its number on its lane. Lines of one lane
// and moment share a mark.
func (p *picture) placeMarks(lines []history.Line) {
	for i, l := range lines {
		n := fmt.Sprint(i + 1)
		if l.Bad {
			p.Broken = &mark{Label: n, Lines: n, A: msText(l.At), X: px(p.x(l.At)), Title: l.Text, Bad: true}
		}
		y, ok := p.lane[l.Where]
		if !ok {
			continue
		}
		title := n + "  " + at(l.At) + " " + l.Where + " " + l.Text
		if k := len(p.Marks) - 1; k >= 0 && p.Marks[k].A == msText(l.At) && p.Marks[k].Y == y {
			m := &p.Marks[k]
			first, _, _ := strings.Cut(m.Lines, " ")
			m.Lines += " " + n
			m.Label = first + "-" + n
			m.Title += "\n" + title
			m.Bad = m.Bad || l.Bad
			m.Half = 4 + 3*len(m.Label)
			continue
		}
		p.Marks = append(p.Marks, mark{n, n, msText(l.At), px(p.x(l.At)), y, max(8, 4+3*len(n)), l.Bad, title})
	}
}

func (p *picture) legend() {
	seen := map[string]bool{}
	for _, l := range p.Lanes {
		for _, s := range l.Spans {
			seen[s.State] = true
		}
	}
	for _, s := range states {
		if seen[s.name] {
			p.States = append(p.States, legend{s.name, s.text})
		}
	}
	lost := false
	for _, a := range p.Arrows {
		seen["arrow "+a.Sort] = true
		lost = lost || a.Lost
	}
	for _, s := range sorts {
		if seen["arrow "+s.name] {
			p.Sorts = append(p.Sorts, legend{s.name, s.text})
		}
	}
	if lost {
		p.Sorts = append(p.Sorts, legend{"lost", "lost on the way"})
	}
}

// row is a line of the biography as the page has it.
type row struct {
	Number      int
	At, Since   string
	Where, Text string
	Bad         bool
	Arrow       int
	A           string
	LeftOut     int // lines before it
}

func rows(r *Run) []row {
	lines, _ := r.told()
	_, cut := ends(r.biography(), mostLines)
	out := make([]row, 0, len(lines))
	for i, l := range lines {
		x := row{Number: i + 1, At: at(l.At), Where: l.Where, Text: l.Text, Bad: l.Bad, Arrow: l.Arrow, A: msText(l.At)}
		if i > 0 {
			x.Since = "+" + history.Short(l.At-lines[i-1].At)
		}
		if cut > 0 && i == mostLines/4 {
			x.LeftOut = cut
		}
		out = append(out, x)
	}
	return out
}

func ms(t time.Duration) float64 { return float64(t) / float64(time.Millisecond) }

func msText(t time.Duration) string { return fmt.Sprintf("%.3f", ms(t)) }

func px(x float64) string { return fmt.Sprintf("%.1f", x) }
