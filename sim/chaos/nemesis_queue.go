package chaos

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/meshq/meshq/client"
	"github.com/meshq/meshq/sim/history"
	"github.com/meshq/meshq/sim/plan"
)

// ownQueue is a queue that is created and deleted again and again. It always has the
// same name, so that each is another generation of it.
type ownQueue struct {
	f     *fault
	name  string
	place *Client
	lives int // generations
}

const (
	ownSuffix      = "-own"                  // of its name, after that of the plan's first queue
	fillFor        = 1500 * time.Millisecond // that a producer has to fill a generation
	deletePatience = startPatience
)

// deleteQueue fills a queue and deletes it, again and again. The last generation stays,
// and is drained like all queues.
func deleteQueue(f *fault) (func() error, error) {
	o := &ownQueue{f: f, name: f.n.plan.Queues[0].Name + ownSuffix}
	var err error
	if o.place, err = f.n.mesh.Client(o.name); err != nil {
		return nil, err
	}
	lease := plan.Duration(5 * time.Second)
	q := plan.Queue{Name: o.name, Partitions: 2, Lease: lease, BackoffMax: plan.Duration(time.Second)}
	f.n.addQueue(q)
	consumer := &worker{trial: f.n.trial, place: o.place, part: part{
		Name: o.name + "-consumer", Seed: f.n.plan.Seed, Lease: lease,
		Consumer: &plan.Consumer{Name: o.name + "-consumer", Queue: o.name, Hold: plan.Duration(10 * time.Millisecond)},
	}}
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			if err := createQueue(f.n.alive, f.n.observer, q); err != nil {
				done <- err
				return
			}
			if o.lives == 0 {
				f.n.addWorker(consumer)
				if err := consumer.start(); err != nil {
					done <- err
					return
				}
			}
			o.lives++
			if err := o.fill(); err != nil {
				done <- err
				return
			}
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			if err := o.delete(); err != nil {
				done <- &breachError{"P10", err.Error()}
				return
			}
		}
	}()
	return func() error {
		close(stop)
		err := <-done
		f.say("%s had %d generations", o.name, o.lives)
		return err
	}, nil
}

// fill sends to the queue for a while, and waits for all answers.
func (o *ownQueue) fill() error {
	name := fmt.Sprintf("%s-producer-%d", o.name, o.lives)
	w := &worker{trial: o.f.n.trial, place: o.place, part: part{
		Name: name, Seed: o.f.n.plan.Seed, Producer: &plan.Producer{Name: name, Queue: o.name, Think: plan.Duration(10 * time.Millisecond)},
	}}
	if err := w.start(); err != nil {
		return err
	}
	wait(o.f.n.heal, fillFor)
	w.stop(defaultTimeout + 10*time.Second)
	return nil
}

// delete deletes the queue. What was sent to it before is gone when that is confirmed.
func (o *ownQueue) delete() error {
	ctx, cancel := context.WithTimeout(o.f.n.alive, deletePatience)
	defer cancel()
	err := poll(ctx, "delete "+o.name, func() error {
		err := o.f.n.observer.DeleteQueue(ctx, o.name)
		if errors.Is(err, client.ErrNoQueue) {
			return nil // the try before has done it
		}
		return err
	})
	if err == nil {
		o.f.n.tell(history.Event{Kind: history.Purged, Who: o.name, Queue: o.name})
	}
	return err
}
