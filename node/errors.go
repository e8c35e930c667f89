package node

import (
	"errors"
	"fmt"
	"syscall"
)

// Sentinels of what keeps a node from starting or makes it stop; for errors.Is.
var (
	// ErrPortInUse means that an address to listen on is taken.
	ErrPortInUse = errors.New("address already in use")
	// ErrDataInUse means that another process has the data directory.
	ErrDataInUse = errors.New("in use by another process")
	// ErrStopped is the answer of a node that has stopped.
	ErrStopped = errors.New("node has stopped")
)

// HintError is an error with a hint that a person can act on.
type HintError struct {
	Err  error
	Hint string
}

func (e *HintError) Error() string { return e.Err.Error() }
func (e *HintError) Unwrap() error { return e.Err }

// Hint is what to do about err; empty when nothing is known.
func Hint(err error) string {
	var h *HintError
	if errors.As(err, &h) {
		return h.Hint
	}
	return ""
}

// explainListen adds to err which listener it was.
func explainListen(what, address, flag string, err error) error {
	if errors.Is(err, syscall.EADDRINUSE) || errors.Is(err, ErrPortInUse) {
		return &HintError{
			Err:  fmt.Errorf("%s on %s: %w", what, address, ErrPortInUse),
			Hint: fmt.Sprintf("another process listens there; stop it, or choose another address with --%s", flag),
		}
	}
	return fmt.Errorf("%s on %s: %w", what, address, err)
}
