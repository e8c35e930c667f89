package sim

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/meshq/meshq/sim/history"
	"github.com/meshq/meshq/transport/wire"
)

// storyteller fills a history.Story: it looks at the world after each call and at each
// frame, and changes nothing. Which message is guilty is known only when a run is over, so
// a run is played a second time with a storyteller that knows it.
type storyteller struct {
	w     *world
	about history.Message // zero: no message, lanes and nodes alone
	group string          // "": all
	story history.Story

	key       msgKey // of the message, once it is known
	partition wire.PartitionID
	seen      map[string]bool // hosts that have to do with it
	stored    uint64          // on which disks it was, at the last look
	owner     wire.Term       // the last one told
	asked     map[askedFrame]question
	lives     map[*host]*life
	streams   map[stream]*streamCount
	ties      []*tie // connections that the message was handed over
	onWay     []onWay
	ackedBy   map[[2]string][]string // by group and who asked for it: who has synced the ack

	// Groups of what is told: "" is for all. Often it is known at the end alone which
	// group the violation is about.
	ofFrame  string // of the frame that is looked at
	ofLines  []string
	ofArrows []string
}

// stream is one direction of a connection.
type stream struct {
	conn *conn
	dir  int
}

// streamCount counts frames: those written and not lost at once, and those arrived.
type streamCount struct{ sent, arrived int }

// onWay is an arrow whose frame has not arrived.
type onWay struct {
	stream
	number int // of its frame in the stream
	arrow  int // its place in the story
}

// askedFrame is a request whose answer has to do with the message.
type askedFrame struct {
	conn   *conn
	number uint64
}

type question struct {
	msg   wire.Message
	item  int // of a Settle: the place of the message in it
	group string
}

// life is what is open in the lane of a host.
type life struct {
	lane int
	open map[string]history.Span // by state
	told map[string]bool         // the beginning of the state has a line
}

// tie is a connection over which a consumer got the message.
type tie struct {
	conn  *conn
	up    [2]bool
	group string
}

func newStoryteller(w *world, about history.Message, group string) *storyteller {
	s := &storyteller{
		w: w, about: about, group: group, seen: map[string]bool{}, asked: map[askedFrame]question{},
		lives: map[*host]*life{}, streams: map[stream]*streamCount{}, ackedBy: map[[2]string][]string{},
	}
	w.observe = s.sending
	return s
}

// finish is the story when the run is over.
func (s *storyteller) finish(v *history.Violation) *history.Story {
	s.look()
	now := s.now()
	for _, h := range s.w.hosts {
		if l := s.lives[h]; l != nil {
			for _, st := range laneStates {
				if sp, ok := l.open[st]; ok {
					sp.To = now
					s.close(l, sp)
				}
			}
		}
	}
	if v != nil {
		if n := len(s.ofArrows); v.Group == "" && n > 0 && s.story.Arrows[n-1].Sent == v.At {
			s.leave(s.ofArrows[n-1])
		}
		where := ""
		if n := len(s.story.Arrows); n > 0 && s.story.Arrows[n-1].Sent == v.At {
			where = s.story.Arrows[n-1].From
		}
		bad := history.Line{At: v.At, Where: where, Text: "BROKEN " + v.Promise + ": " + v.Text, Bad: true}
		i := len(s.story.Biography)
		for i > 0 && s.story.Biography[i-1].At > v.At {
			i--
		}
		s.story.Biography = slices.Insert(s.story.Biography, i, bad)
	}
	return &s.story
}

// leave takes out what is about other groups.
func (s *storyteller) leave(group string) {
	if group == "" {
		return
	}
	place := make([]int, len(s.story.Arrows)+1) // new number by old number
	var arrows []history.Arrow
	for i, a := range s.story.Arrows {
		if g := s.ofArrows[i]; g == "" || g == group {
			arrows = append(arrows, a)
			place[i+1] = len(arrows)
		}
	}
	var lines []history.Line
	for i, l := range s.story.Biography {
		if g := s.ofLines[i]; g == "" || g == group {
			l.Arrow = place[l.Arrow]
			lines = append(lines, l)
		}
	}
	s.story.Arrows, s.story.Biography = arrows, lines
}

func (s *storyteller) now() time.Duration { return s.w.sinceLoad() }

func (s *storyteller) began() bool { return s.w.began > 0 }

func (s *storyteller) line(where string, arrow int, format string, args ...any) {
	s.seen[where] = true
	s.story.Biography = append(s.story.Biography, history.Line{At: s.now(), Where: where, Text: fmt.Sprintf(format, args...), Arrow: arrow})
	s.ofLines = append(s.ofLines, "")
	if arrow > 0 {
		s.ofLines[len(s.ofLines)-1] = s.ofArrows[arrow-1]
	}
}

// Lanes.

// laneStates are the states of a lane that the storyteller tells.
var laneStates = []string{"down", "paused", "cut", "hurt", "slow"}

var laneWords = map[string][2]string{ // at their beginning and end
	"down":   {"is down", "is up again"},
	"paused": {"stands still", "goes on"},
	"cut":    {"is cut off", "is not cut off any more"},
	"hurt":   {"lost something and counts for nothing here", "is repaired"},
	"slow":   {"is slow", "is not slow any more"},
}

// look compares the world with what it was before the last call.
func (s *storyteller) look() {
	if !s.began() {
		return
	}
	for _, h := range s.w.hosts {
		if inStory(h) {
			s.lookAt(h)
		}
	}
	s.lookAtFrames()
	s.lookAtDisks()
	s.lookAtOwners()
	for _, t := range s.ties {
		if t.up == t.conn.up {
			continue
		}
		for i, up := range t.conn.up {
			if t.up[i] && !up && t.conn.side(i).running {
				s.line(t.conn.side(i).name, 0, "loses its connection to %s", t.conn.side(1-i).name)
				s.ofLines[len(s.ofLines)-1] = t.group
			}
		}
		t.up = t.conn.up
	}
	s.ties = slices.DeleteFunc(s.ties, func(t *tie) bool { return !t.up[0] && !t.up[1] })
}

// inStory tells whether h is a node or a client of the plan.
func inStory(h *host) bool {
	switch h.client.(type) {
	case *admin, *asker:
		return false
	}
	return true
}

func (s *storyteller) lookAt(h *host) {
	l := s.lives[h]
	if l == nil {
		l = &life{lane: len(s.story.Lanes), open: map[string]history.Span{}, told: map[string]bool{}}
		s.lives[h] = l
		s.story.Lanes = append(s.story.Lanes, history.Lane{Name: h.name, Client: h.client != nil})
	}
	s.state(h, l, "paused", h.paused && h.running, "")
	if h.client != nil { // it tells itself when it is down
		return
	}
	s.state(h, l, "down", !h.running, "")
	hurt := ""
	if h.running {
		for _, q := range s.w.check.queues {
			for _, p := range q.partitions() {
				if h.core.Repairing(p) && (hurt == "" || p == s.partition) {
					hurt = "counts for nothing in " + s.w.names.partition(p) + " until it is repaired"
				}
			}
		}
	}
	s.state(h, l, "hurt", hurt != "", hurt)
	slow := ""
	switch {
	case h.slow > 0:
		slow = "each step takes " + time.Duration(h.slow).String() + " longer"
	case h.disk.slow > 0:
		slow = "each fsync takes " + time.Duration(h.disk.slow).String() + " longer"
	case h.disk.slowReads > 0:
		slow = "each read takes " + time.Duration(h.disk.slowReads).String() + " longer"
	}
	s.state(h, l, "slow", slow != "", slow)
}

// linked is called when a link was cut or healed.
func (s *storyteller) linked(a, b *host) {
	if !s.began() {
		return
	}
	for _, h := range []*host{a, b} {
		var from []string
		for _, o := range s.w.hosts {
			if o != h && inStory(o) && (o.client == nil || h.client == nil) && (s.w.isCut(h, o) || s.w.isCut(o, h)) {
				from = append(from, o.name)
			}
		}
		if l := s.lives[h]; l != nil {
			s.state(h, l, "cut", len(from) > 0, "from "+strings.Join(from, " "))
		}
	}
}

// state opens, changes or ends a state in the lane of h.
func (s *storyteller) state(h *host, l *life, state string, is bool, text string) {
	open, was := l.open[state]
	if was == is && (!is || open.Text == text) {
		return
	}
	now := s.now()
	if was {
		open.To = now
		s.close(l, open)
		delete(l.open, state)
	}
	if is {
		l.open[state] = history.Span{From: now, State: state, Text: text}
	}
	if !s.seen[h.name] && s.about != (history.Message{}) || was && is && state != "cut" || !is && !l.told[state] {
		return
	}
	l.told[state] = is
	words := laneWords[state]
	switch {
	case state == "cut" && is:
		s.line(h.name, 0, "is cut off %s", text)
	case state == "hurt" && is:
		s.line(h.name, 0, "%s", text)
	case is:
		s.line(h.name, 0, "%s", words[0])
	default:
		s.line(h.name, 0, "%s", words[1])
	}
}

func (s *storyteller) close(l *life, sp history.Span) {
	if sp.To > sp.From {
		lane := &s.story.Lanes[l.lane]
		lane.Spans = append(lane.Spans, sp)
	}
}

// lookAtDisks tells when the message reached a disk, or was lost there.
func (s *storyteller) lookAtDisks() {
	if s.key == (msgKey{}) {
		return
	}
	now := s.w.check.holders[s.key]
	if now == s.stored {
		return
	}
	for _, h := range s.w.mesh {
		bit := uint64(1) << h.place
		switch {
		case now&bit != 0 && s.stored&bit == 0:
			s.line(h.name, 0, "has it on disk, synced")
		case now&bit == 0 && s.stored&bit != 0:
			s.line(h.name, 0, "its disk has lost it")
		}
	}
	s.stored = now
}

// lookAtOwners tells who hands out the partition of the message.
func (s *storyteller) lookAtOwners() {
	if s.partition == 0 {
		return
	}
	for _, h := range s.w.mesh {
		for _, o := range s.w.check.owned[h.index] {
			if o.Partition == s.partition && s.owner.Less(o.Term) {
				s.owner = o.Term
				clear(s.ackedBy)
				s.line(h.name, 0, "owns %s, in term %s", s.w.names.partition(s.partition), s.w.names.term(o.Term))
			}
		}
	}
}

// Frames.

// sending sees each frame that is written.
func (s *storyteller) sending(c *conn, dir int, f frame, lost bool) {
	if !s.began() {
		return
	}
	s.look()
	dead := c.dead
	number := 0
	if !dead {
		n := s.counts(c, dir)
		n.sent++
		number = n.sent
	}
	s.ofFrame = ""
	label := s.label(c, f)
	if label == "" {
		return
	}
	from, to := c.side(dir), c.side(1-dir)
	s.seen[from.name], s.seen[to.name] = true, true
	s.story.Arrows = append(s.story.Arrows, history.Arrow{
		From: from.name, To: to.name, Sent: s.now(), Got: time.Duration(f.arrives - s.w.began), Lost: dead, Label: label,
	})
	s.ofArrows = append(s.ofArrows, s.ofFrame)
	arrow := len(s.story.Arrows)
	if !dead {
		s.onWay = append(s.onWay, onWay{stream{c, dir}, number, arrow - 1})
	}
	s.tellFrame(c, from, to, f, arrow, lost)
	if f.kind == frameRequest {
		s.asked[askedFrame{c, f.number}] = question{f.msg, s.itemOf(f.msg), s.ofFrame}
	}
}

// counts are those of a stream; frames that were under way before the story began count
// as well.
func (s *storyteller) counts(c *conn, dir int) *streamCount {
	n := s.streams[stream{c, dir}]
	if n == nil {
		n = &streamCount{sent: len(c.frames[dir])}
		s.streams[stream{c, dir}] = n
	}
	return n
}

// arriving sees each frame that arrives, before it is taken; taken tells whether anybody
// is there to take it.
func (s *storyteller) arriving(c *conn, dir int, taken bool) {
	if !s.began() {
		return
	}
	key := stream{c, dir}
	n := s.streams[key]
	if n == nil { // it was taken off the stream already
		n = &streamCount{sent: len(c.frames[dir]) + 1}
		s.streams[key] = n
	}
	n.arrived++
	for i, o := range s.onWay {
		if o.stream == key && o.number == n.arrived {
			a := &s.story.Arrows[o.arrow]
			late := s.now() - a.Sent
			a.Got, a.Lost = s.now(), !taken
			s.onWay = slices.Delete(s.onWay, i, i+1)
			if taken && late > 200*time.Millisecond {
				s.line(a.To, 0, "gets it %s late: %s", history.Short(late), a.Label)
			}
			return
		}
	}
}

// lookAtFrames tells of frames that died with their connection.
func (s *storyteller) lookAtFrames() {
	s.onWay = slices.DeleteFunc(s.onWay, func(o onWay) bool {
		if o.conn.dead {
			a := &s.story.Arrows[o.arrow]
			a.Lost = true
			a.Got = max(a.Sent, min(a.Got, s.now()))
		}
		return o.conn.dead
	})
}

// has tells whether the count messages of a producer from first on hold the message.
func (s *storyteller) has(p wire.ProducerID, first uint64, count uint64) bool {
	return s.key != (msgKey{}) && p == s.key.producer && first <= s.key.sequence && s.key.sequence < first+count
}

// numbered sees each message when it is known by which ID and sequence nodes will know it.
func (s *storyteller) numbered(key msgKey, body string) {
	if s.about != (history.Message{}) && messageOf(body) == s.about {
		s.key = key
	}
}

func (s *storyteller) hasBatch(b *wire.Batch) bool {
	if !s.has(b.Producer, b.Sequence, uint64(b.Count)) {
		return false
	}
	s.partition = b.Partition
	return true
}

// hasReceipt tells whether the delivery is one of the message, to the group in question.
func (s *storyteller) hasReceipt(r *wire.Receipt) bool {
	return s.has(r.Producer, r.Sequence, r.Run.Len()) && s.ofGroup(r.Group)
}

func (s *storyteller) ofGroup(g wire.GroupID) bool {
	name := s.w.names.group(g)
	if s.group != "" && name != s.group {
		return false
	}
	s.ofFrame = name
	return true
}

// offset is where the message is in the run of a receipt.
func (s *storyteller) offset(r *wire.Receipt) wire.Offset {
	return r.Run.From + wire.Offset(s.key.sequence-r.Sequence)
}

// itemOf is the place of the message in a Settle; -1: it is not there.
func (s *storyteller) itemOf(msg wire.Message) int {
	m, ok := msg.(*wire.Settle)
	if !ok {
		return -1
	}
	for i := range m.Items {
		it := &m.Items[i]
		if s.hasReceipt(&it.Receipt) && it.Runs.Contains(s.offset(&it.Receipt)) {
			return i
		}
	}
	return -1
}

func (s *storyteller) delivery(m *wire.Deliver) *wire.Delivery {
	for i := range m.Deliveries {
		if s.hasReceipt(&m.Deliveries[i].Receipt) {
			return &m.Deliveries[i]
		}
	}
	return nil
}

func (s *storyteller) held(m *wire.Resume) *wire.Held {
	for i := range m.Held {
		h := &m.Held[i]
		if s.hasReceipt(&h.Receipt) && h.Runs.Contains(s.offset(&h.Receipt)) {
			return h
		}
	}
	return nil
}

// label is what a frame has to do with the message; "": nothing. The first word says
// what kind of frame it is.
func (s *storyteller) label(c *conn, f frame) string {
	if f.kind == frameReply {
		key := askedFrame{c, f.number}
		q, ok := s.asked[key]
		if !ok {
			return ""
		}
		delete(s.asked, key)
		s.ofFrame = q.group
		return s.answerLabel(q, f.msg)
	}
	switch m := f.msg.(type) {
	case *wire.Enqueue:
		if s.has(m.Producer, m.Sequence, uint64(m.Count)) {
			s.partition = m.Partition
			if m.Passed {
				return "enqueue, passed on"
			}
			return "enqueue"
		}
	case *wire.Replicate:
		for i := range m.Batches {
			if b := &m.Batches[i]; s.hasBatch(b) {
				word := "batch"
				if m.Hint {
					word = "hint"
				}
				return fmt.Sprintf("%s at %s:%d", word, s.w.names.lane(b.Lane), s.at(b))
			}
		}
	case *wire.Deliver:
		if d := s.delivery(m); d != nil {
			return fmt.Sprintf("deliver, term %s attempt %d%s", s.w.names.term(d.Receipt.Term), d.Receipt.Attempt, causes[d.Cause])
		}
	case *wire.Settle:
		if i := s.itemOf(m); i >= 0 {
			return fmt.Sprintf("%s, of term %s attempt %d", settlings[m.Items[i].Kind], s.w.names.term(m.Items[i].Receipt.Term), m.Items[i].Receipt.Attempt)
		}
	case *wire.StoreAcks:
		for _, it := range m.Items {
			if s.has(it.Producer, it.Sequence, it.Run.Len()) && s.ofGroup(it.Group) {
				return "acks, term " + s.w.names.term(m.Term)
			}
		}
	case *wire.Resume:
		if h := s.held(m); h != nil {
			return fmt.Sprintf("resume, of term %s, %d ms left", s.w.names.term(h.Receipt.Term), h.Left)
		}
	}
	return ""
}

func (s *storyteller) at(b *wire.Batch) wire.Offset {
	return b.Base + wire.Offset(s.key.sequence-b.Sequence)
}

func (s *storyteller) answerLabel(q question, answer wire.Message) string {
	if e, ok := answer.(*wire.Error); ok {
		return "refused: " + e.Error()
	}
	switch a := answer.(type) {
	case *wire.Enqueued:
		return fmt.Sprintf("confirm, %d of %d: %s", len(a.Nodes), a.Want, s.w.names.list(a.Nodes))
	case *wire.Synced:
		if a.Code != 0 {
			return "synced, does not count: " + codeName(a.Code)
		}
		if _, acks := q.msg.(*wire.StoreAcks); acks {
			return "settled: the ack is synced"
		}
		return "synced"
	case *wire.Settled:
		if q.item < 0 || q.item >= len(a.Codes) {
			return ""
		}
		return "settled: " + codeName(a.Codes[q.item])
	}
	return s.w.describe(answer)
}

// tellFrame adds a line for the frames that make a life.
func (s *storyteller) tellFrame(c *conn, from, to *host, f frame, arrow int, lost bool) {
	gone := ""
	if lost {
		gone = ", which does not arrive"
	}
	switch m := f.msg.(type) {
	case *wire.Enqueue:
		what := "asks %s to store it%s"
		if m.Passed {
			what = "passes it on to %s%s"
		}
		s.line(from.name, arrow, what, to.name, gone)
	case *wire.Enqueued:
		s.line(from.name, arrow, "confirms it: synced on %s, %d of %d%s", s.w.names.list(m.Nodes), len(m.Nodes), m.Want, gone)
	case *wire.Replicate:
		if m.Hint {
			s.line(from.name, arrow, "gives it to %s to keep as a hint%s", to.name, gone)
		} else {
			s.line(from.name, arrow, "sends it to %s%s", to.name, gone)
		}
	case *wire.Deliver:
		d := s.delivery(m)
		again := ""
		if d.Cause != wire.CauseNone {
			again = "," + causes[d.Cause]
		}
		s.line(from.name, arrow, "hands it to %s: term %s, attempt %d%s, lease %s%s", to.name, s.w.names.term(d.Receipt.Term), d.Receipt.Attempt, again,
			history.Short(time.Duration(d.Lease)*time.Millisecond), gone)
		if !slices.ContainsFunc(s.ties, func(t *tie) bool { return t.conn == c && t.group == s.ofFrame }) {
			s.ties = append(s.ties, &tie{c, c.up, s.ofFrame})
		}
	case *wire.Settle:
		words := [...]string{"acks it", "gives it back (nack)", "wants to keep it longer", "gives it back without an attempt"}
		it := &m.Items[s.itemOf(m)]
		by := "at"
		if m.Passed {
			by = "passed on, at"
		}
		s.line(from.name, arrow, "%s, %s %s%s", words[it.Kind], by, to.name, gone)
	case *wire.StoreAcks:
		s.line(from.name, arrow, "tells %s that it is acked%s", to.name, gone)
	case *wire.Resume:
		h := s.held(m)
		s.line(from.name, arrow, "tells %s that it still has it, for %s%s", to.name, history.Short(time.Duration(h.Left)*time.Millisecond), gone)
	case *wire.Synced:
		if m.Code != 0 {
			s.line(from.name, arrow, "has it, but does not count: %s%s", codeName(m.Code), gone)
		} else if strings.HasPrefix(s.story.Arrows[arrow-1].Label, "settled") {
			s.line(from.name, arrow, "has synced the ack%s", gone)
			if who := [2]string{s.ofFrame, to.name}; !slices.Contains(s.ackedBy[who], from.name) {
				s.ackedBy[who] = append(s.ackedBy[who], from.name)
			}
		}
	case *wire.Settled:
		label := s.story.Arrows[arrow-1].Label
		if label == "settled: ok" {
			by := ""
			if held := s.ackedBy[[2]string{s.ofFrame, from.name}]; len(held) > 0 {
				by = ": " + strings.Join(append([]string{from.name}, held...), " ") + " hold that"
			}
			s.line(from.name, arrow, "answers %s: done%s%s", to.name, by, gone)
		} else {
			s.line(from.name, arrow, "answers %s: %s%s", to.name, strings.TrimPrefix(label, "settled: "), gone)
		}
	case *wire.Error:
		s.line(from.name, arrow, "answers %s: %s%s", to.name, m.Error(), gone)
	}
}

// told sees each event that a client or node tells. Frames tell the rest.
func (s *storyteller) told(e *history.Event) {
	if !s.began() {
		return
	}
	switch e.Kind {
	case history.ClientDown, history.ClientUp:
		for _, h := range s.w.hosts {
			if l := s.lives[h]; l != nil && h.name == e.Who && h.client != nil {
				s.state(h, l, "down", e.Kind == history.ClientDown, "")
			}
		}
	case history.Dropped, history.LeaseOver, history.AckFailed:
		if e.Message == s.about && s.about != (history.Message{}) && (s.group == "" || e.Group == s.group) {
			s.line(e.Who, 0, "%s", e.Words())
			s.ofLines[len(s.ofLines)-1] = e.Group
		}
	}
}
