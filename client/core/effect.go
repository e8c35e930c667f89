package core

import (
	"github.com/meshq/meshq/ring"
	"github.com/meshq/meshq/transport/wire"
)

// Effect is what the shell must do, in the order given. Messages and their bytes
// are never changed after the step that returned them.
type Effect interface{ isEffect() }

type (
	// Dial connects a link. LinkUp or LinkDown follows.
	Dial struct {
		Link  LinkID
		Addr  string
		Hello *wire.Hello
	}
	// Hangup closes a link. No event follows; the core takes it as down.
	Hangup struct{ Link LinkID }
	// Call gives a request to a link that is up. Answered follows, or LinkDown.
	Call struct {
		Link LinkID
		Call CallID
		Msg  wire.Message
	}
	// Post gives a one-way message to a link that is up.
	Post struct {
		Link LinkID
		Msg  wire.Message
	}

	// Confirmed says that the messages of Tickets are synced (P1). The message of
	// Tickets[i] is at Base.Offset+i; a nil ticket was answered before.
	Confirmed struct {
		Queue     string
		Partition uint32
		Tickets   []Ticket
		Base      wire.Position
		Want      int
		Nodes     []ring.NodeID
	}
	// Failed says that messages are not confirmed. Err is a *SendError.
	Failed struct {
		Tickets []Ticket
		Err     error
	}
	// Received answers Receive: messages, or none when its time was over, or an error.
	Received struct {
		Ticket     Ticket
		Deliveries []Delivery
		Err        error
	}
	// Settled answers Settle. Err is the first that any of its items got.
	Settled struct {
		Ticket Ticket
		Err    error
	}
	// Lost says that the lease of messages that were received is over and that
	// others may have them now.
	Lost struct {
		Consumer ConsumerKey
		Handout  HandoutID
		Runs     wire.Runs
	}
	// ConsumerOpened answers OpenConsumer.
	ConsumerOpened struct {
		Ticket Ticket
		Err    error
	}
	// ConsumerFailed says that the consumer cannot go on: its queue or group is gone.
	ConsumerFailed struct {
		Consumer ConsumerKey
		Err      error
	}
	// ConsumerClosed answers CloseConsumer.
	ConsumerClosed struct {
		Consumer ConsumerKey
		Ticket   Ticket
	}
	// Replied answers Ask, with a message or an error.
	Replied struct {
		Ticket Ticket
		Msg    wire.Message
		Err    error
	}

	// Learned says that the ring, or who is alive, is known now or has changed.
	Learned struct{ Mesh *wire.Mesh }
	// Closed answers Close. No effect follows.
	Closed struct{}
	// Note tells people (log) what the core did or found.
	Note struct {
		Warn   bool
		Text   string // fixed words: what
		Detail string
	}
)

// Delivery is one message in the hands of the program, until it is settled.
type Delivery struct {
	Handout HandoutID
	Receipt *wire.Receipt // of the whole handout; never changed
	Offset  wire.Offset
	Index   uint32 // of the partition
	Cause   wire.Cause
	Record  []byte // encoded; shares memory with its neighbours
}

func (Dial) isEffect()           {}
func (Hangup) isEffect()         {}
func (Call) isEffect()           {}
func (Post) isEffect()           {}
func (Confirmed) isEffect()      {}
func (Failed) isEffect()         {}
func (Received) isEffect()       {}
func (Settled) isEffect()        {}
func (Lost) isEffect()           {}
func (ConsumerOpened) isEffect() {}
func (ConsumerFailed) isEffect() {}
func (ConsumerClosed) isEffect() {}
func (Replied) isEffect()        {}
func (Learned) isEffect()        {}
func (Closed) isEffect()         {}
func (Note) isEffect()           {}
