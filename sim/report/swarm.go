package report

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/meshq/meshq/sim/history"
	"github.com/meshq/meshq/sim/plan"
)

// Swarm sums up many runs, each of another seed.
type Swarm struct {
	First     uint64            `json:"first"` // seed
	Seeds     int               `json:"seeds"`
	Steps     int               `json:"steps"`
	Simulated time.Duration     `json:"simulated"`
	Took      time.Duration     `json:"took"`
	Doubles   int               `json:"doubles"` // seeds that were run twice, with equal traces
	Hash      string            `json:"hash"`    // of the hashes of all traces
	Faults    map[plan.Kind]int `json:"faults"`  // hits
	Reached   map[string]int    `json:"reached"` // situations: in how many runs
	Missed    []string          `json:"missed"`  // situations that some run has to reach, and none did
	Promises  []history.Promise `json:"promises"`
	Failures  []Failure         `json:"failures"`
}

// Failure is a run of a swarm that broke a promise.
type Failure struct {
	Seed      uint64            `json:"seed"`
	Violation history.Violation `json:"violation"`
	Command   string            `json:"command"` // that runs it again
}

// Passed tells whether no run broke a promise, and all situations were reached.
func (s *Swarm) Passed() bool { return len(s.Failures) == 0 && len(s.Missed) == 0 }

// Summary writes what a swarm was, for a terminal, the verdict first.
func Summary(w io.Writer, s *Swarm) error {
	p := &printer{w: w}
	word := "PASS"
	if !s.Passed() {
		word = "FAIL"
	}
	checked := 0
	for _, x := range s.Promises {
		if x.Checked > 0 {
			checked++
		}
	}
	parts := []string{
		count(s.Seeds, "seed"), hours(s.Simulated), count(len(s.Faults), "fault kind"),
		count(checked, "promise"), count(len(s.Failures), "violation"),
	}
	if s.Hash != "" {
		parts = append(parts, "trace hash "+s.Hash)
	}
	p.printf("%s %s\n", word, strings.Join(parts, " · "))
	if s.Took > 0 {
		minutes := s.Took.Minutes()
		p.printf("     %s seeds, %.1f simulated hours and %s steps a minute", thousands(int(float64(s.Seeds)/minutes)), s.Simulated.Hours()/minutes, thousands(int(float64(s.Steps)/minutes)))
		if s.Doubles > 0 {
			p.printf("; %s ran twice with equal traces", count(s.Doubles, "seed"))
		}
		p.printf("\n")
	}
	for i, f := range s.Failures {
		if i == 20 {
			p.printf("\nand %s more\n", count(len(s.Failures)-i, "seed"))
			break
		}
		p.printf("\nseed %d  %s: %s\n", f.Seed, broken(&f.Violation), f.Violation.Text)
		if f.Command != "" {
			p.printf("  again  %s\n", f.Command)
		}
	}
	hits(p, "faults", len(plan.Kinds), s.Faults)
	hits(p, "situations", len(s.Reached)+len(s.Missed), s.Reached)
	if len(s.Missed) > 0 {
		p.printf("\nnever reached: %s\n", strings.Join(s.Missed, ", "))
	}
	return p.err
}

// hits prints a table of names and numbers, in three columns, read downwards.
func hits[K ~string](p *printer, title string, all int, m map[K]int) {
	if len(m) == 0 {
		return
	}
	names := frequent(m)
	p.printf("\n%s, %d of %d\n", title, len(names), all)
	const columns = 3
	rows := (len(names) + columns - 1) / columns
	wide := 0
	for _, n := range names {
		wide = max(wide, len(n))
	}
	for row := range rows {
		line := ""
		for c := range columns {
			if i := c*rows + row; i < len(names) {
				line += fmt.Sprintf("  %-*s %9s", wide, names[i], thousands(m[names[i]]))
			}
		}
		p.printf("%s\n", line)
	}
}

// SummaryJSON writes a swarm as one JSON object on one line. Times are in nanoseconds.
func SummaryJSON(w io.Writer, s *Swarm) error {
	return json.NewEncoder(w).Encode(struct {
		Verdict string `json:"verdict"`
		*Swarm
	}{map[bool]string{true: "pass", false: "fail"}[s.Passed()], s})
}
