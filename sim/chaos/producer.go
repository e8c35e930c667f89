package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/meshq/meshq/client"
	"github.com/meshq/meshq/sim/history"
)

const (
	defaultThink   = 20 * time.Millisecond
	defaultBatch   = 4
	defaultBytes   = 64
	defaultTimeout = 2 * time.Second
	// maxUnderWay bounds the messages that a producer has neither confirmed nor refused:
	// past it, it waits, as a program does that has only so much memory.
	maxUnderWay = 1024
)

// producing is a producer at work.
type producing struct {
	*teller
	orders *orders
	queue  *client.Queue
}

// run sends until it is told to stop, or all of its Count is sent, and waits for the
// answers.
func (p *producing) run(ctx context.Context, stop <-chan struct{}) error {
	spec := p.part.Producer
	name := p.part.producer()
	luck := rand.New(rand.NewPCG(p.part.Seed, xxhash.Sum64String(name)))
	think, batch, timeout := orElse(time.Duration(spec.Think), defaultThink), orElse(spec.Batch, defaultBatch), orElse(time.Duration(spec.Timeout), defaultTimeout)
	var waiting sync.WaitGroup
	defer waiting.Wait()
	room := make(chan struct{}, maxUnderWay)
	timer := time.NewTimer(0)
	defer timer.Stop()
	p.tell(history.Event{Kind: history.ClientUp})
	for number := uint64(0); spec.Count == 0 || number < uint64(spec.Count); {
		select {
		case <-timer.C:
		case <-stop:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		for range 1 + luck.IntN(batch) {
			if spec.Count > 0 && number >= uint64(spec.Count) {
				break
			}
			select {
			case room <- struct{}{}:
			case <-stop:
				return nil
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			m := history.Message{Producer: name, Number: number}
			number++
			waiting.Go(p.send(ctx, m, timeout, func() { <-room }))
		}
		p.orders.mu.Lock()
		faster := max(1, p.orders.burst)
		p.orders.mu.Unlock()
		timer.Reset(time.Duration(luck.ExpFloat64()*float64(think)) / time.Duration(faster))
	}
	<-stop
	return nil
}

// send gives a message to the client library, and returns what waits for the answer.
func (p *producing) send(ctx context.Context, m history.Message, timeout time.Duration, done func()) func() {
	spec := p.part.Producer
	msg := client.Message{Body: makeBody(m, int(luckOf(p.part.Seed, "size", m)%uint64(orElse(spec.Bytes, defaultBytes)))+1)}
	if spec.Keys > 0 {
		msg.Key = fmt.Sprintf("k%d", luckOf(p.part.Seed, "key", m)%uint64(spec.Keys))
	}
	e := history.Event{Queue: spec.Queue, Message: m, Hash: hashOf(msg.Body, msg.Key), Within: timeout}
	tell := func(kind history.Kind) {
		e.Kind = kind
		p.tell(e)
		e.Hash, e.Within = 0, 0
	}
	bounded, cancel := context.WithTimeout(ctx, timeout)
	tell(history.Sent)
	future, err := p.queue.SendAsync(bounded, msg)
	return func() {
		defer done()
		defer cancel()
		var sent client.Sent
		if err == nil {
			// The library answers by the deadline by itself, and says more than the context.
			sent, err = future.Wait(ctx)
		}
		var refused *client.SendError
		switch {
		case err == nil:
			e.ID, e.Partition, e.Copies, e.Want = sent.ID.String(), uint32(sent.Partition), sent.Confirmed, sent.Want
			tell(history.Confirmed)
		case errors.As(err, &refused) && !refused.Unknown:
			e.Code, e.Text = codeOf(err), err.Error()
			tell(history.Refused)
		default:
			e.Code, e.Text = codeOf(err), err.Error()
			tell(history.Unknown)
		}
	}
}

func orElse[T comparable](value, fallback T) T {
	var zero T
	if value == zero {
		return fallback
	}
	return value
}
