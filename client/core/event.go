package core

import (
	"time"

	"github.com/meshq/meshq/ring"
	"github.com/meshq/meshq/transport/wire"
)

// Instant is a moment of the client's monotonic clock, in nanoseconds. It never
// travels: nodes are told the time left.
type Instant int64

// Never is later than all that happens.
const Never Instant = 1<<63 - 1

// Add is the instant d later.
func (t Instant) Add(d time.Duration) Instant { return t + Instant(d) }

// Sub is the time from u to t.
func (t Instant) Sub(u Instant) time.Duration { return time.Duration(t - u) }

// LinkID names an address that the core connects to, for the life of the core.
type LinkID uint32

// CallID names a request on a link; never reused.
type CallID uint64

// ConsumerKey names one consumer of the program; chosen by the shell, never reused.
type ConsumerKey uint64

// HandoutID names one delivery that a node pushed: a run of messages; never reused.
type HandoutID uint64

// Ticket is the shell's name for who waits for an answer. The core compares it and
// gives it back; it never looks inside. nil: nobody waits.
type Ticket any

// Event is what happened outside the core. The core takes one at a time.
type Event interface{ isEvent() }

type (
	// Tick says that the time of Next has come.
	Tick struct{}

	// LinkUp says that a Dial succeeded: both sides have said Hello.
	LinkUp struct {
		Link  LinkID
		Hello *wire.Hello
	}
	// LinkDown says that a Dial failed or that the connection is gone. Nothing more
	// comes from it, and what was asked on it is not answered.
	LinkDown struct {
		Link LinkID
		Err  error
	}
	// Answered is the answer to a Call, at most one.
	Answered struct {
		Call CallID
		Msg  wire.Message
	}
	// Pushed is a one-way message from a node.
	Pushed struct {
		Link LinkID
		Msg  wire.Message
	}

	// Send gives messages to be sent. Each is answered once, by Confirmed or Failed.
	Send struct{ Items []Item }
	// Cancel says that whoever holds the ticket does not wait any longer. It is
	// answered at once, unless it was before.
	Cancel struct {
		Queue  string // of the Send; empty for others
		Ticket Ticket
	}
	// Ask gives a request that changes nothing when repeated, to Node or, when that
	// is 0, to any node. Answer: Replied.
	Ask struct {
		Ticket Ticket
		Node   ring.NodeID
		Msg    wire.Message
		Until  Instant
	}

	// OpenConsumer opens a consumer. Answer: ConsumerOpened.
	OpenConsumer struct {
		Consumer ConsumerKey
		ID       wire.ConsumerID
		Queue    string
		Group    string
		Prefetch int           // messages wanted beyond those that Receives wait for
		Idle     time.Duration // how long demand stays when no Receive waits
		Ticket   Ticket
		Until    Instant
	}
	// Receive asks for up to Max messages. Answer: Received, as soon as there is one.
	Receive struct {
		Consumer ConsumerKey
		Ticket   Ticket
		Max      int
		Until    Instant
	}
	// Settle says what became of messages. Answer: Settled, when all are answered.
	Settle struct {
		Ticket Ticket
		Items  []Settlement
	}
	// CloseConsumer ends a consumer: what no Receive has taken is released. Answer:
	// ConsumerClosed, when all that was settled is answered, at Until at the latest.
	CloseConsumer struct {
		Consumer ConsumerKey
		Ticket   Ticket
		Until    Instant
		Taken    Taken // what becomes of messages that are taken and not settled
	}
	// Close ends the core: nothing new is taken, what is under way may end until
	// Until. Answer: Closed, the last effect.
	Close struct{ Until Instant }
)

// Taken says what a closing consumer does with messages in the program's hands.
type Taken uint8

// TakenLeave leaves them until their lease ends, TakenRelease gives them back,
// TakenKeep keeps the consumer until they are settled.
const (
	TakenLeave Taken = iota
	TakenRelease
	TakenKeep
)

// Item is one message to be sent. Body is read when its batch is made and must not
// change until the item is answered.
type Item struct {
	Ticket Ticket
	Queue  string
	Record wire.Record
	Until  Instant
}

// Settlement is what became of one message.
type Settlement struct {
	Handout HandoutID
	Offset  wire.Offset
	Kind    wire.Settling
	Delay   time.Duration // SettleNack: until the next delivery. SettleExtend: the new lease. 0: the queue's
	Reason  string        // SettleNack: at most 1 KiB
}

func (Tick) isEvent()          {}
func (LinkUp) isEvent()        {}
func (LinkDown) isEvent()      {}
func (Answered) isEvent()      {}
func (Pushed) isEvent()        {}
func (Send) isEvent()          {}
func (Cancel) isEvent()        {}
func (Ask) isEvent()           {}
func (OpenConsumer) isEvent()  {}
func (Receive) isEvent()       {}
func (Settle) isEvent()        {}
func (CloseConsumer) isEvent() {}
func (Close) isEvent()         {}
