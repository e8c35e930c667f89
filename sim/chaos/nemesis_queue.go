package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
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

// updateQueue changes settings of a queue, some of them each time. Any of them go together. The
// lease does not become shorter than the history says of each delivery.
func updateQueue(f *fault) (func() error, error) {
	queue := f.n.plan.QueueOf(f.On[0])
	d := dice{rand.New(rand.NewPCG(f.n.plan.Seed, uint64(f.At)))}
	ctx, cancel := context.WithCancel(f.n.alive)
	done := make(chan error, 1)
	lease, longest, changes := defaultLease, time.Second, 0
	for _, q := range f.n.plan.Queues {
		if q.Name == queue {
			lease = orElse(time.Duration(q.Lease), lease)
		}
	}
	go func() {
		for {
			s := client.Settings{Lease: time.Duration(d.time(lease, 2*lease)), BackoffMax: longest}
			if d.IntN(2) == 0 {
				s.BackoffMin = time.Duration(d.time(20*time.Millisecond, 500*time.Millisecond))
			}
			longest = 0 // the first sets it
			if d.IntN(2) == 0 {
				s.BackoffMax = time.Duration(d.time(500*time.Millisecond, 4*time.Second))
			}
			if d.IntN(2) == 0 {
				s.MaxMessageBytes = 2<<20 + d.IntN(2<<20)
			}
			_, err := f.n.observer.UpdateQueue(ctx, queue, s)
			switch {
			case err == nil:
				changes++
			case errors.Is(err, client.ErrBadRequest) || errors.Is(err, client.ErrNoQueue):
				done <- &breachError{"P10", err.Error()}
				return
			}
			if !wait(ctx, time.Duration(d.time(0, max(2*time.Duration(f.By), time.Millisecond)))) {
				done <- nil
				return
			}
		}
	}()
	return func() error {
		cancel()
		err := <-done
		f.say("%d updates of %s were confirmed", changes, queue)
		return err
	}, nil
}

// pauseQueue pauses a queue or a group, and resumes it, or leaves that to the nodes.
func pauseQueue(f *fault) (func() error, error) {
	queue, group := f.n.plan.QueueOf(f.On[0]), ""
	if f.Count != 1 {
		for _, c := range f.n.plan.Consumers {
			if c.Name == f.On[0] {
				group = orElse(c.Group, "default")
			}
		}
	}
	until := client.Forever
	if f.By > 0 {
		until = time.Now().Add(time.Duration(f.By))
	}
	ctx, cancel := context.WithTimeout(f.n.heal, changePatience)
	defer cancel()
	err := poll(ctx, "pause "+queue, func() error {
		if !time.Now().Before(until) {
			return nil
		}
		_, err := f.n.observer.PauseQueue(ctx, queue, group, until)
		return err
	})
	if err != nil {
		f.say("%v", err) // it may be paused now
	}
	return func() error {
		if time.Now().After(until) {
			return nil
		}
		ctx, cancel := context.WithTimeout(f.n.alive, changePatience)
		defer cancel()
		err := poll(ctx, "resume "+queue, func() error {
			_, err := f.n.observer.ResumeQueue(ctx, queue, group)
			return err
		})
		if err != nil {
			return &breachError{"P10", err.Error()}
		}
		return nil
	}, nil
}

// changePatience is how long a change of a queue may take, with all that else goes wrong.
const changePatience = startPatience
