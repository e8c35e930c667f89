// Package core is the protocol of meshq as a deterministic state machine: events
// in, effects out.
package core
