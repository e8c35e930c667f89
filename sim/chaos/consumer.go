package chaos

import (
	"context"
	"errors"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/meshq/meshq/client"
	"github.com/meshq/meshq/sim/history"
)

const (
	defaultWindow = 16
	defaultHold   = 50 * time.Millisecond
	// settleTimeout is how long an ack or nack is waited for. The library goes on in the
	// background for longer; the history then says that the outcome is unknown.
	settleTimeout = 60 * time.Second
	reopenAfter   = 200 * time.Millisecond
)

// consuming is a consumer at work.
type consuming struct {
	*teller
	orders *orders
	queue  *client.Queue

	mu        sync.Mutex // protects forgotten
	forgotten map[history.Message]bool
}

// run takes messages until it is told to stop, and ends what it has in hand.
func (c *consuming) run(ctx context.Context, stop <-chan struct{}) error {
	c.tell(history.Event{Kind: history.ClientUp})
	taking, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-stop:
			cancel()
		case <-taking.Done():
		}
	}()
	for taking.Err() == nil {
		if err := c.take(ctx, taking); err != nil && !errors.Is(err, client.ErrUnreachable) && !errors.Is(err, client.ErrNoQueue) && taking.Err() == nil {
			return err
		}
		select {
		case <-taking.Done():
		case <-time.After(reopenAfter):
		}
	}
	return context.Cause(ctx)
}

// take opens a consumer and works on what it gets until taking ends. One goroutine
// receives all, so that the history has deliveries in the order in which they came.
func (c *consuming) take(ctx, taking context.Context) error {
	spec := c.part.Consumer
	consumer, err := c.queue.Consumer(taking, spec.Group)
	if err != nil {
		return err
	}
	defer consumer.Close()
	var working sync.WaitGroup
	defer working.Wait()
	window := orElse(spec.Window, defaultWindow)
	room := make(chan struct{}, window)
	for {
		select {
		case room <- struct{}{}: // waits for the first place
			<-room
		case <-taking.Done():
			return nil
		}
		got, err := consumer.Receive(taking, window-len(room), 0)
		if err != nil {
			return err
		}
		for _, d := range got {
			room <- struct{}{} // there is room: only this goroutine takes it
			e := c.delivered(d)
			working.Go(func() {
				defer func() { <-room }()
				c.work(ctx, d, e)
			})
		}
	}
}

// delivered tells of a delivery and returns the event, for those that follow.
func (c *consuming) delivered(d *client.Delivery) history.Event {
	e := history.Event{
		Kind: history.Delivered, Queue: d.Queue, Group: d.Group, Partition: uint32(d.Partition), ID: d.ID.String(),
		Hash: hashOf(d.Body, d.Key), Term: history.Term{Counter: d.Fence.Term, Node: strconv.FormatUint(d.Fence.Node, 16)},
		Attempt: uint32(d.Attempt), Cause: d.Cause, Lease: time.Duration(c.part.Lease),
	}
	var ok bool
	if e.Message, ok = readBody(d.Body); !ok {
		e.Text = "the body is not one that a producer of this run made"
	}
	c.tell(e)
	return e
}

// work holds a message as long as its luck says, and settles it.
func (c *consuming) work(ctx context.Context, d *client.Delivery, e history.Event) {
	spec, seed := c.part.Consumer, c.part.Seed
	e.Cause, e.Lease, e.Hash, e.Text = "", 0, 0, ""
	c.orders.mu.Lock()
	slow, nackAll, poison := c.orders.slow, c.orders.nack, c.orders.poison
	c.orders.mu.Unlock()
	if poison > 0 && luckOf(seed, "poison", e.Message)%uint64(poison) == 0 {
		dieAtOnce()
		select {} // the last thing that this process does
	}
	again := e
	again.Message.Number ^= uint64(e.Attempt) << 32 // another luck for another attempt
	hold := slow + exponential(luckOf(seed, "hold "+spec.Name, again.Message), orElse(time.Duration(spec.Hold), defaultHold))
	select {
	case <-time.After(hold):
	case <-ctx.Done():
		return
	}
	bounded, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	var err error
	tell := func(kind history.Kind) {
		e.Kind = kind
		c.tell(e)
	}
	switch {
	case share(luckOf(seed, "forget "+spec.Name, e.Message)) < spec.Forget && c.forgets(e.Message):
		// The library extends what is in hand for as long as it runs; what it can do is give
		// it back without a word on how it went.
		tell(history.Released)
		err = d.Release(bounded)
	case nackAll || share(luckOf(seed, "nack "+spec.Name, again.Message)) < spec.Nack:
		tell(history.Nacked)
		err = d.Nack(bounded, 0, "chaos")
	default:
		tell(history.Acking)
		if err = d.Ack(bounded); err == nil {
			tell(history.Acked)
		}
	}
	if err != nil {
		e.Code, e.Text = codeOf(err), err.Error()
		tell(history.AckFailed)
	}
}

// forgets tells, for the first time that it is asked about a message, that this consumer
// forgets it.
func (c *consuming) forgets(m history.Message) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.forgotten[m] {
		return false
	}
	if c.forgotten == nil {
		c.forgotten = map[history.Message]bool{}
	}
	c.forgotten[m] = true
	return true
}

// dieAtOnce ends this process as the kernel ends one that is out of memory.
func dieAtOnce() {
	if self, err := os.FindProcess(os.Getpid()); err == nil {
		_ = self.Kill()
	}
}
