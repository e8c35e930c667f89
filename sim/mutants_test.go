//go:build mutants

package sim

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clientcore "github.com/meshq/meshq/client/core"
	nodecore "github.com/meshq/meshq/node/core"
	"github.com/meshq/meshq/sim/plan"
)

var (
	mutantsOnly   = flag.String("mutants.only", "", "names of planted bugs, with commas between; none: all")
	mutantsSeeds  = flag.Int("mutants.seeds", 1000, "seeds within which each must be found")
	mutantsRanges = flag.Int("mutants.ranges", 3, "disjoint ranges of seeds for the median of a bug that is found within -mutants.cheap seeds")
	mutantsCheap  = flag.Int("mutants.cheap", 100, "see -mutants.ranges")
	mutantsShrink = flag.Int("mutants.shrink", 40, "runs that may be spent to make the plan of each smaller; 0: none")
	mutantsKinds  = flag.String("mutants.kinds", "", "kinds of faults that the plans may have, with commas between; none: all")
	mutantsTable  = flag.String("mutants.table", "", "file with mutants marks: the rows of the table between them are written anew for the bugs that were looked for, those of others stay")
)

// mutant is a planted bug of a node or a client.
type mutant struct {
	name, rule, source string
	breaks             []string
	options            Options
	library            bool // all clients use the client library: the bug is one of it, or raw clients cannot tell
}

func mutants() []mutant {
	var out []mutant
	for _, b := range nodecore.Planted() {
		out = append(out, mutant{b.Name, b.Rule, b.Source, b.Breaks, Options{Planting: nodecore.Planting{Bug: b.Name}}, b.Name == "quorum-error-as-refused"})
	}
	for _, b := range clientcore.Planted() {
		out = append(out, mutant{b.Name, b.Rule, b.Source, b.Breaks, Options{ClientPlanting: clientcore.Planting{Bug: b.Name}}, true})
	}
	return out
}

// score is how a mutant was found.
type score struct {
	mutant
	promises []string   // that broke, each once, in the order of the runs
	seeds    []int      // how many it took, for each run that found it
	runs     int        // ranges that were tried
	directed bool       // the plans are those of testdata/mutants, with other luck for each seed
	first    *plan.Plan // the first plan that found it
	found    int        // of that plan, its faults
	shrunk   *plan.Plan // nil: not shrunk
	bare     []string   // what broke without the bug: nothing of it is planted
	story    string     // what the first plan broke
	wrong    string     // why it does not count as found
}

// TestMutants looks for each planted bug in the plans of seeds. It fails if one is not
// found within -mutants.seeds, or breaks another promise than the rule stands for. A plan
// that breaks without the bug too finds nothing.
func TestMutants(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(400))
	var scores []*score
	begin := time.Now()
	for _, m := range mutants() {
		if *mutantsOnly != "" && !slices.Contains(strings.Split(*mutantsOnly, ","), m.name) {
			continue
		}
		s := m.hunt()
		scores = append(scores, s)
		fmt.Printf("%4.0fs  %s\n", time.Since(begin).Seconds(), s)
		if s.wrong != "" {
			t.Errorf("%s: %s", m.name, s.wrong)
		}
		for _, b := range s.bare {
			fmt.Printf("       %s: without the bug, %s\n", m.name, b)
		}
		if *mutantsTable != "" { // after each: a run that is ended early has not been in vain
			if err := updateTable(*mutantsTable, scores); err != nil {
				t.Fatal(err)
			}
		}
	}
	if len(scores) == 0 {
		t.Fatalf("no planted bug is named %q; -mutants.only takes: %s", *mutantsOnly, strings.Join(mutantNames(), " "))
	}
	fmt.Println(mutantTable(scores, nil))
}

func mutantNames() (out []string) {
	for _, m := range mutants() {
		out = append(out, m.name)
	}
	return out
}

// hunt looks for a bug. Directed plans are for those that random ones rarely find.
func (m mutant) hunt() *score {
	s := &score{mutant: m}
	o := plan.GenerateOptions{Clients: plan.ClientsRaw}
	for kind := range strings.SplitSeq(*mutantsKinds, ",") {
		if kind != "" {
			o.Kinds = append(o.Kinds, plan.Kind(kind))
		}
	}
	make := func(seed uint64) *plan.Plan {
		p := plan.Generate(seed, o)
		if m.library {
			for i := range p.Producers {
				p.Producers[i].Raw = false
			}
			for i := range p.Consumers {
				p.Consumers[i].Raw, p.Consumers[i].Relay = false, ""
			}
		}
		return p
	}
	if p := m.directed(); p != nil {
		s.directed = true
		make = func(seed uint64) *plan.Plan {
			q := *p
			q.Seed = seed
			return &q
		}
	}
	for i := range *mutantsRanges {
		if i > 0 && s.seeds[0] > *mutantsCheap {
			break
		}
		first := uint64(1 + i*1_000_000)
		p, r, bare := m.search(make, first, *mutantsSeeds)
		s.runs++
		s.bare = append(s.bare, bare...)
		if r == nil {
			if i == 0 {
				s.wrong = fmt.Sprintf("not found in %d seeds", *mutantsSeeds)
				return s
			}
			continue
		}
		s.seeds = append(s.seeds, int(p.Seed-first)+1)
		if !slices.Contains(s.promises, r.Violation.Promise) {
			s.promises = append(s.promises, r.Violation.Promise)
		}
		if !slices.Contains(m.breaks, r.Violation.Promise) {
			s.wrong = fmt.Sprintf("seed %d breaks %v: a wrong reason, expected is one of %s", p.Seed, r.Violation, strings.Join(m.breaks, ", "))
			return s
		}
		if i == 0 {
			s.first, s.found, s.story = p, len(p.Faults), fmt.Sprint(r.Violation)
			s.shrunk = m.shrink(r)
		}
	}
	return s
}

// search runs seeds from first on, as many at a time as there are cores, and returns the
// first that breaks a promise and keeps all without the bug; bare are those that do not.
func (m mutant) search(make func(uint64) *plan.Plan, first uint64, most int) (p *plan.Plan, r *Result, bare []string) {
	var (
		mu      sync.Mutex // guards what follows
		next    = first
		end     = first + uint64(most)
		found   *Result
		workers sync.WaitGroup
	)
	take := func() (uint64, bool) {
		mu.Lock()
		defer mu.Unlock()
		if next >= end {
			return 0, false
		}
		next++
		return next - 1, true
	}
	for range runtime.GOMAXPROCS(0) { // seeds share nothing
		workers.Go(func() {
			for seed, ok := take(); ok; seed, ok = take() {
				r := Run(make(seed), m.options)
				if r.Violation == nil {
					continue
				}
				without := Run(make(seed), Options{}).Violation
				mu.Lock()
				if without != nil { // says nothing of the bug
					bare = append(bare, fmt.Sprintf("seed %d breaks %v", seed, without))
				} else if found == nil || seed < found.Plan.Seed {
					found, end = r, min(end, seed) // those before it are run to their end
				}
				mu.Unlock()
			}
		})
	}
	workers.Wait()
	if found == nil {
		return nil, nil, bare
	}
	return make(found.Plan.Seed), found, bare
}

// shrink makes the plan of a run smaller as long as it breaks the same promise, with the
// bug alone.
func (m mutant) shrink(r *Result) *plan.Plan {
	if *mutantsShrink == 0 {
		return nil
	}
	s := Shrinker(r, m.options)
	with := s.Broken
	s.Broken = func(p *plan.Plan) bool { return with(p) && Run(p, Options{}).Violation == nil }
	s.Tries, s.Workers = *mutantsShrink, runtime.GOMAXPROCS(0)
	return s.Shrink(context.Background(), r.Plan, plan.Duration(r.Violation.At))
}

// directed is the plan that was written for a bug; nil without one.
func (m mutant) directed() *plan.Plan {
	f, err := os.Open(filepath.Join("testdata", "mutants", m.name+".json"))
	if err != nil {
		return nil
	}
	defer f.Close()
	p, err := plan.Read(f)
	if err != nil {
		panic(fmt.Sprintf("%s: %v", f.Name(), err))
	}
	return p
}

func (s *score) String() string {
	if s.wrong != "" {
		return s.name + ": " + s.wrong
	}
	how := ""
	if s.directed {
		how = ", by its own plan"
	}
	faults := fmt.Sprintf("%d faults", s.found)
	if s.shrunk != nil {
		faults += fmt.Sprintf(", shrunk to %d", len(s.shrunk.Faults))
	}
	return fmt.Sprintf("%s: %s found in %d of %d runs%s, seeds %v, %s; %s", s.name, strings.Join(s.promises, ", "), len(s.seeds), s.runs, how, s.seeds, faults, s.story)
}

// median is that of the seeds it took; a run that found nothing counts as more than all.
func (s *score) median() string {
	n := slices.Clone(s.seeds)
	slices.Sort(n)
	if at := s.runs / 2; at < len(n) {
		return fmt.Sprint(n[at])
	}
	return fmt.Sprintf("over %d", *mutantsSeeds)
}

// mutantTable is Markdown, with a row for each bug that was looked for or has one in rows,
// in the order in which they are planted.
func mutantTable(scores []*score, rows map[string]string) string {
	var b strings.Builder
	fmt.Fprintln(&b, "| planted bug | the rule that it weakens | broken | found in | median seeds | faults in the plan |")
	fmt.Fprintln(&b, "|---|---|---|---|---|---|")
	for _, name := range mutantNames() {
		if i := slices.IndexFunc(scores, func(s *score) bool { return s.name == name }); i >= 0 {
			fmt.Fprintln(&b, scores[i].row())
		} else if row := rows[name]; row != "" {
			fmt.Fprintln(&b, row)
		}
	}
	return b.String()
}

func (s *score) row() string {
	found, faults := fmt.Sprintf("%d of %d runs", len(s.seeds), s.runs), fmt.Sprint(s.found)
	if s.directed {
		found += ", its own plan"
	}
	if s.shrunk != nil {
		faults = fmt.Sprintf("%d of %d", len(s.shrunk.Faults), s.found)
	}
	if len(s.seeds) == 0 {
		found, faults = "**not found**", ""
	}
	return fmt.Sprintf("| %s | %s (%s) | %s | %s | %s | %s |", s.name, s.rule, s.source, strings.Join(s.promises, ", "), found, s.median(), faults)
}

const (
	tableBegin = "<!-- mutants: written by make mutants TABLE=docs/planted-bugs.md -->\n"
	tableEnd   = "<!-- end of mutants -->"
)

// updateTable writes the rows of scores into the table between the marks of a file.
func updateTable(file string, scores []*score) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	before, rest, ok := bytes.Cut(text, []byte(tableBegin))
	old, after, ok2 := bytes.Cut(rest, []byte(tableEnd))
	if !ok || !ok2 {
		return fmt.Errorf("%s has no marks %q and %q", file, tableBegin, tableEnd)
	}
	rows := make(map[string]string)
	for line := range strings.Lines(string(old)) {
		if name, _, ok := strings.Cut(strings.TrimPrefix(line, "| "), " |"); ok {
			rows[name] = strings.TrimSpace(line)
		}
	}
	return os.WriteFile(file, slices.Concat(before, []byte(tableBegin+mutantTable(scores, rows)+tableEnd), after), 0o644)
}

// TestPlantingIsFree compares this build, with no bug named, with an ordinary one: the
// hashes of all that happens are equal.
func TestPlantingIsFree(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the tests a second time")
	}
	out, err := exec.Command("go", "test", "-count=1", "-v", "-run", "^TestTraceHashes$", ".").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, line := range traceHashes() {
		if !bytes.Contains(out, []byte(line)) {
			t.Errorf("with the tag, without a bug: %s; without the tag:\n%s", line, out)
		}
	}
}
