package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/meshq/meshq/client"
	"github.com/meshq/meshq/transport/wire"
)

const (
	receiveBatch = 1_000 // messages printed between two flushes
	ackWindow    = 8     // batches that are printed and whose acks are not yet confirmed
	ackPatience  = 15 * time.Second
)

// receiveFlags are what one receive is told.
type receiveFlags struct {
	meshFlags
	group  string
	max    int
	wait   time.Duration
	follow bool
	noAck  bool
	exec   string
	json   bool
}

func (a *app) receiveCommand() *cobra.Command {
	var r receiveFlags
	cmd := &cobra.Command{
		Use:   "receive QUEUE [flags]",
		Short: "Receive messages: print them, or run a command for each",
		Long: `Receives messages of a group, prints each on a line, and then acks them. A message
is printed before it is acked: if receive is killed in between, it is delivered again.

It ends after --max messages, or when none has come for --wait; with 3 if none came
at all. --follow goes on until it is interrupted. What was not printed is given back.

With --exec each message is given to a shell command: the body on stdin, the rest in
MESHQ_ID, MESHQ_QUEUE, MESHQ_GROUP, MESHQ_PARTITION, MESHQ_ATTEMPT, MESHQ_KEY,
MESHQ_ENQUEUED_AT, MESHQ_REDELIVERED (true or false) and MESHQ_HEADER_... . If it ends
with 0 the message is acked, otherwise it is given back and delivered again after the
queue's backoff; its lease is extended while the command runs.`,
		Example: `  meshq receive photos
  meshq receive photos --max 100 --json
  meshq receive photos --group thumbnails --follow --exec ./make-thumbnail`,
		Args: argCount(1, 1, "QUEUE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			what := "receive " + args[0]
			if err := r.check(a, cmd, args[0]); err != nil {
				return a.explain(what, args[0], &r.meshFlags, err)
			}
			return a.explainAny(what, args[0], &r.meshFlags, a.receive(cmd.Context(), &r, args[0]))
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&r.group, "group", "default", "`group` to receive for; each group gets every message")
	f.IntVar(&r.max, "max", 1, "end after this `number` of messages; 0: any number; with --follow the default is 0")
	f.DurationVar(&r.wait, "wait", 5*time.Second, "end when no message has come for so long; not with --follow")
	f.BoolVar(&r.follow, "follow", false, "go on until interrupted")
	f.BoolVar(&r.noAck, "no-ack", false, "print and do not ack: the messages are held until the end, then given back")
	f.StringVar(&r.exec, "exec", "", "shell `command` to run for each message, one at a time")
	f.BoolVar(&r.json, "json", false, "print a JSON object for each message")
	r.flags(cmd)
	return cmd
}

func (r *receiveFlags) check(a *app, cmd *cobra.Command, queue string) error {
	if err := wire.CheckName("queue", queue); err != nil {
		return usage("", "%w", err)
	}
	if err := wire.CheckName("group", r.group); err != nil {
		return usage("", "%w", err)
	}
	if r.follow && !cmd.Flags().Changed("max") {
		r.max = 0
	}
	switch {
	case r.max < 0:
		return usage("", "--max is %d, must not be negative", r.max)
	case r.wait < 0:
		return usage("", "--wait is %v, must not be negative", r.wait)
	case r.follow && cmd.Flags().Changed("wait"):
		return usage("", "--follow has no --wait: it goes on until interrupted")
	case r.noAck && r.exec != "":
		return usage("", "--exec acks by the exit code of its command: it has no --no-ack")
	}
	return r.load(a, cmd)
}

// receiver receives, prints or runs, and acks.
type receiver struct {
	*app
	flags    *receiveFlags
	queue    string
	mesh     *client.Mesh
	consumer *client.Consumer
	out      *bufio.Writer
	acks     *acker

	received int // printed, or given to a command
	refused  int // by the command
}

func (a *app) receive(ctx context.Context, flags *receiveFlags, queue string) (err error) {
	dialTimeout := max(flags.wait, 5*time.Second)
	mesh, err := flags.dial(ctx, dialTimeout)
	if err != nil {
		return err
	}
	defer mesh.Close() // gives back what is held
	r := &receiver{app: a, flags: flags, queue: queue, mesh: mesh, out: bufio.NewWriterSize(a.out, 64<<10)}
	r.consumer, err = mesh.Queue(queue).Consumer(ctx, flags.group)
	if err != nil {
		return a.meant(ctx, mesh, queue, bare(err, "consume "+queue))
	}
	defer r.consumer.Close()
	r.acks = newAcker(mesh)
	err = r.loop(ctx)
	ackErr := r.acks.close()
	switch {
	case err != nil:
		return err
	case ackErr != nil:
		return fmt.Errorf("%s printed whose acks are not confirmed, they may be delivered again: %w", plural(r.acks.unconfirmed, "message"), bare(ackErr, "ack"))
	case r.refused > 0:
		return &failure{code: exitFailed, err: fmt.Errorf("the command failed for %d of %s, which will be delivered again", r.refused, plural(r.received, "message"))}
	case r.received == 0 && !flags.follow:
		return &failure{code: exitNothing, err: fmt.Errorf("no message within %s", flags.wait)}
	}
	if isTerminal(a.err) {
		fmt.Fprintf(a.err, "meshq: %s received%s\n", plural(r.received, "message"), map[bool]string{true: ", not acked", false: ""}[flags.noAck])
	}
	return nil
}

// loop receives until the maximum, the end of the wait, or the end of ctx.
func (r *receiver) loop(ctx context.Context) error {
	for r.flags.max == 0 || r.received < r.flags.max {
		limit := receiveBatch
		if r.flags.exec != "" {
			limit = 1
		}
		if r.flags.max > 0 {
			limit = min(limit, r.flags.max-r.received)
		}
		wait := max(r.flags.wait, time.Millisecond)
		if r.flags.follow {
			wait = 0 // until ctx ends
		}
		batch, err := r.consumer.Receive(ctx, limit, wait)
		switch {
		case err != nil && ctx.Err() != nil:
			return nil // interrupted: what comes now is given back
		case err != nil:
			return err
		case len(batch) == 0 && !r.flags.follow:
			return nil
		}
		if err := r.take(ctx, batch); err != nil {
			return err
		}
	}
	return nil
}

// take does with messages what the flags say, and acks them: after they are
// written, never before.
func (r *receiver) take(ctx context.Context, batch []*client.Delivery) error {
	if r.flags.exec != "" {
		for _, d := range batch {
			if err := r.run(ctx, d); err != nil {
				return err
			}
		}
		return nil
	}
	for _, d := range batch {
		if err := r.print(d, nil); err != nil {
			return err
		}
	}
	if err := r.out.Flush(); err != nil {
		return err
	}
	r.received += len(batch)
	if !r.flags.noAck {
		r.acks.add(batch)
	}
	return nil
}

// received is a message as JSON.
type receivedJSON struct {
	ID          string            `json:"id"`
	Queue       string            `json:"queue"`
	Group       string            `json:"group"`
	Partition   int               `json:"partition"`
	Attempt     int               `json:"attempt"`
	Body        *string           `json:"body,omitempty"`
	BodyBase64  []byte            `json:"body_base64,omitempty"`
	Headers     map[string]string `json:"headers"`
	Key         string            `json:"key"`
	EnqueuedAt  string            `json:"enqueued_at"`
	Redelivered bool              `json:"redelivered"`
	Cause       string            `json:"cause,omitempty"`
	Exit        *int              `json:"exit,omitempty"`
}

const timeFormat = "2006-01-02T15:04:05.000Z07:00"

// print writes one message; exit is the exit code of its command, if it had one.
func (r *receiver) print(d *client.Delivery, exit *int) error {
	if !r.flags.json {
		if _, err := r.out.Write(d.Body); err != nil {
			return err
		}
		return r.out.WriteByte('\n')
	}
	v := receivedJSON{
		ID: d.ID.String(), Queue: d.Queue, Group: d.Group, Partition: d.Partition, Attempt: d.Attempt,
		Headers: d.Headers, Key: d.Key, EnqueuedAt: d.EnqueuedAt.UTC().Format(timeFormat),
		Redelivered: d.Redelivered, Cause: d.Cause, Exit: exit,
	}
	if v.Headers == nil {
		v.Headers = map[string]string{}
	}
	if utf8.Valid(d.Body) {
		text := string(d.Body)
		v.Body = &text
	} else {
		v.BodyBase64 = d.Body
	}
	line, err := jsonLine(v)
	if err != nil {
		return err
	}
	_, err = r.out.Write(line)
	return err
}

// acker acks in the background, in the order given, as many at once as have come.
type acker struct {
	mesh        *client.Mesh
	batches     chan []*client.Delivery
	done        chan struct{}
	unconfirmed int   // read after close
	err         error // read after close
}

func newAcker(mesh *client.Mesh) *acker {
	k := &acker{mesh: mesh, batches: make(chan []*client.Delivery, ackWindow), done: make(chan struct{})}
	go k.run()
	return k
}

// add takes messages to ack; it waits while ackWindow batches are under way.
func (k *acker) add(batch []*client.Delivery) { k.batches <- batch }

// close waits for all acks and returns the first error. It takes at most
// ackPatience for each batch under way.
func (k *acker) close() error {
	close(k.batches)
	<-k.done
	return k.err
}

func (k *acker) run() {
	defer close(k.done)
	for batch := range k.batches {
		batch = append([]*client.Delivery(nil), batch...)
	more:
		for {
			select {
			case next, ok := <-k.batches:
				if !ok {
					break more
				}
				batch = append(batch, next...)
			default:
				break more
			}
		}
		// Not the context of the command: what is printed is acked after an
		// interruption too.
		ctx, cancel := context.WithTimeout(context.Background(), ackPatience)
		if err := k.mesh.AckAll(ctx, batch); err != nil {
			if errors.Is(err, client.ErrStaleReceipt) {
				err = fmt.Errorf("the delivery lease was over: %w", err)
			}
			k.unconfirmed += len(batch)
			if k.err == nil {
				k.err = err
			}
		}
		cancel()
	}
}

// headerVariable is the environment variable of a header: MESHQ_HEADER_CONTENT_TYPE
// for content-type.
func headerVariable(name string) string {
	return "MESHQ_HEADER_" + strings.Map(func(c rune) rune {
		switch {
		case c >= 'a' && c <= 'z':
			return c - 'a' + 'A'
		case c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
			return c
		}
		return '_'
	}, name)
}
