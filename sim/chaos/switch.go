package chaos

import (
	"container/heap"
	"math"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// netSwitch carries IPv4 packets between ports, one for each host, and does to them what
// the effects say that are imposed. It knows nothing of where ports lead to.
//
// Each ordered pair of ports is a link. The goroutine that reads from a port forwards
// what it read: a packet that nothing delays goes straight out, others wait in the
// outbox of the port that they go to.
type netSwitch struct {
	seed  uint64
	base  Effect // of all links, always
	count counters
	// nap waits for less than napTime with more precision than a timer, which is late by
	// up to 1 ms; nil: a timer is good enough.
	nap func(time.Duration)

	mu    sync.Mutex // protects the fields below; not needed to forward
	ports []*port
	rules []*rule // in order of their making
}

// rule is an effect that is imposed.
type rule struct{ Effect }

// port is the end of the switch that a host is on.
type port struct {
	sw   *netSwitch
	name string
	addr netip.Addr
	// exempt links are never touched by effects.
	exempt bool
	// down: the machine has no power. Nothing comes from it and nothing reaches it.
	down atomic.Bool
	// links are those to all ports, by address; replaced as a whole.
	links atomic.Pointer[map[netip.Addr]*link]
	// put hands a packet to the host; it keeps nothing of it. Any goroutine may call it.
	put func(packet []byte)

	outbox outbox
}

// link is the way of packets from one port to another.
type link struct {
	from, to *port
	luck     uint64 // seed of its coins
	policies atomic.Pointer[[classes]policy]
	waiting  atomic.Int64 // bytes in the outbox
	packets  atomic.Int64 // packets in the outbox

	mu    sync.Mutex // protects the fields below
	count uint64     // packets ever
	// free is when the last packet has passed a limited bandwidth; last when the last one
	// that keeps the order arrives.
	free, last time.Time
	flows      flows
}

// napTime is how long an outbox naps at most. A packet that comes meanwhile and is due
// before that is late by so much.
const napTime = time.Millisecond

// linkBytes is the room of a link for packets that wait; more are dropped.
const linkBytes = 16 << 20

// classes are the traffic that policies tell apart, as bits of Traffic.
const classes = 3

// policy is all that happens to one class of packets on one link.
type policy struct {
	cut                               bool
	delay, jitter, late               time.Duration
	loss, duplicate, reorder, corrupt float64
	bandwidth                         int64
	plain                             bool // none of it
}

// counters are those of SwitchStats.
type counters struct {
	packets, bytes, cut, lost, duplicated, reordered, corrupted, overflowed, unroutable, resets atomic.Uint64
}

func newSwitch(seed uint64, base Effect) *netSwitch {
	base.From, base.To = nil, nil
	return &netSwitch{seed: seed, base: base}
}

// plug adds a port. put is called from now on; start the port's reader after.
func (s *netSwitch) plug(name string, addr netip.Addr, exempt bool, put func([]byte)) *port {
	p := &port{sw: s, name: name, addr: addr, exempt: exempt, put: put}
	p.outbox.init()
	go p.outbox.run(s.nap)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ports = append(s.ports, p)
	s.wire()
	return p
}

// unplug removes a port; what waits for it is dropped.
func (s *netSwitch) unplug(p *port) {
	s.mu.Lock()
	s.ports = slices.DeleteFunc(s.ports, func(q *port) bool { return q == p })
	s.wire()
	s.mu.Unlock()
	p.outbox.close()
}

// move gives a port another address.
func (s *netSwitch) move(p *port, addr netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p.addr = addr
	s.wire()
}

// wire makes the links between all ports anew, keeping those that are there; mu is held.
func (s *netSwitch) wire() {
	for _, from := range s.ports {
		old := map[*port]*link{}
		if was := from.links.Load(); was != nil {
			for _, l := range *was {
				old[l.to] = l
			}
		}
		links := make(map[netip.Addr]*link, len(s.ports))
		for _, to := range s.ports {
			l := old[to]
			if l == nil {
				l = &link{from: from, to: to, luck: hashText(hashText(s.seed, from.name), to.name)}
				l.policies.Store(s.policies(from, to))
			}
			links[to.addr] = l
		}
		from.links.Store(&links)
	}
}

// impose brings effects about until lift is called.
func (s *netSwitch) impose(effects []Effect) (lift func()) {
	mine := map[*rule]bool{}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range effects {
		e.From, e.To = slices.Clone(e.From), slices.Clone(e.To)
		r := &rule{e}
		mine[r] = true
		s.rules = append(s.rules, r)
	}
	s.judge()
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.rules = slices.DeleteFunc(s.rules, func(r *rule) bool { return mine[r] })
		s.judge()
	}
}

// judge works out the policies of all links; mu is held.
func (s *netSwitch) judge() {
	for _, from := range s.ports {
		for _, l := range *from.links.Load() {
			l.policies.Store(s.policies(l.from, l.to))
		}
	}
}

// covers says whether an effect is about packets from one host to another.
func (e *Effect) covers(from, to string) bool {
	in := slices.Contains[[]string]
	return (in(e.From, from) || len(e.From) == 0 && !in(e.To, from)) && (in(e.To, to) || len(e.To) == 0 && !in(e.From, to))
}

// policies are what all effects together do on a link; mu is held.
func (s *netSwitch) policies(from, to *port) *[classes]policy {
	var all [classes]policy
	if !from.exempt && !to.exempt && from != to {
		for i := range all {
			all[i].add(&s.base, i)
			for _, r := range s.rules {
				if r.covers(from.name, to.name) {
					all[i].add(&r.Effect, i)
				}
			}
		}
	}
	for i := range all {
		all[i].plain = all[i] == policy{}
	}
	return &all
}

func (p *policy) add(e *Effect, class int) {
	if e.Only != 0 && e.Only&(1<<class) == 0 {
		return
	}
	either := func(a *float64, b float64) { *a = 1 - (1-*a)*(1-min(max(0, b), 1)) }
	p.cut = p.cut || e.Cut
	p.delay += e.Delay
	p.jitter += e.Jitter
	p.late = max(p.late, e.Late)
	either(&p.loss, e.Loss)
	either(&p.duplicate, e.Duplicate)
	either(&p.reorder, e.Reorder)
	either(&p.corrupt, e.Corrupt)
	if e.Bandwidth > 0 && (p.bandwidth == 0 || e.Bandwidth < p.bandwidth) {
		p.bandwidth = e.Bandwidth
	}
}

// The streams of a link's coins: what is decided by one does not shift another.
const (
	coinLoss = iota
	coinDuplicate
	coinReorder
	coinLate
	coinCorrupt
	coinWhere
	coinJitter
)

// coin is evenly spread over [0, 1): the luck of the n-th packet of a link.
func (l *link) coin(n uint64, stream uint64) float64 {
	return float64(scramble(l.luck^scramble(n<<8|stream))>>11) / (1 << 53)
}

// forward carries one packet that came from a port's host. It may change the packet.
func (p *port) forward(b []byte) {
	s := p.sw
	packet, ok := parse(b)
	if !ok {
		return // not IPv4: the kernel says hello to IPv6 neighbours
	}
	s.count.packets.Add(1)
	s.count.bytes.Add(uint64(len(b)))
	l := (*p.links.Load())[packet.to()]
	if l == nil {
		s.count.unroutable.Add(1)
		return
	}
	if p.down.Load() || l.to.down.Load() {
		s.count.cut.Add(1)
		return
	}
	if answer, pass := l.track(&packet); !pass {
		if answer != nil {
			p.put(answer)
		}
		return
	}
	policy := &l.policies.Load()[packet.class()]
	if policy.plain && l.packets.Load() == 0 {
		l.to.put(b)
		return
	}
	l.carry(&packet, policy)
}

// carry is forward under a policy.
func (l *link) carry(p *packet, policy *policy) {
	c := &l.from.sw.count
	now := time.Now()
	l.mu.Lock()
	n := l.count
	l.count++
	switch {
	case policy.cut:
		l.mu.Unlock()
		c.cut.Add(1)
		return
	case policy.loss > 0 && l.coin(n, coinLoss) < policy.loss:
		l.mu.Unlock()
		c.lost.Add(1)
		return
	}
	due := now.Add(policy.delay)
	if policy.jitter > 0 {
		due = due.Add(time.Duration(float64(policy.jitter) * -math.Log(1-l.coin(n, coinJitter))))
	}
	if policy.bandwidth > 0 {
		if l.free.Before(now) {
			l.free = now
		}
		if l.free.Sub(now) > time.Second {
			l.mu.Unlock()
			c.overflowed.Add(1)
			return
		}
		l.free = l.free.Add(time.Duration(float64(len(p.bytes)) / float64(policy.bandwidth) * float64(time.Second)))
		due = due.Add(l.free.Sub(now))
	}
	if policy.reorder > 0 && policy.late > 0 && l.coin(n, coinReorder) < policy.reorder {
		c.reordered.Add(1)
		due = due.Add(time.Duration(float64(policy.late) * l.coin(n, coinLate)))
	} else {
		if due.Before(l.last) {
			due = l.last
		}
		l.last = due
	}
	l.mu.Unlock()

	if policy.corrupt > 0 && l.coin(n, coinCorrupt) < policy.corrupt && p.flip(l.coin(n, coinWhere)) {
		c.corrupted.Add(1)
	}
	times := 1
	if policy.duplicate > 0 && l.coin(n, coinDuplicate) < policy.duplicate {
		c.duplicated.Add(1)
		times = 2
	}
	for range times {
		if !due.After(now) && l.packets.Load() == 0 {
			l.to.put(p.bytes)
		} else if !l.to.outbox.add(l, p.bytes, due) {
			c.overflowed.Add(1)
		}
	}
}

func (s *netSwitch) stats() SwitchStats {
	c := &s.count
	return SwitchStats{
		Packets: c.packets.Load(), Bytes: c.bytes.Load(), Cut: c.cut.Load(), Lost: c.lost.Load(), Duplicated: c.duplicated.Load(),
		Reordered: c.reordered.Load(), Corrupted: c.corrupted.Load(), Overflowed: c.overflowed.Load(),
		Unroutable: c.unroutable.Load(), ResetConns: c.resets.Load(),
	}
}

// outbox holds packets until they are due at a port. One goroutine puts them out, so that
// packets of one link keep the order of their times.
type outbox struct {
	wake chan struct{} // capacity 1
	done chan struct{} // closed when run has returned

	mu     sync.Mutex // protects the fields below
	heap   deadlines
	number uint64
	closed bool
}

// waiting is a packet in an outbox.
type waiting struct {
	due    time.Time
	number uint64 // of those that are due at one time the first comes first
	link   *link
	bytes  *[]byte
}

func (o *outbox) init() { o.wake, o.done = make(chan struct{}, 1), make(chan struct{}) }

// add takes a copy of a packet; false: there is no room.
func (o *outbox) add(l *link, b []byte, due time.Time) bool {
	if l.waiting.Load()+int64(len(b)) > linkBytes {
		return false
	}
	buffer := buffers.Get().(*[]byte)
	*buffer = append((*buffer)[:0], b...)
	o.mu.Lock()
	if o.closed {
		o.mu.Unlock()
		return false
	}
	l.waiting.Add(int64(len(b)))
	l.packets.Add(1)
	o.number++
	heap.Push(&o.heap, waiting{due, o.number, l, buffer})
	first := o.heap[0].number == o.number
	o.mu.Unlock()
	if first {
		o.nudge()
	}
	return true
}

func (o *outbox) nudge() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// buffers are those of packets that wait.
var buffers = sync.Pool{New: func() any { b := make([]byte, 0, 2048); return &b }}

func (o *outbox) run(nap func(time.Duration)) {
	defer close(o.done)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		o.mu.Lock()
		if o.closed {
			o.mu.Unlock()
			return
		}
		next := time.Hour
		if len(o.heap) > 0 {
			if next = time.Until(o.heap[0].due); next <= 0 {
				w := heap.Pop(&o.heap).(waiting)
				o.mu.Unlock()
				if !w.link.to.down.Load() {
					w.link.to.put(*w.bytes)
				}
				w.link.waiting.Add(-int64(len(*w.bytes)))
				w.link.packets.Add(-1)
				buffers.Put(w.bytes)
				continue
			}
		}
		o.mu.Unlock()
		if nap != nil {
			if next <= napTime {
				nap(next)
				continue
			}
			if next < time.Hour {
				next -= napTime // the timer may be late
			}
		}
		timer.Reset(next)
		select {
		case <-timer.C:
		case <-o.wake:
		}
	}
}

func (o *outbox) close() {
	o.mu.Lock()
	o.closed = true
	o.mu.Unlock()
	o.nudge()
	<-o.done
}

// deadlines is a heap by time, then number.
type deadlines []waiting

func (d deadlines) Len() int { return len(d) }
func (d deadlines) Less(i, j int) bool {
	if !d[i].due.Equal(d[j].due) {
		return d[i].due.Before(d[j].due)
	}
	return d[i].number < d[j].number
}
func (d deadlines) Swap(i, j int) { d[i], d[j] = d[j], d[i] }
func (d *deadlines) Push(x any)   { *d = append(*d, x.(waiting)) }
func (d *deadlines) Pop() any {
	last := (*d)[len(*d)-1]
	(*d)[len(*d)-1] = waiting{}
	*d = (*d)[:len(*d)-1]
	return last
}

// scramble is splitmix64.
func scramble(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

func hashText(seed uint64, text string) uint64 {
	h := scramble(seed ^ uint64(len(text)))
	for i := range len(text) {
		h = scramble(h ^ uint64(text[i]))
	}
	return h
}
