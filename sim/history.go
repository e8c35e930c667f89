package sim

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/meshq/meshq/ring"
	"github.com/meshq/meshq/sim/history"
	"github.com/meshq/meshq/transport/wire"
)

// What clients tell the history. Nothing is made up for it while nobody keeps one.

// telling tells whether anybody listens.
func (w *world) telling() bool { return w.history != nil || w.story != nil }

// sentBy is a message as its producer knows it.
type sentBy struct {
	who      string // the client, in the plan
	producer string // its process
	number   uint64
	queue    string
}

func (s sentBy) event(kind history.Kind) history.Event {
	return history.Event{Kind: kind, Who: s.who, Queue: s.queue, Message: history.Message{Producer: s.producer, Number: s.number}}
}

// tellSent says that a producer gives a message to its client; within is 0 when that
// never gives up.
func (w *world) tellSent(s sentBy, m *wire.Record, within int64) {
	if !w.telling() {
		return
	}
	e := s.event(history.Sent)
	e.Hash, e.Delayed, e.Within = hashOf(m), m.Delay > 0, time.Duration(within)
	w.tell(e)
}

// tellConfirmed says that a message is synced on these nodes, at this position.
func (w *world) tellConfirmed(s sentBy, at wire.Position, nodes []ring.NodeID, want int) {
	if !w.telling() {
		return
	}
	e := s.event(history.Confirmed)
	e.ID, e.Copies, e.Want, e.Node, e.Partition = at.String(), len(nodes), want, w.names.of(at.Lane.Node), w.indexOf(at.Partition)
	w.tell(e)
}

// tellRefused says that a message is not stored, or (unknown) that it may be.
func (w *world) tellRefused(s sentBy, unknown bool, code string) {
	if !w.telling() {
		return
	}
	kind := history.Refused
	if unknown {
		kind = history.Unknown
	}
	e := s.event(kind)
	e.Code = code
	w.tell(e)
}

// heldBy is a message in the hands of a consumer.
type heldBy struct {
	who          string // the client, in the plan
	queue, group string
	message      history.Message
	receipt      *wire.Receipt
	offset       wire.Offset
	relayed      bool // by a node that is not known here
}

func (w *world) heldEvent(kind history.Kind, c heldBy) history.Event {
	r := c.receipt
	node := w.names.of(r.Term.Node)
	if c.relayed {
		node = ""
	}
	return history.Event{
		Kind: kind, Who: c.who, Node: node, Queue: c.queue, Group: c.group, Partition: w.indexOf(r.Partition),
		Message: c.message, ID: wire.Position{Partition: r.Partition, Lane: r.Lane, Offset: c.offset}.String(),
		Term: history.Term{Counter: r.Term.Counter, Node: w.names.of(r.Term.Node)}, Attempt: r.Attempt,
	}
}

// tellDelivered says that a consumer has a message in hand, or (dropped) that its
// client dropped the delivery.
func (w *world) tellDelivered(c heldBy, m *wire.Record, cause wire.Cause, lease int64, dropped bool) {
	if !w.telling() {
		return
	}
	kind := history.Delivered
	if dropped {
		kind = history.Dropped
	}
	e := w.heldEvent(kind, c)
	e.Hash, e.Delayed, e.Cause, e.Lease = hashOf(m), m.Delay > 0, causeNames[cause], time.Duration(max(0, lease))
	w.tell(e)
}

// tellSettled says what a consumer does or is told: Acking, Acked, AckFailed, Nacked,
// Released, Extended, LeaseOver.
func (w *world) tellSettled(kind history.Kind, c heldBy, lease int64, code string) {
	if !w.telling() {
		return
	}
	e := w.heldEvent(kind, c)
	e.Lease, e.Code = time.Duration(max(0, lease)), code
	w.tell(e)
}

var causeNames = [...]string{
	wire.CauseNone: "", wire.CauseNack: "nack", wire.CauseLease: "lease", wire.CauseConsumer: "consumer",
	wire.CauseTakeover: "takeover", wire.CauseReleased: "released",
}

func (w *world) tellClient(kind history.Kind, who string) {
	if w.telling() {
		w.tell(history.Event{Kind: kind, Who: who})
	}
}

func (w *world) tellNode(kind history.Kind, h *host) {
	if w.telling() && h.twinOf == nil { // a twin is a fault, not a node
		w.tell(history.Event{Kind: kind, Who: h.name, Node: h.name})
	}
}

// tellStates says what the nodes say of the partitions at rest.
func (w *world) tellStates(states map[*host]*wire.Inspected) {
	if !w.telling() {
		return
	}
	for _, h := range w.nodes() {
		in := states[h]
		if in == nil {
			continue
		}
		for i := range in.States {
			s := &in.States[i]
			q := w.check.queueOf(s.Partition)
			if q == nil || !s.Home && s.Hints == 0 {
				continue
			}
			if w.waitsForTheGone(s.Partition) {
				continue
			}
			// One that is a home replica by an older ring alone waits for those that are gone.
			home := slices.Contains(w.homeIDs(q, s.Partition), h.id)
			e := history.Event{
				Kind: history.State, Who: h.name, Node: h.name, Queue: q.entry.Name, Partition: w.indexOf(s.Partition), Want: len(w.homes(q, s.Partition)),
				Replica: &history.Replica{
					Home: s.Home && home, Owns: s.Owns, Repairing: s.Repairing, Hints: int(s.Hints), Digest: fmt.Sprintf("%016x", s.Digest), Messages: s.Messages,
				},
			}
			for _, g := range s.Groups {
				e.Replica.Groups = append(e.Replica.Groups, history.GroupState{
					Name: w.names.group(g.Group), Done: g.Done, Ready: g.Ready, InFlight: g.InFlight, Delayed: g.Delayed,
				})
			}
			w.tell(e)
		}
	}
}

// waitsForTheGone tells whether a ring step of a partition can not end, because a home
// replica of the newest ring is gone for ever: it must be forgotten first.
func (w *world) waitsForTheGone(p wire.PartitionID) bool {
	for _, h := range w.nodes() {
		if !h.running {
			continue
		}
		if sets := h.core.OpenHomes(p); len(sets) > 1 && slices.ContainsFunc(sets[len(sets)-1], func(id ring.NodeID) bool { return w.node(id) == nil }) {
			return true
		}
	}
	return false
}

// indexOf is the place of a partition in its queue.
func (w *world) indexOf(p wire.PartitionID) uint32 {
	return w.check.places[p].index
}

// hashOf is what a history knows of the bytes of a message.
func hashOf(m *wire.Record) uint64 {
	var d xxhash.Digest
	d.Reset()
	part := func(s string) {
		_, _ = d.WriteString(strconv.Itoa(len(s)))
		_, _ = d.WriteString(":")
		_, _ = d.WriteString(s)
	}
	part(string(m.Body))
	part(m.Key)
	for _, h := range m.Headers {
		part(h.Name)
		part(h.Value)
	}
	return d.Sum64()
}

// messageOf is whose message a body is: it begins with the name of its producer, a
// hyphen and its number.
func messageOf(body string) history.Message {
	i := strings.LastIndexByte(body, '-')
	if i < 0 {
		return history.Message{}
	}
	end := i + 1
	for end < len(body) && '0' <= body[end] && body[end] <= '9' {
		end++
	}
	number, err := strconv.ParseUint(body[i+1:end], 10, 64)
	if err != nil {
		return history.Message{}
	}
	return history.Message{Producer: body[:i], Number: number}
}

// messageOf is the message that nodes know by a producer's ID and a sequence.
func (k *checker) messageOf(m msgKey) history.Message {
	if s := k.messages[m]; s != nil {
		if named := messageOf(s.body); named != (history.Message{}) {
			return named
		}
	}
	return history.Message{Producer: k.w.names.producer(m.producer), Number: m.sequence}
}
