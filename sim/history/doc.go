// Package history is what happened in a run, as its clients and nodes tell it, and the
// promises P1..P12 of the design as checks of it. Simulations and real processes are
// checked by the same code. It runs nothing.
//
// Open history.go first, then check.go.
package history
