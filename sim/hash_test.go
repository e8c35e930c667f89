package sim

import (
	"fmt"
	"testing"

	"github.com/meshq/meshq/sim/plan"
)

// traceHashes is a line for each of some seeds: the hash of all that happens.
func traceHashes() []string {
	var out []string
	for seed := uint64(1); seed <= 6; seed++ {
		r := Run(plan.Generate(seed, plan.GenerateOptions{}), Options{})
		out = append(out, fmt.Sprintf("seed %d: hash %016x after %d steps", seed, r.Hash, r.Steps))
	}
	return out
}

// TestTraceHashes prints them, so that two builds can be compared.
func TestTraceHashes(t *testing.T) {
	for _, line := range traceHashes() {
		fmt.Println(line)
	}
}
