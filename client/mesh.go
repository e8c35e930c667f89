package client

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/meshq/meshq/client/core"
	"github.com/meshq/meshq/ring"
	"github.com/meshq/meshq/transport/wire"
)

// Mesh is a client of a mesh. It is safe for concurrent use.
type Mesh struct {
	options options
	loop    *loop
	room    *semaphore.Weighted // bytes of unanswered sends

	mu     sync.Mutex        // protects the fields below
	queues map[string]*Queue // one producer per queue
	next   core.ConsumerKey
}

// Dial connects to a mesh by the addresses of any of its nodes, host:port separated
// by commas. It returns when one node has told the ring, or with ErrUnreachable and
// the reason when the context or DialTimeout ends first, or when all servers refuse
// this client for good (ErrUnauthorized, ErrVersion, a certificate). The client finds the other
// nodes by itself.
func Dial(ctx context.Context, servers string, opts ...Option) (*Mesh, error) {
	o := defaults()
	for _, opt := range opts {
		opt(&o)
	}
	addrs, err := split(servers)
	if err != nil {
		return nil, err
	}
	m := &Mesh{options: o, room: semaphore.NewWeighted(o.bufferBytes), queues: map[string]*Queue{}}
	m.loop = newLoop(o, core.Config{
		Servers: addrs, Via: o.via, Name: o.name, Token: o.token, Random: random(),
	})
	ctx, cancel := context.WithTimeout(ctx, o.dialTimeout)
	defer cancel()
	if err := m.loop.ready(ctx); err != nil {
		m.loop.close(0)
		return nil, fmt.Errorf("dial %s: %w", servers, err)
	}
	return m, nil
}

func split(servers string) ([]string, error) {
	var addrs []string
	for addr := range strings.SplitSeq(servers, ",") {
		if addr = strings.TrimSpace(addr); addr == "" {
			continue
		}
		if _, _, err := net.SplitHostPort(addr); err != nil {
			return nil, wire.Errorf(wire.ErrBadRequest, "server %q: want host:port", addr)
		}
		if !slices.Contains(addrs, addr) {
			addrs = append(addrs, addr)
		}
	}
	if len(addrs) == 0 {
		return nil, wire.Errorf(wire.ErrBadRequest, "no server is named")
	}
	return addrs, nil
}

func random() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand ends the process instead
	return binary.BigEndian.Uint64(b[:])
}

// Close waits for sends and acks under way, at most CloseTimeout, gives back what
// consumers hold, and closes all connections. Sends that are not confirmed by then
// fail with ErrClosed. It may be called more than once.
func (m *Mesh) Close() error {
	m.loop.close(m.options.closeTimeout)
	return nil
}

// Queue is a queue by name, and this client's producer for it: what one Mesh sends
// to a partition of a queue keeps its order (P5). No request is made.
func (m *Mesh) Queue(name string) *Queue {
	m.mu.Lock()
	defer m.mu.Unlock()
	q := m.queues[name]
	if q == nil {
		q = &Queue{mesh: m, name: name}
		m.queues[name] = q
	}
	return q
}

// nameIn is what people call a node.
func nameIn(mesh *wire.Mesh, id ring.NodeID) string {
	if mesh != nil {
		if member, ok := mesh.Table.Member(id); ok && member.Name != "" {
			return member.Name
		}
	}
	return id.String()
}

// ask makes a request of node, or of any node when it is 0.
func (m *Mesh) ask(ctx context.Context, node ring.NodeID, timeout time.Duration, msg wire.Message) (wire.Message, error) {
	w := &askWaiter{done: make(chan core.Replied, 1)}
	until := m.loop.until(ctx, timeout)
	if !m.loop.post(core.Ask{Ticket: w, Node: node, Msg: msg, Until: until}) {
		return nil, ErrClosed
	}
	select {
	case r := <-w.done:
		return r.Msg, r.Err
	case <-ctx.Done():
		m.loop.post(core.Cancel{Ticket: w})
		r := <-w.done
		return r.Msg, because(r.Err, context.Cause(ctx))
	}
}

// settle settles messages and waits for the answers.
func (m *Mesh) settle(ctx context.Context, what string, items ...core.Settlement) error {
	w := &settleWaiter{done: make(chan error, 1)}
	if !m.loop.post(core.Settle{Ticket: w, Items: items}) {
		return fmt.Errorf("%s: %w", what, ErrClosed)
	}
	var err error
	select {
	case err = <-w.done:
	case <-ctx.Done():
		m.loop.post(core.Cancel{Ticket: w})
		err = because(<-w.done, context.Cause(ctx))
	}
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// AckAll acks many messages with one frame for each owner, and waits until all are
// confirmed. The error is the first.
func (m *Mesh) AckAll(ctx context.Context, deliveries []*Delivery) error {
	if len(deliveries) == 0 {
		return nil
	}
	items := make([]core.Settlement, len(deliveries))
	for i, d := range deliveries {
		if d.consumer.mesh != m {
			return errors.New("ack: delivery of another client")
		}
		items[i] = d.settlement(wire.SettleAck)
	}
	return m.settle(ctx, "ack", items...)
}

// Who waits for the core. The channels have room for the one answer, so that the
// loop never waits.
type (
	askWaiter     struct{ done chan core.Replied }
	settleWaiter  struct{ done chan error }
	receiveWaiter struct{ done chan core.Received }
	openWaiter    struct{ done chan error }
	closeWaiter   struct{ done chan struct{} }
)
