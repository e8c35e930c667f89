package client

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/meshq/meshq/client/core"
	"github.com/meshq/meshq/transport/wire"
)

// Message is what a producer sends.
type Message struct {
	// Body must not change until the message is answered: it is encoded when its batch
	// is made.
	Body []byte
	// Key chooses the partition: messages of one key go to one partition, in order.
	// Without a key partitions take turns.
	Key string
	// Headers are stored with the message: at most 256, of any text.
	Headers map[string]string
	// Delay holds the first delivery back, to the millisecond. Delayed messages are
	// outside the order.
	Delay time.Duration
}

const (
	maxHeaders     = 256
	overheadOfSend = 64 // bytes that a waiting message costs besides its content
)

func (m *Message) size() int64 {
	n := int64(len(m.Body) + len(m.Key) + overheadOfSend)
	for name, value := range m.Headers {
		n += int64(len(name) + len(value))
	}
	return n
}

func (m *Message) record(now time.Time) wire.Record {
	r := wire.Record{Body: m.Body, Key: m.Key, Enqueued: now, Delay: m.Delay}
	if len(m.Headers) > 0 {
		r.Headers = make([]wire.HeaderField, 0, len(m.Headers))
		for name, value := range m.Headers {
			r.Headers = append(r.Headers, wire.HeaderField{Name: name, Value: value})
		}
		slices.SortFunc(r.Headers, func(a, b wire.HeaderField) int { return cmp.Compare(a.Name, b.Name) })
	}
	return r
}

func (m *Message) check() error {
	switch {
	case len(m.Headers) > maxHeaders:
		return wire.Errorf(wire.ErrBadRequest, "message has %d headers, allowed are %d", len(m.Headers), maxHeaders)
	case m.Delay < 0:
		return wire.Errorf(wire.ErrBadRequest, "delay is %v, must not be negative", m.Delay)
	}
	return nil
}

// MessageID names a message for ever. It spells the message's position, so that a
// message can be found from its ID alone.
type MessageID struct{ position wire.Position }

// ParseMessageID reads what String returns.
func ParseMessageID(s string) (MessageID, error) {
	p, err := wire.ParsePosition(s)
	return MessageID{p}, err
}

// String is the ID as text: 52 letters and digits.
func (id MessageID) String() string { return id.position.String() }

// Position is what the ID spells.
func (id MessageID) Position() wire.Position { return id.position }

// MarshalText is String, for JSON.
func (id MessageID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (id *MessageID) UnmarshalText(text []byte) (err error) {
	*id, err = ParseMessageID(string(text))
	return err
}

// Sent is the confirmation of a message (P1). It prints as the message's ID.
type Sent struct {
	ID        MessageID
	Queue     string
	Partition int
	// Confirmed is on how many nodes the message was synced when it was confirmed;
	// Want is how many were needed: the queue's write quorum, or the size of a ring
	// that is smaller.
	Confirmed int
	Want      int
	Nodes     []string // names of those nodes; shared by the messages of a batch
	Err       error    // only in what SendBatch returns: why this message is not confirmed
}

// String is the message's ID.
func (s Sent) String() string { return s.ID.String() }

// Delivery is one message in the hands of this program until it is settled by Ack,
// Nack or Release. Until then its lease is extended by itself, also after Receive,
// for as long as the Consumer that received it is open.
type Delivery struct {
	ID          MessageID
	Queue       string
	Group       string
	Partition   int
	Attempt     int // 1 for the first delivery
	Body        []byte
	Headers     map[string]string
	Key         string
	EnqueuedAt  time.Time // by the producer's clock
	Redelivered bool      // it may have been delivered before
	Cause       string    // of a redelivery: nack, lease, consumer, takeover, released; empty for a first delivery
	// Fence grows with every delivery of a message, so that a store can refuse the
	// writes of a consumer whose lease is over.
	Fence Fence

	consumer *Consumer
	handout  core.HandoutID
}

// Fence is a fencing token. It compares by Term, then Node, then Serial.
type Fence struct {
	Term   uint64 // of the owner that handed the message out
	Node   uint64 // that owner
	Serial uint64 // number of the delivery in the term
}

// Compare is -1, 0 or 1.
func (f Fence) Compare(g Fence) int {
	return cmp.Or(cmp.Compare(f.Term, g.Term), cmp.Compare(f.Node, g.Node), cmp.Compare(f.Serial, g.Serial))
}

var causes = [...]string{
	wire.CauseNone: "", wire.CauseNack: "nack", wire.CauseLease: "lease", wire.CauseConsumer: "consumer",
	wire.CauseTakeover: "takeover", wire.CauseReleased: "released",
}

func causeOf(c wire.Cause) string {
	if int(c) < len(causes) {
		return causes[c]
	}
	return "unknown"
}

// delivery decodes what the core received.
func (c *Consumer) delivery(d *core.Delivery) (*Delivery, error) {
	r, _, err := wire.DecodeRecord(d.Record)
	if err != nil {
		return nil, err
	}
	out := &Delivery{
		ID:          MessageID{wire.Position{Partition: d.Receipt.Partition, Lane: d.Receipt.Lane, Offset: d.Offset}},
		Queue:       c.queue.name,
		Group:       c.group,
		Partition:   int(d.Index),
		Attempt:     int(d.Receipt.Attempt),
		Body:        r.Body,
		Key:         r.Key,
		EnqueuedAt:  r.Enqueued,
		Redelivered: d.Cause != wire.CauseNone || d.Receipt.Attempt > 1,
		Cause:       causeOf(d.Cause),
		Fence:       Fence{Term: d.Receipt.Term.Counter, Node: uint64(d.Receipt.Term.Node), Serial: d.Receipt.Serial},
		consumer:    c,
		handout:     d.Handout,
	}
	if len(r.Headers) > 0 {
		out.Headers = make(map[string]string, len(r.Headers))
		for _, h := range r.Headers {
			out.Headers[h.Name] = h.Value
		}
	}
	return out, nil
}

func (d *Delivery) settlement(kind wire.Settling) core.Settlement {
	return core.Settlement{Handout: d.handout, Offset: d.ID.position.Offset, Kind: kind}
}

// Ack says that the message is done and waits until its owner has confirmed that:
// then no other delivery to the group starts (P3). Without a confirmation by the end
// of ctx the client goes on asking in the background.
func (d *Delivery) Ack(ctx context.Context) error {
	return d.consumer.mesh.settle(ctx, "ack", d.settlement(wire.SettleAck))
}

// Nack gives the message back as failed: it is delivered again after delay, or after
// the queue's backoff when delay is 0. reason is for people; 1 KiB of it is kept.
func (d *Delivery) Nack(ctx context.Context, delay time.Duration, reason string) error {
	s := d.settlement(wire.SettleNack)
	s.Delay, s.Reason = delay, clip(reason)
	return d.consumer.mesh.settle(ctx, "nack", s)
}

// Extend makes the delivery lease end lease from now; 0 is the queue's lease. The
// client extends leases by itself: Extend is for a longer one, and to learn whether
// the message is still in hand (ErrStaleReceipt: it is not).
func (d *Delivery) Extend(ctx context.Context, lease time.Duration) error {
	s := d.settlement(wire.SettleExtend)
	s.Delay = lease
	return d.consumer.mesh.settle(ctx, "extend", s)
}

// Release gives the message back without counting an attempt.
func (d *Delivery) Release(ctx context.Context) error {
	return d.consumer.mesh.settle(ctx, "release", d.settlement(wire.SettleRelease))
}

// clip keeps 1 KiB of a reason, and whole letters.
func clip(s string) string {
	const limit = 1024
	if len(s) <= limit {
		return s
	}
	end := limit
	for end > 0 && s[end]&0xc0 == 0x80 {
		end--
	}
	return s[:end]
}
