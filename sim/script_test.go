package sim

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

	"github.com/meshq/meshq/node/core"
	"github.com/meshq/meshq/ring"
	"github.com/meshq/meshq/transport/wire"
)

var update = flag.Bool("update", false, "rewrite the output of the scripts in testdata")

// TestScripts runs testdata/script/*.txt: commands at the margin, and below each what the
// nodes did, indented. All checkers of the swarm watch the scripts too.
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/script/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts in testdata: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			in, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got, err := runScript(string(in))
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			} else if got != string(in) {
				t.Errorf("output differs (-update rewrites it):\n%s", difference(string(in), got))
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
}

// difference shows the lines around the first one that differs.
func difference(want, got string) string {
	a, b := strings.Split(want, "\n"), strings.Split(got, "\n")
	i := 0
	for i < len(a) && i < len(b) && a[i] == b[i] {
		i++
	}
	from := max(0, i-3)
	return fmt.Sprintf("line %d\n--- want\n%s\n--- got\n%s", i+1, strings.Join(a[from:min(len(a), i+12)], "\n"), strings.Join(b[from:min(len(b), i+12)], "\n"))
}

// script runs commands against a world without luck: every frame takes 1 ms, every
// fsync 2 ms.
type script struct {
	*world
	out       []string
	hosts     map[string]*host
	admin     *admin
	q         *queue
	producers map[string]*scriptProducer
	consumers map[string]*consumer
	requests  map[[2]uint64]wire.Message
	show      map[string]bool
	all       []string // names, in the order of the preference list of photos/0
}

// shown are the messages that scripts print, by the first word of describe; the
// rest is the steady noise of a mesh. The command show adds to them.
var shown = []string{
	"batch", "hint", "synced", "acks", "claim", "granted", "refused:", "offer", "release", "retries", "batches", "confirm",
	"error:", "deliver", "owner", "settled", "resume", "enqueue",
}

func runScript(in string) (string, error) {
	s := &script{
		world: newWorld(1), hosts: map[string]*host{}, producers: map[string]*scriptProducer{}, consumers: map[string]*consumer{},
		requests: map[[2]uint64]wire.Message{}, show: map[string]bool{},
	}
	s.net = netModel{latency: millisecond, keepalive: 2 * second, redial: 100 * millisecond}
	s.disks = diskModel{sync: 2 * millisecond, read: millisecond / 2}
	s.check.idle = true
	s.at(0, s.check.watch)
	for _, w := range shown {
		s.show[w] = true
	}
	s.observe = s.frame
	s.noted = func(h *host, n core.Note) {
		if n.Level >= core.NoteInfo {
			s.line("%s note %s: %s", h.name, strings.TrimSpace(s.names.partition(n.Partition)+" "+n.Text), s.named(n.Detail))
		}
	}
	var out strings.Builder
	var failed error
	for _, line := range strings.Split(in, "\n") {
		switch {
		case strings.HasPrefix(line, "  "):
			continue // old output
		case line == "" || strings.HasPrefix(line, "#"):
			out.WriteString(line + "\n")
			continue
		}
		out.WriteString(line + "\n")
		if failed != nil {
			continue
		}
		s.out = nil
		if err := s.command(line); err != nil {
			failed = fmt.Errorf("%s: %w", line, err)
			s.line("%v", err)
		}
		if s.failure != nil && failed == nil {
			failed = fmt.Errorf("%s: %w", line, s.failure)
			s.line("BROKEN %v", s.failure)
		}
		for _, l := range s.out {
			out.WriteString("  " + l + "\n")
		}
	}
	return strings.TrimRight(out.String(), "\n") + "\n", failed
}

func (s *script) line(format string, args ...any) {
	s.out = append(s.out, strings.TrimRight(fmt.Sprintf(format, args...), " "))
}

// frame prints what is written to a connection.
func (s *script) frame(c *conn, dir int, f frame, lost bool) {
	from, to := c.side(dir), c.side(1-dir)
	k := [2]uint64{c.number, f.number}
	text := s.describe(f.msg)
	switch f.kind {
	case frameRequest:
		s.requests[k] = f.msg
		if from.client != nil {
			return // the command says it
		}
	case frameReply:
		req := s.requests[k]
		delete(s.requests, k)
		switch r := req.(type) {
		case *wire.Replicate:
			var what []string
			for i := range r.Batches {
				what = append(what, fmt.Sprintf("%s lane %s %s", s.names.partition(r.Batches[i].Partition), s.names.lane(r.Batches[i].Lane), s.names.run(r.Batches[i].Run())))
			}
			text += " " + strings.Join(what, ", ")
		case *wire.StoreAcks:
			text += " acks"
		case *wire.Claim:
			if r.Pre {
				return
			}
			text += " " + s.names.partition(r.Partition)
		case *wire.Enqueue:
			if e, ok := f.msg.(*wire.Enqueued); ok {
				s.line("%s confirm %s lane %s %s  %d of %d: %s", from.name, s.names.partition(r.Partition), s.names.lane(e.Lane),
					s.names.run(wire.Span(e.Base, e.Base+wire.Offset(r.Count))), len(e.Nodes), s.replicas(), s.names.list(e.Nodes))
				return
			}
		}
	}
	if c, ok := f.msg.(*wire.Claim); ok && c.Pre {
		return
	}
	word, _, _ := strings.Cut(text, " ")
	if !s.show[word] {
		return
	}
	if lost {
		text += "  lost"
	}
	s.line("%s -> %s %s", from.name, to.name, text)
}

// named puts the names of nodes where a text has their IDs.
func (s *script) named(text string) string {
	for _, n := range s.all {
		text = strings.ReplaceAll(text, s.hosts[n].id.String(), n)
	}
	return text
}

func (s *script) replicas() int {
	if s.q == nil {
		return 0
	}
	return min(int(s.q.entry.Settings.Replicas), len(s.table().Members))
}

// option takes name=value out of the words of a command.
func option(words *[]string, name, value string) string {
	for i, w := range *words {
		if v, ok := strings.CutPrefix(w, name+"="); ok {
			*words = slices.Delete(*words, i, i+1)
			return v
		}
	}
	return value
}

func number(words *[]string, name string, value int) int {
	n, err := strconv.Atoi(option(words, name, strconv.Itoa(value)))
	if err != nil {
		return value
	}
	return n
}

var errUsage = errors.New("wrong usage")

func (s *script) host(name string) (*host, error) {
	if h := s.hosts[name]; h != nil {
		return h, nil
	}
	if c := s.consumers[name]; c != nil {
		return c.h, nil
	}
	return nil, fmt.Errorf("there is no %q", name)
}

func (s *script) two(words []string) (a, b *host, err error) {
	if len(words) < 2 {
		return nil, nil, errUsage
	}
	if a, err = s.host(words[0]); err != nil {
		return
	}
	b, err = s.host(words[1])
	return
}

func (s *script) command(line string) error {
	words := strings.Fields(line)
	cmd, words := words[0], words[1:]
	pause := 20 * millisecond
	switch cmd {
	case "nodes": // names the machines a b c ...; nothing runs yet
		s.make(words)
		return nil
	case "mesh": // a mesh of these nodes with the queue photos, settled
		return s.mesh(words)
	case "create": // create QUEUE [replicas=N quorum=W partitions=P lease=MS groups=a,b]
		return s.create(words)
	case "delete": // delete NODE: deletes photos by way of NODE, and does not wait
		h, err := s.host(words[0])
		if err != nil {
			return err
		}
		s.askAt(h, &wire.DeleteQueue{Name: s.q.entry.Name})
	case "update": // update NAME=VALUE...: settings of photos
		return s.update(words)
	case "pause-queue": // pause-queue [group=G] [for=D]
		until := uint64(wire.PauseForever)
		if d := option(&words, "for", ""); d != "" {
			long, err := time.ParseDuration(d)
			if err != nil {
				return err
			}
			until = s.hosts[s.all[0]].time().Wall + uint64(long.Milliseconds())
		}
		return s.ask(&wire.PauseQueue{Name: s.q.entry.Name, Group: option(&words, "group", ""), Until: until})
	case "resume-queue": // resume-queue [group=G]
		return s.ask(&wire.PauseQueue{Name: s.q.entry.Name, Group: option(&words, "group", "")})
	case "start": // start NODE [join=NODE]
		join := option(&words, "join", "")
		h, err := s.host(words[0])
		if err != nil {
			return err
		}
		if join != "" {
			o, err := s.host(join)
			if err != nil {
				return err
			}
			h.seeds = []*host{o}
		}
		h.start()
	case "crash":
		h, err := s.host(words[0])
		if err != nil {
			return err
		}
		if c := s.consumers[words[0]]; c != nil {
			c.crash(-1)
		} else {
			h.crash()
		}
	case "cut", "heal": // cut A B: both ways; cut A > B: one way; heal: all
		if cmd == "heal" && len(words) == 0 {
			for _, l := range s.sortedLinks() {
				for l.l.cut > 0 {
					s.world.heal(s.world.hosts[l.at[0]], s.world.hosts[l.at[1]])
				}
			}
			break
		}
		one := slices.Contains(words, ">")
		words = slices.DeleteFunc(words, func(w string) bool { return w == ">" })
		a, b, err := s.two(words)
		if err != nil {
			return err
		}
		do := s.world.cut
		if cmd == "heal" {
			do = s.world.heal
		}
		do(a, b)
		if !one {
			do(b, a)
		}
	case "slow": // slow A B D
		a, b, err := s.two(words)
		if err != nil {
			return err
		}
		d, err := time.ParseDuration(words[2])
		if err != nil {
			return err
		}
		s.link(a, b).slow, s.link(b, a).slow = int64(d), int64(d)
	case "break":
		a, b, err := s.two(words)
		if err != nil {
			return err
		}
		s.breakConns(a, b)
	case "pause": // pause NODE D
		h, err := s.host(words[0])
		if err != nil {
			return err
		}
		d, err := time.ParseDuration(words[1])
		if err != nil {
			return err
		}
		h.pause(int64(d))
	case "stall": // stall NODE D: its next fsync takes that long
		h, err := s.host(words[0])
		if err != nil {
			return err
		}
		d, err := time.ParseDuration(words[1])
		if err != nil {
			return err
		}
		h.disk.stallNext = int64(d)
		pause = 0
	case "enqueue": // enqueue NODE BODY... [producer=p wait=MS]
		return s.enqueue(words, false)
	case "retry": // retry NODE [producer=p]: the last batch again
		return s.enqueue(words, true)
	case "subscribe": // subscribe CONSUMER [group=default credit=N]
		group, credit := option(&words, "group", "default"), number(&words, "credit", 10)
		c := s.newConsumer(words[0], s.q, group)
		c.manual, c.window = true, uint64(credit)
		s.consumers[words[0]] = c
		c.start()
	case "ack", "nack", "extend", "release": // ack CONSUMER BODY [at=NODE] [delay=MS]
		return s.settle(cmd, words)
	case "damage": // damage NODE [found=later]: one batch on its disk
		found := option(&words, "found", "now")
		h, err := s.host(words[0])
		if err != nil {
			return err
		}
		if !h.disk.damage(0, found == "now") {
			return errors.New("nothing to damage")
		}
	case "drain":
		h, err := s.host(words[0])
		if err != nil {
			return err
		}
		h.step(core.Drain{})
	case "after": // after D
		d, err := time.ParseDuration(words[0])
		if err != nil {
			return err
		}
		s.runFor(int64(d))
		return nil
	case "quiet": // quiet D: lets time pass without output
		d, err := time.ParseDuration(words[0])
		if err != nil {
			return err
		}
		s.runFor(int64(d))
		s.out = nil
		return nil
	case "show": // show WORD...
		for _, w := range words {
			s.show[w] = true
		}
		return nil
	case "hide":
		for _, w := range words {
			delete(s.show, w)
		}
		return nil
	case "inspect":
		return s.inspect()
	case "rings":
		for _, name := range s.all {
			h := s.hosts[name]
			switch {
			case !h.running:
				s.line("%s is down", name)
			case h.core.Mesh() == 0:
				s.line("%s has not joined", name)
			default:
				var in []ring.NodeID
				for _, n := range s.all {
					if _, ok := h.core.Table().Member(s.hosts[n].id); ok {
						in = append(in, s.hosts[n].id)
					}
				}
				s.line("%s knows ring %d: %s", name, h.core.Table().Number, s.names.list(in))
			}
		}
		return nil
	default:
		return fmt.Errorf("unknown command %q", cmd)
	}
	s.runFor(pause)
	return nil
}

// make names machines so that the preference list of photos/0 is a b c ...
func (s *script) make(words []string) {
	var t ring.Table
	for i := range words {
		t = t.With(ring.Member{ID: ring.NodeID(s.luck(luckBoot, uint64(i), 0, 4) | 1), Weight: 1})
	}
	for i, id := range ring.New(t).Preference(nil, ring.PartitionKey("photos", 1, 0), 0) {
		s.hosts[words[i]] = s.addNode(words[i], id)
	}
	s.all = words
	s.names.partitions[wire.Partition("photos", 1, 0)] = "photos/0"
	s.names.groups[wire.Group("default", 1)] = "default"
	s.hosts[words[0]].founder = true
	s.admin = s.newAdmin()
}

func (s *script) mesh(words []string) error {
	var set []string
	words = slices.DeleteFunc(words, func(w string) bool {
		if strings.Contains(w, "=") {
			set = append(set, w)
			return true
		}
		return false
	})
	s.make(words)
	for i, n := range words {
		h := s.hosts[n]
		if i > 0 {
			h.seeds = []*host{s.hosts[words[0]]}
		}
		h.start()
		ok := false
		for range 200 {
			if s.runFor(100 * millisecond); s.failure != nil {
				return nil
			}
			if len(h.core.Table().Members) == i+1 {
				ok = true
				break
			}
		}
		if !ok {
			return fmt.Errorf("%s has not joined in 20 s", n)
		}
	}
	if err := s.create(append([]string{"photos"}, set...)); err != nil {
		return err
	}
	s.runFor(65 * second) // the best placed node owns it by then
	s.out = nil
	s.check.idle = false
	for _, p := range s.q.partitions() {
		s.check.ownerAt[p] = s.now
	}
	s.line("ring %d: %s", s.table().Number, strings.Join(words, " "))
	p := s.q.entry.Partition(0)
	owner := "nobody"
	if h := s.check.owner(p); h != nil {
		owner = h.name
	}
	s.line("photos/0 home %s, owner %s", s.names.list(s.homeIDs(s.q, p)), owner)
	return nil
}

func (s *script) create(words []string) error {
	set := wire.DefaultSettings()
	set.Replicas = uint8(number(&words, "replicas", 3))
	set.WriteQuorum = uint8(number(&words, "quorum", int(set.Replicas)/2+1))
	set.Partitions = uint32(number(&words, "partitions", 1))
	set.Lease = uint32(number(&words, "lease", 5000))
	groups := strings.Split(option(&words, "groups", "default"), ",")
	var made *queue
	s.admin.create(words[0], set, groups, func(q *queue) { made = q })
	for range 200 {
		if s.runFor(50 * millisecond); made != nil || s.failure != nil {
			break
		}
	}
	if made == nil {
		return errors.New("not created in 10 s")
	}
	s.q = made
	return nil
}

// askAt asks a node, and prints its answer when it comes.
func (s *script) askAt(h *host, msg wire.Message) {
	one := &asker{failed: func() {}, do: func(c *conn) {
		c.call(msg, func(answer wire.Message) { s.line("%s answers: %s", h.name, s.describe(answer)) })
	}}
	s.world.addClient("admin-of-"+h.name, one).dial(h)
}

func (s *script) update(words []string) error {
	m := &wire.UpdateQueue{Name: s.q.entry.Name}
	for _, w := range words {
		name, text, _ := strings.Cut(w, "=")
		value, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			return err
		}
		m.Set = append(m.Set, wire.Setting{Name: name, Value: value})
	}
	return s.ask(m)
}

// ask asks some node of the mesh, and prints its answer.
func (s *script) ask(msg wire.Message) error {
	over := false
	s.admin.ask(msg, func(answer wire.Message) bool {
		over = true
		s.line("answer: %s", s.describe(answer))
		return true
	})
	for range 200 {
		if s.runFor(50 * millisecond); over || s.failure != nil {
			return nil
		}
	}
	return errors.New("not answered in 10 s")
}

type scriptProducer struct {
	producer
	last *wire.Enqueue
}

// scriptProducer does what it is told: it never moves on by itself.
func (p *scriptProducer) opened(c *conn) {
	if p.batch != nil && p.target == c.to {
		p.askOnce(c)
	}
}
func (p *scriptProducer) closed(to *host)                  {}
func (p *scriptProducer) pushed(c *conn, msg wire.Message) {}

func (p *scriptProducer) askOnce(c *conn) {
	e := p.last
	c.call(e, func(m wire.Message) {
		if ok, is := m.(*wire.Enqueued); is {
			p.after, p.afterAt = ok.Lane, ok.Base+wire.Offset(e.Count)-1
			p.w.check.confirmed()
		}
	})
}

func (s *script) enqueue(words []string, retry bool) error {
	name, wait := option(&words, "producer", "p"), number(&words, "wait", 20)
	if len(words) == 0 || len(words) == 1 && !retry || s.q == nil {
		return errUsage
	}
	to, err := s.host(words[0])
	if err != nil {
		return err
	}
	p := s.producers[name]
	if p == nil {
		p = &scriptProducer{}
		p.w, p.q, p.partition, p.timeout = s.world, s.q, s.q.entry.Partition(0), 2000
		p.h = s.addClient(name, p)
		p.id = wire.ProducerID(s.luck(luckClient, p.h.key, 0, 0))
		s.names.producers[p.id] = name
		s.producers[name] = p
	}
	if !retry {
		e := &wire.Enqueue{
			Partition: p.partition, Queue: s.q.entry.Name, Catalog: s.q.catalog, Producer: p.id, Sequence: p.next,
			AfterLane: p.after, AfterOffset: p.afterAt, Count: uint32(len(words) - 1), Timeout: p.timeout,
		}
		for i, body := range words[1:] {
			body = strings.Trim(body, `"`)
			e.Records = wire.AppendRecord(e.Records, &wire.Record{Body: []byte(body)})
			s.check.sent(s.q, p.partition, msgKey{p.id, p.next + uint64(i)}, body)
		}
		e.Checksum = wire.Checksum(e.Records)
		p.next += uint64(e.Count)
		p.last, p.batch = e, e
	}
	p.target = to
	if c := p.h.out[to.index]; c != nil {
		p.askOnce(c)
	} else {
		p.h.dial(to)
	}
	s.runFor(int64(wait) * millisecond)
	return nil
}

func (s *script) settle(cmd string, words []string) error {
	at, delay := option(&words, "at", ""), number(&words, "delay", 0)
	if len(words) != 2 {
		return errUsage
	}
	c := s.consumers[words[0]]
	if c == nil {
		return fmt.Errorf("there is no consumer %q", words[0])
	}
	var h *holding
	for _, x := range c.held {
		if x.body == strings.Trim(words[1], `"`) {
			h = x
		}
	}
	if h == nil {
		return fmt.Errorf("%s does not hold %s", words[0], words[1])
	}
	to := s.node(c.owners[h.receipt.Partition])
	if at != "" {
		to = s.hosts[at]
	}
	if to == nil || c.subs[to.index] == nil {
		return fmt.Errorf("%s is not connected there", words[0])
	}
	kind := wire.Settling(slices.Index(settlings[:], cmd))
	item := wire.SettleItem{Receipt: h.receipt, Runs: wire.Runs{wire.Span(h.offset, h.offset+1)}, Kind: kind, Delay: uint32(delay)}
	switch kind {
	case wire.SettleAck:
		s.check.acking[groupKey{h.receipt.Group, h.key}] = true
	case wire.SettleNack, wire.SettleRelease:
		s.check.ended(c, h)
	}
	c.subs[to.index].conn.call(&wire.Settle{Queue: s.q.entry.Name, Catalog: s.q.catalog, Items: []wire.SettleItem{item}}, func(m wire.Message) {
		if r, ok := m.(*wire.Settled); ok && r.Codes[0] == 0 && !h.over {
			if kind != wire.SettleExtend {
				c.end(h)
			} else {
				h.until = max(h.until, s.now+int64(s.q.entry.Settings.Lease)*millisecond)
				s.check.extended(c, h)
			}
		}
	})
	s.runFor(20 * millisecond)
	return nil
}

func (s *script) inspect() error {
	states := map[*host]*wire.Inspected{}
	left := 0
	ps := s.q.partitions()
	for _, n := range s.all {
		if h := s.hosts[n]; h.running {
			left++
			s.admin.inspect(h, ps, func(in *wire.Inspected) { states[h] = in; left-- })
		}
	}
	for range 100 {
		if left == 0 {
			break
		}
		s.runFor(5 * millisecond)
	}
	s.out = nil
	for i, p := range ps {
		digests := map[uint64]string{}
		for _, n := range s.all {
			in := states[s.hosts[n]]
			if in == nil || in.States[i].Messages == 0 && !in.States[i].Home {
				continue
			}
			x := &in.States[i]
			if digests[x.Digest] == "" {
				digests[x.Digest] = string(rune('A' + len(digests)))
			}
			text := fmt.Sprintf("%s %s %d messages, digest %s", n, s.names.partition(p), x.Messages, digests[x.Digest])
			for _, f := range []struct {
				is   bool
				word string
			}{{!x.Home, ", fallback"}, {x.Owns, ", owner in term " + s.names.term(x.Term)}, {x.Hints > 0, fmt.Sprintf(", %d hints", x.Hints)}, {x.Repairing, ", repairing"}} {
				if f.is {
					text += f.word
				}
			}
			if x.Owns {
				for _, g := range x.Groups {
					text += fmt.Sprintf("; %s: %d ready, %d in flight, %d delayed, %d done", s.names.group(g.Group), g.Ready, g.InFlight, g.Delayed, g.Done)
				}
			}
			s.line("%s", text)
		}
	}
	return nil
}

type linkAt struct {
	at [2]int
	l  *link
}

func (w *world) sortedLinks() []linkAt {
	var out []linkAt
	for k, l := range w.links {
		out = append(out, linkAt{k, l})
	}
	slices.SortFunc(out, func(a, b linkAt) int { return slices.Compare(a.at[:], b.at[:]) })
	return out
}
