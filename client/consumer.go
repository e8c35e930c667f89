package client

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	"github.com/meshq/meshq/client/core"
	"github.com/meshq/meshq/transport/wire"
)

// Handler works on one message. nil acks it; an error gives it back with the queue's
// backoff, or with Retry's delay; a panic gives it back too. The context ends, with
// cause ErrLeaseLost, when others may have the message.
type Handler func(ctx context.Context, d *Delivery) error

// Consumer receives the messages of one group of a queue. It is safe for concurrent
// use.
type Consumer struct {
	mesh  *Mesh
	queue *Queue
	group string
	key   core.ConsumerKey

	mu      sync.Mutex // protects running
	running map[runKey]context.CancelCauseFunc
}

// runKey names a message that a handler works on.
type runKey struct {
	handout core.HandoutID
	offset  wire.Offset
}

const (
	openTimeout  = 10 * time.Second
	flushTimeout = 5 * time.Second // for the acks at the end of a consumer
	never        = 365 * 24 * time.Hour
)

// Consumer opens a consumer for Receive. group "" is "default". Close it when done.
// The errors are ErrNoQueue, ErrNoGroup, ErrUnreachable and the context's.
func (q *Queue) Consumer(ctx context.Context, group string, opts ...ConsumeOption) (*Consumer, error) {
	o := consumeOptions{prefetch: 0, keep: time.Second}
	for _, opt := range opts {
		opt(&o)
	}
	return q.open(ctx, group, o)
}

func (q *Queue) open(ctx context.Context, group string, o consumeOptions) (*Consumer, error) {
	if group == "" {
		group = "default"
	}
	m := q.mesh
	m.mu.Lock()
	m.next++
	key := m.next
	m.mu.Unlock()
	c := &Consumer{mesh: m, queue: q, group: group, key: key, running: map[runKey]context.CancelCauseFunc{}}
	w := &openWaiter{done: make(chan error, 1)}
	m.loop.addConsumer(c)
	if !m.loop.post(core.OpenConsumer{
		Consumer: key, ID: wire.ConsumerID(random()), Queue: q.name, Group: group, Prefetch: o.prefetch, Idle: o.keep,
		Ticket: w, Until: m.loop.until(ctx, openTimeout),
	}) {
		m.loop.removeConsumer(key)
		return nil, fmt.Errorf("consume %s: %w", q.name, ErrClosed)
	}
	var err error
	select {
	case err = <-w.done:
	case <-ctx.Done():
		m.loop.post(core.Cancel{Ticket: w})
		err = because(<-w.done, context.Cause(ctx))
	}
	if err != nil {
		m.loop.removeConsumer(key)
		return nil, fmt.Errorf("consume %s: %w", q.name, err)
	}
	return c, nil
}

// Receive returns what is there, at most limit messages (1 to 10,000), and waits for
// the first at most wait; with wait 0 until ctx ends. No message within the wait is
// no error: the result is empty.
func (c *Consumer) Receive(ctx context.Context, limit int, wait time.Duration) ([]*Delivery, error) {
	if wait <= 0 {
		wait = never
	}
	w := &receiveWaiter{done: make(chan core.Received, 1)}
	now := c.mesh.loop.now()
	if !c.mesh.loop.post(core.Receive{Consumer: c.key, Ticket: w, Max: min(max(1, limit), 10_000), Until: now.Add(wait)}) {
		return nil, c.wrap(ErrClosed)
	}
	var r core.Received
	select {
	case r = <-w.done:
	case <-ctx.Done():
		c.mesh.loop.post(core.Cancel{Ticket: w})
		r = <-w.done
		r.Err = because(r.Err, context.Cause(ctx))
	}
	if r.Err != nil {
		return nil, c.wrap(r.Err)
	}
	out := make([]*Delivery, 0, len(r.Deliveries))
	for i := range r.Deliveries {
		d, err := c.delivery(&r.Deliveries[i])
		if err != nil { // written by a newer client: not for this one
			raw := &r.Deliveries[i]
			c.mesh.options.logger.Warn("message cannot be read", "queue", c.queue.name, "offset", uint64(raw.Offset), "err", err)
			c.mesh.loop.settle(core.Settlement{Handout: raw.Handout, Offset: raw.Offset, Kind: wire.SettleNack, Reason: clip(err.Error())})
			continue
		}
		out = append(out, d)
	}
	return out, nil
}

func (c *Consumer) wrap(err error) error { return fmt.Errorf("receive %s: %w", c.queue.name, err) }

// AckAll acks many messages with one frame for each owner.
func (c *Consumer) AckAll(ctx context.Context, deliveries []*Delivery) error {
	return c.mesh.AckAll(ctx, deliveries)
}

// Close ends the consumer: what was received and not settled, or not received, is given
// back, and acks under way are finished, for at most 5 s. It may be called more than once.
func (c *Consumer) Close() error {
	c.close(core.TakenRelease)
	return nil
}

func (c *Consumer) close(taken core.Taken) {
	w := &closeWaiter{done: make(chan struct{})}
	if c.mesh.loop.post(core.CloseConsumer{
		Consumer: c.key, Ticket: w, Until: c.mesh.loop.now().Add(flushTimeout), Taken: taken,
	}) {
		<-w.done
	}
	c.mesh.loop.removeConsumer(c.key)
}

// Receive opens a consumer, receives once, and gives back what comes too late. To
// receive more than once open a Consumer. The messages can be settled, and their
// leases are extended, until the Mesh is closed.
func (q *Queue) Receive(ctx context.Context, group string, limit int, wait time.Duration) ([]*Delivery, error) {
	c, err := q.open(ctx, group, consumeOptions{})
	if err != nil {
		return nil, err
	}
	out, err := c.Receive(ctx, limit, wait)
	if err != nil || len(out) == 0 {
		c.close(core.TakenRelease)
		return nil, err
	}
	// The core drops the consumer when the last of its messages is settled.
	c.mesh.loop.post(core.CloseConsumer{Consumer: c.key, Until: c.mesh.loop.now().Add(never), Taken: core.TakenKeep})
	return out, nil
}

// Consume hands the messages of a group to handler until ctx ends, and then gives
// back what no handler has begun, waits for running handlers (StopTimeout) and
// confirms their acks. It returns nil when ctx has ended; otherwise why it cannot go
// on: ErrNoQueue, ErrNoGroup, ErrClosed, ErrUnreachable (only before the first
// message). group "" is "default".
func (q *Queue) Consume(ctx context.Context, group string, handler Handler, opts ...ConsumeOption) error {
	o := consumeOptions{concurrency: 1, prefetch: -1, keep: never, stop: 10 * time.Second}
	for _, opt := range opts {
		opt(&o)
	}
	o.keep = never
	if o.prefetch < 0 {
		o.prefetch = max(16, 2*o.concurrency)
	}
	c, err := q.open(ctx, group, o)
	if err != nil {
		return err
	}

	work, abandon := context.WithCancelCause(context.WithoutCancel(ctx))
	defer abandon(nil)
	var workers sync.WaitGroup
	errs := make(chan error, o.concurrency) // room for all: a worker ends with one
	for range o.concurrency {
		workers.Go(func() { errs <- c.work(ctx, work, handler) })
	}
	ended := make(chan struct{})
	go func() { workers.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-ctx.Done():
		if !within(ended, o.stop) {
			abandon(context.Cause(ctx))
			// A handler that ignores the end of its context too is left behind: its message
			// comes again when its lease ends.
			within(ended, time.Second)
		}
	}
	c.close(core.TakenLeave)
	if ctx.Err() != nil {
		return nil
	}
	return <-errs
}

// within tells whether done is closed before d has passed.
func within(done <-chan struct{}, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-done:
		return true
	case <-t.C:
		return false
	}
}

// work receives and handles one message at a time until ctx ends.
func (c *Consumer) work(ctx, work context.Context, handler Handler) error {
	for ctx.Err() == nil {
		ds, err := c.Receive(ctx, 1, 0)
		if err != nil {
			return err
		}
		for _, d := range ds {
			c.handle(work, d, handler)
		}
	}
	return ctx.Err()
}

// handle runs the handler and settles the message by what it returns.
func (c *Consumer) handle(work context.Context, d *Delivery, handler Handler) {
	key := runKey{d.handout, d.ID.position.Offset}
	ctx, cancel := context.WithCancelCause(work)
	defer cancel(nil)
	c.mu.Lock()
	c.running[key] = cancel
	c.mu.Unlock()

	err := c.guard(ctx, d, handler)

	c.mu.Lock()
	delete(c.running, key)
	c.mu.Unlock()
	s := d.settlement(wire.SettleAck)
	if err != nil {
		s.Kind, s.Reason = wire.SettleNack, clip(err.Error())
		var retry *retryError
		if errors.As(err, &retry) {
			s.Delay = retry.delay
		}
	}
	c.mesh.loop.settle(s)
}

// guard turns a panic into an error.
func (c *Consumer) guard(ctx context.Context, d *Delivery, handler Handler) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
			c.mesh.options.logger.Error("handler panicked", "queue", d.Queue, "group", d.Group, "id", d.ID.String(),
				"panic", fmt.Sprint(p), "stack", string(debug.Stack()))
		}
	}()
	return handler(ctx, d)
}

// lost ends the contexts of handlers whose lease is over. Called by the loop.
func (c *Consumer) lost(handout core.HandoutID, runs wire.Runs) {
	c.mu.Lock()
	var cancels []context.CancelCauseFunc
	for _, r := range runs {
		for o := r.From; o < r.To; o++ {
			if cancel := c.running[runKey{handout, o}]; cancel != nil {
				cancels = append(cancels, cancel)
			}
		}
	}
	c.mu.Unlock()
	for _, cancel := range cancels {
		cancel(ErrLeaseLost)
	}
}
