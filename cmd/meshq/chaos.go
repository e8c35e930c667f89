package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/meshq/meshq/sim/chaos"
	"github.com/meshq/meshq/sim/plan"
	simreport "github.com/meshq/meshq/sim/report"
)

// chaosSettings are the flags of "meshq chaos".
type chaosSettings struct {
	scenarios   []string
	plan        string
	random      bool
	seed        uint64
	duration    time.Duration
	nodes       int
	replicas    int
	writeQuorum int
	network     choice
	disks       choice
	data        string
	keep        bool
	report      string
	json        bool
	list        bool
	mesh        meshFlags // of --server: a mesh that runs already
}

func (a *app) chaosCommand() *cobra.Command {
	s := &chaosSettings{network: choice{"auto", []string{"auto", "switched", "loopback"}}, disks: choice{"auto", []string{"auto", "own", "plain"}}}
	cmd := &cobra.Command{
		Use:   "chaos [flags]",
		Short: "Run a mesh of real processes, hurt it, and check what it promised",
		Long: `Starts a mesh of real processes, has producers and consumers use it, brings faults
about (crashes, power cuts, partitions, full and damaged disks, ...), heals all, and
checks the promises P1..P12 by what the clients saw. Everything that it starts or
makes is gone afterwards, also after Ctrl-C.

As root on Linux each node has a network namespace behind a switch that delays,
loses and cuts, and a file system of its own, which can lose power; elsewhere the
faults that need those are skipped by name.

With --server it goes against a mesh that runs already. It then hurts only clients
and a queue of its own, which it creates under a new name and deletes at the end.
It never touches nodes, disks, networks or queues of others.

Exit code 0: all promises were kept; 1: one was broken, or the run was not possible;
2: wrong usage.`,
		Example: `  meshq chaos --list                              # the scenarios and the faults
  meshq chaos --scenario S05 --report s05.html    # a partition in halves
  meshq chaos --random --seed 7 --duration 10m    # all that is possible, in rounds
  meshq chaos --server 10.0.0.1:7700              # clients that misbehave, on your mesh`,
		Args: argCount(0, 0, ""),
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringSliceVar(&s.scenarios, "scenario", nil, "run scenarios by `name`, such as S05,S12, or \"all\" that can be run here")
	f.StringVar(&s.plan, "plan", "", "run the plan in a `file` (see docs/testing.md)")
	f.BoolVar(&s.random, "random", false, "run random plans, in rounds of half a minute on one mesh")
	f.Uint64Var(&s.seed, "seed", 0, "of random plans (default: another one each time, which is printed)")
	f.DurationVar(&s.duration, "duration", 2*time.Minute, "how long random plans, or clients on a running mesh, go on")
	f.IntVar(&s.nodes, "nodes", 4, "nodes of random plans, 3 to 9")
	f.IntVar(&s.replicas, "replicas", 3, "replicas of the queues of random plans")
	f.IntVar(&s.writeQuorum, "write-quorum", 0, "write quorum of the queues of random plans (default: the majority of the replicas)")
	f.Var(&s.network, "network", "switched: a namespace for each node (Linux, root); loopback: no faults of the network; auto: what is possible")
	f.Var(&s.disks, "disks", "own: a file system for each node (Linux, root); plain: no power cuts and full disks; auto: what is possible")
	f.StringVar(&s.data, "data", "", "`directory` in which that of the run is made (default: the system's for temporary files)")
	f.BoolVar(&s.keep, "keep", false, "keep the directory of the run, with data, logs and history")
	f.StringVar(&s.report, "report", "", "write a page with a picture of the run to a `file`; of several runs, of the first that broke a promise, else of the last")
	f.BoolVar(&s.json, "json", false, "print one JSON object for each run")
	f.BoolVar(&s.list, "list", false, "list the scenarios and the kinds of faults, and which are possible here")
	s.mesh.flags(cmd)
	if server := f.Lookup("server"); server != nil {
		server.Usage = "any nodes of a mesh that runs already (`host:port,...`): see above"
	}
	f.SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		if name == "servers" {
			name = "server"
		}
		return pflag.NormalizedName(name)
	})
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return a.chaos(cmd, s) }
	cmd.AddCommand(a.chaosClientCommand())
	return cmd
}

// chaosClientCommand is a client process of a run: see chaos.RunClient.
func (a *app) chaosClientCommand() *cobra.Command {
	m := &meshFlags{}
	cmd := &cobra.Command{Use: "client", Short: "One client of a run", Hidden: true, Args: argCount(0, 0, "")}
	m.flags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := m.load(a, cmd); err != nil {
			return err
		}
		opts, err := m.options()
		if err != nil {
			return err
		}
		return chaos.RunClient(cmd.Context(), a.in, a.out, opts...)
	}
	return cmd
}

// check finds what does not go together.
func (s *chaosSettings) check(cmd *cobra.Command) error {
	f := cmd.Flags()
	var modes []string
	for _, m := range []string{"scenario", "plan", "random", "server", "list"} {
		if f.Changed(m) {
			modes = append(modes, "--"+m)
		}
	}
	hint := `"meshq chaos --help" explains them`
	switch {
	case len(modes) == 0:
		return usage(`"meshq chaos --list" lists the scenarios; "meshq chaos --random" tries what it likes`, "chaos: what? one of --scenario, --plan, --random, --server, --list is wanted")
	case len(modes) > 1:
		return usage(hint, "chaos: %s do not go together", strings.Join(modes, " and "))
	}
	if f.Changed("scenario") && len(s.scenarios) == 0 || f.Changed("plan") && s.plan == "" {
		return usage(hint, "chaos: %s is empty", modes[0])
	}
	for flag, mode := range map[string]string{"nodes": "--random", "replicas": "--random", "write-quorum": "--random"} {
		if f.Changed(flag) && !slices.Contains(modes, mode) {
			return usage("scenarios and plans say this themselves", "chaos: --%s goes with %s", flag, mode)
		}
	}
	for _, flag := range []string{"seed", "duration"} {
		if f.Changed(flag) && !s.random && !f.Changed("server") {
			return usage("scenarios and plans say this themselves", "chaos: --%s goes with --random and --server", flag)
		}
	}
	for _, flag := range []string{"via-servers", "tls-cert", "tls-key", "tls-ca"} {
		if f.Changed(flag) && !f.Changed("server") {
			return usage("a mesh that this command starts uses no TLS", "chaos: --%s goes with --server", flag)
		}
	}
	switch {
	case s.nodes < 3 || s.nodes > 9:
		return usage("", "chaos: --nodes is %d, must be 3 to 9", s.nodes)
	case s.replicas < 1 || s.replicas > s.nodes:
		return usage("", "chaos: --replicas is %d, must be 1 to --nodes, which is %d", s.replicas, s.nodes)
	case s.writeQuorum < 0 || s.writeQuorum > s.replicas:
		return usage("", "chaos: --write-quorum is %d, must be 1 to --replicas, which is %d", s.writeQuorum, s.replicas)
	case s.duration < 10*time.Second:
		return usage("", "chaos: --duration is %v, must be at least 10s", s.duration)
	}
	return nil
}

// options are those of runs.
func (s *chaosSettings) options(a *app, shown *chaosProgress) (chaos.Options, error) {
	self, err := os.Executable()
	if err != nil {
		return chaos.Options{}, failed(fmt.Errorf("chaos: %w", err), "")
	}
	o := chaos.Options{Binary: self, Network: chaos.Network(s.network.value), Disks: s.disks.value == "own", Keep: s.keep, Dir: s.data, Say: shown.say, Status: shown.status}
	if s.network.value == "auto" {
		o.Network = chaos.Loopback
		if chaos.CanSwitch() == nil {
			o.Network = chaos.Switched
		}
	}
	if s.disks.value == "auto" {
		o.Disks = chaos.CanMount() == nil
	}
	return o, nil
}

// reserve finds out before a run whether its page can be written. discard removes what
// is still empty then.
func (s *chaosSettings) reserve() (discard func(), err error) {
	if s.report == "" {
		return func() {}, nil
	}
	f, err := os.OpenFile(s.report, os.O_CREATE|os.O_WRONLY, 0o666)
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		return nil, failed(fmt.Errorf("chaos: report: %w", err), "")
	}
	return func() {
		if info, err := os.Stat(s.report); err == nil && info.Mode().IsRegular() && info.Size() == 0 {
			_ = os.Remove(s.report)
		}
	}, nil
}

func (a *app) chaos(cmd *cobra.Command, s *chaosSettings) error {
	if err := s.check(cmd); err != nil {
		return err
	}
	shown := newChaosProgress(a.err, !s.json)
	defer shown.end()
	o, err := s.options(a, shown)
	if err != nil {
		return err
	}
	discard, err := s.reserve()
	if err != nil {
		return err
	}
	defer discard()
	r := &chaosRuns{app: a, settings: s, options: o, kinds: map[plan.Kind]bool{}}
	switch ctx := cmd.Context(); {
	case s.list:
		return r.list()
	case s.random:
		err = r.randomly(ctx)
	case cmd.Flags().Changed("server"):
		err = r.running(ctx, cmd)
	case s.plan != "":
		err = r.file(ctx)
	default:
		err = r.named(ctx)
	}
	shown.end()
	return errors.Join(err, r.conclude(cmd.Context(), err))
}

// chaosRuns are the runs of one command.
type chaosRuns struct {
	app      *app
	settings *chaosSettings
	options  chaos.Options
	commands string // that does it again
	broken   *chaos.Result
	last     *chaos.Result
	passed   int
	skipped  int
	failed   []string // names of those that broke a promise

	// Of all runs together.
	took      time.Duration
	faults    int
	kinds     map[plan.Kind]bool
	confirmed int
	delivered int
	acked     int
}

// take keeps what a report needs, and prints the result of one of several runs.
func (r *chaosRuns) take(result *chaos.Result) {
	name := result.Plan.Name
	if result.Skipped != "" {
		r.skipped++
		r.options.Say(fmt.Sprintf("%s  skipped: %s", name, result.Skipped))
		if r.settings.json {
			_ = r.app.printJSON(struct {
				Verdict string `json:"verdict"`
				Name    string `json:"name"`
				Reason  string `json:"reason"`
			}{"skipped", name, result.Skipped})
		}
		return
	}
	if result.Passed() {
		r.passed++
	} else {
		r.failed = append(r.failed, name)
		if r.broken == nil {
			r.broken = result
		}
	}
	r.took += result.Took
	for _, f := range result.Faults {
		if f.Skipped == "" && f.To > 0 {
			r.faults++
			r.kinds[f.Fault.Kind] = true
		}
	}
	r.confirmed += result.Verdict.Figures.Confirmed
	r.delivered += result.Verdict.Figures.Delivered
	r.acked += result.Verdict.Figures.Acked
	if r.last != nil && r.last != r.broken {
		r.last.History = nil // only the report of one run is written
	}
	r.last = result
	if r.settings.json {
		_ = simreport.JSON(r.app.out, r.reportOf(result))
	}
}

// reportOf is what package report takes.
func (r *chaosRuns) reportOf(result *chaos.Result) *simreport.Run {
	return &simreport.Run{
		Plan: result.Plan, Violation: result.Verdict.First(), Verdict: result.Verdict, History: result.History,
		Real: true, Command: r.commands, Commit: buildVersion(), Took: result.Took,
	}
}

// conclude prints the verdict, writes the page, and says which exit code it is.
func (r *chaosRuns) conclude(ctx context.Context, err error) error {
	result := r.broken
	if result == nil {
		result = r.last
	}
	if result == nil {
		if err == nil && r.skipped > 0 {
			return failed(errors.New("chaos: nothing could be run here"), `"meshq chaos --list" says what can`)
		}
		return nil
	}
	if !r.settings.json {
		r.print(result)
	}
	var errs []error
	if r.settings.report != "" {
		errs = append(errs, r.page(result))
	}
	if result.Leftover != nil {
		errs = append(errs, failed(fmt.Errorf("chaos: not all could be removed: %w", result.Leftover), `the next "meshq chaos" tries again`))
	}
	switch {
	case r.broken != nil:
		errs = append(errs, &failure{code: exitFailed})
	case ctx.Err() != nil:
		errs = append(errs, failed(errors.New("chaos: interrupted: what was seen until then is above"), ""))
	}
	return errors.Join(errs...)
}

// print writes the verdict for people.
func (r *chaosRuns) print(result *chaos.Result) {
	out := r.app.out
	if result.Stopped && result.Passed() {
		fmt.Fprintf(out, "STOPPED %s: no promise was broken until %v; whether all arrives was not seen\n", result.Plan.Name, result.Took.Round(time.Second))
	}
	if n := r.passed + len(r.failed); n+r.skipped > 1 {
		fmt.Fprintf(out, "%s: %d passed, %d broken, %d skipped", map[bool]string{true: "PASS", false: "BROKEN"}[len(r.failed) == 0], r.passed, len(r.failed), r.skipped)
		if len(r.failed) > 0 {
			fmt.Fprintf(out, ": %s", strings.Join(r.failed, ", "))
		}
		fmt.Fprintf(out, "\nin all: %v, %s of %s; %s confirmed, %d delivered, %d acked\n\n", r.took.Round(time.Second), plural(r.faults, "fault"),
			plural(len(r.kinds), "kind"), plural(r.confirmed, "message"), r.delivered, r.acked)
	}
	_ = simreport.Text(out, r.reportOf(result))
	for i, v := range result.Verdict.Violations {
		if i > 0 && i < 10 {
			fmt.Fprintf(out, "also     %s: %s\n", v.Promise, v.Text)
		}
	}
	if n := len(result.Verdict.Violations); n > 10 {
		fmt.Fprintf(out, "also     %d more\n", n-10)
	}
	if skipped := skippedFaults(result); skipped != "" {
		fmt.Fprintf(out, "skipped  %s\n", skipped)
	}
	for _, u := range result.Usage {
		fmt.Fprintf(out, "%-8s memory %d MiB at first, %d at most, %d at last; disk %d MiB at most, %d at last\n",
			u.Node, u.MemoryFirst>>20, u.MemoryMost>>20, u.MemoryLast>>20, u.DiskMost>>20, u.DiskEnd>>20)
	}
	if result.Dir != "" {
		fmt.Fprintf(out, "kept     %s\n", result.Dir)
	}
}

// skippedFaults names the kinds of faults that were not brought about, and why.
func skippedFaults(result *chaos.Result) string {
	var lines []string
	for _, f := range result.Faults {
		if f.Skipped == "" {
			continue
		}
		if line := fmt.Sprintf("%s (%s)", f.Fault.Kind, f.Skipped); !slices.Contains(lines, line) {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "; ")
}

// page writes the report for a browser.
func (r *chaosRuns) page(result *chaos.Result) error {
	f, err := os.Create(r.settings.report)
	if err == nil {
		err = errors.Join(simreport.HTML(f, r.reportOf(result)), f.Close())
	}
	if err != nil {
		return failed(fmt.Errorf("chaos: report: %w", err), "")
	}
	if !r.settings.json {
		fmt.Fprintf(r.app.out, "report   %s\n", r.settings.report)
	}
	return nil
}

// file runs the plan of a file.
func (r *chaosRuns) file(ctx context.Context) error {
	p, err := plan.ReadFile(r.settings.plan)
	if err != nil {
		return usage("docs/testing.md explains the fields of a plan", "chaos: plan %w", err)
	}
	r.commands = fmt.Sprintf("%s chaos --plan %s", self(), r.settings.plan)
	return r.one(ctx, p)
}

func (r *chaosRuns) one(ctx context.Context, p *plan.Plan) error {
	result, err := chaos.Run(ctx, p, r.options)
	if err != nil {
		return r.explain(err)
	}
	r.take(result)
	return nil
}

// named runs scenarios.
func (r *chaosRuns) named(ctx context.Context) error {
	names := r.settings.scenarios
	if len(names) == 1 && names[0] == "all" {
		names = nil
		for _, s := range plan.Scenarios() {
			names = append(names, s.Name)
		}
	}
	plans := make([]*plan.Plan, len(names))
	for i, name := range names {
		var err error
		if plans[i], err = plan.Scenario(name); err != nil {
			return usage(`"meshq chaos --list" lists the scenarios`, "chaos: %w", err)
		}
	}
	for _, p := range plans {
		r.commands = fmt.Sprintf("%s chaos --scenario %s", self(), p.Name)
		r.options.Say(fmt.Sprintf("%s  %s", p.Name, p.About))
		if err := r.one(ctx, p); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return nil
		}
	}
	return nil
}

// list prints the scenarios.
func (r *chaosRuns) list() error {
	t := newTable(r.app.out, "SCENARIO", "HERE", "TITLE", "PROMISES")
	for _, info := range plan.Scenarios() {
		p, err := plan.Scenario(info.Name)
		if err != nil {
			return failed(err, "")
		}
		here, why := "yes", chaos.Impossible(p, r.options)
		if why != "" {
			here = "no"
		}
		if r.settings.json {
			if err := r.app.printJSON(struct {
				Name   string `json:"name"`
				Title  string `json:"title"`
				About  string `json:"about"`
				Holds  string `json:"holds"`
				Here   bool   `json:"here"`
				Reason string `json:"reason,omitempty"`
			}{p.Name, info.Title, p.About, info.Holds, why == "", why}); err != nil {
				return err
			}
			continue
		}
		t.row(p.Name, here, info.Title, info.Holds)
	}
	if !r.settings.json {
		if err := t.flush(); err != nil {
			return err
		}
	}
	return r.listFaults()
}

// listFaults prints the kinds of faults of real processes.
func (r *chaosRuns) listFaults() error {
	t := newTable(r.app.out, "FAULT", "HERE", "WHAT IT DOES")
	all, possible := 0, 0
	for _, k := range plan.Kinds {
		if k.Where&plan.InReal == 0 {
			continue
		}
		all++
		here, why := "yes", ""
		if err := r.options.Can(k.Kind); err != nil {
			here, why = "no", strings.TrimPrefix(err.Error(), string(k.Kind)+": ")
		} else {
			possible++
		}
		if r.settings.json {
			if err := r.app.printJSON(struct {
				Fault  plan.Kind `json:"fault"`
				About  string    `json:"about"`
				Here   bool      `json:"here"`
				Reason string    `json:"reason,omitempty"`
			}{k.Kind, k.About, why == "", why}); err != nil {
				return err
			}
			continue
		}
		t.row(k.Kind, here, k.About)
	}
	if r.settings.json {
		return nil
	}
	fmt.Fprintln(r.app.out)
	if err := t.flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(r.app.out, "\n%d kinds of faults on real processes, %d of them possible here\n", all, possible)
	return err
}

// randomly runs random plans.
func (r *chaosRuns) randomly(ctx context.Context) error {
	s := r.settings
	if s.seed == 0 {
		s.seed = 1 + rand.Uint64N(1<<32)
	}
	r.commands = fmt.Sprintf("%s chaos --random --seed %d --duration %v --nodes %d", self(), s.seed, s.duration, s.nodes)
	r.options.Say(fmt.Sprintf("seed %d", s.seed))
	shape := chaos.Shape{Nodes: s.nodes, Replicas: s.replicas, WriteQuorum: s.writeQuorum}
	return r.explain(chaos.RunRandom(ctx, s.seed, s.duration, shape, r.options, r.take))
}

// running goes against a mesh that runs already.
func (r *chaosRuns) running(ctx context.Context, cmd *cobra.Command) error {
	s := r.settings
	if err := s.mesh.load(r.app, cmd); err != nil {
		return err
	}
	opts, err := s.mesh.options()
	if err != nil {
		return failed(err, "")
	}
	if s.seed == 0 {
		s.seed = 1 + rand.Uint64N(1<<32)
	}
	cmd.Flags().Visit(func(f *pflag.Flag) {
		if f.Name == "via-servers" || strings.HasPrefix(f.Name, "tls-") {
			r.options.ClientArgs = append(r.options.ClientArgs, "--"+f.Name+"="+f.Value.String())
		}
	})
	servers := strings.Join(s.mesh.servers, ",")
	r.commands = fmt.Sprintf("%s chaos --server %s --seed %d --duration %v", self(), servers, s.seed, s.duration)
	result, err := chaos.RunOn(ctx, servers, s.seed, s.duration, r.options, opts...)
	if err != nil {
		return r.app.explain("chaos", "", &s.mesh, err)
	}
	r.take(result)
	return nil
}

// explain makes a failure of an error that is not about promises.
func (r *chaosRuns) explain(err error) error {
	var missing *chaos.MissingError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &missing):
		return failed(fmt.Errorf("chaos: %w", err), missing.Hint)
	case errors.Is(err, chaos.ErrNoDir):
		return failed(fmt.Errorf("chaos: %w", bare(err, "chaos")), "--data names the directory in which those of runs are made")
	case errors.Is(err, context.Canceled):
		return failed(errors.New("chaos: interrupted before there was anything to see"), "")
	}
	return failed(fmt.Errorf("chaos: %w", bare(err, "chaos")), "")
}

// chaosProgress shows what happens: a line for each event and, on a terminal, a line
// below that says how far it is.
type chaosProgress struct {
	mu    sync.Mutex // protects the fields below, and orders the lines
	w     io.Writer
	lines bool
	line  *progress
	ended bool
}

func newChaosProgress(w io.Writer, lines bool) *chaosProgress {
	return &chaosProgress{w: w, lines: lines, line: newProgress(w, true)}
}

func (p *chaosProgress) say(line string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.lines || p.ended {
		return
	}
	p.line.clear()
	fmt.Fprintln(p.w, line)
}

func (p *chaosProgress) status(line string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.ended {
		p.line.show("%s", line)
	}
}

func (p *chaosProgress) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.ended {
		p.ended = true
		p.line.clear()
	}
}
