package chaos

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/meshq/meshq/client"
	"github.com/meshq/meshq/sim/history"
	"github.com/meshq/meshq/sim/plan"
	"github.com/meshq/meshq/transport/wire"
)

// part is what one client process does: the first line that it reads.
type part struct {
	Name    string `json:"name"`    // in the plan, and in the history
	Life    int    `json:"life"`    // 1 for the first process of that name
	Servers string `json:"servers"` // as client.Dial takes them
	Began   int64  `json:"began"`   // when the load began: CLOCK_MONOTONIC, in nanoseconds
	Seed    uint64 `json:"seed"`

	Producer *plan.Producer `json:"producer,omitempty"`
	Consumer *plan.Consumer `json:"consumer,omitempty"` // one of both
	Lease    plan.Duration  `json:"lease,omitempty"`    // of its queue
}

// producer is the name that messages of this process have: a client process that was
// killed and started again is another producer.
func (p *part) producer() string {
	if p.Life <= 1 {
		return p.Name
	}
	return fmt.Sprintf("%s.%d", p.Name, p.Life)
}

// order changes what a client process does from now on; a line each, after the part.
// What is nil stays as it is.
type order struct {
	Slow   *plan.Duration `json:"slow,omitempty"`   // work so much longer on each message
	Nack   *bool          `json:"nack,omitempty"`   // nack all
	Poison *int           `json:"poison,omitempty"` // die of one message in so many; 0: of none
	Burst  *int           `json:"burst,omitempty"`  // send so many times as fast; 0 and 1: as planned
	// Stop: a producer sends nothing more, a consumer takes nothing more; then what is
	// under way is ended, and the process.
	Stop bool `json:"stop,omitempty"`
}

// orders are the orders that hold now.
type orders struct {
	mu     sync.Mutex // protects the fields below
	slow   time.Duration
	nack   bool
	poison int
	burst  int
}

func (o *orders) take(in order) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if in.Slow != nil {
		o.slow = time.Duration(*in.Slow)
	}
	if in.Nack != nil {
		o.nack = *in.Nack
	}
	if in.Poison != nil {
		o.poison = *in.Poison
	}
	if in.Burst != nil {
		o.burst = *in.Burst
	}
}

// teller writes a history as it happens, a line for each event. An event is with the
// reader when tell returns, whatever happens to this process then.
type teller struct {
	part *part

	mu  sync.Mutex // orders the lines
	out io.Writer
}

// now is the time since the load began.
func (t *teller) now() time.Duration { return time.Duration(monotonic() - t.part.Began) }

// tell writes an event of this client that happens now.
func (t *teller) tell(e history.Event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e.At, e.Who = t.now(), t.part.Name
	line, err := json.Marshal(e)
	if err == nil {
		_, err = t.out.Write(append(line, '\n'))
	}
	if err != nil {
		panic(fmt.Sprintf("chaos: a client cannot tell its history: %v", err)) // nobody is there to hear
	}
}

// errLeft means that the one who gives orders has gone without an order to stop.
var errLeft = errors.New("the run that this client belongs to has ended")

// RunClient is a client process of a run: it reads its part and its orders from in and
// writes its history to out. It returns when it was ordered to stop, or with an error.
func RunClient(ctx context.Context, in io.Reader, out io.Writer, opts ...client.Option) error {
	lines := bufio.NewReader(in)
	first, err := lines.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("read the part of this client: %w", err)
	}
	var p part
	if err := json.Unmarshal(first, &p); err != nil {
		return fmt.Errorf("read the part of this client: %w", err)
	}
	if (p.Producer == nil) == (p.Consumer == nil) {
		return errors.New("read the part of this client: one of producer and consumer is wanted")
	}
	ctx, leave := context.WithCancelCause(ctx)
	defer leave(nil)
	stop := make(chan struct{})
	held := &orders{}
	go func() {
		if err := held.follow(lines, stop); err != nil {
			leave(err)
		}
	}()
	t := &teller{part: &p, out: out}
	if !wait(ctx, -t.now()) {
		return context.Cause(ctx)
	}
	mesh, err := dialPatiently(ctx, p.Servers, append([]client.Option{client.Name("chaos " + p.Name), client.DialTimeout(5 * time.Second), client.Logger(slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})))}, opts...)...)
	if err != nil {
		return err
	}
	if p.Producer != nil {
		err = (&producing{teller: t, orders: held, queue: mesh.Queue(p.Producer.Queue)}).run(ctx, stop)
	} else {
		err = (&consuming{teller: t, orders: held, queue: mesh.Queue(p.Consumer.Queue)}).run(ctx, stop)
	}
	if ctx.Err() == nil {
		_ = mesh.Close()
	}
	return err
}

// follow takes orders until they end; without an order to stop that is errLeft.
func (o *orders) follow(lines *bufio.Reader, stop chan struct{}) error {
	d := json.NewDecoder(lines)
	stopped := false
	for {
		var in order
		if err := d.Decode(&in); err != nil {
			if stopped {
				return nil
			}
			return errLeft
		}
		o.take(in)
		if in.Stop && !stopped {
			stopped = true
			close(stop)
		}
	}
}

// dialPatiently connects, and goes on trying while no node answers: a client may be
// started while all nodes are down.
func dialPatiently(ctx context.Context, servers string, opts ...client.Option) (*client.Mesh, error) {
	for {
		mesh, err := client.Dial(ctx, servers, opts...)
		switch {
		case err == nil:
			return mesh, nil
		case ctx.Err() != nil: // it ended while this dialed, whatever Dial says
			return nil, context.Cause(ctx)
		case !errors.Is(err, client.ErrUnreachable):
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// codeOf is the word of a history for what a node or the client answers.
func codeOf(err error) string {
	var answer *wire.Error
	switch {
	case errors.As(err, &answer):
		return history.CodeName(uint16(answer.Code))
	case errors.Is(err, client.ErrUnreachable):
		return history.CodeUnreachable
	case errors.Is(err, client.ErrNotSent):
		return history.CodeNotSent
	case errors.Is(err, client.ErrClosed):
		return history.CodeClosed
	case errors.Is(err, client.ErrCanceled), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return history.CodeCanceled
	}
	return history.CodeLost
}
