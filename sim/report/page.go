package report

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"strings"
	"time"

	"github.com/meshq/meshq/sim/history"
)

//go:embed page.html
var pageText string

//go:embed page.css
var pageStyle string

//go:embed page.js
var pageScript string

var pageTemplate = template.Must(template.New("page").Parse(pageText))

// page is what the template fills in.
type page struct {
	Title    string
	Passed   bool
	Mark     string // P3
	Headline string // an ack is final
	Sentence string
	Details  []string
	About    string
	Mesh     string

	Faults  []faultRow
	More    []faultRow // folded away
	Message string
	Story   *picture
	Rows    []row
	Charts  *charts
	Figures []figure
	// Promises are P1..P12, or those that the verdict has.
	Promises   []promiseRow
	Situations []figure
	Command    string

	Style  template.CSS
	Script template.JS
}

type faultRow struct {
	Number   int
	At, Text string
}

type promiseRow struct{ Number, Name, About, State, Checked string }

// HTML writes a run as one page that needs nothing else: no network, no other file.
func HTML(w io.Writer, r *Run) error {
	p := &page{
		Title: "meshq: " + cutTo(r.headline(), 80), Passed: r.Passed(), About: r.Plan.About, Mesh: mesh(r.Plan), Message: guilty(r.Violation),
		Story: draw(r), Rows: rows(r), Figures: r.figures(), Command: r.Command,
		Style: template.CSS(pageStyle), Script: template.JS(pageScript),
	}
	p.Charts = drawCharts(r, p.Story == nil)
	p.head(r)
	for i, f := range r.Plan.Faults {
		x := faultRow{i + 1, at(time.Duration(f.At)), f.String()}
		if i < mostNamed {
			p.Faults = append(p.Faults, x)
		} else {
			p.More = append(p.More, x)
		}
	}
	for _, x := range r.verdict() {
		row := promiseRow{Number: x.Name, State: state(x), Checked: thousands(x.Checked)}
		for _, known := range promises {
			if known.number == x.Name {
				row.Name, row.About = known.name, known.about
			}
		}
		p.Promises = append(p.Promises, row)
	}
	for _, name := range frequent(r.Reached) {
		p.Situations = append(p.Situations, figure{name, thousands(r.Reached[name])})
	}
	return pageTemplate.Execute(w, p)
}

// head says what the run was.
func (p *page) head(r *Run) {
	if v := r.Violation; v != nil {
		p.Mark, p.Headline, p.Sentence = v.Promise, promiseName(v.Promise), v.Text
		p.Details = append(p.Details, "broken at "+at(v.At))
	} else {
		word, rest, _ := strings.Cut(r.headline(), ":")
		p.Headline, p.Sentence = strings.TrimSpace(strings.TrimPrefix(word, "PASS")), strings.TrimSpace(rest)
	}
	kind := "simulated"
	if r.Real {
		kind = "of real processes"
	}
	p.Details = append(p.Details, history.Short(r.length())+" "+kind, fmt.Sprintf("seed %d", r.Plan.Seed))
	if r.Plan.Name != "" && r.Violation != nil {
		p.Details = append(p.Details, "plan "+r.Plan.Name)
	}
	if r.From > 0 {
		p.Details = append(p.Details, fmt.Sprintf("shrunk from %s to %s", count(r.From, "fault"), thousands(r.To)))
	}
	if r.Commit != "" {
		p.Details = append(p.Details, "commit "+r.Commit)
	}
}

func cutTo(s string, most int) string {
	if r := []rune(s); len(r) > most {
		return string(r[:most-1]) + "…"
	}
	return s
}
