package chaos

import (
	"strings"
	"testing"

	"github.com/meshq/meshq/sim/plan"
)

func TestEachKindHasADeed(t *testing.T) {
	for _, k := range plan.Kinds {
		if real, done := k.Where&plan.InReal != 0, deeds[k.Kind] != nil; real != done {
			t.Errorf("%s: on real processes %v, a deed %v", k.Kind, real, done)
		}
	}
}

// A scenario that would not be itself is left out as a whole, and says why; of other
// plans what is possible is done.
func TestImpossible(t *testing.T) {
	loopback, all := Options{Network: Loopback}, Options{Network: Switched, Disks: true}
	scenario := func(name string) *plan.Plan {
		p, err := plan.Scenario(name)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	other := func(kinds ...plan.Kind) *plan.Plan {
		p := &plan.Plan{Name: "other"}
		for _, k := range kinds {
			p.Faults = append(p.Faults, plan.Fault{Kind: k})
		}
		return p
	}
	for _, c := range []struct {
		name string
		plan *plan.Plan
		o    Options
		want string // a part of the reason; "": possible
	}{
		{"calm", scenario("S00"), loopback, ""},
		{"kills", scenario("S01"), loopback, ""},
		{"split on loopback", scenario("S05"), loopback, "--network switched"},
		{"split", scenario("S05"), all, ""},
		{"power cut without disks", scenario("S12"), Options{Network: Switched}, "--disks own"},
		{"power cut", scenario("S12"), all, ""},
		{"clocks", scenario("S31"), all, "clock"},
		{"a plan of which a part is possible", other(plan.Crash, plan.Cut), loopback, ""},
		{"a plan of which nothing is possible", other(plan.Cut, plan.Loss), loopback, "on loopback"},
		{"a plan for the simulator", other(plan.WallJump), all, "only the simulator"},
	} {
		got := Impossible(c.plan, c.o)
		if (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}
