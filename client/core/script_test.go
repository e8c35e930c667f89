package core

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/meshq/meshq/ring"
	"github.com/meshq/meshq/transport/wire"
)

var update = flag.Bool("update", false, "write the output of scripts into testdata")

// world runs a core by the commands of a script and says what it does. Its nodes a, b,
// c and d are in the order of preference of photos/0; a, b and c are its home replicas.
type world struct {
	t        *testing.T
	core     *Core
	now      Instant
	out      strings.Builder
	nodes    []ring.Member // in order of preference
	mesh     *wire.Mesh
	entry    wire.QueueEntry
	calls    map[CallID]Call
	shown    []CallID   // by the number that the script knows
	taken    []Delivery // received, in order
	consumer ConsumerKey
	alive    bool // pings are answered, and not worth a line
}

func newWorld(t *testing.T, servers ...string) *world {
	w := &world{t: t, calls: map[CallID]Call{}}
	w.entry = wire.QueueEntry{
		Name: "photos", Generation: 1, Settings: wire.DefaultSettings(), Groups: []wire.GroupEntry{{Name: "default", Generation: 1}},
	}
	var members []ring.Member
	for id := range ring.NodeID(4) {
		members = append(members, ring.Member{ID: id + 1, Weight: 1})
	}
	order := ring.New(ring.Table{Number: 1, Members: members}).Preference(nil, uint64(w.entry.Partition(0)), 0)
	for i, id := range order {
		m := &members[id-1]
		m.Name = string(rune('a' + i))
		m.Address = m.Name + ":7700"
		w.nodes = append(w.nodes, *m)
	}
	w.mesh = &wire.Mesh{ID: 7, Table: ring.Table{Number: 1, Members: members}, Catalog: 5}
	via := len(servers) > 0
	if !via {
		servers = []string{"a:7700"}
	}
	w.core = New(Config{Servers: servers, Via: via, Random: 1})
	return w
}

func (w *world) node(name string) ring.Member {
	for _, m := range w.nodes {
		if m.Name == name {
			return m
		}
	}
	w.t.Fatalf("no node %q", name)
	return ring.Member{}
}

func (w *world) name(id ring.NodeID) string {
	for _, m := range w.nodes {
		if m.ID == id {
			return m.Name
		}
	}
	return "-"
}

func (w *world) link(name string) LinkID {
	for _, l := range w.core.links {
		if l.addr == name+":7700" {
			return l.id
		}
	}
	w.t.Fatalf("no link to %q", name)
	return 0
}

func (w *world) at(l LinkID) string { return strings.TrimSuffix(w.core.links[l].addr, ":7700") }

func (w *world) step(ev Event) {
	for _, ef := range w.core.Step(w.now, ev) {
		if call, ok := ef.(Call); ok && w.alive {
			if _, ping := call.Msg.(*wire.Ping); ping {
				w.step(Answered{Call: call.Call, Msg: &wire.Done{}})
				continue
			}
		}
		w.say(ef)
	}
}

// advance lets time pass, with a Tick whenever the core wants one.
func (w *world) advance(d time.Duration) {
	end := w.now.Add(d)
	for w.core.Next() <= end {
		next := max(w.core.Next(), w.now)
		if w.now < next {
			w.now = next
		}
		w.step(Tick{})
	}
	w.now = end
}

func (w *world) say(ef Effect) {
	line := func(format string, args ...any) {
		fmt.Fprintf(&w.out, "  %6s  %s\n", time.Duration(w.now).Round(time.Millisecond), fmt.Sprintf(format, args...))
	}
	switch ef := ef.(type) {
	case Dial:
		line("dial %s", w.at(ef.Link))
	case Hangup:
		line("hang up %s", w.at(ef.Link))
	case Call:
		w.calls[ef.Call] = ef
		w.shown = append(w.shown, ef.Call)
		line("#%d %s %s", len(w.shown), w.at(ef.Link), w.describe(ef.Msg))
	case Post:
		line("%s %s", w.at(ef.Link), w.describe(ef.Msg))
	case Confirmed:
		var names []string
		for _, id := range ef.Nodes {
			names = append(names, w.name(id))
		}
		line("confirmed %v at %s.%d/%d on %v want %d", ef.Tickets, w.name(ef.Base.Lane.Node), ef.Base.Lane.Epoch, ef.Base.Offset, names, ef.Want)
	case Failed:
		kind := "refused"
		if errors.Is(ef.Err, wire.ErrQuorum) {
			kind = "unknown"
		}
		line("failed %v %s: %v", ef.Tickets, kind, ef.Err)
	case Received:
		var got []string
		for _, d := range ef.Deliveries {
			r, _, err := wire.DecodeRecord(d.Record)
			if err != nil {
				w.t.Fatalf("record: %v", err)
			}
			got = append(got, fmt.Sprintf("m%d=%d:%s", len(w.taken), d.Offset, r.Body))
			w.taken = append(w.taken, d)
		}
		line("received %v %v %v", ef.Ticket, got, ef.Err)
	case Settled:
		line("settled %v %v", ef.Ticket, ef.Err)
	case Lost:
		line("lost %v", ef.Runs)
	case ConsumerOpened:
		line("opened %v", ef.Err)
	case ConsumerFailed:
		line("consumer failed: %v", ef.Err)
	case ConsumerClosed:
		line("consumer closed")
	case Replied:
		line("replied %v %T %v", ef.Ticket, ef.Msg, ef.Err)
	case Learned:
		line("learned ring %d", ef.Mesh.Table.Number)
	case Closed:
		line("closed")
	case Note:
		line("note: %s", ef.Text)
	default:
		w.t.Fatalf("unknown effect %T", ef)
	}
}

func (w *world) describe(msg wire.Message) string {
	switch m := msg.(type) {
	case *wire.Enqueue:
		after := ""
		if !m.AfterLane.IsZero() {
			after = fmt.Sprintf(" after %s.%d/%d", w.name(m.AfterLane.Node), m.AfterLane.Epoch, m.AfterOffset)
		}
		var bodies []string
		for rest := m.Records; len(rest) > 0; {
			r, tail, err := wire.DecodeRecord(rest)
			if err != nil {
				w.t.Fatalf("records: %v", err)
			}
			bodies, rest = append(bodies, string(r.Body)), tail
		}
		if uint32(len(bodies)) != m.Count || wire.Checksum(m.Records) != m.Checksum {
			w.t.Fatalf("%d records, count %d", len(bodies), m.Count)
		}
		return fmt.Sprintf("enqueue p%02x seq %d %v%s", uint64(m.Producer)>>56, m.Sequence, bodies, after)
	case *wire.Subscribe:
		return fmt.Sprintf("subscribe s%d credit %d relay %v", m.Sub, m.Credit, m.Relay)
	case *wire.Unsubscribe:
		return fmt.Sprintf("unsubscribe s%d", m.Sub)
	case *wire.Settle:
		var items []string
		for _, it := range m.Items {
			kind := [...]string{"ack", "nack", "extend", "release"}[it.Kind]
			items = append(items, fmt.Sprintf("%s %v", kind, it.Runs))
		}
		return "settle " + strings.Join(items, ", ")
	case *wire.Resume:
		var items []string
		for _, h := range m.Held {
			items = append(items, fmt.Sprintf("%v term %d left %dms", h.Runs, h.Receipt.Term.Counter, h.Left))
		}
		return fmt.Sprintf("resume s%d: %s", m.Sub, strings.Join(items, ", "))
	default:
		return strings.ToLower(strings.TrimPrefix(fmt.Sprintf("%T", msg), "*wire."))
	}
}

func (w *world) duration(s string) time.Duration {
	d, err := time.ParseDuration(s)
	if err != nil {
		w.t.Fatal(err)
	}
	return d
}

func (w *world) number(s string) uint64 {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		w.t.Fatal(err)
	}
	return n
}

var codes = map[string]*wire.Error{
	"quorum": wire.QuorumError(1, 2), "overloaded": {Code: wire.CodeOverloaded, RetryAfter: 40}, "diskfull": wire.ErrDiskFull,
	"notready": wire.ErrNotReady, "notowner": wire.ErrNotOwner, "stale": wire.ErrStaleReceipt, "noqueue": wire.ErrNoQueue,
	"badrequest": wire.ErrBadRequest, "timeout": wire.ErrTimeout,
}

// run does one command.
func (w *world) run(f []string) {
	switch f[0] {
	case "start": // connect and learn everything there is
		w.step(Tick{})
		w.run([]string{"up", "a"})
		w.answer("GetMesh", w.mesh)
	case "alive":
		w.alive = true
	case "up": // link
		m := w.node(f[1])
		w.step(LinkUp{Link: w.link(f[1]), Hello: &wire.Hello{Mesh: 7, Node: m.ID, Ring: 1, Catalog: 5}})
	case "down":
		w.step(LinkDown{Link: w.link(f[1]), Err: errors.New("connection refused")})
	case "describe": // answers all DescribeQueue
		w.answer("DescribeQueue", &wire.QueueInfo{Entry: w.entry, Catalog: 5})
	case "noqueue":
		w.answer("DescribeQueue", wire.ErrNoQueue)
	case "partitions":
		w.entry.Settings.Partitions = uint32(w.number(f[1]))
	case "generation": // of the queue: deleted and created again
		w.entry.Generation = w.number(f[1])
	case "mesh": // pushes the ring, without node f[2] when there is one
		mesh := *w.mesh
		if len(f) > 2 {
			mesh.Table = mesh.Table.Without(w.node(f[2]).ID)
			w.mesh = &mesh
		}
		w.step(Pushed{Link: w.link(f[1]), Msg: &mesh})
	case "send": // queue until bodies...
		var items []Item
		for _, body := range f[3:] {
			key, text, keyed := strings.Cut(body, "=")
			if !keyed {
				key, text = "", body
			}
			items = append(items, Item{
				Ticket: body, Queue: f[1], Until: w.now.Add(w.duration(f[2])), Record: wire.Record{Body: []byte(text), Key: key},
			})
		}
		w.step(Send{Items: items})
	case "big": // ticket size
		w.step(Send{Items: []Item{{Ticket: f[1], Queue: "photos", Until: w.now.Add(30 * time.Second), Record: wire.Record{Body: make([]byte, w.number(f[2]))}}}})
	case "cancel": // queue or -, ticket
		w.step(Cancel{Queue: strings.Trim(f[1], "-"), Ticket: f[2]})
	case "answer": // #call enqueued lane epoch base owner | code | settled codes...
		n := w.number(strings.TrimPrefix(f[1], "#"))
		if n < 1 || n > uint64(len(w.shown)) {
			w.t.Fatalf("no call #%d", n)
		}
		w.step(Answered{Call: w.shown[n-1], Msg: w.message(f[2:])})
	case "after":
		w.advance(w.duration(f[1]))
	case "ask": // ticket until [node]
		a := Ask{Ticket: f[1], Msg: &wire.ListQueues{}, Until: w.now.Add(w.duration(f[2]))}
		if len(f) > 3 {
			a.Node = w.node(f[3]).ID
		}
		w.step(a)
	case "open": // prefetch idle [group]
		group := "default"
		if len(f) > 3 {
			group = f[3]
		}
		w.consumer++
		w.step(OpenConsumer{
			Consumer: w.consumer, ID: 9, Queue: "photos", Group: group, Prefetch: int(w.number(f[1])), Idle: w.duration(f[2]),
			Ticket: "open", Until: w.now.Add(10 * time.Second),
		})
	case "receive": // ticket max wait
		w.step(Receive{Consumer: w.consumer, Ticket: f[1], Max: int(w.number(f[2])), Until: w.now.Add(w.duration(f[3]))})
	case "deliver": // link sub term from bodies...
		term := wire.Term{Counter: w.number(f[3]), Node: w.node(f[1]).ID}
		from := wire.Offset(w.number(f[4]))
		d := wire.Delivery{Lease: 30_000, Receipt: wire.Receipt{
			Partition: w.entry.Partition(0), Group: wire.Group("default", 1), Lane: wire.Lane{Node: 1, Epoch: 1}, Term: term, Attempt: 1,
			Run: wire.Span(from, from+wire.Offset(len(f)-5)), Producer: 1, Sequence: uint64(from),
		}}
		for _, body := range f[5:] {
			d.Records = wire.AppendRecord(d.Records, &wire.Record{Body: []byte(body)})
		}
		w.step(Pushed{Link: w.link(f[1]), Msg: &wire.Deliver{Sub: w.number(f[2]), Deliveries: []wire.Delivery{d}}})
	case "owner": // link node term grace
		w.step(Pushed{Link: w.link(f[1]), Msg: &wire.Owner{
			Partition: w.entry.Partition(0), Node: w.node(f[2]).ID, Term: wire.Term{Counter: w.number(f[3]), Node: w.node(f[2]).ID},
			Grace: uint32(w.duration(f[4]).Milliseconds()),
		}})
	case "ack", "nack", "extend", "release": // ticket messages...
		kind := wire.Settling(slices.Index([]string{"ack", "nack", "extend", "release"}, f[0]))
		var items []Settlement
		for _, m := range f[2:] {
			d := w.taken[w.number(strings.TrimPrefix(m, "m"))]
			items = append(items, Settlement{Handout: d.Handout, Offset: d.Offset, Kind: kind})
		}
		w.step(Settle{Ticket: f[1], Items: items})
	case "close-consumer": // leave, release or keep
		taken := Taken(slices.Index([]string{"leave", "release", "keep"}, f[1]))
		w.step(CloseConsumer{Consumer: w.consumer, Ticket: "close", Until: w.now.Add(5 * time.Second), Taken: taken})
	case "close":
		w.step(Close{Until: w.now.Add(w.duration(f[1]))})
	default:
		w.t.Fatalf("unknown command %q", f)
	}
}

// answer answers every call of a kind that is under way.
func (w *world) answer(kind string, msg wire.Message) {
	var ids []CallID
	for id, call := range w.calls {
		if strings.HasSuffix(fmt.Sprintf("%T", call.Msg), "."+kind) {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	for _, id := range ids {
		delete(w.calls, id)
		w.step(Answered{Call: id, Msg: msg})
	}
}

func (w *world) message(f []string) wire.Message {
	switch f[0] {
	case "enqueued": // lane-node epoch base owner
		m := w.node(f[1])
		owner := ring.NodeID(0)
		if f[4] != "-" {
			owner = w.node(f[4]).ID
		}
		return &wire.Enqueued{
			Lane: wire.Lane{Node: m.ID, Epoch: w.number(f[2])}, Base: wire.Offset(w.number(f[3])),
			Nodes: []ring.NodeID{m.ID, w.nodes[len(w.nodes)-1].ID}, Want: 2, Owner: owner,
		}
	case "settled":
		out := &wire.Settled{}
		for _, code := range f[1:] {
			if code == "0" {
				out.Codes = append(out.Codes, 0)
			} else {
				out.Codes = append(out.Codes, codes[code].Code)
			}
		}
		return out
	case "done":
		return &wire.Done{}
	case "queues":
		return &wire.Queues{}
	}
	e := codes[f[0]]
	if e == nil {
		w.t.Fatalf("unknown answer %q", f)
	}
	return e
}

// play runs a script: lines of commands, each followed by its output. Lines that begin
// with # are comments.
func play(t *testing.T, script string) string {
	var w *world
	var out strings.Builder
	for line := range strings.Lines(script) {
		line = strings.TrimRight(line, "\n")
		if strings.HasPrefix(line, "  ") {
			continue
		}
		fmt.Fprintln(&out, line)
		f := strings.Fields(line)
		if len(f) == 0 || f[0] == "#" {
			continue
		}
		if f[0] == "via" {
			for i := range f[1:] {
				f[1+i] += ":7700"
			}
			w = newWorld(t, f[1:]...)
			continue
		}
		if w == nil {
			w = newWorld(t)
		}
		w.run(f)
		out.WriteString(w.out.String())
		w.out.Reset()
	}
	return out.String()
}

func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			script, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := play(t, string(script))
			if again := play(t, string(script)); again != got { // equal events, equal effects
				t.Fatalf("a second run differs:\n%s", again)
			}
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got != string(script) {
				t.Errorf("output differs; got:\n%s", got)
			}
		})
	}
}
