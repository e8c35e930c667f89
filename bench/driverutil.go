package main

import (
	"context"
	"sync"
)

// Small helpers that several drivers share.

// takeBatch waits for an item and takes those that are there with it, up to
// most. It returns nil when quit is closed.
func takeBatch[T any](from <-chan T, quit <-chan struct{}, most int) []T {
	var batch []T
	select {
	case item, ok := <-from:
		if !ok {
			return nil
		}
		batch = append(batch, item)
	case <-quit:
		return nil
	}
	for len(batch) < most {
		select {
		case item, ok := <-from:
			if !ok {
				return batch
			}
			batch = append(batch, item)
		default:
			return batch
		}
	}
	return batch
}

// forEach calls f for each name, some at a time, and returns the first error.
func forEach(ctx context.Context, names []string, atATime int, f func(i int, name string) error) error {
	var wg sync.WaitGroup
	slots := make(chan struct{}, atATime)
	errs := make(chan error, len(names))
	for i, name := range names {
		if ctx.Err() != nil {
			errs <- ctx.Err()
			break
		}
		slots <- struct{}{}
		wg.Add(1)
		go func() {
			defer wg.Done()
			if err := f(i, name); err != nil {
				errs <- err
			}
			<-slots
		}()
	}
	wg.Wait()
	close(errs)
	return <-errs
}
