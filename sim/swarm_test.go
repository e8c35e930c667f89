package sim

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/meshq/meshq/sim/plan"
)

var (
	swarmSeeds   = flag.Int("swarm.seeds", 200, "seeds that TestSwarm runs; 20 with -short")
	swarmFirst   = flag.Uint64("swarm.first", 1, "first seed")
	swarmSeed    = flag.Uint64("swarm.seed", 0, "the only seed to run; 0: all")
	swarmTime    = flag.Duration("swarm.time", 0, "run seeds for that long instead of a number of them")
	swarmTrace   = flag.Bool("swarm.trace", false, "print the whole trace of a seed that fails, or of -swarm.seed")
	swarmTwice   = flag.Int("swarm.twice", 20, "one seed in so many is run twice; the traces must be the same")
	swarmKeep    = flag.Bool("swarm.keep", false, "go on after a seed that failed")
	swarmReach   = flag.Bool("swarm.situations", false, "fail if no seed comes across one of the situations; also with 500 seeds or more")
	swarmClients = flag.String("swarm.clients", "", "raw, library or mixed; empty: each seed draws one")
	swarmStats   = flag.Bool("swarm.stats", false, "print a line for each seed")
)

// directedOnly are situations that scenarios bring about, and random plans do not.
var directedOnly = []string{"twin-fenced"}

// kindsOf are the kinds of faults of a plan, for people.
func kindsOf(p *plan.Plan) string {
	var out []string
	for i := range p.Faults {
		out = append(out, string(p.Faults[i].Kind))
	}
	slices.Sort(out)
	if out == nil {
		return "none"
	}
	return strings.Join(slices.Compact(out), " ")
}

// TestSwarm runs seeds: random meshes under random faults. What fails prints its
// seed, the broken promise, and the life of the guilty message.
func TestSwarm(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(400))
	if *swarmSeed != 0 {
		var o Options
		if *swarmTrace {
			o.Trace = func(line string) { fmt.Println(line) }
		}
		r := Run(plan.Generate(*swarmSeed, plan.GenerateOptions{Clients: plan.Clients(*swarmClients)}), o)
		t.Logf("seed %d: faults: %s; %d skipped; %d steps, %+v, hash %016x", *swarmSeed, kindsOf(r.Plan), len(r.Skipped), r.Steps, r.Stats, r.Hash)
		report(t, r)
		return
	}
	s := &Swarm{First: *swarmFirst, Seeds: *swarmSeeds, Twice: *swarmTwice, KeepGoing: *swarmKeep, Generate: plan.GenerateOptions{Clients: plan.Clients(*swarmClients)}}
	if testing.Short() {
		s.Seeds = min(s.Seeds, 20)
	}
	ctx := t.Context()
	if *swarmTime > 0 {
		s.Seeds = 0
		var cancel func()
		ctx, cancel = context.WithTimeout(ctx, *swarmTime)
		defer cancel()
	}
	bad := map[string][]uint64{}
	s.Done = func(r *Result) {
		if *swarmStats {
			fmt.Fprintf(os.Stderr, "seed %d: %d steps, %d ms, %+v, faults: %s, %v\n", r.Plan.Seed, r.Steps, r.Time.Milliseconds(), r.Stats, kindsOf(r.Plan), r.Violation)
		}
		if v := r.Violation; v != nil {
			bad[v.Promise] = append(bad[v.Promise], r.Plan.Seed)
			if *swarmKeep {
				t.Errorf("seed %d (faults: %s), %s at %d ms: %v", r.Plan.Seed, kindsOf(r.Plan), r.Phase, v.At.Milliseconds(), v)
			}
		}
	}
	start := time.Now()
	out := s.Run(ctx)
	if len(out.Bad) > 0 && !*swarmKeep {
		report(t, out.Bad[0])
	}
	if *swarmReach || out.Seeds >= 500 {
		for _, s := range Situations {
			if out.Reached[s.Name] == 0 && !slices.Contains(directedOnly, s.Name) {
				t.Errorf("in %d seeds there was never %q: %s", out.Seeds, s.Name, s.About)
			}
		}
		t.Logf("seeds that came across: %v", out.Reached)
	}
	took := time.Since(start).Seconds()
	t.Logf("%d seeds, %d of them twice, %.1f hours simulated, %.1f seeds/s, %.0f steps/s; bad: %v",
		out.Seeds, out.Twice, out.Virtual.Hours(), float64(out.Seeds)/took, float64(out.Steps)/took, bad)
}

// report runs a failed plan again with its trace, and prints what concerns the guilty
// message.
func report(t *testing.T, r *Result) {
	t.Helper()
	if r.Violation == nil {
		return
	}
	var lines []string
	again := Run(r.Plan, Options{Trace: func(line string) { lines = append(lines, line) }})
	if again.Violation == nil || again.Violation.Text != r.Violation.Text {
		t.Errorf("seed %d is not deterministic: first %v, then %v", r.Plan.Seed, r.Violation, again.Violation)
	}
	t.Errorf("seed %d (faults: %s), %s at %d ms: broken: %v", r.Plan.Seed, kindsOf(r.Plan), r.Phase, r.Violation.At.Milliseconds(), r.Violation)
	if *swarmTrace {
		return
	}
	v := r.Violation
	partition, about := "", "the run"
	for m, x := range r.world.check.messages {
		if r.world.check.messageOf(m) == v.Message {
			partition, about = r.world.names.partition(x.partition), r.world.check.about(m)
		}
	}
	var life []string
	for _, l := range lines {
		switch {
		case about != "the run" && mentions(l, v.Message.Producer, v.Message.Number):
		case strings.Contains(l, " -- "), strings.Contains(l, " crash"), strings.Contains(l, " boot "), strings.Contains(l, "BROKEN"), strings.Contains(l, " stop:"):
		case partition != "" && strings.Contains(l, partition) && (strings.Contains(l, " note ") || strings.Contains(l, "owner ") || strings.Contains(l, "claim ")):
		default:
			continue
		}
		life = append(life, l)
	}
	if n := len(life); n > 400 {
		life = append(append(slices.Clone(life[:100]), "..."), life[n-300:]...)
	}
	t.Logf("the life of %s:\n%s", about, strings.Join(life, "\n"))
}

// TestDeterminismAcrossProcesses runs seeds in processes with one and with four
// processors: the hashes are equal.
func TestDeterminismAcrossProcesses(t *testing.T) {
	s := Swarm{First: 1, Seeds: 8, KeepGoing: true, Generate: plan.GenerateOptions{Clients: plan.ClientsDrawn}}
	if testing.Short() {
		s.Seeds = 3
	}
	if os.Getenv("MESHQ_SIM_CHILD") != "" {
		fmt.Printf("hash %016x\n", s.Run(t.Context()).Hash)
		return
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var hashes []string
	for _, procs := range []string{"1", "4"} {
		child := exec.CommandContext(t.Context(), self, "-test.run=^TestDeterminismAcrossProcesses$", fmt.Sprintf("-test.short=%t", testing.Short()))
		child.Env = append(os.Environ(), "MESHQ_SIM_CHILD=1", "GOMAXPROCS="+procs)
		out, err := child.CombinedOutput()
		if err != nil {
			t.Fatalf("GOMAXPROCS=%s: %v\n%s", procs, err, out)
		}
		hash, _, _ := strings.Cut(string(out), "\n")
		hashes = append(hashes, hash)
	}
	if hashes[0] != hashes[1] || !strings.HasPrefix(hashes[0], "hash ") {
		t.Errorf("%d seeds with one processor: %s, with four: %s", s.Seeds, hashes[0], hashes[1])
	}
}

// TestDeterminism runs some seeds twice: the hashes of all that happened are equal.
func TestDeterminism(t *testing.T) {
	for seed := uint64(1); seed <= 6; seed++ {
		p := plan.Generate(seed, plan.GenerateOptions{})
		first := Run(p, Options{})
		second := Run(p, Options{Record: true, Story: true, Trace: func(string) {}}) // what is kept changes nothing
		if first.Hash != second.Hash {
			t.Errorf("seed %d: %016x, then %016x", seed, first.Hash, second.Hash)
		}
	}
}
