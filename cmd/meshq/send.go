package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/meshq/meshq/client"
	"github.com/meshq/meshq/transport/wire"
)

// sendWindow bounds the messages under way; the client's send buffer bounds their
// bytes. Without both a large file would be read into memory.
const sendWindow = 16_384

// sendFlags are what one send is told.
type sendFlags struct {
	meshFlags
	file    string
	key     string
	headers []string
	delay   time.Duration
	json    bool
}

func (a *app) sendCommand() *cobra.Command {
	var s sendFlags
	cmd := &cobra.Command{
		Use:   "send QUEUE [MESSAGE...] [flags]",
		Short: "Send messages: one for each argument, or for each line of a file",
		Long: `Sends one message for each argument, or with --file one for each line of a file
(without its newline; nothing else is taken off).

A message is confirmed when it is on the disks of the queue's write quorum. On the
first one that is not, send stops and ends with 1: it says which one it was. A message
that is "not confirmed, may still be delivered" can be sent again; that may make it
two.`,
		Example: `  meshq send photos "hello" "world"
  meshq send photos --file jobs.txt --json
  seq 1000 | meshq send photos --file -
  meshq send photos --key user-7 --header type=jpeg --delay 10m "later"`,
		Args: argCount(1, -1, "QUEUE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			what := "send " + args[0]
			message, err := s.check(a, cmd, args)
			if err != nil {
				return a.explain(what, args[0], &s.meshFlags, err)
			}
			return a.explainAny(what, args[0], &s.meshFlags, a.send(cmd.Context(), &s, message, args[0], args[1:]))
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&s.file, "file", "", "`file` with one message a line; - is stdin")
	f.StringVar(&s.key, "key", "", "messages of one `key` go to one partition, in order")
	f.StringArrayVar(&s.headers, "header", nil, "stored with each message (`name=value`); can be repeated")
	f.DurationVar(&s.delay, "delay", 0, "deliver not before this time has passed")
	f.BoolVar(&s.json, "json", false, "print a JSON object for each confirmed message, in the order sent")
	s.timeoutMeaning = "how long to try each message"
	s.flags(cmd)
	return cmd
}

// explainAny is explain, or nil for nil.
func (a *app) explainAny(what, queue string, m *meshFlags, err error) error {
	if err == nil {
		return nil
	}
	return a.explain(what, queue, m, err)
}

// check checks all that was typed and returns the message that all are made from.
func (s *sendFlags) check(a *app, cmd *cobra.Command, args []string) (client.Message, error) {
	m := client.Message{Key: s.key, Delay: s.delay}
	if err := wire.CheckName("queue", args[0]); err != nil {
		return m, usage("", "%w", err)
	}
	switch {
	case s.file != "" && len(args) > 1:
		return m, usage("", "give either messages or --file, not both")
	case s.file == "" && len(args) == 1:
		return m, usage("give messages as arguments, or --file F with one a line, or --file - for stdin", "no messages")
	case s.delay < 0:
		return m, usage("", "--delay is %v, must not be negative", s.delay)
	}
	for _, h := range s.headers {
		name, value, ok := strings.Cut(h, "=")
		if !ok || name == "" {
			return m, usage("", "header %q: name=value is wanted", h)
		}
		if m.Headers == nil {
			m.Headers = map[string]string{}
		}
		m.Headers[name] = value
	}
	return m, s.load(a, cmd)
}

// pending is one message under way.
type pending struct {
	line   int // of the file, or number of the argument, from 1
	future *client.Future
	err    error // it was not even taken
}

// send sends all messages. It stops at the first that is not confirmed.
func (a *app) send(ctx context.Context, s *sendFlags, message client.Message, queue string, args []string) error {
	next, unit, closeSource, err := a.source(s, args)
	if err != nil {
		return err
	}
	defer closeSource()
	mesh, err := s.dial(ctx, s.timeout, client.SendTimeout(s.timeout))
	if err != nil {
		return err
	}
	defer mesh.Close()

	r := &sendReport{app: a, flags: s, queue: queue, unit: unit, started: time.Now(), broken: make(chan struct{})}
	window := make(chan pending, sendWindow)
	reported := make(chan struct{})
	go func() { defer close(reported); r.collect(window) }()

	q := mesh.Queue(queue)
	bodies := readAhead(next, r.broken)
	line := 0
	var sourceErr error
read:
	for {
		var b body
		select {
		case b = <-bodies:
		case <-ctx.Done():
			break read
		case <-r.broken:
			break read
		}
		if b.err != nil {
			if !errors.Is(b.err, io.EOF) {
				sourceErr = b.err
			}
			break
		}
		line++
		m := message
		m.Body = b.text
		p := pending{line: line}
		// Without a deadline in the context each message has SendTimeout from here.
		p.future, p.err = q.SendAsync(ctx, m)
		window <- p // the collector reads on until the window is closed
	}
	close(window)
	<-reported
	r.firstErr = a.meant(ctx, mesh, queue, r.firstErr)
	return r.end(ctx, sourceErr)
}

// body is one message of the source, or why there are no more.
type body struct {
	text []byte
	err  error
}

// readAhead reads the source in a goroutine of its own: a terminal or pipe that says
// nothing cannot be interrupted. The goroutine ends after the last body, when stop
// is closed, or with the process.
func readAhead(next func() ([]byte, error), stop <-chan struct{}) <-chan body {
	bodies := make(chan body, 64)
	go func() {
		for {
			text, err := next()
			select {
			case bodies <- body{text, err}:
			case <-stop:
				return
			}
			if err != nil {
				return
			}
		}
	}()
	return bodies
}

// source is where messages come from: next returns io.EOF after the last.
func (a *app) source(s *sendFlags, args []string) (next func() ([]byte, error), unit string, done func(), err error) {
	if s.file == "" {
		return func() ([]byte, error) {
			if len(args) == 0 {
				return nil, io.EOF
			}
			body := []byte(args[0])
			args = args[1:]
			return body, nil
		}, "message", func() {}, nil
	}
	in := a.in
	done = func() {}
	if s.file != "-" {
		f, err := os.Open(s.file)
		if err != nil {
			return nil, "", nil, err
		}
		in, done = f, func() { _ = f.Close() }
	}
	return newLineReader(in).next, "line", done, nil
}

// sendReport takes the answers in the order sent and says what became of all.
type sendReport struct {
	*app
	flags   *sendFlags
	queue   string
	unit    string // of the source: line, message
	started time.Time
	broken  chan struct{} // closed when no more is to be sent: at the first message not confirmed, or printed

	confirmed, unconfirmed int
	firstLine              int
	firstErr               error
	outErr                 error
	stopOnce               sync.Once
}

// collect waits for each message in turn until the window is closed.
func (r *sendReport) collect(window <-chan pending) {
	out := bufio.NewWriterSize(r.out, 64<<10)
	progress := newProgress(r.err, r.flags.file != "")
	defer progress.clear()
	for {
		var p pending
		var more bool
		select {
		case p, more = <-window:
		default: // nothing is under way: what is confirmed is seen now
			r.wrote(out.Flush())
			p, more = <-window
		}
		if !more {
			break
		}
		sent, err := r.wait(p, out, progress)
		if err != nil {
			r.fail(p.line, err)
			continue
		}
		r.confirmed++
		r.print(out, p.line, &sent)
		select {
		case <-progress.tick():
			progress.show("%d confirmed, %.0f/s", r.confirmed, r.rate())
		default:
		}
	}
	r.wrote(out.Flush())
}

// wrote takes the error of a write to stdout: then no more is sent.
func (r *sendReport) wrote(err error) {
	if err == nil || r.outErr != nil {
		return
	}
	r.outErr = err
	r.stop()
}

func (r *sendReport) stop() { r.stopOnce.Do(func() { close(r.broken) }) }

// wait waits for one answer; what is printed goes out before.
func (r *sendReport) wait(p pending, out *bufio.Writer, progress *progress) (client.Sent, error) {
	if p.err != nil {
		return client.Sent{}, p.err
	}
	for {
		select {
		case <-p.future.Done():
			return p.future.Wait(context.Background())
		default:
		}
		r.wrote(out.Flush())
		select {
		case <-p.future.Done():
		case <-progress.tick():
			progress.show("%d confirmed, %.0f/s", r.confirmed, r.rate())
		}
	}
}

func (r *sendReport) rate() float64 {
	return float64(r.confirmed) / max(time.Since(r.started), time.Millisecond).Seconds()
}

func (r *sendReport) fail(line int, err error) {
	if r.unconfirmed++; r.unconfirmed == 1 {
		r.firstLine, r.firstErr = line, err
		r.stop()
	}
}

func (r *sendReport) print(out *bufio.Writer, line int, sent *client.Sent) {
	var err error
	switch {
	case r.flags.json:
		var text []byte
		text, err = jsonLine(struct {
			ID        string   `json:"id"`
			Queue     string   `json:"queue"`
			Partition int      `json:"partition"`
			Confirmed int      `json:"confirmed"`
			Want      int      `json:"want"`
			Nodes     []string `json:"nodes"`
			Line      int      `json:"line"`
		}{sent.ID.String(), sent.Queue, sent.Partition, sent.Confirmed, sent.Want, sent.Nodes, line})
		if err == nil {
			_, err = out.Write(text)
		}
	case r.flags.file == "":
		_, err = fmt.Fprintf(out, "confirmed %s in %s/%d on %s\n", sent.ID, sent.Queue, sent.Partition, strings.Join(sent.Nodes, ", "))
	}
	r.wrote(err)
}

// end says what became of all messages.
func (r *sendReport) end(ctx context.Context, sourceErr error) error {
	took := time.Since(r.started)
	if r.flags.file != "" {
		fmt.Fprintf(r.err, "meshq: %s confirmed in %s (%.0f/s)\n", plural(r.confirmed, "message"), round(took), r.rate())
	}
	switch {
	case r.unconfirmed > 0 && r.flags.file == "" && r.confirmed+r.unconfirmed == 1:
		return r.firstErr
	case r.unconfirmed > 0:
		err := bare(r.firstErr, "send "+r.queue)
		f := &failure{code: exitFailed, hint: hintFor(r.queue, &r.flags.meshFlags, err)}
		var own *failure
		if errors.As(err, &own) && own.hint != "" {
			f.hint = own.hint
		}
		f.err = fmt.Errorf("%s not confirmed, the first is %s %d: %w", plural(r.unconfirmed, "message"), r.unit, r.firstLine, err)
		if r.flags.file != "" && r.flags.file != "-" {
			if f.hint != "" {
				f.hint += "; "
			}
			f.hint += fmt.Sprintf("to go on: tail -n +%d %s | %s send %s --file -", r.firstLine, r.flags.file, self(), r.queue)
		}
		return f
	case sourceErr != nil:
		return sourceErr
	case r.outErr != nil:
		return r.outErr
	case ctx.Err() != nil:
		return errors.New("interrupted: what was not yet read is not sent")
	}
	return nil
}

// round keeps three digits or so of a duration.
func round(d time.Duration) time.Duration {
	switch {
	case d < time.Millisecond:
		return d.Round(time.Microsecond)
	case d < time.Second:
		return d.Round(100 * time.Microsecond)
	}
	return d.Round(10 * time.Millisecond)
}
