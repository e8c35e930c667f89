package chaos

import (
	"errors"
	"time"

	"github.com/meshq/meshq/sim/plan"
)

// clientCrash kills clients until the fault is over.
func clientCrash(f *fault) (func() error, error) {
	for _, w := range f.clients {
		w.kill("killed")
	}
	return func() error {
		var errs []error
		for _, w := range f.clients {
			errs = append(errs, w.raise())
		}
		return errors.Join(errs...)
	}, nil
}

func consumerPause(f *fault) (func() error, error) {
	var errs []error
	for _, w := range f.clients {
		errs = append(errs, w.pause())
	}
	return func() error {
		var errs []error
		for _, w := range f.clients {
			errs = append(errs, w.resume())
		}
		return errors.Join(errs...)
	}, errors.Join(errs...)
}

// command gives orders to the clients of a fault, and takes them back.
func (f *fault) command(give, take func(*order)) (func() error, error) {
	all := func(change func(*order)) error {
		var errs []error
		for _, w := range f.clients {
			errs = append(errs, w.command(change))
		}
		return errors.Join(errs...)
	}
	return func() error { return all(take) }, all(give)
}

func consumerSlow(f *fault) (func() error, error) {
	slow, usual := f.By, plan.Duration(0)
	return f.command(func(o *order) { o.Slow = &slow }, func(o *order) { o.Slow = &usual })
}

func nackStorm(f *fault) (func() error, error) {
	yes, no := true, false
	return f.command(func(o *order) { o.Nack = &yes }, func(o *order) { o.Nack = &no })
}

func poison(f *fault) (func() error, error) {
	some, none := max(1, f.Count), 0
	return f.command(func(o *order) { o.Poison = &some }, func(o *order) { o.Poison = &none })
}

func burst(f *fault) (func() error, error) {
	fast, usual := max(2, f.Count), 1
	end, err := f.command(func(o *order) { o.Burst = &fast }, func(o *order) { o.Burst = &usual })
	if f.For == 0 {
		f.For = plan.Duration(time.Second)
	}
	return end, err
}
