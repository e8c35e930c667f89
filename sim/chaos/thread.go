package chaos

import (
	"runtime"
	"sync"
)

// thread is one operating system thread that runs functions one after the other. Where
// the kernel keeps something by thread (its namespaces, whose death takes children along)
// this is what has it: the thread ends with close, and never serves other goroutines.
type thread struct {
	todo chan func()
	done chan struct{} // closed when the thread is about to end
	once sync.Once
}

// newThread starts a thread and runs setup on it; it is gone when that fails.
func newThread(setup func() error) (*thread, error) {
	t := &thread{todo: make(chan func()), done: make(chan struct{})}
	started := make(chan error, 1)
	go t.run(setup, started)
	if err := <-started; err != nil {
		<-t.done
		return nil, err
	}
	return t, nil
}

func (t *thread) run(setup func() error, started chan<- error) {
	runtime.LockOSThread() // and never unlocked: the runtime ends the thread with the goroutine
	if isMainThread() {
		// The main thread cannot end before the process; what is done to it would stay.
		// Held here, it is not the one that the next goroutine gets.
		again := make(chan struct{})
		go func() { defer close(again); t.run(setup, started) }()
		<-again
		runtime.UnlockOSThread()
		return
	}
	defer close(t.done)
	if err := setup(); err != nil {
		started <- err
		return
	}
	started <- nil
	for f := range t.todo {
		f()
	}
}

// do runs f on the thread and returns when it has returned. Files that f opens are those
// that the thread sees; goroutines that it starts run elsewhere.
func (t *thread) do(f func() error) (err error) {
	done := make(chan struct{})
	t.todo <- func() { defer close(done); err = f() }
	<-done
	return err
}

// close ends the thread; nobody may call do any more.
func (t *thread) close() {
	t.once.Do(func() { close(t.todo) })
	<-t.done
}
