package history

import (
	"cmp"
	"slices"
	"sort"
	"time"
)

// ledger is a history put in order by message.
type ledger struct {
	events []Event // by time
	lives  []life  // by when they were sent
	byName map[Message]int32
	groups map[string][]string // by queue
	nodes  []string
	faults *windows
	downs  map[string][]time.Duration // by client
	purges map[string][]time.Duration // by queue

	loadFrom, loadTo          time.Duration // first and last Sent
	healed, drained, ended    time.Duration
	hasHealed, hasDrained     bool
	consumersOf               map[string]map[string]bool // by queue and group
	strangers, early, doubled []int32                    // events: of messages nobody sent, before they were sent, answered twice
}

// life is what became of one message. Numbers of events are -1 when there is none.
type life struct {
	message Message
	sent    int32
	answer  int32 // Confirmed, Refused or Unknown
	courses []course
}

// course is the part of a life in one group: its events, in order.
type course struct {
	group  string
	events []int32
}

func (l *life) in(group string) *course {
	for i := range l.courses {
		if l.courses[i].group == group {
			return &l.courses[i]
		}
	}
	return nil
}

func newLedger(h *History, r Rules) *ledger {
	l := &ledger{
		events: h.Events, byName: map[Message]int32{}, groups: map[string][]string{}, downs: map[string][]time.Duration{},
		purges: map[string][]time.Duration{}, consumersOf: map[string]map[string]bool{},
	}
	byTime := func(a, b Event) int { return cmp.Compare(a.At, b.At) }
	if !slices.IsSortedFunc(l.events, byTime) { // parts of several processes
		l.events = slices.Clone(l.events)
		slices.SortStableFunc(l.events, byTime)
	}
	l.faults = newWindows(l.events, r.Settle)
	for q, gs := range r.Groups {
		l.groups[q] = slices.Clone(gs)
	}
	clients, nodes := map[string]bool{}, map[string]bool{}
	for i := range l.events {
		e := &l.events[i]
		l.ended = max(l.ended, e.At)
		switch e.Kind {
		case Sent:
			if _, twice := l.byName[e.Message]; twice {
				l.doubled = append(l.doubled, int32(i))
				continue
			}
			if len(l.lives) == 0 {
				l.loadFrom = e.At
			}
			l.loadTo = e.At
			l.byName[e.Message] = int32(len(l.lives))
			l.lives = append(l.lives, life{message: e.Message, sent: int32(i), answer: -1})
		case ClientDown:
			l.downs[e.Who] = append(l.downs[e.Who], e.At)
		case Healed:
			l.healed, l.hasHealed = e.At, true
		case Drained:
			l.drained, l.hasDrained = e.At, true
		case Purged:
			l.purges[e.Queue] = append(l.purges[e.Queue], e.At)
		}
		switch e.Kind {
		case NodeUp, NodeDown, State, Sample:
			nodes[e.Who] = true
		case ClientUp, ClientDown, Sent, Delivered:
			clients[e.Who] = true
		}
		if e.Node != "" {
			nodes[e.Node] = true
		}
	}
	for n := range nodes {
		if n != "" && !clients[n] {
			l.nodes = append(l.nodes, n)
		}
	}
	slices.Sort(l.nodes)
	for i := range l.events {
		l.enter(int32(i), r)
	}
	for q := range l.groups {
		slices.Sort(l.groups[q])
	}
	return l
}

// enter writes an event that concerns a message into its life.
func (l *ledger) enter(i int32, r Rules) {
	e := &l.events[i]
	switch e.Kind {
	case Confirmed, Refused, Unknown:
	case Delivered, Dropped, Acking, Acked, AckFailed, Nacked, Released, Extended, LeaseOver:
	default:
		return
	}
	n, ok := l.byName[e.Message]
	if !ok {
		l.strangers = append(l.strangers, i)
		return
	}
	x := &l.lives[n]
	if i < x.sent && l.events[x.sent].At > e.At { // with equal times the order of two processes says nothing
		l.early = append(l.early, i)
	}
	switch e.Kind {
	case Confirmed, Refused, Unknown:
		if x.answer >= 0 {
			l.doubled = append(l.doubled, i)
			return
		}
		x.answer = i
		return
	}
	c := x.in(e.Group)
	if c == nil {
		x.courses = append(x.courses, course{group: e.Group})
		c = &x.courses[len(x.courses)-1]
	}
	c.events = append(c.events, i)
	if e.Kind != Delivered {
		return
	}
	queue := l.events[x.sent].Queue
	if _, given := r.Groups[queue]; !given && !slices.Contains(l.groups[queue], e.Group) {
		l.groups[queue] = append(l.groups[queue], e.Group)
	}
	of := queue + "\x00" + e.Group
	if l.consumersOf[of] == nil {
		l.consumersOf[of] = map[string]bool{}
	}
	l.consumersOf[of][e.Who] = true
}

// answerOf is what the producer was told; nil: nothing.
func (l *ledger) answerOf(x *life) *Event {
	if x.answer < 0 {
		return nil
	}
	return &l.events[x.answer]
}

func (l *ledger) sentOf(x *life) *Event { return &l.events[x.sent] }

func (l *ledger) confirmed(x *life) bool {
	return x.answer >= 0 && l.events[x.answer].Kind == Confirmed
}

// first is the first time that a group was handed a message: Delivered, or Dropped by
// its client. nil: never.
func (l *ledger) first(c *course) *Event {
	if c == nil {
		return nil
	}
	for _, i := range c.events {
		if e := &l.events[i]; e.Kind == Delivered || e.Kind == Dropped {
			return e
		}
	}
	return nil
}

// diedIn tells whether a client was killed in (from, to], and when last.
func (l *ledger) diedIn(client string, from, to time.Duration) (at time.Duration, ok bool) {
	list := l.downs[client]
	i := sort.Search(len(list), func(i int) bool { return list[i] > to })
	if i == 0 || list[i-1] <= from {
		return 0, false
	}
	return list[i-1], true
}

// purgedAt is when a message went with its queue.
func (l *ledger) purgedAt(x *life) (at time.Duration, ok bool) {
	e := l.sentOf(x)
	for _, t := range l.purges[e.Queue] {
		if t >= e.At {
			return t, true
		}
	}
	return 0, false
}
