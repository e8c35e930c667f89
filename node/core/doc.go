// Package core is the protocol of meshq as a deterministic state machine: events in,
// effects out. It has no goroutine, no clock, no randomness and no I/O, and never
// depends on map order: equal events give equal effects, so that a simulation can
// replay a seed. The node runs it; so do its tests, by the thousand under virtual time.
//
// It knows nothing of connections, disks, gossip or HTTP. It is told of them by events
// (event.go) and acts by effects (effect.go).
//
// The nouns:
//
//   - partition: what this node keeps of one partition: lanes, ack sets, hints, the
//     term it has promised and the grant that it has given.
//   - write: a batch on its way to W nodes (enqueue.go).
//   - ownership: this node's claim to a partition, or its hold on it (ownership.go).
//   - feed: what an owner hands out to one group (delivery.go), with the deliveries in
//     flight and the retries that wait (retry.go).
//   - rings and catalog: what all members agree on (rings.go, catalog.go).
//
// Ordering rules:
//
//   - A promise of durability follows Persisted, never the step that persists. Commits
//     complete in the order of their Persist effects.
//   - Frames to a peer arrive in order, or the peer goes down.
//   - Only Tick acts on time: after a stall, what has arrived is taken in first.
//   - An ack is marked in memory before it is written or sent.
//   - What was sent or handed to the store is never changed: sets are cloned.
//
// Open core.go first (Step), then partition.go, enqueue.go, ownership.go, delivery.go,
// settle.go; sync.go, hint.go and handover.go are the rest of replication.
package core
