package core

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/meshq/meshq/ring"
	"github.com/meshq/meshq/transport/wire"
)

// TestRetriesAreATenthOfSends: with nodes that refuse everything, what is sent again
// stays within the budget: a burst, a tenth of sends, and a trickle with time.
func TestRetriesAreATenthOfSends(t *testing.T) {
	var b budget
	now := Instant(0)
	first, retries := 0, 0
	for range 10_000 {
		now = now.Add(time.Millisecond)
		b.sent(now)
		first++
		for range 3 {
			if _, ok := b.retry(now); ok {
				retries++
			}
		}
	}
	if limit := budgetBurst + first/10 + 10*budgetSecond; retries > limit || retries < first/10 {
		t.Errorf("%d retries for %d sends, limit %d", retries, first, limit)
	}
	wait, ok := b.retry(now)
	for ok {
		wait, ok = b.retry(now)
	}
	if _, ok := b.retry(now.Add(wait + time.Millisecond)); !ok {
		t.Errorf("no token after %v", wait)
	}
}

func TestSendErrorTellsUnknownFromRefused(t *testing.T) {
	unknown := &SendError{Queue: "q", Unknown: true, Err: wire.ErrOverloaded}
	if !errors.Is(unknown, wire.ErrQuorum) || !errors.Is(unknown, wire.ErrOverloaded) {
		t.Error("unknown is not ErrQuorum")
	}
	if refused := (&SendError{Queue: "q", Err: wire.ErrOverloaded}); errors.Is(refused, wire.ErrQuorum) {
		t.Error("refused is ErrQuorum")
	}
}

func TestPrefix(t *testing.T) {
	for _, body := range []int{0, 100, 118, 119, 120, 121, 122, 123, 124, 125, 126, 127, 128, 16_370, 16_380, 16_384, 2_097_150, 2_097_160} {
		p := wire.AppendRecord(nil, &wire.Record{Body: make([]byte, body)})
		want := 1
		for p[want-1]&0x80 != 0 {
			want++
		}
		if got := prefix(len(p)); got != want {
			t.Errorf("prefix of %d bytes is %d, want %d", len(p), got, want)
		}
	}
}

func TestLine(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var l line
	var model []int
	next := 0
	for range 5000 {
		switch r.IntN(4) {
		case 0, 1:
			for range r.IntN(300) {
				l.push(&Item{Ticket: next})
				model = append(model, next)
				next++
			}
		case 2:
			n := r.IntN(len(model) + 1)
			l.drop(n)
			model = model[n:]
		case 3:
			k := r.IntN(50) + 2
			l.remove(func(it *Item) bool { return it.Ticket.(int)%k == 0 })
			var rest []int
			for _, n := range model {
				if n%k != 0 {
					rest = append(rest, n)
				}
			}
			model = rest
		}
		if l.len != len(model) {
			t.Fatalf("%d in line, want %d", l.len, len(model))
		}
		i := 0
		l.each(func(it *Item) bool {
			if it.Ticket != model[i] {
				t.Fatalf("at %d: %v, want %d", i, it.Ticket, model[i])
			}
			i++
			return true
		})
	}
}

// chaos is a set of nodes that lose, delay, refuse and repeat, all by one seed. It
// checks what a client promises whatever they do.
type chaos struct {
	t    *testing.T
	w    *world
	r    *rand.Rand
	todo []later
	up   map[LinkID]int // counts connections of a link; odd: up
	out  []string       // trace

	answered map[string]string
	stored   map[wire.ProducerID]map[uint64]string // first bodies by sequence
	offset   wire.Offset
	lastSeq  map[wire.ProducerID]uint64
}

type later struct {
	at Instant
	do func()
}

func (x *chaos) after(d time.Duration, do func()) {
	x.todo = append(x.todo, later{x.w.now.Add(d), do})
}

func (x *chaos) step(ev Event) {
	for _, ef := range x.w.core.Step(x.w.now, ev) {
		x.out = append(x.out, fmt.Sprintf("%d %T %+v", x.w.now, ef, summary(ef)))
		x.effect(ef)
	}
}

func summary(ef Effect) any {
	if call, ok := ef.(Call); ok {
		if m, ok := call.Msg.(*wire.Enqueue); ok {
			return fmt.Sprint(call.Link, call.Call, m.Producer, m.Sequence, m.Count, m.AfterOffset)
		}
		return fmt.Sprint(call.Link, call.Call)
	}
	switch ef := ef.(type) {
	case Confirmed:
		return fmt.Sprint(ef.Tickets, ef.Base.Offset)
	case Failed:
		return fmt.Sprint(ef.Tickets, ef.Err)
	}
	return ""
}

func (x *chaos) answer(ticket Ticket, how string) {
	if ticket == nil {
		return
	}
	name := ticket.(string)
	if was, twice := x.answered[name]; twice {
		x.t.Fatalf("%s answered twice: %s, then %s", name, was, how)
	}
	x.answered[name] = how
}

func (x *chaos) effect(ef Effect) {
	delay := func() time.Duration { return time.Duration(x.r.IntN(5)) * time.Millisecond }
	switch ef := ef.(type) {
	case Dial:
		link := ef.Link
		if x.r.IntN(4) == 0 {
			x.after(delay(), func() { x.step(LinkDown{Link: link, Err: errors.New("refused")}) })
			return
		}
		x.after(delay(), func() {
			x.up[link]++
			x.step(LinkUp{Link: link, Hello: &wire.Hello{Mesh: 7, Node: x.nodeAt(link), Ring: 1}})
			if x.r.IntN(3) == 0 {
				n := x.up[link]
				x.after(time.Duration(x.r.IntN(3000))*time.Millisecond, func() { x.cut(link, n) })
			}
		})
	case Hangup:
		x.up[ef.Link]++
	case Call:
		link, id, n := ef.Link, ef.Call, x.up[ef.Link]
		reply := func(d time.Duration, msg wire.Message) {
			x.after(d, func() {
				if x.up[link] == n {
					x.step(Answered{Call: id, Msg: msg})
				}
			})
		}
		switch m := ef.Msg.(type) {
		case *wire.GetMesh:
			reply(delay(), x.w.mesh)
		case *wire.DescribeQueue:
			reply(delay(), &wire.QueueInfo{Entry: x.w.entry, Catalog: 5})
		case *wire.Ping:
			if x.r.IntN(5) > 0 {
				reply(delay(), &wire.Done{})
			}
		case *wire.Enqueue:
			x.enqueue(m, reply, delay)
		}
	case Confirmed:
		for i, t := range ef.Tickets {
			if t != nil {
				x.answer(t, fmt.Sprintf("confirmed at %d", ef.Base.Offset+wire.Offset(i)))
			}
		}
	case Failed:
		for _, t := range ef.Tickets {
			x.answer(t, ef.Err.Error())
		}
	}
}

func (x *chaos) nodeAt(l LinkID) ring.NodeID { return x.w.node(x.w.at(l)).ID }

func (x *chaos) cut(link LinkID, n int) {
	if x.up[link] == n {
		x.up[link]++
		x.step(LinkDown{Link: link, Err: errors.New("reset")})
	}
}

func (x *chaos) enqueue(m *wire.Enqueue, reply func(time.Duration, wire.Message), delay func() time.Duration) {
	// The same (producer, sequence) is always the same messages.
	byProducer := x.stored[m.Producer]
	if byProducer == nil {
		byProducer = map[uint64]string{}
		x.stored[m.Producer] = byProducer
	}
	if was, again := byProducer[m.Sequence]; again && was != string(m.Records) {
		x.t.Fatalf("producer %x sequence %d has two contents", m.Producer, m.Sequence)
	}
	byProducer[m.Sequence] = string(m.Records)
	// One batch at a time: a sequence is never behind a later one of its producer.
	if m.Sequence < x.lastSeq[m.Producer] {
		x.t.Fatalf("producer %x: sequence %d after %d", m.Producer, m.Sequence, x.lastSeq[m.Producer])
	}
	x.lastSeq[m.Producer] = m.Sequence
	switch x.r.IntN(10) {
	case 0: // silence
	case 1:
		reply(delay(), wire.QuorumError(1, 2))
	case 2:
		reply(delay(), &wire.Error{Code: wire.CodeOverloaded, RetryAfter: 5})
	case 3:
		reply(delay(), wire.ErrNotReady)
	case 4: // late
		x.offset += wire.Offset(m.Count)
		reply(time.Duration(x.r.IntN(2000))*time.Millisecond, &wire.Enqueued{Lane: wire.Lane{Node: 1, Epoch: 1}, Base: x.offset, Nodes: []ring.NodeID{1, 2}, Want: 2})
	default:
		x.offset += wire.Offset(m.Count)
		reply(delay(), &wire.Enqueued{Lane: wire.Lane{Node: 1, Epoch: 1}, Base: x.offset, Nodes: []ring.NodeID{1, 2}, Want: 2})
	}
}

// run lets time pass to end.
func (x *chaos) run(end Instant) {
	for {
		next, at := x.w.core.Next(), -1
		for i := range x.todo {
			if x.todo[i].at < next || at >= 0 && x.todo[i].at < x.todo[at].at {
				next, at = x.todo[i].at, i
			}
		}
		if next > end {
			x.w.now = end
			return
		}
		x.w.now = max(x.w.now, next)
		if at < 0 {
			x.step(Tick{})
			continue
		}
		do := x.todo[at].do
		x.todo = append(x.todo[:at], x.todo[at+1:]...)
		do()
	}
}

func runChaos(t *testing.T, seed uint64) []string {
	w := newWorld(t)
	x := &chaos{
		t: t, w: w, r: rand.New(rand.NewPCG(seed, 7)), up: map[LinkID]int{}, answered: map[string]string{},
		stored: map[wire.ProducerID]map[uint64]string{}, lastSeq: map[wire.ProducerID]uint64{},
	}
	sent := 0
	for range 200 {
		x.run(w.now.Add(time.Duration(x.r.IntN(100)) * time.Millisecond))
		var items []Item
		for range 1 + x.r.IntN(5) {
			name := fmt.Sprint(sent)
			sent++
			items = append(items, Item{
				Ticket: name, Queue: "photos", Record: wire.Record{Body: []byte(name)},
				Until: w.now.Add(time.Duration(x.r.IntN(5000)) * time.Millisecond),
			})
		}
		x.step(Send{Items: items})
		if x.r.IntN(10) == 0 {
			x.step(Cancel{Queue: "photos", Ticket: fmt.Sprint(x.r.IntN(sent))})
		}
	}
	x.run(w.now.Add(10 * time.Second))
	if len(x.answered) != sent { // never loses a message without saying so
		t.Fatalf("seed %d: %d of %d messages answered", seed, len(x.answered), sent)
	}
	confirmed := 0
	for _, how := range x.answered {
		if len(how) > 9 && how[:9] == "confirmed" {
			confirmed++
		}
	}
	if confirmed < sent/2 {
		t.Errorf("seed %d: only %d of %d confirmed", seed, confirmed, sent)
	}
	x.step(Close{Until: w.now.Add(time.Second)})
	x.run(w.now.Add(time.Second))
	if !w.core.closed || w.core.Next() != Never {
		t.Errorf("seed %d: not closed", seed)
	}
	return x.out
}

// TestChaos: every message is answered exactly once, a retry has the same content, the
// batches of a producer go out in order, and one seed run twice does the same.
func TestChaos(t *testing.T) {
	for seed := range uint64(60) {
		first := runChaos(t, seed)
		if seed%10 == 0 {
			second := runChaos(t, seed)
			for i := range first {
				if i >= len(second) || first[i] != second[i] {
					t.Fatalf("seed %d: step %d differs:\n%s\n%s", seed, i, first[i], second[i])
				}
			}
		}
	}
}
