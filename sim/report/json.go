package report

import (
	"encoding/json"
	"io"
	"time"

	"github.com/meshq/meshq/sim/history"
	"github.com/meshq/meshq/sim/plan"
)

// object is a run as JSON. Programs read it: names stay, and new ones are added. Times
// are in nanoseconds, but for those of the plan, which are as in its file.
type object struct {
	Verdict   string             `json:"verdict"` // pass, broken
	Violation *history.Violation `json:"violation,omitempty"`
	Name      string             `json:"name,omitempty"`
	Seed      uint64             `json:"seed"`
	Real      bool               `json:"real"`
	Length    time.Duration      `json:"length"`
	Took      time.Duration      `json:"took,omitempty"`
	Steps     int                `json:"steps,omitempty"`
	Hash      string             `json:"hash,omitempty"`
	Commit    string             `json:"commit,omitempty"`
	Command   string             `json:"command,omitempty"`
	Shrunk    *shrunk            `json:"shrunk,omitempty"`
	Plan      *plan.Plan         `json:"plan"`
	Biography []history.Line     `json:"biography,omitempty"`
	Promises  []history.Promise  `json:"promises,omitempty"`
	Figures   *history.Figures   `json:"figures,omitempty"`
	Reached   map[string]int     `json:"reached,omitempty"`
}

type shrunk struct {
	From int `json:"from"` // faults
	To   int `json:"to"`
}

// JSON writes a run as one JSON object on one line.
func JSON(w io.Writer, r *Run) error {
	o := object{
		Verdict: "pass", Violation: r.Violation, Name: r.Plan.Name, Seed: r.Plan.Seed, Real: r.Real, Length: r.length(), Took: r.Took,
		Steps: r.Steps, Hash: r.Hash, Commit: r.Commit, Command: r.Command, Plan: r.Plan, Biography: r.biography(), Promises: r.verdict(), Reached: r.Reached,
	}
	if !r.Passed() {
		o.Verdict = "broken"
	}
	if r.From > 0 {
		o.Shrunk = &shrunk{r.From, r.To}
	}
	if r.Verdict != nil {
		o.Figures = &r.Verdict.Figures
	}
	return json.NewEncoder(w).Encode(o)
}
