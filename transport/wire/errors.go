package wire

import (
	"fmt"
	"time"
)

// Code is the number of an error on the wire. Numbers are never reused.
type Code uint16

// The codes. "Refused" means that nothing was stored or changed. After CodeQuorum,
// CodeTimeout and a lost connection the outcome is unknown (P10): it may have
// happened, and the same request may be sent again.
const (
	CodeInternal      Code = 1
	CodeQuorum        Code = 2  // outcome unknown: not enough nodes synced in time
	CodeOverloaded    Code = 3  // refused: a bound is reached; retry after a while, not elsewhere
	CodeDiskFull      Code = 4  // refused: the node has no room; another may have
	CodeNoQueue       Code = 5  // refused: no such queue (or it was deleted)
	CodeNoGroup       Code = 6  // refused: the queue has no such group
	CodeTooLarge      Code = 7  // refused: over the limit of a message or batch
	CodeBadRequest    Code = 8  // refused: malformed or out of range
	CodeNotOwner      Code = 9  // refused: nobody owns the partition now; retry
	CodeStaleReceipt  Code = 10 // refused: the delivery is not the current one
	CodeBadReceipt    Code = 11 // refused: the checksum does not fit
	CodeExists        Code = 12 // refused: a queue of that name has other settings, or what was to be changed was changed meanwhile
	CodeNotReady      Code = 13 // refused: the node has not joined yet, or is draining
	CodeWrongMesh     Code = 14 // refused: the other side belongs to another mesh
	CodeVersion       Code = 15 // refused: no common protocol version
	CodeLaneConflict  Code = 16 // refused: other bytes are stored at that position
	CodeStaleSequence Code = 17 // refused: the sequence was used before and its position is no longer known
	CodeTimeout       Code = 18 // outcome unknown: the deadline passed before an answer
	CodeUnauthorized  Code = 19 // refused: not allowed
	CodeOlderData     Code = 20 // refused: the data directory is older than the mesh remembers
)

// Error is an error as it travels. errors.Is matches by Code.
type Error struct {
	Code       Code
	Text       string // what, without a hint; empty means the code's own text
	Have, Want uint8  // CodeQuorum: nodes that synced, and nodes needed
	RetryAfter uint32 // CodeOverloaded, CodeNotOwner: milliseconds; 0 when not known
}

// The sentinel of each code, for errors.Is.
var (
	ErrInternal      = &Error{Code: CodeInternal, Text: "internal error"}
	ErrQuorum        = &Error{Code: CodeQuorum, Text: "not synced on enough nodes: not confirmed, may still be delivered"}
	ErrOverloaded    = &Error{Code: CodeOverloaded, Text: "overloaded"}
	ErrDiskFull      = &Error{Code: CodeDiskFull, Text: "disk is full"}
	ErrNoQueue       = &Error{Code: CodeNoQueue, Text: "no such queue"}
	ErrNoGroup       = &Error{Code: CodeNoGroup, Text: "no such group"}
	ErrTooLarge      = &Error{Code: CodeTooLarge, Text: "message is too large"}
	ErrBadRequest    = &Error{Code: CodeBadRequest, Text: "bad request"}
	ErrNotOwner      = &Error{Code: CodeNotOwner, Text: "no owner answers for the partition now"}
	ErrStaleReceipt  = &Error{Code: CodeStaleReceipt, Text: "not the current delivery of the message"}
	ErrBadReceipt    = &Error{Code: CodeBadReceipt, Text: "not a receipt of this mesh"}
	ErrExists        = &Error{Code: CodeExists, Text: "queue exists with other settings"}
	ErrNotReady      = &Error{Code: CodeNotReady, Text: "node is not ready"}
	ErrWrongMesh     = &Error{Code: CodeWrongMesh, Text: "node of another mesh"}
	ErrVersion       = &Error{Code: CodeVersion, Text: "no common protocol version"}
	ErrLaneConflict  = &Error{Code: CodeLaneConflict, Text: "other bytes are stored at that position"}
	ErrStaleSequence = &Error{Code: CodeStaleSequence, Text: "sequence was used before"}
	ErrTimeout       = &Error{Code: CodeTimeout, Text: "no answer within the deadline"}
	ErrUnauthorized  = &Error{Code: CodeUnauthorized, Text: "not allowed"}
	ErrOlderData     = &Error{Code: CodeOlderData, Text: "data directory is older than the mesh remembers"}
)

var sentinels = []*Error{
	ErrInternal, ErrQuorum, ErrOverloaded, ErrDiskFull, ErrNoQueue, ErrNoGroup, ErrTooLarge, ErrBadRequest, ErrNotOwner,
	ErrStaleReceipt, ErrBadReceipt, ErrExists, ErrNotReady, ErrWrongMesh, ErrVersion, ErrLaneConflict, ErrStaleSequence,
	ErrTimeout, ErrUnauthorized, ErrOlderData,
}

// Errorf is an error of the sentinel's code with a text of its own.
func Errorf(sentinel *Error, format string, args ...any) *Error {
	return &Error{Code: sentinel.Code, Text: fmt.Sprintf(format, args...)}
}

// QuorumError says how far an enqueue got. Its Text may say why no further.
func QuorumError(have, want int) *Error {
	return &Error{Code: CodeQuorum, Have: uint8(have), Want: uint8(want)}
}

func (e *Error) Error() string {
	if e.Code == CodeQuorum && e.Want > 0 {
		if e.Text != "" {
			return fmt.Sprintf("synced on %d of %d nodes (%s): not confirmed, may still be delivered", e.Have, e.Want, e.Text)
		}
		return fmt.Sprintf("synced on %d of %d nodes: not confirmed, may still be delivered", e.Have, e.Want)
	}
	if e.Text != "" {
		return e.Text
	}
	for _, s := range sentinels {
		if s.Code == e.Code {
			return s.Text
		}
	}
	return fmt.Sprintf("error %d", e.Code)
}

// Is matches errors of the same code.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code
}

// Unknown tells whether the outcome of the request is unknown: it may have
// happened. All other errors mean that it did not.
func (e *Error) Unknown() bool { return e.Code == CodeQuorum || e.Code == CodeTimeout }

// Retryable tells whether the same request may succeed later without a change.
func (e *Error) Retryable() bool {
	switch e.Code {
	case CodeQuorum, CodeOverloaded, CodeDiskFull, CodeNotOwner, CodeNotReady, CodeTimeout:
		return true
	}
	return false
}

// Wait is how long to wait before a retry; 0 when the answer did not say.
func (e *Error) Wait() time.Duration { return time.Duration(e.RetryAfter) * time.Millisecond }
