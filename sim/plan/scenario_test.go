package plan

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// Each scenario has a plan with a name and a sentence, and runs where its faults can be
// brought about.
func TestScenarios(t *testing.T) {
	kinds := map[Kind]KindInfo{}
	for _, k := range Kinds {
		kinds[k.Kind] = k
	}
	for i, s := range Scenarios() {
		if want := fmt.Sprintf("S%02d", i); s.Name != want {
			t.Errorf("number %d is %s", i, s.Name)
		}
		p, err := Scenario(s.Name)
		if err != nil {
			t.Error(err)
			continue
		}
		if p.Name != s.Name || p.About == "" || s.Title == "" || s.Holds == "" {
			t.Errorf("%s: name %q, about %q, title %q, holds %q", s.Name, p.Name, p.About, s.Title, s.Holds)
		}
		if s.Where&InSim == 0 || (s.Where&InReal == 0) != (s.Reason != "") {
			t.Errorf("%s: runs in %b, reason %q", s.Name, s.Where, s.Reason)
		}
		simulated, real := 0, 0
		for _, f := range p.Faults {
			k, ok := kinds[f.Kind]
			if !ok {
				t.Errorf("%s: no kind %q", s.Name, f.Kind)
			}
			if k.Where&InSim != 0 {
				simulated++
			}
			if k.Where&InReal != 0 {
				real++
			}
			if f.At >= p.Length {
				t.Errorf("%s: %s at %v of %v", s.Name, f, f.At, p.Length)
			}
		}
		if len(p.Faults) > 0 && (simulated == 0 || s.Where&InReal != 0 && real == 0) {
			t.Errorf("%s: %d of %d faults can be simulated, %d are for real processes", s.Name, simulated, len(p.Faults), real)
		}
		if !slices.IsSortedFunc(p.Faults, func(a, b Fault) int { return int(a.At - b.At) }) {
			t.Errorf("%s: faults are not in order of time", s.Name)
		}
	}
	files, err := scenarioFiles.ReadDir("scenarios")
	if err != nil || len(files) != len(scenarios) {
		t.Errorf("%d files, %d scenarios, %v", len(files), len(scenarios), err)
	}
}

func TestScenarioNames(t *testing.T) {
	for _, name := range []string{"S05", "s05", "s5", "5", " S5"} {
		if p, err := Scenario(name); err != nil || p.Name != "S05" {
			t.Errorf("%q: %v, %v", name, p, err)
		}
	}
	for name, want := range map[string]string{
		"S57":    `no scenario "S57"; there are S00 to S56`,
		"":       `no scenario ""; there are S00 to S56`,
		"poison": `no scenario "poison"; did you mean S27 (poison kills each consumer)? there are S00 to S56`,
		"S056":   `no scenario "S056"; did you mean S05 (two halves, both sides used), S56 (long run of everything)? there are S00 to S56`,
	} {
		_, err := Scenario(name)
		if err == nil || strings.Join(strings.Fields(err.Error()), " ") != want {
			t.Errorf("%q: got %v, want %s", name, err, want)
		}
	}
}
