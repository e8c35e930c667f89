// Package plan says what happens in a run, in a simulation or among real processes: a
// mesh, its load, its faults. It knows how to read, check and write plans, which kinds of
// faults there are, the scenarios S00..S56, how a seed becomes a plan, and how to make a
// plan smaller. It runs nothing.
//
// Open plan.go first, then kind.go.
package plan
