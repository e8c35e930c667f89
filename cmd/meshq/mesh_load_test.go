//go:build mesh && linux

package main

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/meshq/meshq/client"
)

// ledger knows what became of every message of a test. It is safe for concurrent use.
type ledger struct {
	t *testing.T

	ordered bool // one consumer: what a producer sent is first delivered in that order (P5)

	mu         sync.Mutex // protects the fields below
	messages   map[string]*life
	confirms   []time.Time
	deliveries []time.Time
	refused    []error
	errs       []error // of consumers, and bodies that nobody sent
}

// life is one message. Times are zero when it did not come to that.
type life struct {
	producer  string
	number    int       // of its producer, from 0
	first     int       // number of its first delivery among all deliveries
	due       time.Time // when it was to be sent
	confirmed time.Time
	acked     time.Time // when the confirmation of its ack was seen
	handed    []handed
}

// handed is one delivery.
type handed struct {
	at          time.Time
	id          string
	redelivered bool
	attempt     int
	cause       string
}

func newLedger(t *testing.T) *ledger {
	return &ledger{t: t, messages: map[string]*life{}}
}

// newBody is a body that tells whose it is and whether it is whole.
func newBody(producer string, number, size int) string {
	text := fmt.Sprintf("%s %d ", producer, number)
	if pad := size - len(text) - 9; pad > 0 {
		text += strings.Repeat("x", pad) + " "
	}
	return fmt.Sprintf("%s%08x", text, crc32.ChecksumIEEE([]byte(text)))
}

// intact tells whether a body is as it was made.
func intact(body string) bool {
	n := len(body) - 8
	return n > 0 && fmt.Sprintf("%08x", crc32.ChecksumIEEE([]byte(body[:n]))) == body[n:]
}

// sending is a message to be sent.
func (l *ledger) sending(producer string, number int, body string, due time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.messages[body] = &life{producer: producer, number: number, due: due}
}

// answered is the answer to a send.
func (l *ledger) answered(body string, err error) {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		l.refused = append(l.refused, err)
		return
	}
	l.messages[body].confirmed = now
	l.confirms = append(l.confirms, now)
}

// delivered is one delivery.
func (l *ledger) delivered(d *client.Delivery) {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	body := string(d.Body)
	m := l.messages[body]
	if m == nil || !intact(body) {
		l.errs = append(l.errs, fmt.Errorf("delivered %q, which nobody sent", body[:min(len(body), 60)]))
		return
	}
	if len(m.handed) == 0 {
		m.first = len(l.deliveries)
	}
	m.handed = append(m.handed, handed{now, d.ID.String(), d.Redelivered, d.Attempt, d.Cause})
	l.deliveries = append(l.deliveries, now)
}

// acked is a confirmed ack.
func (l *ledger) acked(ds []*client.Delivery) {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, d := range ds {
		if m := l.messages[string(d.Body)]; m != nil && m.acked.IsZero() {
			m.acked = now
		}
	}
}

func (l *ledger) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.errs = append(l.errs, err)
}

// traffic is producers and consumers under way.
type traffic struct {
	*ledger
	produce   context.CancelFunc
	producers sync.WaitGroup
	consume   context.CancelFunc
	consumers sync.WaitGroup
}

// loadPlan says how much is sent, how it is received.
type loadPlan struct {
	queue     string
	producers int // each a client of its own
	rate      int // messages a second of all producers together
	size      int // bytes of a body
	consumers int // each a client of its own
	hold      time.Duration
	servers   string // empty: all nodes
	opts      []client.Option
}

// startLoad sends at a fixed rate, whatever the answers, until the load is stopped.
func (m *testMesh) startLoad(p loadPlan) *traffic {
	m.t.Helper()
	l := &traffic{ledger: newLedger(m.t)}
	l.ordered = p.consumers == 1
	if p.servers == "" {
		p.servers = m.servers()
	}
	produce, stopProducing := context.WithCancel(context.Background())
	consume, stopConsuming := context.WithCancel(context.Background())
	l.produce, l.consume = stopProducing, stopConsuming
	m.t.Cleanup(func() { l.stop() })
	for i := range p.consumers {
		mesh := m.dialTo(p.servers, p.opts...)
		l.consumers.Go(func() { l.runConsumer(consume, mesh, &p, i) })
	}
	for i := range p.producers {
		mesh := m.dialTo(p.servers, append(slices.Clone(p.opts), client.SendTimeout(commandPatience))...)
		l.producers.Go(func() { l.runProducer(produce, mesh, &p, i) })
	}
	return l
}

// stop stops all.
func (l *traffic) stop() {
	l.produce()
	l.consume()
	l.producers.Wait()
	l.consumers.Wait()
}

// sendWindowOfLoad bounds the messages of a producer that are not answered.
const sendWindowOfLoad = 1 << 17

func (l *traffic) runProducer(ctx context.Context, mesh *client.Mesh, p *loadPlan, number int) {
	type sent struct {
		body   string
		future *client.Future
	}
	window := make(chan sent, sendWindowOfLoad)
	var collector sync.WaitGroup
	collector.Go(func() {
		for s := range window {
			_, err := s.future.Wait(context.Background())
			l.answered(s.body, err)
		}
	})
	defer collector.Wait()
	defer close(window)
	q, name := mesh.Queue(p.queue), fmt.Sprintf("p%d", number)
	start := time.Now()
	every := time.Second * time.Duration(p.producers) / time.Duration(p.rate)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for i := 0; ; i++ {
		due := start.Add(time.Duration(i) * every)
		if wait := time.Until(due); wait > 0 {
			timer.Reset(wait)
			select {
			case <-timer.C:
			case <-ctx.Done():
				return
			}
		}
		if ctx.Err() != nil {
			return
		}
		body := newBody(name, i, p.size)
		l.sending(name, i, body, due)
		f, err := q.SendAsync(context.Background(), client.Message{Body: []byte(body)})
		if err != nil {
			l.answered(body, err)
			continue
		}
		window <- sent{body, f}
	}
}

func (l *traffic) runConsumer(ctx context.Context, mesh *client.Mesh, p *loadPlan, number int) {
	c, err := mesh.Queue(p.queue).Consumer(ctx, "")
	if err != nil {
		if ctx.Err() == nil {
			l.fail(fmt.Errorf("consumer %d: %w", number, err))
		}
		return
	}
	defer c.Close()
	var acks sync.WaitGroup
	defer acks.Wait()
	slots := make(chan struct{}, 16) // acks under way
	for {
		ds, err := c.Receive(ctx, 100, 0)
		if ctx.Err() != nil {
			for _, d := range ds {
				l.delivered(d) // and given back, by Close
			}
			return
		}
		if err != nil {
			l.fail(fmt.Errorf("consumer %d: %w", number, err))
			return
		}
		for _, d := range ds {
			l.delivered(d)
		}
		slots <- struct{}{}
		acks.Go(func() {
			defer func() { <-slots }()
			if p.hold > 0 {
				select {
				case <-time.After(p.hold): // the work on the messages
				case <-ctx.Done():
				}
			}
			l.ack(mesh, ds)
		})
	}
}

// ack acks until an owner has confirmed it or the delivery is somebody else's.
func (l *traffic) ack(mesh *client.Mesh, ds []*client.Delivery) {
	ctx, cancel := context.WithTimeout(context.Background(), settlePatience)
	defer cancel()
	err := mesh.AckAll(ctx, ds)
	if err == nil {
		l.acked(ds)
		return
	}
	if !errors.Is(err, client.ErrStaleReceipt) && !errors.Is(err, client.ErrClosed) {
		l.fail(fmt.Errorf("ack: %w", err))
	}
}

// finish stops the producers, waits until every confirmed message is acked, and stops
// the consumers.
func (l *traffic) finish() {
	l.t.Helper()
	l.produce()
	l.producers.Wait()
	err := poll(settlePatience, func() error {
		confirmed, missing := 0, 0
		l.mu.Lock()
		defer l.mu.Unlock()
		for _, m := range l.messages {
			if !m.confirmed.IsZero() {
				confirmed++
				if m.acked.IsZero() {
					missing++
				}
			}
		}
		if missing > 0 {
			return fmt.Errorf("%d of %d confirmed messages are not acked", missing, confirmed)
		}
		return nil
	})
	l.stop()
	if err != nil {
		l.t.Errorf("%v", err)
	}
}

// count says how many messages were confirmed.
func (l *ledger) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.confirms)
}

// verdict is what the ledger finds at the end.
type verdict struct {
	sent, confirmed, refused, delivered, again int
	overtaken                                  int // given back unseen, and then after a later one
}

func (v verdict) String() string {
	s := fmt.Sprintf("%d sent, %d confirmed, %d not, %d deliveries, %d of them again", v.sent, v.confirmed, v.refused, v.delivered, v.again)
	if v.overtaken > 0 {
		s += fmt.Sprintf(", %d given back unseen and then overtaken", v.overtaken)
	}
	return s
}

// underWay is how long after the confirmation of an ack a delivery may still come out
// of the buffers of a client or a connection (P3).
const underWay = time.Second

// check fails the test for what may never be: a confirmed message that was not
// delivered (P2), one that came after its ack was confirmed (P3), one that came again
// without a mark, and, with one consumer, one that overtook another (P5).
func (l *ledger) check() verdict {
	l.t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	v := verdict{sent: len(l.messages), confirmed: len(l.confirms), refused: len(l.refused), delivered: len(l.deliveries)}
	complaints := map[string]int{}
	complain := func(what, format string, args ...any) {
		if complaints[what]++; complaints[what] <= 5 {
			l.t.Errorf(what+": "+format, args...)
		}
	}
	for _, err := range l.errs {
		complain("error", "%v", err)
	}
	for body, m := range l.messages {
		name := body[:min(len(body), 24)]
		if !m.confirmed.IsZero() && len(m.handed) == 0 {
			complain("lost (P2)", "%q was confirmed and never delivered", name)
		}
		for i, h := range m.handed {
			if i == 0 {
				continue
			}
			v.again++
			if !h.redelivered {
				complain("not marked", "%q delivered again: %s", name, m.story())
			}
			if !m.acked.IsZero() && h.at.After(m.acked.Add(underWay)) {
				complain("acked comes back (P3)", "%q: %s", name, m.story())
			}
		}
	}
	if l.ordered {
		byProducer := map[string][]*life{}
		for _, m := range l.messages {
			if !m.confirmed.IsZero() && len(m.handed) > 0 {
				byProducer[m.producer] = append(byProducer[m.producer], m)
			}
		}
		for producer, sent := range byProducer {
			slices.SortFunc(sent, func(a, b *life) int { return a.number - b.number })
			for i := 1; i < len(sent); i++ {
				switch late := sent[i-1]; {
				case sent[i].first > late.first:
				case late.handed[0].cause == "released":
					// The client had it in time, and gave it back before anybody asked for
					// it: the first delivery of P5 was that one. Counted, to be seen.
					v.overtaken++
				default:
					complain("out of order (P5)", "%s: %d is first delivered before %d: %s | %s", producer, sent[i].number, sent[i-1].number, sent[i].story(), sent[i-1].story())
				}
			}
		}
	}
	for what, n := range complaints {
		if n > 5 {
			l.t.Errorf("%s: %d in all", what, n)
		}
	}
	return v
}

// story tells a life in times from its due time.
func (m *life) story() string {
	at := func(t time.Time) string {
		if t.IsZero() {
			return "never"
		}
		return fmt.Sprint(t.Sub(m.due).Milliseconds())
	}
	var b strings.Builder
	fmt.Fprintf(&b, "confirmed %s, acked %s", at(m.confirmed), at(m.acked))
	for _, h := range m.handed {
		fmt.Fprintf(&b, "; delivered %s (attempt %d, %q, redelivered %v, ...%s)", at(h.at), h.attempt, h.cause, h.redelivered, h.id[max(0, len(h.id)-12):])
	}
	return b.String()
}

// longestGap is the longest time between two neighbours, within a window; its ends
// count as neighbours too.
func longestGap(times []time.Time, from, to time.Time) time.Duration {
	times = slices.Clone(times)
	slices.SortFunc(times, time.Time.Compare)
	gap, last := time.Duration(0), from
	for _, t := range times {
		if t.Before(from) || t.After(to) {
			continue
		}
		gap, last = max(gap, t.Sub(last)), t
	}
	return max(gap, to.Sub(last))
}

// gaps are the longest pauses of confirms and of deliveries in a window.
func (l *ledger) gaps(from, to time.Time) (confirms, deliveries time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return longestGap(l.confirms, from, to), longestGap(l.deliveries, from, to)
}

// deliveredAgain counts the deliveries in a window of messages that had been delivered
// before.
func (l *ledger) deliveredAgain(from, to time.Time) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, m := range l.messages {
		for i, h := range m.handed {
			if i > 0 && h.at.After(from) && !h.at.After(to) {
				n++
			}
		}
	}
	return n
}

// worstConfirm is the longest time from due to confirmed of what was due in a window.
func (l *ledger) worstConfirm(from, to time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	var worst time.Duration
	for _, m := range l.messages {
		if !m.confirmed.IsZero() && m.due.After(from) && m.due.Before(to) {
			worst = max(worst, m.confirmed.Sub(m.due))
		}
	}
	return worst
}

// waitDeliveries waits until n more messages than now have been delivered.
func (l *ledger) waitDeliveries(n int) {
	l.t.Helper()
	count := func() int {
		l.mu.Lock()
		defer l.mu.Unlock()
		return len(l.deliveries)
	}
	from := count()
	if err := poll(settlePatience, func() error {
		if now := count(); now < from+n {
			return fmt.Errorf("%d of %d deliveries", now-from, n)
		}
		return nil
	}); err != nil {
		l.t.Fatal(err)
	}
}

// pass lets a load run for some time.
func pass(d time.Duration) { <-time.After(d) }
