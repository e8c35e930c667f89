package core

import (
	"github.com/meshq/meshq/ring"
	"github.com/meshq/meshq/transport/wire"
)

// Instant is a moment of the node's monotonic clock, in nanoseconds. It never
// travels: no two nodes share a clock.
type Instant int64

// Time is when an event is taken: by the monotonic clock, and by the wall clock in
// milliseconds since 1970. Leases use Mono only; Wall stamps batches and starts
// delays.
type Time struct {
	Mono Instant
	Wall uint64
}

// ConnID names a connection that others opened to this node; never reused.
type ConnID uint64

// ReqID names a request that waits for its Reply; never reused.
type ReqID uint64

// Token names a Call, Persist, Read or Scan of the core; never reused.
type Token uint64

// Event is what happened outside the core. The core takes one at a time.
type Event interface{ isEvent() }

type (
	// Tick says that the time of Next has come.
	Tick struct{}

	// ConnOpened says that a client (Node 0) or a member has connected to this node.
	ConnOpened struct {
		Conn ConnID
		Node ring.NodeID
	}
	// ConnClosed says that the connection is gone; nothing more comes from it.
	ConnClosed struct{ Conn ConnID }

	// Request is a message that wants a Reply.
	Request struct {
		Req  ReqID
		Conn ConnID
		Msg  wire.Message
	}
	// Received is a one-way message on a connection that others opened.
	Received struct {
		Conn ConnID
		Msg  wire.Message
	}
	// Pushed is a one-way message that a peer sent back on the connection that this
	// node opened to it: what the peer's core Pushed to this node's Subscribe.
	Pushed struct {
		From ring.NodeID
		Msg  wire.Message
	}
	// Answered is the answer to a Call; at most one. Where the connection was lost
	// none comes: PeerDown says so.
	Answered struct {
		Token Token
		Msg   wire.Message
	}

	// PeerUp says that this node has connected to a peer, which said Hello. Frames
	// to a peer arrive in order, until PeerDown.
	PeerUp struct {
		Node  ring.NodeID
		Hello *wire.Hello
	}
	// PeerDown says that the connection to a peer was lost, or could not be made.
	PeerDown struct{ Node ring.NodeID }

	// Members is gossip's opinion of who is alive, this node included, sorted. It
	// decides nothing. Addresses are where nodes listen now, for those that said so:
	// ID, Address and HTTP are set, sorted by ID.
	Members struct {
		Alive     []ring.NodeID
		Addresses []ring.Member
	}

	// Persisted says that the ops of a Persist are fsynced, in commit number
	// Commit. The events come in the order of the effects.
	Persisted struct {
		Token  Token
		Commit uint64
	}
	// ReadDone answers Read: whole batches that overlap what was asked, in order of
	// offsets. Damaged is what of it failed its checksum (P9).
	ReadDone struct {
		Token   Token
		Batches []wire.Batch
		Damaged wire.Runs
	}
	// ScanDone answers Scan. More says that there are records after the last.
	ScanDone struct {
		Token   Token
		Records []wire.StoredRecord
		More    bool
	}

	// Damage says that the store found batches or records that fail their checksum
	// outside of a Read. Partition 0 with Runs nil: it cannot say where.
	Damage struct {
		Partition wire.PartitionID
		Lane      wire.Lane
		Runs      wire.Runs
	}
	// Disk says whether there is room for enqueues.
	Disk struct{ Full bool }

	// Drain asks to hand over all that is owned and to take no more. Drained follows.
	Drain struct{}
)

func (Tick) isEvent()       {}
func (ConnOpened) isEvent() {}
func (ConnClosed) isEvent() {}
func (Request) isEvent()    {}
func (Received) isEvent()   {}
func (Pushed) isEvent()     {}
func (Answered) isEvent()   {}
func (PeerUp) isEvent()     {}
func (PeerDown) isEvent()   {}
func (Members) isEvent()    {}
func (Persisted) isEvent()  {}
func (ReadDone) isEvent()   {}
func (ScanDone) isEvent()   {}
func (Damage) isEvent()     {}
func (Disk) isEvent()       {}
func (Drain) isEvent()      {}
