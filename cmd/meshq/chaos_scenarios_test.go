package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/meshq/meshq/sim/chaos"
	"github.com/meshq/meshq/sim/history"
	"github.com/meshq/meshq/sim/plan"
)

// With these flags TestScenarioTable writes what runs have measured into the document;
// without them it checks that the document has all that there is.
var (
	ofSim    = flag.String("scenarios.sim", "", "file with the output of \"meshq sim --scenario all --json\"")
	ofChaos  = flag.String("scenarios.chaos", "", "file with the output of \"meshq chaos --scenario all --json\"; of two runs of one scenario the last counts")
	ofRandom = flag.String("scenarios.random", "", "files with the output of \"meshq chaos --random --json\", with commas")
)

const scenarioDoc = "../../docs/scenarios.md"

// measured is a line of any of those outputs.
type measured struct {
	Scenario  string             `json:"scenario"` // of meshq sim
	Name      string             `json:"name"`     // of meshq chaos
	Verdict   string             `json:"verdict"`
	Reason    string             `json:"reason"`
	Violation *history.Violation `json:"violation"`
	Command   string             `json:"command"`
	Took      time.Duration      `json:"took"`
	Plan      *plan.Plan         `json:"plan"`
	Promises  []history.Promise  `json:"promises"`
	Figures   history.Figures    `json:"figures"`
}

// docs/scenarios.md has a row for each scenario, its number of kinds of faults is the one
// of the code, and so are the reasons for what does not run.
func TestScenarioTable(t *testing.T) {
	text, err := os.ReadFile(scenarioDoc)
	if err != nil {
		t.Fatal(err)
	}
	doc := string(text)
	doc = section(t, doc, "faults", faultKinds())
	if *ofSim != "" && *ofChaos != "" {
		doc = section(t, doc, "scenarios", scenarioTable(t, readMeasured(t, *ofSim), readMeasured(t, *ofChaos)))
	}
	if *ofRandom != "" {
		var all [][]measured
		for name := range strings.SplitSeq(*ofRandom, ",") {
			all = append(all, readMeasured(t, name))
		}
		doc = section(t, doc, "random", randomTable(all))
	}
	if *ofSim != "" || *ofRandom != "" {
		if err := os.WriteFile(scenarioDoc, []byte(doc), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if doc != string(text) {
		t.Errorf("the kinds of faults of %s are not those of the code: go test ./cmd/meshq -run TestScenarioTable with the flags that the document names", scenarioDoc)
	}
	lines := strings.Split(doc, "\n")
	at := 0
	for _, s := range plan.Scenarios() {
		row := slices.IndexFunc(lines, func(l string) bool { return strings.HasPrefix(l, "| "+s.Name+" | "+s.Title+" | ") })
		switch {
		case row < at:
			t.Errorf("%s has no row for %s, %q, after that of the one before", scenarioDoc, s.Name, s.Title)
			continue
		case s.Where&plan.InReal == 0 && !strings.Contains(lines[row], "skipped: "+s.Reason):
			t.Errorf("%s does not say that %s is skipped: %s", scenarioDoc, s.Name, s.Reason)
		case s.Where&plan.InReal != 0 && strings.Contains(lines[row], "skipped"):
			t.Errorf("%s says that %s, which runs on real processes, was skipped", scenarioDoc, s.Name)
		}
		at = row
	}
}

// section puts text between the marks of a part of a document.
func section(t *testing.T, doc, name, text string) string {
	t.Helper()
	begin, end := "<!-- "+name+": written by TestScenarioTable -->\n", "<!-- end of "+name+" -->"
	before, rest, ok := strings.Cut(doc, begin)
	_, after, closed := strings.Cut(rest, end)
	if !ok || !closed {
		t.Fatalf("%s has no %q and %q", scenarioDoc, begin, end)
	}
	return before + begin + text + end + after
}

func readMeasured(t *testing.T, name string) (all []measured) {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 64<<20)
	for lines.Scan() {
		var m measured
		if err := json.Unmarshal(lines.Bytes(), &m); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if m.Scenario == "" {
			m.Scenario = m.Name
		}
		all = append(all, m)
	}
	if lines.Err() != nil {
		t.Fatalf("%s: %v", name, lines.Err())
	}
	return all
}

// faultKinds says how many kinds of faults can be brought about where.
func faultKinds() string {
	c := chaos.Config{Network: chaos.Switched, Disks: true}
	simulated, onReal := 0, []string(nil)
	for _, k := range plan.Kinds {
		if k.Where&plan.InSim != 0 {
			simulated++
		}
		if c.Can(k.Kind) == nil {
			onReal = append(onReal, "`"+string(k.Kind)+"`")
		}
	}
	return fmt.Sprintf("%d kinds of faults can be simulated, and %d can be brought about on real processes:\n%s.\n", simulated, len(onReal), strings.Join(onReal, ", "))
}

func scenarioTable(t *testing.T, simulated, onReal []measured) string {
	t.Helper()
	var b strings.Builder
	b.WriteString("| | what happens | simulated | without a confirm, a delivery | again after | whole after | delivered again | real | without a confirm, a delivery | again after | whole after | delivered again |\n")
	b.WriteString("|---|---|---|---|---|---|---|---|---|---|---|---|\n")
	for _, s := range plan.Scenarios() {
		fmt.Fprintf(&b, "| %s | %s |", s.Name, s.Title)
		for _, runs := range [][]measured{simulated, onReal} {
			cells := []string{"not run", "", "", "", ""}
			for i := range runs {
				if runs[i].Scenario == s.Name {
					cells = runs[i].cells()
				}
			}
			fmt.Fprintf(&b, " %s |", strings.Join(cells, " | "))
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// cells are what a scenario measured.
func (m *measured) cells() []string {
	f := &m.Figures
	verdict := m.Verdict
	switch {
	case m.Reason != "":
		return []string{"skipped: " + m.Reason, "", "", "", ""}
	case m.Violation != nil:
		verdict = "**broken " + m.Violation.Promise + "**"
	}
	if m.Plan != nil { // of real processes
		for _, x := range m.Plan.Faults {
			if k, ok := plan.Lookup(x.Kind); ok && k.Where&plan.InReal == 0 && !strings.Contains(verdict, string(x.Kind)) {
				verdict += " without " + string(x.Kind)
			}
		}
	}
	again, cause := time.Duration(0), ""
	for _, c := range slices.Sorted(maps.Keys(f.Redeliver)) {
		if most := f.Redeliver[c].Max; c != "nack" && most > again { // a nack waits for its backoff
			again, cause = most, c+" "
		}
	}
	after := "-"
	if cause != "" {
		after = cause + history.Short(again)
	}
	whole := "-"
	if f.Converge >= 0 {
		whole = history.Short(f.Converge)
	}
	return []string{verdict, history.Short(f.ConfirmGap.Length()) + ", " + history.Short(f.DeliveryGap.Length()), after, whole, causes(f.Duplicates)}
}

// causes are numbers of deliveries by their cause.
func causes(n map[string]int) string {
	var out []string
	for _, c := range slices.Sorted(maps.Keys(n)) {
		name := c
		if c == "attempt" { // as the figures call one that says that it is the first
			name = "late"
		}
		out = append(out, fmt.Sprintf("%s %d", name, n[c]))
	}
	if out == nil {
		return "0"
	}
	return strings.Join(out, ", ")
}

// randomTable has a row for each run.
func randomTable(runs [][]measured) string {
	var b strings.Builder
	b.WriteString("| command | time, rounds | faults | sent | confirmed | lost | acked and back | broken | delivered again | memory | disk |\n|---|---|---|---|---|---|---|---|---|---|---|\n")
	var took time.Duration
	var rounds, confirmed int
	for _, run := range runs {
		kinds, again, broken := map[plan.Kind]bool{}, map[string]int{}, map[string]int{}
		var faults, sent, stored int
		var length time.Duration
		for i := range run {
			m := &run[i]
			for _, f := range m.Plan.Faults {
				kinds[f.Kind] = true
			}
			faults += len(m.Plan.Faults)
			sent, stored, length = sent+m.Figures.Sent, stored+m.Figures.Confirmed, length+m.Took
			for c, n := range m.Figures.Duplicates {
				again[c] += n
			}
			for _, p := range m.Promises {
				broken[p.Name] += p.Broken
			}
		}
		if len(run) == 0 {
			continue
		}
		first, last := &run[0].Figures, &run[len(run)-1].Figures
		in := 0
		for _, n := range broken {
			in += n
		}
		fmt.Fprintf(&b, "| `%s` | %v, %d | %d of %d kinds | %d | %d | %d | %d | %d | %s | %d to %d MiB | %d to %d MiB |\n", run[0].Command, length.Round(time.Second), len(run),
			faults, len(kinds), sent, stored, broken["P1"]+broken["P2"]+broken["P11"], broken["P3"], in, causes(again), first.Memory>>20, last.Memory>>20, first.Disk>>20, last.Disk>>20)
		took, rounds, confirmed = took+length, rounds+len(run), confirmed+stored
	}
	fmt.Fprintf(&b, "\nIn all %v in %d rounds, %d messages confirmed.\n", took.Round(time.Second), rounds, confirmed)
	return b.String()
}
