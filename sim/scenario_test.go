package sim

import (
	"slices"
	"testing"

	"github.com/meshq/meshq/sim/plan"
)

// scenarioLucks is with how many seeds each scenario is simulated; with -short with one.
const scenarioLucks = 3

// TestScenarios simulates S00..S56. With -v it prints what each measured.
func TestScenarios(t *testing.T) {
	for _, info := range plan.Scenarios() {
		t.Run(info.Name, func(t *testing.T) {
			t.Parallel()
			for luck := range uint64(scenarioLucks) {
				p, err := plan.Scenario(info.Name)
				if err != nil {
					t.Fatal(err)
				}
				p.Seed += luck * 1000
				simulate(t, p)
				if testing.Short() {
					break
				}
			}
		})
	}
}

// simulate runs the plan of a scenario: it must keep all promises, and come across what
// it is about.
func simulate(t *testing.T, p *plan.Plan) {
	t.Helper()
	r := Run(p, Options{})
	if r.Violation != nil {
		t.Errorf("seed %d: at %v in %s: %v", p.Seed, r.Violation.At, r.Phase, r.Violation)
		return
	}
	if missing := r.Missing(); missing != nil {
		t.Errorf("seed %d never came across %v; it did across %v", p.Seed, missing, r.Reached)
	}
	for _, s := range r.Skipped {
		f := &p.Faults[s.Fault]
		if k, _ := plan.Lookup(f.Kind); k.Where&plan.InSim != 0 {
			t.Errorf("seed %d: %s was skipped: %s", p.Seed, f, s.Why)
		}
	}
	if most, ok := fewTakeovers[p.Name]; ok && r.Stats.Takeovers > most {
		t.Errorf("seed %d: %d changes of owner, at most %d are right", p.Seed, r.Stats.Takeovers, most)
	}
	if slices.Contains(noDuplicates, p.Name) {
		for cause, n := range r.Verdict.Figures.Duplicates {
			if cause != "nack" && cause != "released" { // which some programs do
				t.Errorf("seed %d: %d messages were delivered again: %s", p.Seed, n, cause)
			}
		}
	}
	t.Logf("%s seed %d\n%v", p.About, p.Seed, r.Verdict)
}

// fewTakeovers bounds the changes of owner, the first three included, where none of the
// faults should make one.
var fewTakeovers = map[string]int{"S00": 5, "S09": 6, "S47": 6, "S52": 6}

// noDuplicates are the scenarios in which nothing may be delivered twice but what its
// consumer gives back.
var noDuplicates = []string{"S00", "S47", "S52"}
