package sim

import (
	"cmp"
	"fmt"
	"math/bits"
	"slices"
	"strings"

	"github.com/meshq/meshq/node/core"
	"github.com/meshq/meshq/ring"
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

// Disks (P1).

// copied is called when the disk of a node is copied for its twin.
func (k *checker) copied(h, twin *host) {
	for m, at := range k.holders {
		if at&(1<<h.place) != 0 {
			k.holders[m] |= 1 << twin.place
		}
	}
}

func (k *checker) holds(h *host, b *wire.Batch) {
	for i := range b.Count {
		k.holders[key(b, i)] |= 1 << h.place
		k.synced[key(b, i)] |= 1 << h.place
		k.let[key(b, i)] &^= 1 << h.place
	}
}

func (k *checker) lost(h *host, b *wire.Batch) {
	for i := range b.Count {
		k.holders[key(b, i)] &^= 1 << h.place
	}
}

func (k *checker) forgets(h *host) {
	for m := range k.holders {
		k.holders[m] &^= 1 << h.place
	}
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

// Deliveries (P3, P4, P5).

// pushing is called when a node hands a one-way message to a connection that it
// did not open, before the deadline of the message.
func (k *checker) pushing(h *host, c *conn, msg wire.Message) {
	switch m := msg.(type) {
	case *wire.Owner:
		t := termKey{m.Partition, m.Term}
		if _, seen := k.handover[t]; !seen && m.Node == h.id {
			k.handover[t] = m.Grace == 0
		}
	case *wire.Deliver:
		for i := range m.Deliveries {
			d := &m.Deliveries[i]
			for o := d.Receipt.Run.From; o < d.Receipt.Run.To; o++ {
				k.delivering(h, c, m.Sub, d, o)
				if k.w.failure != nil {
					return
				}
			}
		}
	}
}

// dropping is called when a node does not write a delivery because its deadline has
// passed. For the order it was handed out, like one that is lost on its way.
func (k *checker) dropping(h *host, c *conn, msg wire.Message) {
	m, ok := msg.(*wire.Deliver)
	if !ok {
		return
	}
	for i := range m.Deliveries {
		r := &m.Deliveries[i].Receipt
		for o := r.Run.From; o < r.Run.To && r.Term.Node == h.id; o++ {
			k.inOrder(h, c, m.Sub, r, msgKey{r.Producer, r.Sequence + uint64(o-r.Run.From)})
		}
	}
}

// cutShort is called with what a node did not get to write that ended in the middle of a step.
// Another consumer may have later messages of that step: those before them were handed out,
// too, for the order.
func (k *checker) cutShort(h *host, c *conn, msg wire.Message) {
	m, ok := msg.(*wire.Deliver)
	if !ok {
		return
	}
	for i := range m.Deliveries {
		r := &m.Deliveries[i].Receipt
		for o := r.Run.From; o < r.Run.To && r.Term.Node == h.id; o++ {
			x := msgKey{r.Producer, r.Sequence + uint64(o-r.Run.From)}
			if k.highest[firstKey{r.Group, x.producer, r.Partition}] > x.sequence+1 {
				k.inOrder(h, c, m.Sub, r, x)
			}
		}
	}
}

// inOrder checks P5: what a producer sent before was handed out before.
func (k *checker) inOrder(h *host, c *conn, sub uint64, r *wire.Receipt, m msgKey) {
	g := groupKey{r.Group, m}
	if _, again := k.first[g]; again {
		return
	}
	k.first[g] = firstDelivery{k.w.now, k.w.steps, c, sub}
	f := firstKey{r.Group, m.producer, r.Partition}
	if last := k.highest[f]; last > m.sequence+1 {
		later := msgKey{m.producer, last - 1}
		if x := k.first[groupKey{r.Group, later}]; (x.step != k.w.steps || x.to == c && x.sub == sub) && x.at-k.messages[later].at < 29*second {
			k.w.fail("P5", m, "%s first delivers %s to %s, after %s was first delivered %d ms ago", h.name, k.about(m), k.w.names.group(r.Group), k.about(later), (k.w.now-x.at)/millisecond)
			return
		}
	}
	k.highest[f] = max(k.highest[f], m.sequence+1)
}

func (k *checker) delivering(h *host, c *conn, sub uint64, d *wire.Delivery, o wire.Offset) {
	r := &d.Receipt
	m := msgKey{r.Producer, r.Sequence + uint64(o-r.Run.From)}
	g := groupKey{r.Group, m}
	now := k.w.now
	relayed := r.Term.Node != h.id
	if !relayed {
		k.stats.Deliveries++
		if d.Cause != wire.CauseNone {
			k.stats.Again++
		}
		s := k.messages[m]
		if s == nil || s.partition != r.Partition {
			k.w.fail("P9", m, "%s delivers %s, which nobody sent to it", h.name, k.w.names.receipt(r))
			return
		}
		if s.refused {
			k.w.fail("P10", m, "%s delivers %s, and its producer was told that it is not stored", h.name, k.about(m))
			return
		}
		if at, ok := k.acked[g]; ok {
			k.w.fail("P3", m, "%s hands it out again, %d ms after its ack was confirmed: %s", h.name, (now-at)/millisecond, k.w.names.receipt(r))
			return
		}
		if k.inOrder(h, c, sub, r, m); k.w.failure != nil {
			return
		}
		if k.mayHandOut(h, r, m); k.w.failure != nil {
			return
		}
		k.alone(h, c, r, g)
	}
	if c == nil || c.dead && !c.up[0] {
		return
	}
	n := &handout{conn: c, owner: h, term: r.Term, attempt: r.Attempt, serial: r.Serial, at: now, until: now + int64(d.Lease)*millisecond*95/100, resumed: map[int]resumed{}}
	if c.from.client != nil {
		n.client = c.from
	}
	if relayed { // the lease runs from when the owner gave it to the relay
		for _, x := range k.handed[g] {
			if x.client == nil && x.term == r.Term && x.serial == r.Serial {
				n.via, n.until = x.conn, x.until
			}
		}
		if n.via == nil {
			return
		}
	}
	k.handed[g] = append(k.prune(k.handed[g]), n)
}

func (k *checker) prune(l []*handout) []*handout {
	return slices.DeleteFunc(l, func(x *handout) bool { return x.until <= k.w.now })
}

// alone checks P4: no other consumer has the message, but for a named cause.
func (k *checker) alone(h *host, to *conn, r *wire.Receipt, g groupKey) {
	list := k.prune(k.handed[g])
	k.handed[g] = list
	defer func() { // who had it before has lost it, for a cause that was looked at here
		for _, x := range list {
			x.superseded = true
		}
	}()
	var top *handout
	for _, x := range list {
		if x.superseded || x.client == nil || x.conn.from.life != x.conn.life[0] {
			continue
		}
		if top == nil || cmp.Or(top.term.Compare(x.term), cmp.Compare(top.serial, x.serial)) <= 0 {
			top = x
		}
	}
	if top == nil || to != nil && top.client == to.from {
		return
	}
	same := top.term == r.Term && !top.conn.dead && top.conn.up[0] && top.conn.up[1] && (top.via == nil || !top.via.dead)
	back := false
	if x := top.resumed[h.index]; x.conn != nil && k.w.now < x.until && (x.term == wire.Term{} || x.term == r.Term) && x.number == k.resumes[resumeKey{h.index, top.client.index, r.Partition}] {
		back = !x.conn.dead && x.conn.up[0] && x.conn.up[1] && h.in[x.conn.id] == x.conn
	}
	kept := k.keptByHandover(h, top, r)
	if !same && !back && !kept {
		return
	}
	how := "in the same term, and its connection holds"
	switch {
	case back:
		how = "and it resumed it here"
	case kept:
		how = "and the owner before handed over what was in flight"
	}
	k.w.fail("P4", g.key, "%s hands out %s (%s), but %s has it (term %s attempt %d, %d ms ago), %s", h.name, k.about(g.key), k.w.names.receipt(r),
		top.client.name, k.w.names.term(top.term), top.attempt, (k.w.now-top.at)/millisecond, how)
}

// got is called when a consumer receives a message; stale when it drops it because
// it has heard of a newer owner.
func (k *checker) got(c *consumer, h *holding, stale bool) {
	if s := k.messages[h.key]; s == nil || s.body != h.body {
		k.w.fail("P9", h.key, "%s got %q as %s", c.h.name, h.body, k.about(h.key))
		return
	} else if c.q != nil && s.q != c.q {
		k.w.fail("P11", h.key, "%s takes from generation %d of %s and got %s, which was sent to generation %d", c.h.name, c.q.entry.Generation, c.q.entry.Name, k.about(h.key), s.q.entry.Generation)
		return
	}
	if stale {
		k.stats.Dropped++
		k.remove(c, h)
	}
}

// ended is called when a consumer is through with a message, or gives it back.
func (k *checker) ended(c *consumer, h *holding) { k.remove(c, h) }

func (k *checker) remove(c *consumer, h *holding) {
	g := groupKey{h.receipt.Group, h.key}
	k.handed[g] = slices.DeleteFunc(k.handed[g], func(x *handout) bool {
		return x.client == c.h && x.term == h.receipt.Term && x.serial == h.receipt.Serial
	})
}

func (k *checker) extended(c *consumer, h *holding) {
	for _, x := range k.handed[groupKey{h.receipt.Group, h.key}] {
		if x.client == c.h && x.term == h.receipt.Term && x.serial == h.receipt.Serial {
			x.until = max(x.until, k.w.now+(h.until-k.w.now)*95/100)
		}
	}
}

func (k *checker) consumerGone(c *consumer) {
	for g, l := range k.handed {
		k.handed[g] = slices.DeleteFunc(l, func(x *handout) bool { return x.client == c.h })
	}
}

// requested is called before a node takes a message of a connection that it did not open.
func (k *checker) requested(h *host, id core.ConnID, msg wire.Message) {
	m, ok := msg.(*wire.Resume)
	if !ok || h.in[id] == nil {
		return
	}
	c := h.in[id]
	told := map[wire.PartitionID]bool{}
	owned := map[wire.PartitionID]wire.Term{}
	for _, o := range h.core.Ownerships() {
		owned[o.Partition] = o.Term
	}
	for i := range m.Held {
		r := &m.Held[i].Receipt
		at := resumeKey{h.index, c.from.index, r.Partition}
		if !told[r.Partition] { // it is all that the consumer holds of the partition
			told[r.Partition] = true
			k.resumes[at]++
		}
		for _, run := range m.Held[i].Runs {
			for o := run.From; o < run.To; o++ {
				for _, x := range k.handed[groupKey{r.Group, msgKey{r.Producer, r.Sequence + uint64(o-r.Run.From)}}] {
					if x.client == c.from && x.term == r.Term && x.serial == r.Serial {
						x.resumed[h.index] = resumed{c, k.resumes[at], k.w.now + int64(m.Held[i].Left)*millisecond*95/100, owned[r.Partition]}
					}
				}
			}
		}
	}
}

// Ownership.

// stepped is called after each step of a node: at most one valid lease per partition.
func (k *checker) stepped(h *host) {
	k.learnsPauses(h)
	owned := h.core.Ownerships()
	if slices.Equal(owned, k.owned[h.index]) {
		return
	}
	for _, o := range k.owned[h.index] {
		delete(k.owners[o.Partition], h.index)
	}
	k.owned[h.index] = owned
	for _, o := range owned {
		until := h.worldTime(o.Until)
		m := k.owners[o.Partition]
		if m == nil {
			m = map[int]ownership{}
			k.owners[o.Partition] = m
		}
		for _, x := range k.w.nodes() {
			other, ok := m[x.index]
			if ok && until > k.w.now && other.until > k.w.now && x.running && x.life == other.life {
				k.w.fail("two owners", msgKey{}, "%s owns %s in term %s, and %s owns it in term %s for %d ms more", h.name, k.w.names.partition(o.Partition),
					k.w.names.term(o.Term), x.name, k.w.names.term(other.term), (other.until-k.w.now)/millisecond)
				return
			}
		}
		if k.terms[o.Partition] != o.Term {
			k.before[o.Partition], k.terms[o.Partition] = k.terms[o.Partition], o.Term
			k.stats.Takeovers++
			k.tookResumes(h, o)
		}
		m[h.index] = ownership{o.Term, until, h.life}
	}
}

// tookResumes is called when a node begins to own a partition: what it was told of what
// consumers hold is in the table of that term, and is gone with it.
func (k *checker) tookResumes(h *host, o core.Ownership) {
	for g, l := range k.handed { // each by itself: the order does not matter
		s := k.messages[g.key]
		if s == nil || s.partition != o.Partition {
			continue
		}
		for _, x := range l {
			if r, told := x.resumed[h.index]; told && r.term == (wire.Term{}) {
				r.term = o.Term
				x.resumed[h.index] = r
			}
		}
	}
}

func (k *checker) owner(p wire.PartitionID) *host {
	for i, o := range k.owners[p] {
		if h := k.w.hosts[i]; o.until > k.w.now && h.running && h.life == o.life {
			return h
		}
	}
	return nil
}

// watch looks every half second at what must not take too long.
func (k *checker) watch() {
	k.w.after(500*millisecond, k.watch)
	for _, h := range k.w.nodes() {
		if h.running {
			k.deadlines(h)
			d := k.disks[h]
			switch {
			case h.disk.syncing == nil:
				d.syncs = 0
			case h.disk.syncs == d.syncs:
				d.behind = k.w.now
			default:
				d.syncs = h.disk.syncs
			}
			k.disks[h] = d
		}
		if h.stopped != nil {
			k.w.fail("Stop", msgKey{}, "%s stopped: %v", h.name, h.stopped)
		}
	}
	k.spread()
	if k.idle {
		return
	}
	for _, q := range k.queues {
		for _, p := range q.partitions() {
			if k.owner(p) != nil || !k.couldOwn(q, p) {
				k.ownerAt[p] = k.w.now
			} else if k.w.now-k.ownerAt[p] > 8*second {
				k.w.fail("P2live", msgKey{}, "%s had no owner for %d ms, and a majority of its home replicas is connected", k.w.names.partition(p), (k.w.now-k.ownerAt[p])/millisecond)
				return
			}
		}
	}
}

// openSets are the home replicas of a partition in the newest ring, and in each that some
// node holds to be open: ownership needs a majority in all of them.
func (k *checker) openSets(q *queue, p wire.PartitionID) [][]ring.NodeID {
	sets := [][]ring.NodeID{k.w.homeIDs(q, p)}
	for _, h := range k.w.nodes() {
		if h.running {
			sets = append(sets, h.core.OpenHomes(p)...)
		}
	}
	return sets
}

// lostMajority tells whether a majority of the home replicas in an open ring is gone for ever.
func (k *checker) lostMajority(q *queue, p wire.PartitionID) bool {
	return slices.ContainsFunc(k.openSets(q, p), func(set []ring.NodeID) bool {
		n := 0
		for _, id := range set {
			if k.w.node(id) != nil {
				n++
			}
		}
		return n <= len(set)/2
	})
}

// couldOwn tells whether a majority of the home replicas works, knows of the partition and is
// connected without a slow link.
func (k *checker) couldOwn(q *queue, p wire.PartitionID) bool {
	sets := k.openSets(q, p)
	var ids []ring.NodeID
	for _, set := range sets {
		for _, id := range set {
			if !slices.Contains(ids, id) {
				ids = append(ids, id)
			}
		}
	}
	var up []*host
	for _, id := range ids {
		if h := k.w.node(id); h != nil && h.running && !h.paused && !h.busy && h.slow == 0 && k.w.now-h.boots > second && !h.disk.damaged && !h.core.Repairing(p) && k.knows(h, p) && k.disks[h].behind < k.w.now-second {
			up = append(up, h)
		}
	}
	for _, l := range k.w.net.late {
		if l.by > second {
			return false
		}
	}
	for _, a := range up { // a clique around a: all that a can reach, pairwise
		clique := []*host{a}
		for _, b := range up {
			if b != a && !slices.ContainsFunc(clique, func(x *host) bool { return !k.good(x, b) }) {
				clique = append(clique, b)
			}
		}
		if !slices.ContainsFunc(sets, func(set []ring.NodeID) bool {
			n := 0
			for _, x := range clique {
				if slices.Contains(set, x.id) {
					n++
				}
			}
			return n <= len(set)/2
		}) {
			return true
		}
	}
	return false
}

// knows tells whether a node knows of a partition, which may have been added while it was away.
func (k *checker) knows(h *host, p wire.PartitionID) bool {
	at := k.places[p]
	e := h.core.Queue(at.q.entry.Name)
	return e != nil && at.index < e.Settings.Partitions
}

func (k *checker) good(a, b *host) bool {
	for _, l := range []*link{k.w.link(a, b), k.w.link(b, a)} {
		if l.cut > 0 || l.slow > 50*millisecond || len(l.loss)+len(l.corrupt)+len(l.rates) > 0 {
			return false
		}
	}
	return a.outTo(b.id) != nil && b.outTo(a.id) != nil
}

// unacked are the confirmed messages that nobody acked. What was acked and not
// confirmed is done or comes again: converged sees to it.
func (k *checker) unacked() []groupKey {
	var out []groupKey
	for _, m := range k.order {
		s := k.messages[m]
		if s.confirmed == 0 || s.q.gone {
			continue
		}
		for _, g := range s.q.entry.Groups {
			gk := groupKey{wire.Group(g.Name, g.Generation), m}
			if k.acked[gk] == 0 && !k.acking[gk] {
				out = append(out, gk)
			}
		}
	}
	return out
}

func (k *checker) delivered() {
	left := k.unacked()
	if len(left) == 0 {
		return
	}
	g := left[0]
	s := k.messages[g.key]
	what := "was never delivered"
	if x, ok := k.first[g]; ok {
		what = fmt.Sprintf("was first delivered %d ms ago, and is not acked", (k.w.now-x.at)/millisecond)
	}
	owner := "nobody"
	if h := k.owner(s.partition); h != nil {
		owner = h.name
	}
	k.w.fail("P2", g.key, "%s of %s, confirmed %d ms ago, %s to %s; %d like it; %s owns it; held by %s", k.about(g.key), k.w.names.partition(s.partition),
		(k.w.now-s.confirmed)/millisecond, what, k.w.names.group(g.group), len(left), owner, k.holding(g.key))
}

// converged checks P7 and P11 by what the nodes say of themselves.
func (k *checker) converged(states map[*host]*wire.Inspected, ps []wire.PartitionID) error {
	blocked := false // a partition waits for a node that is gone for ever, and with it all who want to join
	for _, h := range k.w.nodes() {
		if h.running && h.core.Mesh() != 0 {
			for _, p := range h.core.Moving() {
				sets := h.core.OpenHomes(p)
				if slices.ContainsFunc(sets[len(sets)-1], func(id ring.NodeID) bool { return k.w.node(id) == nil }) {
					blocked = true
					continue
				}
				// The queue may be one of which nobody was told that it is there.
				return fmt.Errorf("%s says that %s is still moving to ring %d, with home replicas %s", h.name, k.w.names.partition(p), h.core.Table().Number, k.w.names.list(sets[len(sets)-1]))
			}
		}
	}
	for i, p := range ps {
		q := k.queueOf(p)
		var first *wire.PartitionState
		var firstAt *host
		owned := 0
		for _, h := range k.w.nodes() {
			in := states[h]
			if in == nil {
				if h.running && (h.core.Mesh() != 0 || !blocked) {
					return fmt.Errorf("%s does not answer Inspect", h.name)
				}
				continue
			}
			if len(in.States) != len(ps) {
				return fmt.Errorf("%s answers Inspect of %d partitions with %d states", h.name, len(ps), len(in.States))
			}
			s := &in.States[i]
			if s.Hints != 0 {
				return fmt.Errorf("%s keeps %d hints of %s", h.name, s.Hints, k.w.names.partition(p))
			}
			if !slices.Contains(k.w.homeIDs(q, p), h.id) {
				if s.Owns && k.w.gone > 0 && len(h.core.OpenHomes(p)) > 1 {
					owned++ // by an older ring, which stays open while who is gone for ever is not forgotten
				}
				continue
			}
			if !s.Home {
				return fmt.Errorf("%s does not know that it is a home replica of %s", h.name, k.w.names.partition(p))
			}
			if s.Repairing {
				return fmt.Errorf("%s is still repairing %s", h.name, k.w.names.partition(p))
			}
			if first == nil {
				first, firstAt = s, h
			} else if s.Digest != first.Digest {
				return fmt.Errorf("digests of %s differ: %s has %x, %s has %x (messages %d and %d)", k.w.names.partition(p), firstAt.name, first.Digest, h.name, s.Digest, first.Messages, s.Messages)
			}
			if s.Owns {
				owned++
				for _, g := range s.Groups {
					if g.Ready+g.InFlight+g.Delayed != 0 || g.Done != s.Messages {
						return fmt.Errorf("all is acked, but the owner %s of %s says for %s: %d ready, %d in flight, %d delayed, %d done of %d",
							h.name, k.w.names.partition(p), k.w.names.group(g.Group), g.Ready, g.InFlight, g.Delayed, g.Done, s.Messages)
					}
				}
			}
		}
		if owned == 0 && k.lostMajority(q, p) {
			continue // the dead must be forgotten first
		}
		if owned != 1 {
			return fmt.Errorf("%d nodes say that they own %s", owned, k.w.names.partition(p))
		}
	}
	return nil
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
