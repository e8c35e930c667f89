package chaos

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/meshq/meshq/sim/history"
	"github.com/meshq/meshq/sim/plan"
)

const second = plan.Duration(time.Second)

// small is a mesh of three, a queue, two producers and two consumers.
func small(length plan.Duration, faults ...plan.Fault) *plan.Plan {
	return &plan.Plan{
		Version: plan.Version, Name: "small", Seed: 1, Length: length, Faults: faults,
		Mesh:      plan.Mesh{Nodes: []plan.Node{{Name: "a"}, {Name: "b"}, {Name: "c"}}},
		Queues:    []plan.Queue{{Name: "q", Partitions: 2, Lease: 2 * second, BackoffMin: second / 20, BackoffMax: second / 2}},
		Producers: []plan.Producer{{Name: "p1", Queue: "q", Think: second / 20}, {Name: "p2", Queue: "q", Think: second / 20, Keys: 3}},
		Consumers: []plan.Consumer{{Name: "c1", Queue: "q", Hold: second / 50}, {Name: "c2", Queue: "q", Hold: second / 50, Nack: 0.05}},
	}
}

// All faults that need nothing but processes, on loopback.
func TestRun(t *testing.T) {
	if testing.Short() {
		t.Skip("not with -short: starts a mesh of processes")
	}
	p := small(9*second,
		plan.Fault{Kind: plan.Burst, At: second / 2, For: second, On: []string{"p1"}, Count: 4},
		plan.Fault{Kind: plan.Crash, At: second, For: second, On: []string{"b"}},
		plan.Fault{Kind: plan.NackStorm, At: second, For: second / 2, On: []string{"c1"}},
		plan.Fault{Kind: plan.DeleteQueue, At: second, For: 4 * second},
		plan.Fault{Kind: plan.UpdateQueue, At: second, For: 5 * second, On: []string{"p1"}, By: second / 5},
		plan.Fault{Kind: plan.PauseQueue, At: 2 * second, For: second, On: []string{"c1"}},
		plan.Fault{Kind: plan.PauseQueue, At: 7 * second, For: 3 * second / 2, By: second, On: []string{"c2"}, Count: 1},
		plan.Fault{Kind: plan.ProducerCrash, At: 2 * second, For: second / 2, On: []string{"p2"}},
		plan.Fault{Kind: plan.ConsumerCrash, At: 3 * second, For: second / 2, On: []string{"c2"}},
		plan.Fault{Kind: plan.Pause, At: 4 * second, For: second, On: []string{"a"}},
		plan.Fault{Kind: plan.Poison, At: 5 * second, For: second, On: []string{"c1"}, Count: 1},
		plan.Fault{Kind: plan.Cut, At: 5 * second, For: second, On: []string{"a"}, To: []string{"b"}},
		plan.Fault{Kind: plan.Restart, At: 6 * second, For: second / 2, On: []string{"c"}},
		plan.Fault{Kind: plan.Join, At: 6 * second, Count: 1},
	)
	var said saying
	r, err := Run(context.Background(), p, Options{Binary: meshqBinary(t), Dir: t.TempDir(), Say: said.say})
	if err != nil {
		t.Fatal(err)
	}
	if r.Leftover != nil {
		t.Errorf("left: %v", r.Leftover)
	}
	if !r.Passed() {
		t.Errorf("broken: %+v", r.Verdict.Violations)
	}
	defer func() {
		if t.Failed() {
			t.Log(said.String())
		}
	}()
	for i, f := range r.Faults {
		if skipped := f.Skipped != ""; skipped != (p.Faults[i].Kind == plan.Cut) {
			t.Errorf("%v: skipped %q", f.Fault, f.Skipped)
		}
	}
	counts := map[history.Kind]int{}
	lives := map[string]bool{}
	for _, e := range r.History.Events {
		counts[e.Kind]++
		if e.Kind == history.Sent {
			lives[e.Message.Producer] = true
		}
	}
	for kind, least := range map[history.Kind]int{
		history.Confirmed: 100, history.Acked: 100, history.Nacked: 5, history.NodeDown: 2, history.NodeUp: 2, history.ClientDown: 3,
		history.FaultBegin: 10, history.FaultEnd: 10, history.Healed: 1, history.Drained: 1, history.State: 6, history.Sample: 10, history.Purged: 1,
	} {
		if counts[kind] < least {
			t.Errorf("%d events of kind %s, want %d or more", counts[kind], kind, least)
		}
	}
	if !lives["p2"] || !lives["p2.2"] {
		t.Errorf("a producer that was killed is another one then: %v", lives)
	}
	if len(r.Usage) != 4 || r.Usage[0].MemoryMost == 0 || r.Usage[0].DiskMost == 0 {
		t.Errorf("usage: %+v", r.Usage)
	}
}

// When it is told to stop it does so, says what it saw, and leaves nothing.
func TestRunStops(t *testing.T) {
	if testing.Short() {
		t.Skip("not with -short: starts a mesh of processes")
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	p := small(plan.Duration(time.Hour), plan.Fault{Kind: plan.Pause, At: second / 10, On: []string{"b"}})
	r, err := Run(ctx, p, Options{Binary: meshqBinary(t), Dir: t.TempDir(), Say: func(line string) {
		if strings.Contains(line, "pause b") {
			stop()
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	if !r.Stopped || r.Leftover != nil || r.Took > time.Minute {
		t.Errorf("stopped %v after %v, left %v", r.Stopped, r.Took, r.Leftover)
	}
	if !r.Passed() {
		t.Errorf("broken: %+v", r.Verdict.Violations)
	}
}

// saying keeps what was said.
type saying struct {
	mu    sync.Mutex // protects lines
	lines []string
}

func (s *saying) say(line string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lines = append(s.lines, time.Now().Format(time.TimeOnly)+" "+line)
}

func (s *saying) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.lines, "\n")
}
