// Package node is a member of a mesh: the shell around node/core. The core is the
// protocol, events in and effects out; this package brings it events from connections,
// disk, gossip and clock, and executes its effects. Nothing of the protocol is decided
// here.
//
// Its nouns:
//
//   - Node: one process's share of a mesh, with one data directory (node.go: Start, the
//     order in which things stop).
//   - loop: the one goroutine that owns the core (loop.go). What waits for it is in the
//     inbox, which is bounded; connection readers wait when it is full (inbox.go).
//   - inbound: a connection that others opened; the door decides who may (inbound.go).
//   - peer: a connection that this node holds to another (peers.go), one for each node
//     that the core names, and the seeds of Config.Join.
//   - gossip: who seems to be alive, and where (gossip.go). It decides nothing.
//
// Order: the effects of a step are executed in their order, before the next step.
// Persisted events come in the order of Persist effects. Frames to a peer arrive in
// order until PeerDown: after a frame is lost nothing is sent before that.
//
// Everything stops in the reverse order of its start: the loop outlives all that bring
// it events, and the store outlives the loop.
package node
