package core

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/meshq/meshq/ring"
	"github.com/meshq/meshq/transport/wire"
)

// owners plays the nodes for a consumer: one of a, b and c owns photos/0, hands out and
// takes acks; links are cut, ownership moves, answers are late or "not the owner".
type owners struct {
	t     *testing.T
	w     *world
	r     *rand.Rand
	todo  []later
	conns map[LinkID]int // counts connections; odd: up

	owner   ring.NodeID
	term    uint64
	graceTo Instant
	next    wire.Offset
	end     wire.Offset
	back    []wire.Offset
	acked   map[wire.Offset]bool
	held    map[wire.Offset]holder
	attempt map[wire.Offset]uint32
	subs    map[LinkID]map[uint64]*[2]uint64 // credit, given

	receiving bool
	settles   map[string]bool // tickets that are not answered
	handed    map[string]bool // handout and offset
	starts    map[wire.Offset]int
	trace     []string
}

type holder struct {
	link LinkID
	conn int
	term uint64
}

func (x *owners) after(d time.Duration, do func()) {
	x.todo = append(x.todo, later{x.w.now.Add(d), do})
}

func (x *owners) node(l LinkID) ring.NodeID { return x.w.node(x.w.at(l)).ID }

func (x *owners) step(ev Event) {
	for _, ef := range x.w.core.Step(x.w.now, ev) {
		x.trace = append(x.trace, fmt.Sprintf("%d %T", x.w.now, ef))
		x.effect(ef)
	}
}

func (x *owners) effect(ef Effect) {
	ms := func(n int) time.Duration { return time.Duration(x.r.IntN(n)) * time.Millisecond }
	switch ef := ef.(type) {
	case Dial:
		link := ef.Link
		x.after(ms(5), func() {
			if x.r.IntN(5) == 0 {
				x.step(LinkDown{Link: link, Err: errors.New("refused")})
				return
			}
			x.conns[link]++
			x.subs[link] = map[uint64]*[2]uint64{}
			x.step(LinkUp{Link: link, Hello: &wire.Hello{Mesh: 7, Node: x.node(link), Ring: 1}})
		})
	case Hangup:
		x.conns[ef.Link]++
	case Post:
		x.posted(ef.Link, ef.Msg)
	case Call:
		link, id, conn := ef.Link, ef.Call, x.conns[ef.Link]
		x.after(ms(5), func() {
			if x.conns[link] != conn {
				return
			}
			msg := x.answer(link, ef.Msg)
			x.after(ms(5), func() {
				if x.conns[link] == conn {
					x.step(Answered{Call: id, Msg: msg})
				}
			})
		})
	case Received:
		if !x.receiving {
			x.t.Fatal("a Receive is answered twice")
		}
		x.receiving = false
		for _, d := range ef.Deliveries {
			key := fmt.Sprint(d.Handout, d.Offset)
			if x.handed[key] {
				x.t.Fatalf("offset %d of handout %d is received twice", d.Offset, d.Handout)
			}
			x.handed[key] = true
			x.starts[d.Offset]++
			x.after(ms(200), func() { x.done(d) })
		}
	case Settled:
		name := ef.Ticket.(string)
		if !x.settles[name] {
			x.t.Fatalf("settle %s is answered twice", name)
		}
		delete(x.settles, name)
		if ef.Err == nil && name[0] == 'a' {
			var o wire.Offset
			_, _ = fmt.Sscanf(name, "a%d", &o)
			if !x.acked[o] {
				x.t.Fatalf("ack of %d is confirmed, and no owner has it", o)
			}
		}
	}
}

// done is the program's word on a message: mostly an ack.
func (x *owners) done(d Delivery) {
	s := Settlement{Handout: d.Handout, Offset: d.Offset, Kind: wire.SettleAck}
	name := fmt.Sprintf("a%d.%d", d.Offset, len(x.trace))
	if x.r.IntN(10) == 0 {
		s.Kind, name = wire.SettleNack, fmt.Sprintf("n%d.%d", d.Offset, len(x.trace))
	}
	x.settles[name] = true
	x.step(Settle{Ticket: name, Items: []Settlement{s}})
}

func (x *owners) posted(link LinkID, msg wire.Message) {
	switch m := msg.(type) {
	case *wire.Subscribe:
		s := x.subs[link][m.Sub]
		if s == nil {
			s = new([2]uint64)
			x.subs[link][m.Sub] = s
		}
		s[0] = max(s[0], m.Credit)
	case *wire.Unsubscribe:
		delete(x.subs[link], m.Sub)
	case *wire.Resume:
		if x.subs[link][m.Sub] == nil {
			x.t.Fatal("resume for a sub that the node does not know")
		}
		for _, h := range m.Held {
			for _, r := range h.Runs {
				for o := r.From; o < r.To; o++ {
					if old, ok := x.held[o]; ok && old.term == h.Receipt.Term.Counter {
						x.held[o] = holder{link, x.conns[link], old.term}
					}
				}
			}
		}
	}
}

func (x *owners) answer(link LinkID, msg wire.Message) wire.Message {
	switch m := msg.(type) {
	case *wire.GetMesh:
		return x.w.mesh
	case *wire.DescribeQueue:
		return &wire.QueueInfo{Entry: x.w.entry, Catalog: 5}
	case *wire.Settle:
		out := &wire.Settled{Codes: make([]wire.Code, len(m.Items))}
		for i, it := range m.Items {
			if x.node(link) != x.owner || x.r.IntN(8) == 0 {
				out.Codes[i] = wire.CodeNotOwner
				continue
			}
			for _, r := range it.Runs {
				for o := r.From; o < r.To; o++ {
					h, ok := x.held[o]
					ok = ok && h.term == it.Receipt.Term.Counter
					switch {
					case it.Kind == wire.SettleAck:
						x.acked[o] = true
						if ok {
							delete(x.held, o)
						}
					case !ok:
						out.Codes[i] = wire.CodeStaleReceipt
					case it.Kind != wire.SettleExtend:
						delete(x.held, o)
						x.back = append(x.back, o)
					}
				}
			}
		}
		return out
	default:
		return &wire.Done{}
	}
}

// pump hands out one message for each sub of the owner that has credit.
func (x *owners) pump() {
	if x.w.now < x.graceTo {
		return
	}
	for link := range LinkID(len(x.w.core.links)) {
		if x.conns[link]%2 == 0 || x.node(link) != x.owner {
			continue
		}
		var ids []uint64
		for id := range x.subs[link] {
			ids = append(ids, id)
		}
		slices.Sort(ids)
		for _, id := range ids {
			s := x.subs[link][id]
			if s == nil || s[0] <= s[1] {
				continue
			}
			var o wire.Offset
			cause := wire.CauseNone
			switch {
			case len(x.back) > 0:
				o, x.back, cause = x.back[0], x.back[1:], wire.CauseNack
			case x.next < x.end:
				o = x.next
				x.next++
			default:
				return
			}
			if x.acked[o] {
				continue
			}
			s[1]++
			x.attempt[o]++
			x.held[o] = holder{link, x.conns[link], x.term}
			d := wire.Delivery{Lease: 3000, Cause: cause, Receipt: wire.Receipt{
				Partition: x.w.entry.Partition(0), Group: wire.Group("default", 1), Lane: wire.Lane{Node: 1, Epoch: 1},
				Run: wire.Span(o, o+1), Term: wire.Term{Counter: x.term, Node: x.owner}, Attempt: x.attempt[o],
				Producer: 1, Sequence: uint64(o),
			}, Records: wire.AppendRecord(nil, &wire.Record{Body: fmt.Append(nil, o)})}
			x.step(Pushed{Link: link, Msg: &wire.Deliver{Sub: id, Deliveries: []wire.Delivery{d}}})
		}
	}
}

// move makes another node the owner, with a grace; what nobody resumes by its end is
// handed out again.
func (x *owners) move() {
	x.owner = x.w.nodes[x.r.IntN(3)].ID
	x.term++
	term := x.term
	x.graceTo = x.w.now.Add(300 * time.Millisecond)
	for link := range LinkID(len(x.w.core.links)) {
		if x.conns[link]%2 == 1 && x.node(link) == x.owner && len(x.subs[link]) > 0 {
			x.step(Pushed{Link: link, Msg: &wire.Owner{
				Partition: x.w.entry.Partition(0), Node: x.owner, Term: wire.Term{Counter: term, Node: x.owner}, Grace: 300,
			}})
		}
	}
	x.after(300*time.Millisecond, x.reclaim)
}

// reclaim takes back what is held on connections that are gone.
func (x *owners) reclaim() {
	var gone []wire.Offset
	for o, h := range x.held {
		if x.conns[h.link] != h.conn {
			gone = append(gone, o)
		}
	}
	slices.Sort(gone)
	for _, o := range gone {
		delete(x.held, o)
		x.back = append(x.back, o)
	}
}

func (x *owners) cut() {
	link := LinkID(x.r.IntN(len(x.w.core.links)))
	if x.conns[link]%2 == 1 {
		x.conns[link]++
		x.step(LinkDown{Link: link, Err: errors.New("reset")})
		x.after(300*time.Millisecond, x.reclaim)
	}
}

func (x *owners) run(end Instant) {
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

func runOwners(t *testing.T, seed uint64) []string {
	w := newWorld(t)
	x := &owners{
		t: t, w: w, r: rand.New(rand.NewPCG(seed, 3)), conns: map[LinkID]int{}, owner: w.nodes[0].ID, term: 1, end: 150,
		acked: map[wire.Offset]bool{}, held: map[wire.Offset]holder{}, attempt: map[wire.Offset]uint32{},
		subs: map[LinkID]map[uint64]*[2]uint64{}, settles: map[string]bool{}, handed: map[string]bool{}, starts: map[wire.Offset]int{},
	}
	x.step(Tick{})
	x.step(OpenConsumer{Consumer: 1, ID: 9, Queue: "photos", Group: "default", Prefetch: 3, Idle: time.Second, Ticket: "open", Until: Instant(time.Minute)})
	quiet := Instant(20 * time.Second)
	for w.now < quiet.Add(60*time.Second) && len(x.acked) < int(x.end) {
		x.run(w.now.Add(time.Duration(1+x.r.IntN(20)) * time.Millisecond))
		if !x.receiving {
			x.receiving = true
			x.step(Receive{Consumer: 1, Ticket: "r", Max: 1 + x.r.IntN(5), Until: w.now.Add(time.Duration(x.r.IntN(500)) * time.Millisecond)})
		}
		if w.now < quiet {
			switch x.r.IntN(40) {
			case 0:
				x.move()
			case 1, 2:
				x.cut()
			}
		}
		x.pump()
	}
	if len(x.acked) != int(x.end) {
		t.Fatalf("seed %d: %d of %d messages acked; %d held, next %d", seed, len(x.acked), x.end, len(x.held), x.next)
	}
	x.step(CloseConsumer{Consumer: 1, Ticket: "close", Until: w.now.Add(5 * time.Second), Taken: TakenRelease})
	x.run(w.now.Add(10 * time.Second))
	if x.receiving || len(x.settles) > 0 || len(w.core.handouts) > 0 || len(w.core.waiting) > 0 || len(w.core.consumers) > 0 {
		t.Fatalf("seed %d: left over: receiving %v, %d settles, %d handouts, %d waiting", seed, x.receiving, len(x.settles),
			len(w.core.handouts), len(w.core.waiting))
	}
	return x.trace
}

// TestOwnersComeAndGo: while owners move and links are cut, every message is acked in the
// end, each Receive and Settle is answered once, nothing is received twice under one
// handout, a confirmed ack is an owner's, and nothing is left over.
func TestOwnersComeAndGo(t *testing.T) {
	for seed := range uint64(60) {
		first := runOwners(t, seed)
		if seed%10 == 0 && !slices.Equal(first, runOwners(t, seed)) {
			t.Fatalf("seed %d: a second run differs", seed)
		}
	}
}

// TestSettlementsWaitWithoutLink has many acks wait for a link that stays away: a look at
// them must not bring about more looks.
func TestSettlementsWaitWithoutLink(t *testing.T) {
	w := newWorld(t)
	w.run([]string{"start"})
	w.run([]string{"open", "0", "1000h"})
	w.run([]string{"describe"})
	w.run([]string{"receive", "r", "100", "10s"})
	for i := range 40 {
		w.run([]string{"deliver", "a", "1", "1", strconv.Itoa(i), "body"})
		w.run([]string{"receive", "r", "100", "1000h"})
	}
	for i := range 40 { // a tries each twice, at times of its own
		w.run([]string{"ack", "t" + strconv.Itoa(i), "m" + strconv.Itoa(i)})
		w.advance(time.Millisecond)
	}
	w.run([]string{"down", "a"})
	steps := 0
	for end := w.now.Add(5 * time.Minute); w.core.Next() <= end; steps++ {
		if n := len(w.core.timers); n > 1000 || steps > 10_000 {
			t.Fatalf("%d timers after %d steps, %v after the link went down", n, steps, time.Duration(w.now))
		}
		w.now = max(w.now, w.core.Next())
		for _, ef := range w.core.Step(w.now, Tick{}) {
			if d, ok := ef.(Dial); ok {
				w.step(LinkDown{Link: d.Link, Err: errors.New("connection refused")})
			}
		}
	}
	if n := len(w.core.waiting); n > 0 {
		t.Errorf("%d settlements wait still", n)
	}
}
