package chaos

import (
	"fmt"
	"time"

	"github.com/meshq/meshq/sim/plan"
)

// Network is what connects the nodes and clients of a mesh.
type Network string

const (
	// Loopback: all share 127.0.0.1, each node with ports of its own. Works everywhere
	// and without privileges; nothing can go wrong with it.
	Loopback Network = "loopback"
	// Switched: a network namespace and an address for each node and each client, with
	// one switch in this process between them. Linux, as root.
	Switched Network = "switched"
)

// Traffic is a set of packets by what they carry.
type Traffic uint8

const (
	Streams       Traffic = 1 << iota // TCP of clients and nodes on mesh and HTTP ports
	GossipStreams                     // TCP of the gossip port
	Datagrams                         // UDP, all of it gossip; and whatever is neither
	Gossip        = GossipStreams | Datagrams
	TCP           = Streams | GossipStreams
	All           = Streams | GossipStreams | Datagrams
)

// Effect is what happens to packets from some hosts to others, in that direction alone.
// Effects that are imposed at the same time add up: delays are summed, of bandwidths the
// least holds, each share takes from what the others leave, and a cut is a cut.
type Effect struct {
	// From and To name nodes and clients; empty means all that are not on the other
	// side, those that come later too. From and To both empty: every link.
	From, To []string
	Only     Traffic // 0: All

	Cut       bool
	Delay     time.Duration // one way
	Jitter    time.Duration // mean of an exponential addition to it; packets keep their order
	Loss      float64       // share of packets that are lost, 0..1
	Duplicate float64       // share that arrives twice
	// Reorder is the share of packets that is Late: those after them pass them. Late is
	// the most; the time is evenly spread up to it.
	Reorder float64
	Late    time.Duration
	// Corrupt is the share of packets of which one bit of the payload flips with the
	// checksum made right again, so that only what is above TCP and UDP can notice.
	// Packets without payload are left alone.
	Corrupt float64
	// Bandwidth is in bytes a second; 0: unlimited. What waits longer than a second for
	// its turn is dropped, as by the queue of a router.
	Bandwidth int64
}

// Both is the effect in both directions.
func (e Effect) Both() []Effect {
	back := e
	back.From, back.To = e.To, e.From
	return []Effect{e, back}
}

// Traffic counters of a switched network, since it was made. A fault that hit no packet
// proves nothing.
type SwitchStats struct {
	Packets, Bytes                                                      uint64 // that came in
	Cut, Lost, Duplicated, Reordered, Corrupted, Overflowed, Unroutable uint64
	ResetConns                                                          uint64 // connections that Reset ended
}

// CannotError says that a kind of fault cannot be brought about in this mesh, and why.
type CannotError struct {
	Kind   plan.Kind
	Reason string
	Hint   string // what to do to be able to; may be empty
}

func (e *CannotError) Error() string {
	if e.Hint == "" {
		return fmt.Sprintf("%s: %s", e.Kind, e.Reason)
	}
	return fmt.Sprintf("%s: %s (%s)", e.Kind, e.Reason, e.Hint)
}

// MissingError says that this machine or user lacks what was asked for. Nothing was made.
type MissingError struct {
	What string // "a switched network"
	Need string // "root (CAP_SYS_ADMIN, CAP_NET_ADMIN)"
	Hint string // what to do
	Err  error  // what the system said; may be nil
}

func (e *MissingError) Error() string {
	text := fmt.Sprintf("%s needs %s", e.What, e.Need)
	if e.Err != nil {
		text += ": " + e.Err.Error()
	}
	return text
}

func (e *MissingError) Unwrap() error { return e.Err }
