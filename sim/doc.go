// Package sim is the deterministic simulator: it runs the cores of nodes and clients
// under virtual time, with a network, disks, clocks and gossip that misbehave as the
// real ones were measured to do, and checks the promises P1..P12 of the design after
// each step and at rest.
//
// A [plan.Plan] says all that happens: the mesh, its load, its faults. A seed makes a
// plan ([Generate]); a plan always runs the same way ([Run]). Every coin of the world is
// a hash of the seed, a stream and what it is about, so a fault that is taken out of a
// plan does not change the luck of the others.
//
// Open world.go first (time, hosts), then network.go, disk.go, gossip.go (what the
// cores see of the world), nemesis.go (the faults), check.go (the promises).
package sim
