// Package core is what the client of a mesh decides, as a deterministic state machine:
// events in, effects out. It reads no clock, starts no goroutine and does no I/O, so
// that the simulator can run thousands of clients and replay a seed.
//
// It knows nothing of connections beyond "up" and "down", of handlers, or of how a
// node works beyond the messages of transport/wire.
//
// Its nouns: a link is an address and the one connection to it; a partition has this
// client's producer with one batch under way; a consumer holds handouts, each a run of
// messages that a node delivered; a settlement is what became of some of them, on its
// way to the owner; an ask is a request that may be repeated anywhere.
//
// Order: the batches of a partition go out one at a time, so what a producer sends
// there keeps its order (P5). Messages are given to Receives in the order of arrival.
//
// Open core.go first, then send.go (routing, retries), consume.go (demand, leases,
// resume) and settle.go.
package core
