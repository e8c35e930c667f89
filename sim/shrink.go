package sim

import "github.com/meshq/meshq/sim/plan"

// Shrinker makes the plan of r smaller as long as it breaks the same promise as r did.
// Tries, workers and progress are for the caller to set.
func Shrinker(r *Result, o Options) *plan.Shrinker {
	promise := r.Violation.Promise
	o.Record, o.Story, o.Trace = false, false, nil
	return &plan.Shrinker{Broken: func(p *plan.Plan) bool {
		v := Run(p, o).Violation
		return v != nil && v.Promise == promise
	}}
}
