package core

import (
	"errors"
	"fmt"

	"github.com/meshq/meshq/transport/wire"
)

// The conditions that the client itself finds. Those that nodes answer are the
// sentinels of wire.
var (
	// ErrUnreachable means that no node could be asked. Nothing happened.
	ErrUnreachable = errors.New("no node of the mesh answers")
	// ErrNotSent means that the time was over before it was the message's turn. It
	// is not stored.
	ErrNotSent = errors.New("not sent: its time was over before its turn came")
	// ErrCanceled means that the program stopped waiting.
	ErrCanceled = errors.New("canceled")
	// ErrClosed means that the client or the consumer is closed.
	ErrClosed = errors.New("client is closed")
	// ErrLeaseLost means that the delivery lease is over: others may have the message.
	ErrLeaseLost = errors.New("the delivery lease is over")
)

// SendError says why a message is not confirmed. When the outcome is unknown, it
// may be stored and delivered all the same (P10), and errors.Is(err, wire.ErrQuorum)
// holds whatever the last answer was; otherwise the message is not stored.
type SendError struct {
	Queue   string
	Unknown bool
	Err     error // the last answer of a node, or one of this package's errors
}

func (e *SendError) Error() string {
	var w *wire.Error
	if e.Unknown && !(errors.As(e.Err, &w) && w.Code == wire.CodeQuorum) {
		return fmt.Sprintf("send %s: %v: not confirmed, may still be delivered", e.Queue, e.Err)
	}
	return fmt.Sprintf("send %s: %v", e.Queue, e.Err)
}

// Unwrap is the cause.
func (e *SendError) Unwrap() error { return e.Err }

// Is tells that an unknown outcome is wire.ErrQuorum.
func (e *SendError) Is(target error) bool {
	t, ok := target.(*wire.Error)
	return ok && e.Unknown && t.Code == wire.CodeQuorum
}
