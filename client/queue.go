package client

import (
	"context"
	"fmt"
	"time"

	"github.com/meshq/meshq/client/core"
	"github.com/meshq/meshq/transport/wire"
)

// Queue sends to and receives from one queue. It is safe for concurrent use.
type Queue struct {
	mesh *Mesh
	name string
}

// Name is the queue's name.
func (q *Queue) Name() string { return q.name }

// Future is a message under way.
type Future struct {
	queue *Queue
	size  int64
	done  chan struct{} // closed when sent and err are set
	sent  Sent
	err   error
}

// Done is closed when the message is answered.
func (f *Future) Done() <-chan struct{} { return f.done }

// Wait waits for the answer. When ctx ends first it returns the context's error and
// the message stays under way.
func (f *Future) Wait(ctx context.Context) (Sent, error) {
	select {
	case <-f.done:
		return f.sent, f.err
	default:
	}
	select {
	case <-f.done:
		return f.sent, f.err
	case <-ctx.Done():
		return Sent{}, context.Cause(ctx)
	}
}

// answer is called by the loop, once.
func (f *Future) answer(sent Sent, err error) {
	f.sent, f.err = sent, err
	close(f.done)
	f.queue.mesh.room.Release(f.size)
}

// Send sends a message and waits until it is confirmed: synced on the queue's write
// quorum of nodes (P1). Without a deadline in ctx it is tried for SendTimeout. The
// error is a *SendError: it is ErrQuorum when the outcome is unknown; in all other
// cases the message is not stored.
//
// Messages that are sent at the same time share batches; to send many from one
// goroutine use SendAsync or SendBatch.
func (q *Queue) Send(ctx context.Context, msg Message) (Sent, error) {
	f, err := q.SendAsync(ctx, msg)
	if err != nil {
		return Sent{}, err
	}
	return q.wait(ctx, f)
}

// wait waits for an answer, and has the core give one at once when ctx ends.
func (q *Queue) wait(ctx context.Context, f *Future) (Sent, error) {
	select {
	case <-f.done:
		return f.sent, f.err
	case <-ctx.Done():
		q.mesh.loop.post(core.Cancel{Queue: q.name, Ticket: f})
		<-f.done
		return f.sent, because(f.err, context.Cause(ctx))
	}
}

// SendAsync takes a message to be sent and returns at once, unless the buffer is
// full: then it waits for room until ctx ends (or fails, see FailWhenFull). The
// message is tried until the deadline of ctx, or for SendTimeout; canceling ctx does
// not call it back. An error means that the message was not taken.
func (q *Queue) SendAsync(ctx context.Context, msg Message) (*Future, error) {
	if err := msg.check(); err != nil {
		return nil, q.refuse(err)
	}
	f := &Future{queue: q, size: min(msg.size(), q.mesh.options.bufferBytes), done: make(chan struct{})}
	if err := q.take(ctx, f.size); err != nil {
		return nil, q.refuse(err)
	}
	item := core.Item{
		Ticket: f, Queue: q.name, Record: msg.record(time.Now()), Until: q.mesh.loop.until(ctx, q.mesh.options.sendTimeout),
	}
	if !q.mesh.loop.send(item) {
		q.mesh.room.Release(f.size)
		return nil, q.refuse(ErrClosed)
	}
	return f, nil
}

// take waits for room in the buffer.
func (q *Queue) take(ctx context.Context, size int64) error {
	if q.mesh.room.TryAcquire(size) {
		return nil
	}
	if q.mesh.options.failWhenFull {
		return wire.Errorf(wire.ErrOverloaded, "send buffer of %d bytes is full", q.mesh.options.bufferBytes)
	}
	bounded, cancel := context.WithTimeout(ctx, q.mesh.options.sendTimeout)
	defer cancel()
	if err := q.mesh.room.Acquire(bounded, size); err != nil {
		if ctx.Err() != nil {
			return &contextError{ErrNotSent, context.Cause(ctx)}
		}
		return wire.Errorf(wire.ErrOverloaded, "send buffer of %d bytes stayed full", q.mesh.options.bufferBytes)
	}
	return nil
}

func (q *Queue) refuse(err error) error { return &SendError{Queue: q.name, Err: err} }

// SendBatch sends messages and waits for all of them. The result has one Sent for
// each message, in order, with its own Err; the error is the first of them, with how
// many failed. Messages are confirmed each for itself: a batch is no transaction.
func (q *Queue) SendBatch(ctx context.Context, messages []Message) ([]Sent, error) {
	futures := make([]*Future, len(messages))
	sent := make([]Sent, len(messages))
	var first error
	failed := 0
	fail := func(i int, err error) {
		sent[i].Queue, sent[i].Err = q.name, err
		if failed++; first == nil {
			first = err
		}
	}
	for i := range messages {
		f, err := q.SendAsync(ctx, messages[i])
		if err != nil {
			fail(i, err)
			continue
		}
		futures[i] = f
	}
	for i, f := range futures {
		if f == nil {
			continue
		}
		s, err := q.wait(ctx, f)
		if err != nil {
			fail(i, err)
			continue
		}
		sent[i] = s
	}
	if failed > 0 {
		return sent, fmt.Errorf("%d of %d messages are not confirmed: %w", failed, len(messages), first)
	}
	return sent, nil
}
