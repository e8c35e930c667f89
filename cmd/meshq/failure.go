package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
)

// The exit codes of every command.
const (
	exitDone    = 0
	exitFailed  = 1
	exitUsage   = 2
	exitNothing = 3 // receive: nothing came within the wait
)

// failure is an error as people see it.
type failure struct {
	code int
	err  error  // nil: nothing to say, only the exit code
	hint string // what can be done, if possible a command to type; may be empty
}

func (f *failure) Error() string {
	if f.err == nil {
		return fmt.Sprintf("exit code %d", f.code)
	}
	return f.err.Error()
}

func (f *failure) Unwrap() error { return f.err }

// usage is a failure of the one who typed the command.
func usage(hint, format string, args ...any) error {
	return &failure{code: exitUsage, err: fmt.Errorf(format, args...), hint: hint}
}

// failed is a failure of what the command tried.
func failed(err error, hint string) error {
	return &failure{code: exitFailed, err: err, hint: hint}
}

// report prints err and its hint and returns the exit code.
func report(w io.Writer, err error) int {
	if err == nil {
		return exitDone
	}
	f := &failure{code: exitFailed, err: err}
	if !errors.As(err, &f) && errors.Is(err, context.Canceled) {
		f.err = errors.New("interrupted")
	}
	if f.err != nil {
		text := err.Error()
		if err == error(f) || f.code == exitFailed && errors.Is(err, context.Canceled) {
			text = f.err.Error()
		}
		fmt.Fprintf(w, "meshq: %s\n", oneLine(text))
	}
	if f.hint != "" {
		fmt.Fprintf(w, "meshq: hint: %s\n", f.hint)
	}
	return f.code
}

// oneLine keeps an error on one line: errors.Join and YAML errors have several.
func oneLine(s string) string {
	lines := strings.FieldsFunc(s, func(r rune) bool { return r == '\n' || r == '\r' })
	for i := range lines {
		lines[i] = strings.TrimSpace(lines[i])
	}
	return strings.Join(lines, "; ")
}
