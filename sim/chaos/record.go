package chaos

import (
	"cmp"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/meshq/meshq/sim/history"
)

// recorder takes in the history of a run as clients and the run itself tell it.
type recorder struct {
	mu     sync.Mutex // protects the fields below
	began  int64      // when the load began, by monotonic
	events []history.Event
	counts map[history.Kind]int
}

func newRecorder() *recorder { return &recorder{began: monotonic(), counts: map[history.Kind]int{}} }

// begin says when the load begins. Nothing was told before.
func (r *recorder) begin(at int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.began = at
}

// now is the time since the load began.
func (r *recorder) now() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	return time.Duration(monotonic() - r.began)
}

// tell records what happens now and returns when that is.
func (r *recorder) tell(e history.Event) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	e.At = time.Duration(monotonic() - r.began)
	r.put(e)
	return e.At
}

// add records what somebody else tells, with the time at which it was.
func (r *recorder) add(e history.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.put(e)
}

func (r *recorder) put(e history.Event) {
	r.events = append(r.events, e)
	r.counts[e.Kind]++
}

// count is how many events of a kind there are.
func (r *recorder) count(k history.Kind) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.counts[k]
}

// sum is the number of all events that clients have told about messages: while it grows,
// something is going on.
func (r *recorder) sum() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, k := range []history.Kind{history.Confirmed, history.Refused, history.Unknown, history.Delivered, history.Acked, history.AckFailed, history.Nacked, history.Released} {
		n += r.counts[k]
	}
	return n
}

// history is all of it in order of time. names are those of nodes by ID, for clients
// know only the IDs of owners.
func (r *recorder) history(names map[uint64]string) *history.History {
	r.mu.Lock()
	defer r.mu.Unlock()
	events := slices.Clone(r.events)
	slices.SortStableFunc(events, func(a, b history.Event) int { return cmp.Compare(a.At, b.At) })
	for i := range events {
		e := &events[i]
		if e.Term.Node == "" {
			continue
		}
		if id, err := strconv.ParseUint(e.Term.Node, 16, 64); err == nil && names[id] != "" {
			e.Term.Node = names[id]
		}
		if e.Kind == history.Delivered {
			e.Node = e.Term.Node
		}
	}
	return &history.History{Events: events}
}
