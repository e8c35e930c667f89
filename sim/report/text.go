package report

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/meshq/meshq/sim/history"
	"github.com/meshq/meshq/sim/plan"
)

// Lines that a report for a terminal shows at most; the page and the JSON have all.
const (
	mostFaultLines     = 10
	mostBiographyLines = 60
)

// Text writes a report for a terminal, the verdict first.
func Text(w io.Writer, r *Run) error {
	p := &printer{w: w}
	p.verdict(r)
	p.plan(r)
	p.biography(r)
	p.figures(r)
	if r.Command != "" {
		p.printf("\nagain    %s\n", r.Command)
	}
	return p.err
}

// printer keeps the first error of its writer.
type printer struct {
	w   io.Writer
	err error
}

func (p *printer) printf(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format, args...)
	}
}

func (p *printer) verdict(r *Run) {
	p.printf("%s\n", r.headline())
	details := []string{}
	if r.Violation != nil {
		details = append(details, "at "+at(r.Violation.At))
	}
	details = append(details, fmt.Sprintf("seed %d", r.Plan.Seed))
	if r.From > 0 {
		details = append(details, fmt.Sprintf("%s made %s", count(r.From, "fault"), thousands(r.To)))
	}
	p.printf("%s\n", strings.Join(details, ", "))
}

// headline is the verdict in one sentence.
func (r *Run) headline() string {
	if v := r.Violation; v != nil {
		return broken(v) + ": " + v.Text
	}
	name := ""
	if r.Plan.Name != "" {
		name = " " + r.Plan.Name
	}
	if r.Verdict == nil {
		return "PASS" + name
	}
	seen, kept := 0, len(r.Verdict.Promises)
	for _, p := range r.Verdict.Promises {
		if p.Checked > 0 {
			seen++
		}
	}
	if seen == kept {
		return fmt.Sprintf("PASS%s: all %s kept", name, count(kept, "promise"))
	}
	return fmt.Sprintf("PASS%s: %d of %d promises kept, %d not put to the test", name, seen, kept, kept-seen)
}

func (p *printer) plan(r *Run) {
	p.printf("\nplan     %s\n", mesh(r.Plan))
	if r.Plan.About != "" {
		p.printf("         %s\n", r.Plan.About)
	}
	shown := r.Plan.Faults
	if len(shown) > mostFaultLines {
		shown = shown[:mostFaultLines-1]
	}
	for _, f := range shown {
		p.printf("  at %8s  %s\n", short(f), f)
	}
	if more := len(r.Plan.Faults) - len(shown); more > 0 {
		p.printf("  and %s more\n", count(more, "fault"))
	}
	if len(r.Plan.Faults) == 0 {
		p.printf("  no faults\n")
	}
}

func short(f plan.Fault) string { return at(time.Duration(f.At)) }

func (p *printer) biography(r *Run) {
	lines := r.biography()
	if len(lines) == 0 {
		return
	}
	name := guilty(r.Violation)
	if name == "" {
		name = "what happened"
	} else {
		name = "the life of " + name
	}
	p.printf("\n%s\n", name)
	where := 0
	for _, l := range lines {
		where = max(where, len(l.Where))
	}
	skip := len(lines) - mostBiographyLines
	for i, l := range lines {
		if skip > 0 && i >= 20 && i < 20+skip {
			if i == 20 {
				p.printf("  ... %d lines left out\n", skip)
			}
			continue
		}
		mark := " "
		if l.Bad {
			mark = "!"
		}
		p.printf("%s %9s  %-*s  %s\n", mark, at(l.At), where, l.Where, l.Text)
	}
}

func (p *printer) figures(r *Run) {
	p.printf("\n")
	figures := r.figures()
	wide := 0
	for _, f := range figures {
		wide = max(wide, len(f.Name))
	}
	for _, f := range figures {
		p.printf("  %-*s  %s\n", wide, f.Name, f.Value)
	}
	if len(r.Reached) > 0 {
		p.printf("  %-*s  %s\n", wide, "situations", byName(r.Reached))
	}
	if promises := r.verdict(); len(promises) > 0 {
		p.printf("  %-*s  %s\n", wide, "promises", promiseWords(promises))
	}
}

// promiseWords is "kept P1 P2, broken P3, not seen P4".
func promiseWords(promises []history.Promise) string {
	by := map[string][]string{}
	for _, p := range promises {
		by[state(p)] = append(by[state(p)], p.Name)
	}
	var parts []string
	for _, s := range []string{"broken", "kept", "not seen"} {
		if len(by[s]) > 0 {
			parts = append(parts, s+" "+strings.Join(by[s], " "))
		}
	}
	return strings.Join(parts, "; ")
}
