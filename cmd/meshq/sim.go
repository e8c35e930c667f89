package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/meshq/meshq/sim"
	"github.com/meshq/meshq/sim/history"
	"github.com/meshq/meshq/sim/plan"
	simreport "github.com/meshq/meshq/sim/report"
)

const (
	simSeeds      = 100 // of a swarm that was not told how many
	simTwice      = 20  // one seed in so many is run twice
	shrinkTries   = 3000
	shrinkBound   = 2 * time.Minute
	shrinkLucks   = 3
	simMaxNodes   = 20
	simMaxHistory = time.Hour // of virtual time
)

// simulation is a "meshq sim".
type simulation struct {
	*app
	seed      uint64
	seeds     int
	forTime   time.Duration
	planFile  string
	scenario  string
	faults    string
	generate  plan.GenerateOptions
	length    time.Duration
	shrink    bool
	report    string
	save      string
	trace     bool
	json      bool
	list      bool
	hasSeed   bool
	hasLength bool
}

func (a *app) simCommand() *cobra.Command {
	s := simulation{app: a}
	cmd := &cobra.Command{
		Use:   "sim [flags]",
		Short: "Simulate a mesh under faults, and check the promises",
		Long: `Simulates whole meshes under virtual time: the real protocol and the real client,
with faults of networks, disks, clocks, processes and clients. The promises P1 to P12
are checked after each step and at rest. A seed makes a plan, and a plan always runs the
same way: what broke once breaks again.

Without --seed, --plan or --scenario it runs seeds from 1 on.`,
		Example: `  meshq sim --seeds 200
  meshq sim --seed 4711 --shrink --report broken.html
  meshq sim --scenario S05
  meshq sim --nodes 5 --replicas 5 --write-quorum 3 --faults crash,cut,power-cut
  meshq sim --plan broken.json --trace`,
		Args: argCount(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s.hasSeed, s.hasLength = cmd.Flags().Changed("seed"), cmd.Flags().Changed("duration")
			if err := s.validate(); err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt)
			defer stop()
			return s.run(ctx)
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.Uint64Var(&s.seed, "seed", 1, "run this `seed`; with --seeds or --for it is the first one")
	f.IntVar(&s.seeds, "seeds", 0, "run `many` seeds, at most")
	f.DurationVar(&s.forTime, "for", 0, "run seeds for that long, by the clock on the wall")
	f.StringVar(&s.planFile, "plan", "", "run the plan in `FILE`, as --save writes it")
	f.StringVar(&s.scenario, "scenario", "", "run a scenario by `NAME`: S00 to S56, several with commas, or all")
	f.StringVar(&s.faults, "faults", "", "`kinds` of faults that a seed may have, with commas; none: no faults (default all)")
	f.IntVar(&s.generate.Nodes, "nodes", 0, "`number` of nodes (default: drawn from the seed)")
	f.IntVar(&s.generate.Replicas, "replicas", 0, "`number` of replicas of each queue (default: drawn from the seed)")
	f.IntVar(&s.generate.WriteQuorum, "write-quorum", 0, "write quorum `W` of each queue (default: a majority of the replicas)")
	f.DurationVar(&s.length, "duration", 0, "virtual time with load and faults (default 20s, or what the plan says)")
	f.BoolVar(&s.shrink, "shrink", false, "make the plan that broke a promise as small as possible")
	f.StringVar(&s.report, "report", "", "write a page about the run, the first that broke a promise if any did, to `FILE`")
	f.StringVar(&s.save, "save", "", "write the plan of the run (with --shrink the small one) to `FILE`")
	f.BoolVar(&s.trace, "trace", false, "print each thing that happens (of one run)")
	f.BoolVar(&s.json, "json", false, "print JSON, one object a line")
	f.BoolVar(&s.list, "list", false, "list the scenarios and the kinds of faults")
	return cmd
}

// validate says what is wrong with the flags together.
func (s *simulation) validate() error {
	const hint = "\"meshq sim --help\" explains the flags"
	chosen := 0
	for _, is := range []bool{s.planFile != "", s.scenario != "", s.seeds > 0 || s.forTime > 0} {
		if is {
			chosen++
		}
	}
	if chosen > 1 {
		return usage(hint, "sim: choose one of --plan, --scenario, and --seeds or --for")
	}
	one := s.planFile != "" || s.scenario != "" && !strings.Contains(s.scenario, ",") && s.scenario != "all" || chosen == 0 && s.hasSeed
	if s.trace && !one {
		return usage(hint, "sim: --trace is for one run: add --seed, --plan or --scenario")
	}
	if s.seeds < 0 || s.forTime < 0 {
		return usage(hint, "sim: --seeds and --for cannot be negative")
	}
	if s.hasLength && (s.length < time.Second || s.length > simMaxHistory) {
		return usage("", "sim: --duration is %v, allowed are 1s to %v", s.length, simMaxHistory)
	}
	fixed := s.planFile != "" || s.scenario != ""
	if g := &s.generate; fixed && (g.Nodes != 0 || g.Replicas != 0 || g.WriteQuorum != 0 || s.faults != "") {
		return usage("change the plan in its file instead", "sim: --nodes, --replicas, --write-quorum and --faults are for seeds: a plan has its own")
	}
	switch {
	case s.faults == "none":
		s.generate.Kinds = []plan.Kind{}
	case s.faults != "":
		for name := range strings.SplitSeq(s.faults, ",") {
			k, ok := plan.Lookup(plan.Kind(strings.TrimSpace(name)))
			if !ok || k.Where&plan.InSim == 0 {
				return usage("\"meshq sim --list\" lists them", "sim: --faults: no kind of fault that can be simulated is called %q", name)
			}
			s.generate.Kinds = append(s.generate.Kinds, k.Kind)
		}
	}
	s.generate.Length = plan.Duration(s.length)
	if err := s.generate.Validate(); err != nil {
		return usage(hint, "sim: %v", err)
	}
	return nil
}

func (s *simulation) run(ctx context.Context) error {
	switch {
	case s.list:
		return s.printList()
	case s.planFile != "":
		p, err := plan.ReadFile(s.planFile)
		if err != nil {
			hint := "\"meshq sim --save FILE --seed 1\" writes one to begin with"
			if errors.Is(err, fs.ErrNotExist) {
				hint = ""
			}
			return &failure{code: exitUsage, err: fmt.Errorf("sim: %w", err), hint: hint}
		}
		return s.one(ctx, p, "--plan "+s.planFile)
	case s.scenario != "":
		return s.scenarios(ctx)
	case s.hasSeed && s.seeds == 0 && s.forTime == 0:
		return s.one(ctx, plan.Generate(s.seed, s.generate), fmt.Sprintf("--seed %d%s", s.seed, s.generateFlags()))
	}
	return s.swarm(ctx)
}

// generateFlags are the flags that a seed's plan depends on, for the command that runs it again.
func (s *simulation) generateFlags() string {
	var out strings.Builder
	for _, f := range []struct {
		name  string
		value int
	}{{"nodes", s.generate.Nodes}, {"replicas", s.generate.Replicas}, {"write-quorum", s.generate.WriteQuorum}} {
		if f.value != 0 {
			fmt.Fprintf(&out, " --%s %d", f.name, f.value)
		}
	}
	if s.faults != "" {
		out.WriteString(" --faults " + s.faults)
	}
	if s.hasLength {
		out.WriteString(" --duration " + s.length.String())
	}
	return out.String()
}

// one runs one plan and says all about it.
func (s *simulation) one(ctx context.Context, p *plan.Plan, flags string) error {
	if s.hasSeed {
		p.Seed = s.seed
	}
	if s.hasLength {
		p.Length = plan.Duration(s.length)
	}
	var o sim.Options
	if s.trace {
		o.Trace = func(line string) { fmt.Fprintln(s.out, line) }
	}
	began := time.Now()
	r := sim.Run(p, o)
	return s.tell(ctx, r, time.Since(began), flags)
}

// tell shrinks, writes and prints what came of a run.
func (s *simulation) tell(ctx context.Context, r *sim.Result, took time.Duration, flags string) error {
	page := simreport.Run{Command: self() + " sim " + flags, Commit: buildVersion(), Took: took}
	if r.Violation != nil && s.shrink {
		page.From = len(r.Plan.Faults)
		r = s.smallest(ctx, r)
		page.To = len(r.Plan.Faults)
		if s.save != "" {
			page.Command = self() + " sim --plan " + s.save
		}
	}
	o := sim.Options{Record: true}
	r = sim.Run(r.Plan, o)
	page.Plan, page.Violation, page.History = r.Plan, r.Violation, r.History
	page.Story = sim.Story(r.Plan, o, r.Violation)
	page.Verdict = history.Check(r.History, sim.Rules(r.Plan))
	page.Hash, page.Steps, page.Length, page.Reached = fmt.Sprintf("%016x", r.Hash), r.Steps, r.Time, r.Reached
	if s.save != "" {
		if err := r.Plan.WriteFile(s.save); err != nil {
			return failed(fmt.Errorf("sim: %w", err), "")
		}
	}
	if s.report != "" {
		if err := writePage(s.report, &page); err != nil {
			return failed(fmt.Errorf("sim: %w", err), "")
		}
	}
	write := simreport.Text
	if s.json {
		write = simreport.JSON
	}
	if err := write(s.out, &page); err != nil {
		return err
	}
	if s.report != "" && !s.json {
		fmt.Fprintf(s.out, "\npage: %s\n", s.report)
	}
	if r.Violation != nil {
		return &failure{code: exitFailed}
	}
	if missing := r.Missing(); len(missing) > 0 {
		return failed(fmt.Errorf("sim: the run never came across %s, which its plan says it must: it proves nothing", strings.Join(missing, ", ")),
			"try the luck of another --seed")
	}
	return nil
}

// writePage writes the HTML page of a run; nothing is left where it fails.
func writePage(path string, run *simreport.Run) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, f.Close())
		if err != nil {
			err = errors.Join(err, os.Remove(path))
		}
	}()
	return simreport.HTML(f, run)
}

// smallest is the smallest plan that breaks the same promise, and what came of it.
func (s *simulation) smallest(ctx context.Context, r *sim.Result) *sim.Result {
	line := newProgress(s.err, !s.json)
	defer line.clear()
	shrinker := sim.Shrinker(r, sim.Options{})
	shrinker.Workers, shrinker.Tries, shrinker.Lucks = runtime.GOMAXPROCS(0), shrinkTries, shrinkLucks
	shrinker.Progress = func(p *plan.Plan, tries int) {
		line.show("shrinking: %s, %s, %s after %s", plural(len(p.Faults), "fault"), plural(len(p.Mesh.Nodes), "node"),
			plural(len(p.Producers)+len(p.Consumers), "client"), plural(tries, "run"))
	}
	ctx, cancel := context.WithTimeout(ctx, shrinkBound)
	defer cancel()
	return sim.Run(shrinker.Shrink(ctx, r.Plan, plan.Duration(r.Violation.At)), sim.Options{})
}

// swarm runs many seeds until one breaks a promise.
func (s *simulation) swarm(ctx context.Context) error {
	w := sim.Swarm{First: s.seed, Seeds: s.seeds, Generate: s.generate, Twice: simTwice}
	if s.seeds == 0 && s.forTime == 0 {
		w.Seeds = simSeeds
	}
	if s.forTime > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, s.forTime)
		defer cancel()
	}
	line := newProgress(s.err, !s.json)
	began := time.Now()
	run, bad := 0, 0
	var virtual time.Duration
	w.Done = func(r *sim.Result) {
		run++
		virtual += r.Time
		if r.Violation != nil {
			bad++
		}
		select {
		case <-line.tick():
			left := ""
			if w.Seeds > 0 {
				left = fmt.Sprintf(" of %d", w.Seeds)
			}
			line.show("%d%s seeds, %.1f simulated hours, %d broken", run, left, virtual.Hours(), bad)
		default:
		}
	}
	result := w.Run(ctx)
	line.clear()
	summary := &simreport.Swarm{
		First: s.seed, Seeds: result.Seeds, Steps: result.Steps, Simulated: result.Virtual, Took: time.Since(began), Doubles: result.Twice,
		Hash: fmt.Sprintf("%016x", result.Hash), Faults: result.Kinds, Reached: result.Reached,
	}
	for i := range 12 {
		name := fmt.Sprintf("P%d", i+1)
		summary.Promises = append(summary.Promises, history.Promise{Name: name, Checked: result.Checked[name]})
	}
	for _, r := range result.Bad {
		summary.Failures = append(summary.Failures, simreport.Failure{
			Seed: r.Plan.Seed, Violation: *r.Violation, Command: fmt.Sprintf("%s sim --seed %d%s", self(), r.Plan.Seed, s.generateFlags()),
		})
	}
	write := simreport.Summary
	if s.json {
		write = simreport.SummaryJSON
	}
	if err := write(s.out, summary); err != nil {
		return err
	}
	if len(result.Bad) == 0 {
		if ctx.Err() != nil && s.forTime == 0 {
			return context.Canceled
		}
		return nil
	}
	r := result.Bad[0]
	if !s.json {
		fmt.Fprintln(s.out)
	}
	return s.tell(ctx, r, 0, fmt.Sprintf("--seed %d%s", r.Plan.Seed, s.generateFlags()))
}

// scenarios runs the scenarios that were asked for.
func (s *simulation) scenarios(ctx context.Context) error {
	names := strings.Split(s.scenario, ",")
	if s.scenario == "all" {
		names = nil
		for _, info := range plan.Scenarios() {
			names = append(names, info.Name)
		}
	}
	var plans []*plan.Plan
	for _, name := range names {
		p, err := plan.Scenario(strings.TrimSpace(name))
		if err != nil {
			return usage("\"meshq sim --list\" lists them", "sim: %v", err)
		}
		plans = append(plans, p)
	}
	if len(plans) == 1 {
		return s.one(ctx, plans[0], "--scenario "+plans[0].Name)
	}
	var bad *sim.Result
	t := newTable(s.out, "SCENARIO", "VERDICT", "ENQUEUE GAP", "DELIVERY GAP", "FAILOVER", "AGAIN", "WHOLE AFTER", "WHAT HAPPENS")
	for _, p := range plans {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		r := s.scenarioRow(t, p)
		if (r.Violation != nil || len(r.Missing()) > 0) && bad == nil {
			bad = r
		}
	}
	if !s.json {
		if err := t.flush(); err != nil {
			return err
		}
	}
	if bad == nil {
		return nil
	}
	return s.tell(ctx, bad, 0, "--scenario "+bad.Plan.Name)
}

// scenarioRow runs a scenario and says what it measured.
func (s *simulation) scenarioRow(t *table, p *plan.Plan) *sim.Result {
	if s.hasSeed {
		p.Seed = s.seed
	}
	if s.hasLength {
		p.Length = plan.Duration(s.length)
	}
	r := sim.Run(p, sim.Options{Record: true})
	v := history.Check(r.History, sim.Rules(p))
	word := "pass"
	if r.Violation != nil {
		word = "BROKEN " + r.Violation.Promise
	} else if len(r.Missing()) > 0 {
		word = "NOT SEEN " + strings.Join(r.Missing(), " ")
	}
	f := &v.Figures
	if s.json {
		line, err := jsonLine(struct {
			Scenario  string             `json:"scenario"`
			Verdict   string             `json:"verdict"`
			Violation *history.Violation `json:"violation,omitempty"`
			Hash      string             `json:"hash"`
			Figures   *history.Figures   `json:"figures"`
		}{p.Name, word, r.Violation, fmt.Sprintf("%016x", r.Hash), f})
		if err == nil {
			_, _ = s.out.Write(line)
		}
		return r
	}
	again := 0
	for _, n := range f.Duplicates {
		again += n
	}
	t.row(p.Name, word, history.Short(f.ConfirmGap.Length()), history.Short(f.DeliveryGap.Length()), history.Short(f.Failover.Max), again,
		history.Short(f.Converge), scenarioTitle(p.Name))
	return r
}

func scenarioTitle(name string) string {
	for _, info := range plan.Scenarios() {
		if info.Name == name {
			return info.Title
		}
	}
	return ""
}

// printList lists what can be chosen.
func (s *simulation) printList() error {
	t := newTable(s.out, "SCENARIO", "WHERE", "WHAT HAPPENS", "WHAT MUST HOLD")
	for _, info := range plan.Scenarios() {
		t.row(info.Name, where(info.Where), info.Title, info.Holds)
	}
	if err := t.flush(); err != nil {
		return err
	}
	fmt.Fprintln(s.out)
	t = newTable(s.out, "FAULT", "WHERE", "WHAT IT DOES")
	for _, k := range plan.Kinds {
		t.row(k.Kind, where(k.Where), k.About)
	}
	return t.flush()
}

// where says in which commands something can be used.
func where(w int) string {
	switch w {
	case plan.InSim:
		return "sim"
	case plan.InReal:
		return "chaos"
	}
	return "sim chaos"
}
