package plan

import (
	"slices"
	"testing"
	"time"
)

// TestGenerateTurns counts the plans that have what single faults seldom bring about.
func TestGenerateTurns(t *testing.T) {
	const seeds = 2000
	lasting, turned := 0, map[string]int{}
	for seed := range uint64(seeds) {
		p := Generate(seed, GenerateOptions{})
		if err := p.Validate(); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		long := func(f Fault) bool {
			return f.Kind != DeleteQueue && f.Kind != UpdateQueue && f.Kind != PauseQueue && f.For > Duration(8*time.Second) && f.At < p.Length/2
		}
		if slices.ContainsFunc(p.Faults, long) {
			lasting++
		}
		for i, f := range p.Faults {
			for _, then := range p.Faults[i+1:] {
				if then.At > f.At+f.For {
					continue
				}
				switch {
				case f.Kind == Split && then.Kind == Join:
					turned["join"]++
				case f.Kind == Split && then.Kind == Wipe && then.For == 0 && !slices.Contains(f.On, then.On[0]):
					turned["wipe"]++
				case f.Kind == Crash && then.Kind == StaleRevive && slices.Equal(then.To, f.On) && f.For > Duration(8*time.Second):
					turned["revive"]++
				}
			}
		}
	}
	t.Logf("of %d plans %d have a fault that lasts; in turn: %v", seeds, lasting, turned)
	if lasting < seeds/8 {
		t.Errorf("%d of %d plans have a fault that lasts", lasting, seeds)
	}
	for what, least := range map[string]int{"join": seeds / 40, "wipe": seeds / 80, "revive": seeds / 40} {
		if turned[what] < least {
			t.Errorf("%s: %d of %d plans, want %d", what, turned[what], seeds, least)
		}
	}
}
