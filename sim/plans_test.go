package sim

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/meshq/meshq/sim/plan"
)

// TestPlans runs the plans that once broke a promise. They are named after the promise and
// the bug; docs/testing.md lists them.
func TestPlans(t *testing.T) {
	paths, err := filepath.Glob("testdata/plans/*.json")
	if err != nil {
		t.Fatal(err)
	}
	if len(paths) == 0 {
		t.Fatal("no plans in testdata/plans")
	}
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".json"), func(t *testing.T) {
			t.Parallel()
			p, err := plan.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			for luck := range uint64(3) {
				q := *p
				q.Seed += luck
				if r := Run(&q, Options{}); r.Violation != nil {
					t.Errorf("with the luck of seed %d: %v", q.Seed, r.Violation)
				}
			}
		})
	}
}
