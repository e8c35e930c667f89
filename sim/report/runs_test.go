package report

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/meshq/meshq/sim/history"
	"github.com/meshq/meshq/sim/plan"
)

// Runs to report on. None of them was run.

const (
	us = time.Microsecond
	mS = time.Millisecond
)

func fixedPlan() *plan.Plan {
	sec := plan.Duration(time.Second)
	return &plan.Plan{
		Version: 1, Name: "P3-1f3a", About: "An owner is killed after an ack is confirmed.", Seed: 4711,
		Mesh:      plan.Mesh{Nodes: []plan.Node{{Name: "a"}, {Name: "b"}, {Name: "c"}}},
		Queues:    []plan.Queue{{Name: "photos"}},
		Producers: []plan.Producer{{Name: "p", Queue: "photos"}},
		Consumers: []plan.Consumer{{Name: "c1", Queue: "photos"}, {Name: "c2", Queue: "photos"}},
		Faults: []plan.Fault{
			{Kind: plan.CutOneWay, At: sec, On: []string{"a"}, To: []string{"c"}, For: 2 * sec},
			{Kind: plan.Crash, At: 2 * sec, On: []string{"a"}, For: sec},
		},
		Length: 5 * sec,
	}
}

// failed is a small run in which an acked message comes again.
func failed() *Run {
	m := history.Message{Producer: "p", Number: 12}
	s := &history.Story{
		Lanes: []history.Lane{
			{Name: "a", Spans: []history.Span{{From: time.Second, To: 3 * time.Second, State: "cut", Text: "from c"}, {From: 2 * time.Second, To: 3 * time.Second, State: "down"}}},
			{Name: "b"}, {Name: "c", Spans: []history.Span{{From: time.Second, To: 2 * time.Second, State: "cut", Text: "from a"}}},
			{Name: "p", Client: true}, {Name: "c1", Client: true}, {Name: "c2", Client: true},
		},
	}
	t := 1200 * mS
	arrow := func(from, to, label string, sent, takes time.Duration) int {
		s.Arrows = append(s.Arrows, history.Arrow{From: from, To: to, Sent: sent, Got: sent + takes, Label: label})
		return len(s.Arrows)
	}
	line := func(at time.Duration, where, text string, arrow int) {
		s.Biography = append(s.Biography, history.Line{At: at, Where: where, Text: text, Arrow: arrow})
	}
	line(t, "p", "asks a to store it", arrow("p", "a", "enqueue photos/0 (p#12) 1", t, 400*us))
	line(t+500*us, "a", "sends it to b", arrow("a", "b", "batch photos/0 lane a.1 [12,13) (p#12)", t+500*us, 600*us))
	s.Arrows = append(s.Arrows, history.Arrow{From: "a", To: "c", Sent: t + 500*us, Got: t + 1500*us, Lost: true, Label: "batch photos/0 lane a.1 [12,13) (p#12)"})
	line(t+1900*us, "a", "has it on disk, synced", 0)
	line(t+3*mS, "b", "has it on disk, synced", arrow("b", "a", "synced", t+3*mS, 350*us))
	line(t+3400*us, "a", "confirms it: synced on a b, 2 of 2", arrow("a", "p", "confirm lane a.1 base 12  2 of 2: a b", t+3400*us, 500*us))
	line(t+3900*us, "p", "is told that it is stored: on 2 of 2", 0)
	line(t+4*mS, "a", "hands it to c1, term 4.a, attempt 1, lease 1.8s", arrow("a", "c1", "deliver photos/0 (p#12) to default, term 4.a attempt 1", t+4*mS, 600*us))
	line(t+54*mS, "c1", "acks it", arrow("c1", "a", "ack [12,13) of photos/0 (p#12)", t+54*mS, 300*us))
	line(t+54300*us, "a", "tells b that it is acked", arrow("a", "b", "acks photos/0 term 4.a: (p#12)", t+54300*us, 300*us))
	line(t+55*mS, "a", "confirms the ack to c1: a holds it", arrow("a", "c1", "settled ok", t+55*mS, 500*us))
	line(t+55500*us, "c1", "is told that the ack is final", 0)
	line(2*time.Second, "a", "crashes", 0)
	line(2900*mS, "b", "owns photos/0 now, term 5.b", 0)
	line(2901*mS, "b", "hands it to c2, term 5.b, attempt 1, again: takeover, lease 1.8s", arrow("b", "c2", "deliver photos/0 (p#12) to default, term 5.b attempt 1 again: takeover", 2901*mS, 600*us))
	v := &history.Violation{Promise: "P3", Text: "b hands p#12 to c2 after its ack was confirmed", At: 2901 * mS, Message: m, Group: "default"}
	s.Biography = append(s.Biography, history.Line{At: v.At, Where: "b", Text: "BROKEN P3: b hands it to c2 after its ack was confirmed", Bad: true})

	return &Run{
		Plan: fixedPlan(), Violation: v, Story: s, History: counted(2890*mS, 3), Verdict: fixedVerdict(),
		Command: "meshq sim --plan sim/testdata/P3-1f3a.json --report out.html", Commit: "0123abc", Hash: "9f3a11c07be2d455", Steps: 18234,
		Length: 2901 * mS, Took: 41 * mS, Reached: map[string]int{"takeover": 1, "ack confirmed while a replica is cut off": 3}, From: 31, To: 2,
	}
}

func fixedVerdict() *history.Verdict {
	v := &history.Verdict{Figures: history.Figures{
		Sent: 250, Confirmed: 248, Unknown: 2, Delivered: 251, Acked: 240, Duplicates: map[string]int{"takeover": 3, "nack": 1},
		Codes: map[string]int{"quorum": 2}, Confirm: history.Latency{Count: 248, P50: 4 * mS, P99: 31 * mS, Max: 280 * mS},
		Deliver: history.Latency{Count: 240, P50: 6 * mS, P99: 900 * mS, Max: 1200 * mS}, ConfirmGap: history.Gap{From: 2 * time.Second, To: 2400 * mS},
		Redeliver: map[string]history.Latency{"takeover": {Count: 3, P50: 900 * mS, P99: 950 * mS, Max: 950 * mS}}, MaxUnseen: 41, Drain: 300 * mS, Memory: 3 << 20,
	}}
	for i := 1; i <= 12; i++ {
		v.Promises = append(v.Promises, history.Promise{Name: fmt.Sprintf("P%d", i), Checked: 100 * (i % 5)})
	}
	return v
}

// counted is a history of sends, deliveries and redeliveries, without a guilty message.
func counted(length time.Duration, producers int) *history.History {
	h := &history.History{}
	down := func(t time.Duration) bool { return t%(5*time.Second) > 2*time.Second && t%(5*time.Second) < 2500*mS }
	n := uint64(0)
	for t := time.Duration(0); t < length; t += 20 * mS {
		n++
		for p := range producers {
			m := history.Message{Producer: fmt.Sprintf("q%d", p), Number: n}
			h.Events = append(h.Events, history.Event{At: t, Kind: history.Sent, Who: m.Producer, Queue: "photos", Message: m})
			if down(t) {
				continue
			}
			h.Events = append(h.Events, history.Event{At: t + 4*mS, Kind: history.Confirmed, Who: m.Producer, Queue: "photos", Message: m, Copies: 2, Want: 2})
			if (n/40)%3 == 1 {
				continue // never delivered
			}
			h.Events = append(h.Events, history.Event{At: t + 7*mS, Kind: history.Delivered, Who: "c1", Queue: "photos", Group: "default", Message: m})
			if n%37 == 0 {
				cause := []string{"nack", "lease ran out", "takeover"}[n/37%3]
				h.Events = append(h.Events, history.Event{At: t + 7*mS + time.Duration(n%50)*13*mS, Kind: history.Delivered, Who: "c1", Group: "default", Message: m, Cause: cause, Attempt: 2})
			}
		}
	}
	return h
}

// passed is a run of real processes that kept all promises.
func passed() *Run {
	p := fixedPlan()
	p.Name, p.Length = "S05", plan.Duration(30*time.Second)
	h := counted(30*time.Second, 2)
	down := []history.Event{
		{At: time.Second, Kind: history.FaultBegin, Number: 0}, {At: 2 * time.Second, Kind: history.FaultBegin, Number: 1}, {At: 2 * time.Second, Kind: history.NodeDown, Who: "a"},
		{At: 3 * time.Second, Kind: history.NodeUp, Who: "a"}, {At: 3 * time.Second, Kind: history.FaultEnd, Number: 1}, {At: 3 * time.Second, Kind: history.FaultEnd, Number: 0},
	}
	h.Events = append(down, h.Events...)
	v := fixedVerdict()
	for i := range v.Promises {
		v.Promises[i].Checked = 7 * (i + 1)
	}
	return &Run{Plan: p, History: h, Verdict: v, Real: true, Length: 30 * time.Second, Took: 30 * time.Second, Command: "meshq chaos --scenario S05"}
}

// real is a run of real processes that broke a promise: no frames are known of it.
func realProcesses() *Run {
	r := passed()
	m := history.Message{Producer: "p", Number: 7}
	r.Violation = &history.Violation{Promise: "P4", Text: "c1 and c2 had p#7 at the same time", At: 2950 * mS, Message: m, Group: "default"}
	r.History.Events = append(r.History.Events,
		history.Event{At: 900 * mS, Kind: history.Sent, Who: "p", Message: m},
		history.Event{At: 904 * mS, Kind: history.Confirmed, Who: "p", Message: m, Copies: 2, Want: 2},
		history.Event{At: 910 * mS, Kind: history.Delivered, Who: "c1", Node: "a", Group: "default", Message: m, Term: history.Term{Counter: 3, Node: "a"}, Attempt: 1, Lease: 30 * time.Second},
		history.Event{At: 2950 * mS, Kind: history.Delivered, Who: "c2", Node: "b", Group: "default", Message: m, Term: history.Term{Counter: 4, Node: "b"}, Attempt: 2, Cause: "takeover"},
	)
	slices.SortStableFunc(r.History.Events, func(a, b history.Event) int { return cmp.Compare(a.At, b.At) })
	return r
}

// big is a run with more of everything than a page can show.
func big() *Run {
	r := failed()
	r.Plan.Mesh.Nodes = nil
	r.Story.Lanes = r.Story.Lanes[3:]
	names := []string{"a", "b", "c", "d", "e", "f", "g", "h", "i"}
	states := []string{"down", "paused", "cut", "hurt", "slow"}
	for i, n := range names {
		r.Plan.Mesh.Nodes = append(r.Plan.Mesh.Nodes, plan.Node{Name: n})
		l := history.Lane{Name: n}
		for k := range 400 {
			from := time.Duration(i*37+k*120) * mS
			l.Spans = append(l.Spans, history.Span{From: from, To: from + 60*mS, State: states[(i+k)%5]})
		}
		r.Story.Lanes = append(r.Story.Lanes, l)
	}
	r.Plan.Faults = nil
	for i := range 200 {
		r.Plan.Faults = append(r.Plan.Faults, plan.Fault{Kind: plan.Kinds[i%len(plan.Kinds)].Kind, At: plan.Duration(time.Duration(i) * 300 * mS), For: plan.Duration(900 * mS), On: names[i%9 : i%9+1], To: names[(i+1)%9 : (i+1)%9+1]})
	}
	var arrows []history.Arrow
	var lines []history.Line
	for i := range 2000 {
		t := time.Duration(i)*30*mS + time.Duration(i*7%100)*us
		arrows = append(arrows, history.Arrow{From: names[i%9], To: names[(i*5+1)%9], Sent: t, Got: t + time.Duration(300+i%900)*us, Lost: i%13 == 0, Label: []string{"batch photos/0", "synced", "deliver photos/0", "acks photos/0"}[i%4]})
		lines = append(lines, history.Line{At: t, Where: names[i%9], Text: "does something with it that takes some words to say", Arrow: i + 1})
	}
	r.Violation.At = 60 * time.Second
	lines = append(lines, history.Line{At: 60 * time.Second, Where: "b", Text: "BROKEN P3: b hands it to c2 after its ack was confirmed", Bad: true})
	r.Story.Arrows, r.Story.Biography = arrows, lines
	r.Plan.Length = plan.Duration(60 * time.Second)
	r.History = counted(60*time.Second, 2)
	r.Length = 60 * time.Second
	return r
}
