package chaos

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/meshq/meshq/sim/history"
	"github.com/meshq/meshq/sim/plan"
)

// worker is a client of the plan, a producer or a consumer. Each of its lives is a
// process of its own ("meshq chaos client"), so that it can be killed and stopped as
// any program can.
type worker struct {
	trial *trial
	part  part // of the first life
	place *Client

	mu     sync.Mutex // one thing at a time is done to a worker; protects the fields below
	alive  *life      // nil: it is down
	lives  int
	down   int   // reasons why it is not started
	orders order // those that hold, for lives to come
	poison bool  // its messages may kill it, or might a moment ago
	ended  bool  // it was told to stop, or the run is over
}

// life is one process of a worker.
type life struct {
	cmd   *exec.Cmd
	in    *json.Encoder
	stdin io.Closer
	gone  chan struct{} // closed when it has ended and all that it told is recorded
	last  time.Duration // of its last event; to be read when gone is closed
	up    chan struct{} // closed when it has told of its first event
}

func (w *worker) isProducer() bool { return w.part.Producer != nil }

// start begins the next life of a worker, when nothing keeps it down.
func (w *worker) start() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.startLocked()
}

func (w *worker) startLocked() error {
	if w.alive != nil || w.down > 0 || w.ended {
		return nil
	}
	p := w.part
	p.Servers, p.Began, p.Life = w.trial.servers(), w.trial.began, w.lives+1
	l, err := w.spawn(p)
	if err != nil {
		return fmt.Errorf("client %s: %w", w.part.Name, err)
	}
	w.alive = l
	w.lives++
	w.trial.work.Go(func() { w.follow(l) })
	return nil
}

// spawn starts a process and gives it its part and the orders that hold.
func (w *worker) spawn(p part) (*life, error) {
	log, err := os.OpenFile(filepath.Join(w.trial.mesh.Dir(), p.Name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(w.trial.opts.Binary, append([]string{"chaos", "client"}, w.trial.opts.ClientArgs...)...)
	cmd.Stderr = log
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := w.place.Start(cmd); err != nil {
		return nil, err
	}
	l := &life{cmd: cmd, in: json.NewEncoder(in), stdin: in, gone: make(chan struct{}), up: make(chan struct{})}
	go l.read(out, w.trial.record)
	err = l.in.Encode(p)
	if err == nil {
		err = l.in.Encode(w.orders)
	}
	if err != nil { // it has ended already; follow says why
		w.trial.opts.say("client %s takes no orders: %v", p.Name, err)
	}
	return l, nil
}

// read records what a process tells, until it has ended.
func (l *life) read(out io.Reader, r *recorder) {
	defer close(l.gone)
	heard := false
	d := json.NewDecoder(out)
	for {
		var e history.Event
		if d.Decode(&e) != nil {
			break // the last line of a process that was killed may be torn
		}
		l.last = e.At
		r.add(e)
		if !heard {
			heard = true
			close(l.up)
		}
	}
	_, _ = io.Copy(io.Discard, out)
	_ = l.cmd.Wait()
	_ = l.stdin.Close()
}

// follow waits for the end of a life. One that nobody asked to end is told of, and the
// worker starts again.
func (w *worker) follow(l *life) {
	<-l.gone
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.alive != l {
		return // it was killed by the run
	}
	w.alive = nil
	if w.ended && l.cmd.ProcessState.Success() {
		return
	}
	w.trial.record.add(history.Event{At: l.last, Kind: history.ClientDown, Who: w.part.Name, Text: l.cmd.ProcessState.String()})
	if w.ended {
		return
	}
	if !w.poison {
		w.trial.breach("Client", "client %s ended by itself: %v: %s", w.part.Name, l.cmd.ProcessState, lastLine(filepath.Join(w.trial.mesh.Dir(), w.part.Name+".log")))
	}
	w.trial.work.Go(func() {
		if wait(w.trial.alive, poisonPause) {
			if err := w.start(); err != nil {
				w.trial.breach("Client", "%v", err)
			}
		}
	})
}

// poisonPause is how long a consumer that died of a message is down.
const poisonPause = 300 * time.Millisecond

// kill ends the life of a worker with all that it holds, until raise. false: it was down.
func (w *worker) kill(text string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.down++
	return w.killLocked(text)
}

func (w *worker) killLocked(text string) bool {
	l := w.alive
	if l == nil {
		return false
	}
	w.alive = nil
	at := w.trial.record.now()
	_ = l.cmd.Process.Kill()
	<-l.gone
	// What it told last it did before it died, and what the nodes do about its death
	// they do after.
	w.trial.record.add(history.Event{At: max(at, l.last), Kind: history.ClientDown, Who: w.part.Name, Text: text})
	return true
}

// raise takes back one kill.
func (w *worker) raise() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.down--
	return w.startLocked()
}

// pause stops the process until resume, or until it is killed.
func (w *worker) pause() error { return w.signal(sigStop) }

func (w *worker) resume() error {
	err := w.signal(sigCont)
	if errors.Is(err, errDown) {
		return nil
	}
	return err
}

// errDown says that a worker has no process now.
var errDown = errors.New("it is down")

func (w *worker) signal(sig os.Signal) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.alive == nil {
		return errDown
	}
	return gone(w.alive.cmd.Process.Signal(sig))
}

// command changes the orders, of this life and those to come.
func (w *worker) command(change func(*order)) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	change(&w.orders)
	w.poison = w.poison || w.orders.Poison != nil && *w.orders.Poison > 0
	if w.alive == nil {
		return nil
	}
	return w.alive.in.Encode(w.orders)
}

// stop lets a worker end what it does; when the time is over it is killed.
func (w *worker) stop(patience time.Duration) {
	w.mu.Lock()
	w.ended = true
	w.orders.Stop = true
	l := w.alive
	if l != nil {
		_ = gone(l.cmd.Process.Signal(sigCont))
		_ = l.in.Encode(w.orders) // an error says that it has ended
	}
	w.mu.Unlock()
	if l == nil {
		return
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-l.gone:
	case <-timer.C:
		w.mu.Lock()
		w.killLocked("it did not stop when it was told to")
		w.mu.Unlock()
	}
}

// workers makes the clients of a plan, producers first.
func (t *trial) makeWorkers() error {
	leases := map[string]plan.Duration{}
	for _, q := range t.plan.Queues {
		leases[q.Name] = plan.Duration(orElse(time.Duration(q.Lease), defaultLease))
	}
	add := func(p part) error {
		place, err := t.mesh.Client(p.Name)
		if err != nil {
			return err
		}
		p.Seed = t.plan.Seed
		t.addWorker(&worker{trial: t, part: p, place: place})
		return nil
	}
	for i := range t.plan.Producers {
		if err := add(part{Name: t.plan.Producers[i].Name, Producer: &t.plan.Producers[i]}); err != nil {
			return err
		}
	}
	for i := range t.plan.Consumers {
		c := &t.plan.Consumers[i]
		if err := add(part{Name: c.Name, Consumer: c, Lease: leases[c.Queue]}); err != nil {
			return err
		}
	}
	return nil
}

// addWorker takes in a client, which is stopped with the others.
func (t *trial) addWorker(w *worker) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.workers = append(t.workers, w)
}

// clients are all that there are now.
func (t *trial) clients() []*worker {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.workers)
}

// worker is the client of that name, or nil.
func (t *trial) worker(name string) *worker {
	for _, w := range t.clients() {
		if w.part.Name == name {
			return w
		}
	}
	return nil
}

const defaultLease = 30 * time.Second
