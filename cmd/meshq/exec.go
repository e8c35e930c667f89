package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/meshq/meshq/client"
)

// Exit codes of a shell that could not run the command at all: that is a mistake
// in the command, not in the message.
const (
	shellCannotRun = 126
	shellNotFound  = 127
)

// run gives one message to the command and settles it by its exit code.
func (r *receiver) run(ctx context.Context, d *client.Delivery) error {
	// The command is not ended by our context: an interruption from the terminal
	// reaches it by itself, and it may finish its message.
	cmd := exec.Command("sh", "-c", r.flags.exec)
	cmd.Stdin = bytes.NewReader(d.Body)
	cmd.Stdout, cmd.Stderr = r.app.out, r.app.err
	if r.flags.json {
		cmd.Stdout = r.app.err // stdout is for JSON alone
	}
	cmd.Env = append(os.Environ(), messageEnvironment(d)...)
	err := cmd.Run()
	code := 0
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		code = exit.ExitCode() // -1: ended by a signal
	case err != nil && cmd.ProcessState == nil: // the shell did not even start
		return errors.Join(err, r.giveBack(d))
	}
	if code == shellCannotRun || code == shellNotFound {
		return errors.Join(&failure{
			code: exitFailed, err: fmt.Errorf("--exec: the shell cannot run %q", r.flags.exec),
			hint: "try it by hand: echo test | sh -c '" + strings.ReplaceAll(r.flags.exec, "'", `'\''`) + "'",
		}, r.giveBack(d))
	}
	r.received++
	if r.flags.json {
		if err := errors.Join(r.print(d, &code), r.out.Flush()); err != nil {
			return err
		}
	}
	if code == 0 {
		r.acks.add([]*client.Delivery{d})
		return nil
	}
	if ctx.Err() != nil { // it was interrupted with us: no attempt is counted
		return r.giveBack(d)
	}
	r.refused++
	settle, cancel := context.WithTimeout(context.WithoutCancel(ctx), ackPatience)
	defer cancel()
	return d.Nack(settle, 0, fmt.Sprintf("%s: exit code %d", r.flags.exec, code))
}

// giveBack releases a message that was not worked on.
func (r *receiver) giveBack(d *client.Delivery) error {
	ctx, cancel := context.WithTimeout(context.Background(), ackPatience)
	defer cancel()
	return d.Release(ctx)
}

// messageEnvironment describes a message to its command. A NUL ends a variable, so
// what follows one in a key or header is left out.
func messageEnvironment(d *client.Delivery) []string {
	env := []string{
		"MESHQ_ID=" + d.ID.String(),
		"MESHQ_QUEUE=" + d.Queue,
		"MESHQ_GROUP=" + d.Group,
		"MESHQ_PARTITION=" + strconv.Itoa(d.Partition),
		"MESHQ_ATTEMPT=" + strconv.Itoa(d.Attempt),
		"MESHQ_KEY=" + d.Key,
		"MESHQ_ENQUEUED_AT=" + d.EnqueuedAt.UTC().Format(time.RFC3339Nano),
		"MESHQ_REDELIVERED=" + strconv.FormatBool(d.Redelivered),
	}
	for name, value := range d.Headers {
		env = append(env, headerVariable(name)+"="+value)
	}
	for i := range env {
		env[i], _, _ = strings.Cut(env[i], "\x00")
	}
	return env
}
