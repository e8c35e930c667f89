package client

import (
	"errors"
	"time"

	"github.com/meshq/meshq/client/core"
	"github.com/meshq/meshq/transport/wire"
)

// What a node answers, for errors.Is. ErrQuorum means that the outcome is unknown:
// the message may still be delivered, and sending it again is safe but may make it
// two. All others mean that nothing was stored or changed, unless the error is also
// ErrQuorum.
var (
	ErrQuorum       error = wire.ErrQuorum       // not synced on enough nodes in time
	ErrOverloaded   error = wire.ErrOverloaded   // a bound is reached, on a node or (FailWhenFull) in this client
	ErrDiskFull     error = wire.ErrDiskFull     // the node has no room
	ErrNoQueue      error = wire.ErrNoQueue      // no such queue, or it was deleted
	ErrNoGroup      error = wire.ErrNoGroup      // the queue has no such group
	ErrTooLarge     error = wire.ErrTooLarge     // over the queue's limit for a message
	ErrBadRequest   error = wire.ErrBadRequest   // malformed or out of range
	ErrNotOwner     error = wire.ErrNotOwner     // nobody owns the partition now
	ErrStaleReceipt error = wire.ErrStaleReceipt // the delivery is not the current one
	ErrBadReceipt   error = wire.ErrBadReceipt   // not a receipt of this mesh
	ErrExists       error = wire.ErrExists       // the queue exists with other settings, or is changed by others again and again
	ErrNotReady     error = wire.ErrNotReady     // the node has not joined yet, or drains
	ErrWrongMesh    error = wire.ErrWrongMesh    // the node belongs to another mesh
	ErrVersion      error = wire.ErrVersion      // no common protocol version
	ErrTimeout      error = wire.ErrTimeout      // no answer within the deadline
	ErrUnauthorized error = wire.ErrUnauthorized // not allowed
	ErrInternal     error = wire.ErrInternal     // a fault of the node
)

// What the client finds itself.
var (
	ErrUnreachable = core.ErrUnreachable // no node of the mesh could be asked
	ErrNotSent     = core.ErrNotSent     // the time was over before the message's turn came
	ErrCanceled    = core.ErrCanceled    // the context ended; the context's error is in the chain too
	ErrClosed      = core.ErrClosed      // the client or the consumer is closed
	ErrLeaseLost   = core.ErrLeaseLost   // cause of a handler's context: others may have the message now
)

// Error is an error that a node answered; find it with errors.As.
type Error = wire.Error

// SendError says why a message is not confirmed, and whether the outcome is unknown.
type SendError = core.SendError

// contextError adds the error of the context to the core's word for it.
type contextError struct{ err, cause error }

func (e *contextError) Error() string   { return e.err.Error() + ": " + e.cause.Error() }
func (e *contextError) Unwrap() []error { return []error{e.err, e.cause} }

// because adds the context's error to an ErrCanceled.
func because(err, cause error) error {
	if err == nil || cause == nil || !errors.Is(err, ErrCanceled) {
		return err
	}
	return &contextError{err, cause}
}

// retryError carries a handler's wish for its next try.
type retryError struct {
	err   error
	delay time.Duration
}

func (e *retryError) Error() string { return e.err.Error() }
func (e *retryError) Unwrap() error { return e.err }

// Retry makes an error that a handler returns to have its message delivered again
// after delay, instead of the queue's own backoff. err must not be nil; delay is
// rounded to milliseconds and at least 1 ms.
func Retry(err error, delay time.Duration) error {
	return &retryError{err: err, delay: max(delay, time.Millisecond)}
}
