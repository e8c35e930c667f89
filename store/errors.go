package store

import (
	"fmt"

	"github.com/meshq/meshq/transport/wire"
)

// InUseError names the directory that another process has; it is ErrInUse.
type InUseError struct{ Dir string }

func (e *InUseError) Error() string {
	return fmt.Sprintf("data directory %s is in use by another process", e.Dir)
}

// Is matches ErrInUse.
func (e *InUseError) Is(target error) bool { return target == ErrInUse }

// FailedError says what write failed; it is ErrFailed.
type FailedError struct{ Err error }

func (e *FailedError) Error() string { return fmt.Sprintf("store: write failed: %v", e.Err) }

// Is matches ErrFailed.
func (e *FailedError) Is(target error) bool { return target == ErrFailed }

// Unwrap is the cause.
func (e *FailedError) Unwrap() error { return e.Err }

// checkOp tells what is wrong with an operation, before it is queued.
func checkOp(op *wire.Op) error {
	switch op.Kind {
	case wire.OpBatch:
		b := &op.Batch
		if b.Count == 0 || b.Count > wire.MaxBatchMessages || b.Length != uint64(len(b.Records)) || b.Base+wire.Offset(b.Count) < b.Base {
			return fmt.Errorf("store: %w: %d messages, %d of %d bytes", wire.ErrBadBatch, b.Count, len(b.Records), b.Length)
		}
		if len(b.Records) > wire.MaxBatchBytes {
			return fmt.Errorf("batch of %d bytes: %w", len(b.Records), ErrTooLarge)
		}
		return nil
	case wire.OpPut, wire.OpDelete, wire.OpDeleteRange:
		if len(op.Key) > MaxKeyBytes {
			return fmt.Errorf("key of %d bytes: %w", len(op.Key), ErrTooLarge)
		}
		if op.Kind == wire.OpPut && len(op.Value) > MaxValueBytes {
			return fmt.Errorf("value of %d bytes: %w", len(op.Value), ErrTooLarge)
		}
		return nil
	case wire.OpFree:
		return nil
	}
	panic(fmt.Sprintf("store: unknown operation %d", op.Kind))
}
