package chaos

import (
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/meshq/meshq/sim/plan"
)

// Random plans are right, the same for the same seed, within the promises, and have all
// kinds of faults that real processes can have.
func TestRoundsAreWithinThePromises(t *testing.T) {
	seen := map[plan.Kind]bool{}
	for seed := range uint64(400) {
		r := round{seed: seed, number: 1 + int(seed%5), nodes: []string{"n1", "n2", "n3", "n4"}, last: seed%3 == 0}
		p := r.draw()
		if err := p.Validate(); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if !reflect.DeepEqual(p, r.draw()) {
			t.Fatalf("seed %d: another plan the second time", seed)
		}
		losses := 0
		alone := ""
		for _, f := range p.Faults {
			seen[f.Kind] = true
			if slices.Contains(hurting, f.Kind) {
				losses++
			}
			if f.Kind == plan.Wipe && !r.last {
				t.Errorf("seed %d: a disk is lost for good, and another round follows", seed)
			}
			if f.Kind == plan.Wipe || f.Kind == plan.Rollback {
				alone = f.On[0]
			}
			if time.Duration(f.At) > roundLength-calmAtEnd {
				t.Errorf("seed %d: %v at %v", seed, f, f.At)
			}
		}
		if losses > 1 {
			t.Errorf("seed %d: %d disks lose something", seed, losses)
		}
		for _, f := range p.Faults {
			if f.Kind == plan.Crash && slices.Contains(f.On, alone) {
				t.Errorf("seed %d: %s is set back and crashes too", seed, alone)
			}
		}
	}
	for _, k := range plan.Kinds {
		if k.Where&plan.InReal != 0 && !seen[k.Kind] {
			t.Errorf("no plan of 400 has a %s", k.Kind)
		}
	}
}

// The plan for a mesh that runs already has faults of clients alone, and its queue has
// the name that it was given.
func TestPlanOnRunning(t *testing.T) {
	for seed := range uint64(50) {
		p := onRunning(seed, 5*time.Minute, "chaos-1", 3)
		if err := p.Validate(); err != nil {
			t.Fatal(err)
		}
		if len(p.Faults) < 20 || len(p.Queues) != 1 || p.Queues[0].Name != "chaos-1" {
			t.Errorf("seed %d: %d faults, queues %v", seed, len(p.Faults), p.Queues)
		}
		for _, f := range p.Faults {
			if !slices.Contains(ofClients, f.Kind) {
				t.Errorf("seed %d: %v", seed, f)
			}
		}
	}
}
