package report

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/meshq/meshq/sim/history"
	"github.com/meshq/meshq/sim/plan"
)

var (
	update = flag.Bool("update", false, "write the golden files anew")
	keep   = flag.String("keep", "", "directory to keep the pages in, to look at them")
)

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs (-update writes it anew); got:\n%s", name, got)
	}
}

func TestText(t *testing.T) {
	for name, r := range map[string]*Run{"failed": failed(), "passed": passed(), "real": realProcesses()} {
		var b bytes.Buffer
		if err := Text(&b, r); err != nil {
			t.Fatal(err)
		}
		golden(t, name+".txt", b.Bytes())
	}
}

func TestTextOfManyFaults(t *testing.T) {
	var b bytes.Buffer
	if err := Text(&b, big()); err != nil {
		t.Fatal(err)
	}
	text := b.String()
	for _, want := range []string{"and 191 faults more", "lines left out"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in:\n%s", want, text)
		}
	}
	if n := strings.Count(text, "\n"); n > 100 {
		t.Errorf("%d lines", n)
	}
}

func TestJSON(t *testing.T) {
	var b bytes.Buffer
	if err := JSON(&b, failed()); err != nil {
		t.Fatal(err)
	}
	golden(t, "failed.json", b.Bytes())
	if n := bytes.Count(b.Bytes(), []byte("\n")); n != 1 {
		t.Errorf("%d lines, want one", n)
	}
	var o struct {
		Verdict string
		Plan    plan.Plan
	}
	if err := json.Unmarshal(b.Bytes(), &o); err != nil {
		t.Fatal(err)
	}
	if o.Verdict != "broken" || len(o.Plan.Faults) != 2 {
		t.Errorf("read back: %+v", o)
	}
}

func TestSummary(t *testing.T) {
	s := &Swarm{
		First: 1, Seeds: 6120, Steps: 81_000_000, Simulated: 412 * time.Hour, Took: 8 * time.Minute, Doubles: 306, Hash: "9f3a11c07be2d455",
		Faults:  map[plan.Kind]int{plan.Crash: 9120, plan.Cut: 8111, plan.Wipe: 17, plan.ClockRate: 400},
		Reached: map[string]int{"takeover": 5100, "hint": 412}, Promises: fixedVerdict().Promises,
	}
	var b bytes.Buffer
	if err := Summary(&b, s); err != nil {
		t.Fatal(err)
	}
	golden(t, "swarm.txt", b.Bytes())
	s.Missed = []string{"epoch reused"}
	s.Failures = []Failure{{Seed: 77, Violation: *failed().Violation, Command: "meshq sim --seed 77"}}
	b.Reset()
	if err := Summary(&b, s); err != nil {
		t.Fatal(err)
	}
	golden(t, "swarm_failed.txt", b.Bytes())
	b.Reset()
	if err := SummaryJSON(&b, s); err != nil {
		t.Fatal(err)
	}
	golden(t, "swarm_failed.json", b.Bytes())
}

func TestWriteErrors(t *testing.T) {
	for _, write := range []func(io.Writer, *Run) error{Text, JSON, HTML} {
		if err := write(full{}, failed()); !errors.Is(err, errFull) {
			t.Errorf("got %v", err)
		}
	}
}

var errFull = errors.New("full")

type full struct{}

func (full) Write([]byte) (int, error) { return 0, errFull }

func pageOf(t *testing.T, name string, r *Run) string {
	t.Helper()
	var b bytes.Buffer
	if err := HTML(&b, r); err != nil {
		t.Fatal(err)
	}
	if *keep != "" {
		if err := os.WriteFile(filepath.Join(*keep, name+".html"), b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return b.String()
}

// bare is a run of which nothing but its plan is known.
func bare() *Run { return &Run{Plan: &plan.Plan{}} }

func TestPage(t *testing.T) {
	for name, r := range map[string]*Run{"failed": failed(), "passed": passed(), "real": realProcesses(), "big": big(), "bare": bare(), "hostile": hostile()} {
		t.Run(name, func(t *testing.T) {
			text := pageOf(t, name, r)
			if len(text) > 2_000_000 {
				t.Errorf("%d bytes", len(text))
			}
			wellFormed(t, text)
			if m := regexp.MustCompile(`(?i)https?://|//[a-z]+\.|src=|@import|url\([^#]`).FindString(text); m != "" {
				t.Errorf("the page wants something from outside: %s", m)
			}
			if drawn := strings.Contains(text, `<svg id="story"`); drawn != (len(r.biography()) > 0) {
				t.Errorf("a story is drawn: %t", drawn)
			}
		})
	}
}

// hostile is a run whose names try to be markup.
func hostile() *Run {
	const evil = `"><script>alert('x')</script><svg onload=alert(1)>&lt;`
	r := failed()
	r.Plan.Name, r.Plan.About, r.Command, r.Commit, r.Hash = evil, evil, evil, evil, evil
	r.Plan.Faults[0].On = []string{evil}
	r.Plan.Queues[0].Name = evil
	r.Violation.Text, r.Violation.Promise, r.Violation.Message.Producer = evil, evil, evil
	r.Story.Lanes[0].Name, r.Story.Lanes[0].Spans[0].Text = evil, evil
	r.Story.Lanes[0].Spans[0].State = evil
	r.Story.Arrows[0].From, r.Story.Arrows[0].Label = evil, evil
	r.Story.Biography[0].Where, r.Story.Biography[0].Text = evil, evil
	r.Reached = map[string]int{evil: 1}
	r.History.Events[0].Who = evil
	r.Verdict.Figures.Duplicates = map[string]int{evil: 2}
	r.Verdict.Promises[0].Name = evil
	for i := range r.History.Events {
		r.History.Events[i].Cause = evil
	}
	return r
}

func TestPageEscapes(t *testing.T) {
	text := pageOf(t, "hostile", hostile())
	for _, bad := range []string{"<script>alert", "<svg onload"} {
		if strings.Contains(text, bad) {
			t.Errorf("%q is in the page", bad)
		}
	}
	if n := strings.Count(text, "<script>"); n != 2 {
		t.Errorf("%d scripts, want 2", n)
	}
}

// wellFormed reads a page as XML, but for its scripts and style, its entities and the
// tags that HTML does not close.
func wellFormed(t *testing.T, text string) {
	t.Helper()
	text = strings.TrimPrefix(text, "<!DOCTYPE html>")
	text = regexp.MustCompile(`(?s)<(script|style)>.*?</(script|style)>`).ReplaceAllString(text, "<$1></$1>")
	d := xml.NewDecoder(strings.NewReader(text))
	d.Strict = false
	d.AutoClose, d.Entity = xml.HTMLAutoClose, xml.HTMLEntity
	var open []string
	ids := map[string]bool{}
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("line %d: %v", lineOf(text, d.InputOffset()), err)
		}
		switch e := token.(type) {
		case xml.StartElement:
			open = append(open, e.Name.Local)
			for _, a := range e.Attr {
				if a.Name.Local == "id" {
					if ids[a.Value] {
						t.Errorf("two elements have the id %s", a.Value)
					}
					ids[a.Value] = true
				}
			}
		case xml.EndElement:
			if len(open) == 0 || open[len(open)-1] != e.Name.Local {
				t.Fatalf("line %d: </%s> in %v", lineOf(text, d.InputOffset()), e.Name.Local, open)
			}
			open = open[:len(open)-1]
		}
	}
	if len(open) > 0 {
		t.Errorf("not closed: %v", open)
	}
}

func lineOf(text string, offset int64) int { return 1 + strings.Count(text[:offset], "\n") }

// All that is drawn is inside of its picture.
func TestPlacesAreInside(t *testing.T) {
	number := regexp.MustCompile(` (x|x1|x2|y|y1|y2|transform)="(?:translate\()?(-?[0-9.]+)(?: (-?[0-9.]+))?`)
	for name, r := range map[string]*Run{"failed": failed(), "passed": passed(), "real": realProcesses(), "big": big()} {
		text := pageOf(t, name, r)
		for _, id := range []string{"story", "run"} {
			_, rest, found := strings.Cut(text, `<svg id="`+id+`"`)
			if !found {
				continue
			}
			rest, _, _ = strings.Cut(rest, "</svg>")
			size := regexp.MustCompile(`viewBox="0 0 ([0-9]+) ([0-9]+)"`).FindStringSubmatch(rest)
			if _, after, found := strings.Cut(rest, "</defs>"); found {
				rest = after
			}
			width, _ := strconv.ParseFloat(size[1], 64)
			height, _ := strconv.ParseFloat(size[2], 64)
			if !strings.Contains(rest, "<rect") {
				t.Fatalf("%s %s: nothing is drawn", name, id)
			}
			for _, m := range number.FindAllStringSubmatch(rest, -1) {
				v, _ := strconv.ParseFloat(m[2], 64)
				limit := width
				if m[1][0] == 'y' {
					limit = height
				}
				if v < -20 || v > limit {
					t.Errorf("%s %s: %s is outside of 0 to %g", name, id, m[0], limit)
				}
			}
		}
	}
}

func TestAxis(t *testing.T) {
	a := byEvent(0, 10*time.Second, []time.Duration{time.Second, time.Second + 400*us, time.Second + 900*us, 3 * time.Second})
	last := -1.0
	for d := time.Duration(0); d <= 10*time.Second; d += 100 * us {
		x := a.place(d)
		if x < last || x < 0 || x > 1 {
			t.Fatalf("%v is at %g, after %g", d, x, last)
		}
		last = x
	}
	if short, long := a.place(time.Second+400*us)-a.place(time.Second), a.place(10*time.Second)-a.place(3*time.Second); short < long/8 {
		t.Errorf("400us have %g, 7s have %g", short, long)
	}
	if a.place(-1) != 0 || a.place(time.Hour) != 1 {
		t.Error("what is outside is not at the ends")
	}
	if got := byClock(0, 4).place(1); got != 0.25 {
		t.Errorf("by the clock a quarter is at %g", got)
	}
}

func TestTicks(t *testing.T) {
	for _, c := range []struct {
		to   time.Duration
		want time.Duration
	}{{10 * time.Second, time.Second}, {7 * time.Second, time.Second}, {300 * mS, 50 * mS}, {time.Hour, 10 * time.Minute}} {
		got := ticks(0, c.to, 10)
		if len(got) < 4 || len(got) > 12 {
			t.Errorf("%v has %d ticks", c.to, len(got))
		}
		_ = c.want
	}
}

func TestSeries(t *testing.T) {
	m := func(n uint64) history.Message { return history.Message{Producer: "p", Number: n} }
	h := &history.History{Events: []history.Event{
		{At: 10 * mS, Kind: history.Confirmed, Queue: "photos", Message: m(0)},
		{At: 20 * mS, Kind: history.Delivered, Queue: "photos", Group: "x", Message: m(1)}, // before its confirm
		{At: 30 * mS, Kind: history.Confirmed, Queue: "photos", Message: m(1)},
		{At: 250 * mS, Kind: history.Delivered, Queue: "photos", Group: "x", Message: m(0)},
		{At: 350 * mS, Kind: history.Delivered, Queue: "photos", Group: "x", Message: m(0), Cause: "nack"},
	}}
	s := countSeries(h, &plan.Plan{Queues: []plan.Queue{{Name: "photos"}}}, 400*mS)
	check := func(name string, got []int, want ...int) {
		t.Helper()
		for i, n := range want {
			if got[i] != n {
				t.Errorf("%s: got %v, want %v", name, got, want)
				return
			}
		}
	}
	check("confirms", s.confirms, 2, 0, 0, 0)
	check("firsts", s.firsts, 1, 0, 1, 0)
	check("backlog", s.backlog, 1, 1, 0, 0)
	if len(s.again) != 1 || s.again[0] != (redelivery{350 * mS, 100 * mS, "nack"}) {
		t.Errorf("redeliveries: %v", s.again)
	}
	if long := countSeries(h, &plan.Plan{}, time.Hour); len(long.confirms) > mostBins {
		t.Errorf("%d bins", len(long.confirms))
	}
}
