package sim

import (
	"fmt"
	"math/bits"
	"strings"

	"github.com/meshq/meshq/node/core"
	"github.com/meshq/meshq/transport/wire"
)

// msgKey is what makes a message that message, at whatever position it is.
type msgKey struct {
	producer wire.ProducerID
	sequence uint64
}

func key(b *wire.Batch, i uint32) msgKey { return msgKey{b.Producer, b.Sequence + uint64(i)} }

type groupKey struct {
	group wire.GroupID
	key   msgKey
}

// checker holds the promises P1..P12 against everything that happens. It sees all
// disks and all clocks, which no node does.
type checker struct {
	w      *world
	queues []*queue
	places map[wire.PartitionID]partitionPlace // of all queues, also of those that were deleted

	messages map[msgKey]*sentMessage
	order    []msgKey
	holders  map[msgKey]uint64  // bits of the places of nodes whose disk has it synced, or had it until it was done
	synced   map[msgKey]uint64  // the same, with the disks that lost it since: at most W-1, which P1 allows
	let      map[msgKey]uint64  // of those, the disks whose node let go of it
	acked    map[groupKey]int64 // when an ack was confirmed
	acking   map[groupKey]bool  // some consumer sent an ack: it may be kept without ever being confirmed
	handed   map[groupKey][]*handout
	resumes  map[resumeKey]int // how often a consumer told a node what it holds
	first    map[groupKey]firstDelivery
	highest  map[firstKey]uint64
	owners   map[wire.PartitionID]map[int]ownership // by index of the host
	owned    map[int][]core.Ownership
	ownerAt  map[wire.PartitionID]int64 // when there was last an owner, or no majority that could have one
	waiting  map[*host][]waiting
	disks    map[*host]diskWatch
	handover map[termKey]bool

	registers []*register // what was changed of queues, in the order of their first changes

	idle   bool // no check of P2live: the mesh is not set up yet
	stats  Stats
	terms  map[wire.PartitionID]wire.Term // of the last owner
	before map[wire.PartitionID]wire.Term // of the one before it
}

type sentMessage struct {
	q         *queue
	partition wire.PartitionID
	body      string
	at        int64
	confirmed int64 // 0: not yet
	want      int   // copies, as the confirm said
	refused   bool  // its producer was told that it is not stored
}

// firstDelivery is when a message was first delivered to a group. What one step of
// the owner hands to different consumers has no order.
type firstDelivery struct {
	at   int64
	step int
	to   *conn
	sub  uint64
}

type firstKey struct {
	group     wire.GroupID
	producer  wire.ProducerID
	partition wire.PartitionID
}

type termKey struct {
	partition wire.PartitionID
	term      wire.Term
}

// resumeKey names what a consumer tells a node that it holds of a partition; resumed is
// the number-th time that it did, on a connection.
type resumeKey struct {
	node, consumer int // indexes of hosts
	partition      wire.PartitionID
}

type resumed struct {
	conn   *conn
	number int
	until  int64 // as long as the consumer said that it has it, by a clock that may run wrong
	// term is that in which the node owned the partition then, or began to own it after, whose
	// table took it in: with another term it is gone. Zero: it keeps it for when it owns it.
	term wire.Term
}

// handout is one message in the hands of one consumer, as far as that is true.
type handout struct {
	superseded bool  // handed to somebody else since
	client     *host // nil: handed to a relay
	conn       *conn
	owner      *host
	term       wire.Term
	attempt    uint32
	serial     uint64 // of the delivery in its term
	at         int64
	until      int64           // while the lease surely runs by the owner's clock
	resumed    map[int]resumed // by index of the node
	via        *conn           // from the owner to the relay; nil: none
}

type ownership struct {
	term  wire.Term
	until int64
	life  int
}

// partitionPlace is which partition of a queue it is.
type partitionPlace struct {
	q     *queue
	index uint32
}

// diskWatch is what is known of how a disk keeps up.
type diskWatch struct {
	syncs  uint64 // number of the fsync that was under way at the last look; 0: none
	behind int64  // when one was last seen to take longer than from one look to the next
}

type waiting struct {
	id core.ReqID
	r  *request
}

func newChecker(w *world) *checker {
	return &checker{
		w: w, messages: map[msgKey]*sentMessage{}, holders: map[msgKey]uint64{}, synced: map[msgKey]uint64{}, let: map[msgKey]uint64{}, acked: map[groupKey]int64{}, acking: map[groupKey]bool{},
		handed: map[groupKey][]*handout{}, resumes: map[resumeKey]int{}, first: map[groupKey]firstDelivery{}, highest: map[firstKey]uint64{},
		owned: map[int][]core.Ownership{}, owners: map[wire.PartitionID]map[int]ownership{}, ownerAt: map[wire.PartitionID]int64{},
		waiting: map[*host][]waiting{}, disks: map[*host]diskWatch{}, places: map[wire.PartitionID]partitionPlace{}, handover: map[termKey]bool{}, terms: map[wire.PartitionID]wire.Term{}, before: map[wire.PartitionID]wire.Term{},
	}
}

func (k *checker) about(m msgKey) string {
	return fmt.Sprintf("(%s#%d)", k.w.names.producer(m.producer), m.sequence)
}

// leaving is called when a queue is about to be deleted: nothing is promised of its messages any more.
func (k *checker) leaving(q *queue) {
	q.gone = true
	k.queues = remove(k.queues, q)
}

// Producers.

func (k *checker) sent(q *queue, p wire.PartitionID, m msgKey, body string) {
	k.messages[m] = &sentMessage{q: q, partition: p, body: body, at: k.w.now}
	k.order = append(k.order, m)
	if k.w.story != nil {
		k.w.story.numbered(m, body)
	}
}

// confirmed is called when a producer learns that a batch is confirmed; the copies
// were counted when the node said so.
func (k *checker) confirmed() { k.stats.Confirms++ }

// Requests (P10).

func (k *checker) expect(h *host, id core.ReqID, r *request) {
	limit := 10 * second
	if e, ok := r.msg.(*wire.Enqueue); ok {
		limit = int64(e.Timeout) * millisecond
		if limit == 0 {
			limit = 5 * second
		}
		limit += second / 2
	}
	if _, ok := r.msg.(*wire.Join); ok {
		limit = 15 * second // for which the joiner waits; a ring step may take some rounds
	}
	r.deadline = k.w.now + limit
	r.members = len(h.core.Table().Members)
	k.waiting[h] = append(k.waiting[h], waiting{id, r})
}

func (k *checker) crashed(h *host) {
	delete(k.waiting, h)
	for _, o := range k.owned[h.index] {
		delete(k.owners[o.Partition], h.index)
	}
	delete(k.owned, h.index)
}

// deadlines looks for requests that were not answered in time. A node that stood
// still gets its time back.
func (k *checker) deadlines(h *host) {
	list := k.waiting[h]
	keep := list[:0]
	for _, x := range list {
		if x.r.answered || h.in[x.r.conn.id] != x.r.conn {
			if x.r.answered {
				delete(h.requests, x.id)
			}
			continue
		}
		if h.paused || h.busy {
			x.r.deadline = max(x.r.deadline, k.w.now+6*second)
		}
		if k.w.now > x.r.deadline {
			k.w.fail("P10", keyOf(x.r.msg), "%s has not answered %s of %s after %d ms", h.name, k.w.describe(x.r.msg), x.r.conn.from.name, (k.w.now-x.r.arrived)/millisecond)
			return
		}
		keep = append(keep, x)
	}
	k.waiting[h] = keep
}

func keyOf(m wire.Message) msgKey {
	switch m := m.(type) {
	case *wire.Enqueue:
		if m != nil {
			return msgKey{m.Producer, m.Sequence}
		}
	case *wire.Settle:
		if len(m.Items) > 0 {
			r := &m.Items[0].Receipt
			if len(m.Items[0].Runs) > 0 {
				return msgKey{r.Producer, r.Sequence + uint64(m.Items[0].Runs[0].From-r.Run.From)}
			}
			return msgKey{r.Producer, r.Sequence}
		}
	}
	return msgKey{}
}

// replied is called when a node answers a request.
func (k *checker) replied(h *host, r *request, answer wire.Message) {
	switch m := r.msg.(type) {
	case *wire.Enqueue:
		e, ok := answer.(*wire.Enqueued)
		if !ok {
			return
		}
		for i := range m.Count {
			mk := msgKey{m.Producer, m.Sequence + uint64(i)}
			n := bits.OnesCount64(k.synced[mk])
			if n < int(e.Want) && !k.allDone(mk) {
				k.w.fail("P1", mk, "%s confirms %s with %d of %d copies (%s); synced on %s", h.name, k.about(mk), len(e.Nodes), e.Want, k.w.names.list(e.Nodes), k.holding(mk))
				return
			}
			if s := k.messages[mk]; s != nil {
				want := min(int(s.q.entry.Settings.WriteQuorum), r.members)
				if int(e.Want) < want {
					k.w.fail("P1", mk, "%s confirms %s and wants %d copies, of %d", h.name, k.about(mk), e.Want, want)
					return
				}
				if s.confirmed == 0 {
					s.confirmed, s.want = k.w.now, int(e.Want)
				}
			}
		}
	case *wire.Settle:
		s, ok := answer.(*wire.Settled)
		if !ok {
			return
		}
		for i := range m.Items {
			if i >= len(s.Codes) || s.Codes[i] != 0 || m.Items[i].Kind != wire.SettleAck {
				continue
			}
			rc := &m.Items[i].Receipt
			for _, run := range m.Items[i].Runs {
				for o := run.From; o < run.To; o++ {
					g := groupKey{rc.Group, msgKey{rc.Producer, rc.Sequence + uint64(o-rc.Run.From)}}
					if k.acked[g] == 0 {
						k.acked[g] = k.w.now
						k.stats.Acks++
					}
				}
			}
		}
	}
}

// allDone tells whether consumers of all groups have acked a message: then it needs no
// copies any more. Acks that are kept without a confirm count too.
func (k *checker) allDone(m msgKey) bool {
	s := k.messages[m]
	if s == nil {
		return false
	}
	if s.q.gone {
		return true
	}
	for _, g := range s.q.entry.Groups {
		if !k.acking[groupKey{wire.Group(g.Name, g.Generation), m}] {
			return false
		}
	}
	return true
}

func (k *checker) holding(m msgKey) string {
	var out []string
	for _, h := range k.w.nodes() {
		if k.holders[m]&(1<<h.place) != 0 {
			out = append(out, h.name)
		}
	}
	if out == nil {
		return "no disk"
	}
	return strings.Join(out, " ")
}

// queueOf is the queue of a partition, deleted or not; nil: there is none.
func (k *checker) queueOf(p wire.PartitionID) *queue { return k.places[p].q }

// made is called when a queue has been created.
func (k *checker) made(q *queue) {
	k.queues = append(k.queues, q)
	for i, p := range q.partitions() {
		k.places[p] = partitionPlace{q, uint32(i)}
	}
}
