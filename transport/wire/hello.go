package wire

import "github.com/meshq/meshq/ring"

// Version is the protocol version that this code speaks; MinVersion is the
// oldest that it still understands. Both sides name theirs in Hello and speak
// the lower of the two highest; without a common one they answer CodeVersion.
const (
	Version    = 1
	MinVersion = 1
)

// Hello is the first frame in both directions of every connection; it is at most 64
// KiB long.
type Hello struct {
	Version    uint16
	MinVersion uint16
	Features   uint64      // bits of optional features; unknown ones are ignored
	Mesh       MeshID      // 0: a client, or a node that has not joined a mesh yet
	Node       ring.NodeID // 0: a client
	Boot       uint64      // boot number of the node
	Name       string      // of the node, or of the client's program
	Gossip     string      // gossip address of the node, host:port
	Ring       uint64      // number of the newest ring that the sender knows
	Catalog    uint64      // highest catalog version that the sender knows
	Commit     uint64      // of a node: number of its last synced commit
	Token      string      // of a client: who it is; empty without authentication
}

// Ping asks whether the other side still serves. Answer: Done.
type Ping struct{}
