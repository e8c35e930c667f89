package core

import (
	"github.com/meshq/meshq/ring"
	"github.com/meshq/meshq/transport/wire"
)

// Effect is what the shell must do, in the order given. Messages, ops and their
// bytes are never changed after the step that returned them.
type Effect interface{ isEffect() }

type (
	// Send gives a one-way message to a peer. Without a connection it is dropped.
	Send struct {
		To  ring.NodeID
		Msg wire.Message
	}
	// Call gives a request to a peer; Answered follows, or PeerDown. Without a
	// connection it is dropped: the core does not call peers that are down.
	Call struct {
		To    ring.NodeID
		Token Token
		Msg   wire.Message
	}
	// Reply answers a Request, once.
	Reply struct {
		Req ReqID
		Msg wire.Message
	}
	// Push gives a one-way message to a connection that others opened. Before, if not
	// 0, is the moment after which it must not be written any more: the ownership
	// lease it rests on ends then. It is checked right before the write; the connection
	// is closed instead, as the two sides count what was handed out.
	Push struct {
		Conn   ConnID
		Msg    wire.Message
		Before Instant
	}

	// Persist commits ops to the store, atomically and after all Persists before it.
	// Persisted follows when they are fsynced. Token 0: nobody waits, no event.
	Persist struct {
		Token Token
		Ops   []wire.Op
	}
	// Read asks for the batches of a lane that overlap Runs, at most MaxBytes but at
	// least one if there is any. ReadDone follows. It sees all Persists whose
	// Persisted has come.
	Read struct {
		Token     Token
		Partition wire.PartitionID
		Lane      wire.Lane
		Runs      wire.Runs
		MaxBytes  int
	}
	// Scan asks for records whose key begins with Prefix and is above After (nil:
	// from the first), at most Limit. ScanDone follows.
	Scan struct {
		Token  Token
		Prefix []byte
		After  []byte
		Limit  int
	}

	// Peers is the set of nodes to be connected to, always, sorted by ID. The shell
	// keeps trying. A newer address from gossip wins over the one here.
	Peers struct{ Members []ring.Member }

	// Drained says that the answer to Drain is complete: the node may stop.
	Drained struct{}
	// Stop says that the node must stop at once, with this error.
	Stop struct{ Err error }
	// Note tells people (log, trace) what the core did or found. It is not needed
	// for anything else.
	Note struct {
		Level     NoteLevel
		Text      string // fixed words: what
		Partition wire.PartitionID
		Detail    string
	}
)

// NoteLevel is how much a Note matters.
type NoteLevel uint8

// The levels.
const (
	NoteDebug NoteLevel = iota
	NoteInfo
	NoteWarn
)

func (Send) isEffect()    {}
func (Call) isEffect()    {}
func (Reply) isEffect()   {}
func (Push) isEffect()    {}
func (Persist) isEffect() {}
func (Read) isEffect()    {}
func (Scan) isEffect()    {}
func (Peers) isEffect()   {}
func (Drained) isEffect() {}
func (Stop) isEffect()    {}
func (Note) isEffect()    {}
