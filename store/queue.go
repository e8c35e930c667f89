package store

import (
	"sync"

	"github.com/meshq/meshq/transport/wire"
)

// request is one commit in the queue.
type request struct {
	ops   []wire.Op
	done  func(commit uint64, err error)
	bytes int

	// The store's own requests.
	internal bool     // keys are the store's, not its user's; nothing counts against the bounds
	from     *segment // the batches are copies of live ones in this segment
	seal     bool     // seal the head
	control  func()   // run by the committer once the group is synced; without ops: at once

	batches, records bool // what ops hold
	result           error
}

// requestOverhead is what one operation counts in the queue beside its bytes.
const requestOverhead = 64

func newRequest(ops []wire.Op, done func(uint64, error)) *request {
	r := &request{ops: ops, done: done}
	for i := range ops {
		op := &ops[i]
		r.bytes += requestOverhead + len(op.Key) + len(op.Value)
		switch op.Kind {
		case wire.OpBatch:
			r.bytes += op.Batch.Size()
			r.batches = true
		case wire.OpPut, wire.OpDelete, wire.OpDeleteRange:
			r.records = true
		}
	}
	return r
}

// queue holds the commits that wait for the committer, in order.
type queue struct {
	maxBytes, maxOps int
	wake             chan struct{} // capacity 1: there is something, or it is closed

	mu     sync.Mutex // guards the fields below
	items  []*request
	bytes  int
	ops    int
	closed error
}

func newQueue(maxBytes, maxOps int) *queue {
	return &queue{maxBytes: maxBytes, maxOps: maxOps, wake: make(chan struct{}, 1)}
}

// put appends r. The error is ErrOverloaded, or what close was given.
func (q *queue) put(r *request) error {
	q.mu.Lock()
	if q.closed != nil {
		defer q.mu.Unlock()
		return q.closed
	}
	if !r.internal && q.ops > 0 && (q.bytes+r.bytes > q.maxBytes || q.ops+len(r.ops) > q.maxOps) {
		q.mu.Unlock()
		return ErrOverloaded
	}
	q.items = append(q.items, r)
	if !r.internal {
		q.bytes += r.bytes
		q.ops += len(r.ops)
	}
	q.mu.Unlock()
	q.signal()
	return nil
}

func (q *queue) signal() {
	select {
	case q.wake <- struct{}{}:
	default: // it is awake already
	}
}

// maxGroupOps bounds the operations of a group, so that its batches fit into one
// transaction.
const maxGroupOps = 8192

// take moves the next group to dst: as many requests as fit into so many bytes,
// at least one if there is any. Copies are a group of their own.
func (q *queue) take(dst []*request, bytes int) (group []*request, closed error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	n, ops := 0, 0
	for n < len(q.items) {
		r := q.items[n]
		if n > 0 && (r.bytes > bytes || ops+len(r.ops) > maxGroupOps || (r.from != nil) != (dst[0].from != nil)) {
			break
		}
		dst = append(dst, r)
		bytes -= r.bytes
		ops += len(r.ops)
		if !r.internal {
			q.bytes -= r.bytes
			q.ops -= len(r.ops)
		}
		n++
	}
	rest := copy(q.items, q.items[n:])
	clear(q.items[rest:])
	q.items = q.items[:rest]
	if cap(q.items) > 4096 && rest == 0 {
		q.items = nil
	}
	if len(q.items) == 0 {
		closed = q.closed
	}
	return dst, closed
}

func (q *queue) len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.items)
}

// close refuses what comes later; the committer still takes what is in the queue.
func (q *queue) close(err error) {
	q.mu.Lock()
	if q.closed == nil {
		q.closed = err
	}
	q.mu.Unlock()
	q.signal()
}
