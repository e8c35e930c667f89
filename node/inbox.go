package node

import (
	"sync"

	"github.com/meshq/meshq/node/core"
	"github.com/meshq/meshq/transport"
	"github.com/meshq/meshq/transport/wire"
)

// item is what the loop takes: one event of the core with what the shell needs to
// know about it, or a question.
type item struct {
	event core.Event

	conn *inbound // of ConnOpened, ConnClosed, Request, Received
	id   uint64   // of Request: its ID on conn

	peer *peer           // of PeerUp, PeerDown, Answered, Pushed
	link *transport.Conn // of PeerUp: the new connection; of Answered and Pushed: which one it came on

	ask func(machine) // instead of event: run by the loop

	committed *commit // instead of event: the store is done with it, in group id or with err
	err       error

	size int // bytes that the event keeps in memory, roughly
}

const (
	// inboxItems and inboxBytes bound what waits for the loop. They are what a node
	// works off in well under a second; more would only be older.
	inboxItems = 4096
	inboxBytes = 64 << 20
)

// inbox is the queue in front of the loop. Connection readers wait when it is full,
// so that a busy node slows its clients by TCP; nothing is ever dropped. What
// answers the loop's own effects, or tells of a change of state, does not wait:
// its number is bounded by what the loop has started, and whoever brings it (the
// store's committer) must not stand still.
type inbox struct {
	maxItems, maxBytes int

	wake chan struct{} // capacity 1: there is something

	mu     sync.Mutex // items, bytes, room, closed
	items  []item
	bytes  int
	room   chan struct{} // closed when the queue was taken
	closed bool
}

func newInbox(maxItems, maxBytes int) *inbox {
	return &inbox{maxItems: maxItems, maxBytes: maxBytes, wake: make(chan struct{}, 1), room: make(chan struct{})}
}

// put appends it, when there is room. It returns false when the inbox is closed.
func (b *inbox) put(it item) bool {
	for {
		b.mu.Lock()
		if b.closed {
			b.mu.Unlock()
			return false
		}
		if len(b.items) < b.maxItems && b.bytes < b.maxBytes {
			b.push(it)
			b.mu.Unlock()
			return true
		}
		room := b.room
		b.mu.Unlock()
		<-room
	}
}

// force appends it at once. It returns false when the inbox is closed.
func (b *inbox) force(it item) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return false
	}
	b.push(it)
	return true
}

// push is called with b.mu held.
func (b *inbox) push(it item) {
	b.items = append(b.items, it)
	b.bytes += it.size
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// take returns all that is there and leaves spare, which the inbox fills from now on.
func (b *inbox) take(spare []item) []item {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.items) == 0 {
		return spare[:0]
	}
	taken := b.items
	b.items, b.bytes = spare[:0], 0
	close(b.room)
	b.room = make(chan struct{})
	return taken
}

// close lets nothing in any more and frees all who wait. It returns what was left.
func (b *inbox) close() []item {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil
	}
	b.closed = true
	left := b.items
	b.items, b.bytes = nil, 0
	close(b.room)
	return left
}

// depth is how much waits: items and bytes.
func (b *inbox) depth() (items, bytes int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.items), b.bytes
}

// weigh is about how much memory msg keeps.
func weigh(msg wire.Message) int {
	const header = 256
	switch m := msg.(type) {
	case *wire.Enqueue:
		return header + len(m.Records)
	case *wire.Replicate:
		return header + weighBatches(m.Batches)
	case *wire.Batches:
		return header + weighBatches(m.Batches)
	case *wire.Deliver:
		n := header
		for i := range m.Deliveries {
			n += header + len(m.Deliveries[i].Records)
		}
		return n
	case *wire.Settle:
		return header + header*len(m.Items)
	case *wire.State:
		return header + 64*(len(m.Have)+len(m.Done)+len(m.Segments)+len(m.Retries)+len(m.Watermarks))
	}
	return header
}

func weighBatches(batches []wire.Batch) (n int) {
	for i := range batches {
		n += batches[i].Size()
	}
	return n
}
