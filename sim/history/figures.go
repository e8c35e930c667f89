package history

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Figures is what a run measured.
type Figures struct {
	Sent       int `json:"sent"`
	Confirmed  int `json:"confirmed"`
	Refused    int `json:"refused"`
	Unknown    int `json:"unknown"`
	Unanswered int `json:"unanswered"` // by clients that died
	Recovered  int `json:"recovered"`  // unknown or unanswered, and then delivered

	Delivered  int            `json:"delivered"` // deliveries, all groups
	Acked      int            `json:"acked"`     // confirmed acks
	Dropped    int            `json:"dropped"`
	Duplicates map[string]int `json:"duplicates"` // deliveries that are not the first, by cause
	Codes      map[string]int `json:"codes"`      // of sends that were not confirmed

	ConfirmGap  Gap                `json:"confirm_gap"`  // longest time without a confirm while producers sent
	DeliveryGap Gap                `json:"delivery_gap"` // and without a first delivery
	Confirm     Latency            `json:"confirm"`      // from Sent to Confirmed
	Deliver     Latency            `json:"deliver"`      // from Sent to the first delivery
	Redeliver   map[string]Latency `json:"redeliver"`    // from a cause to the next delivery: nack with its backoff
	Failover    Latency            `json:"failover"`     // from the end of a node to the next delivery of what it owned

	MaxUnseen int           `json:"max_unseen"` // confirmed, and not yet delivered to each group
	Drain     time.Duration `json:"drain"`      // from Healed to Drained; -1: not reached
	Converge  time.Duration `json:"converge"`   // from Healed to equal replicas; -1: not reached
	Memory    int64         `json:"memory"`     // most that a node had, in bytes
	Disk      int64         `json:"disk"`
	Seconds   []Second      `json:"seconds"`
}

// Gap is a time in which something did not happen.
type Gap struct {
	From time.Duration `json:"from"`
	To   time.Duration `json:"to"`
}

// Length is how long it was.
func (g Gap) Length() time.Duration { return g.To - g.From }

// Latency sums up durations.
type Latency struct {
	Count int           `json:"count"`
	P50   time.Duration `json:"p50"`
	P99   time.Duration `json:"p99"`
	Max   time.Duration `json:"max"`
}

// newLatency sorts the durations.
func newLatency(all []time.Duration) Latency {
	if len(all) == 0 {
		return Latency{}
	}
	slices.Sort(all)
	at := func(percent int) time.Duration { return all[(len(all)*percent+99)/100-1] }
	return Latency{len(all), at(50), at(99), all[len(all)-1]}
}

func (l Latency) String() string {
	if l.Count == 0 {
		return "none"
	}
	return fmt.Sprintf("p50 %v, p99 %v, max %v", ms(l.P50), ms(l.P99), ms(l.Max))
}

// Second is one second of a run.
type Second struct {
	Confirmed int `json:"confirmed"`
	Failed    int `json:"failed"` // sends
	First     int `json:"first"`  // first deliveries
	Again     int `json:"again"`
	Acked     int `json:"acked"`
	Unseen    int `json:"unseen"` // at its end
}

// maxSeconds bounds the series: a day.
const maxSeconds = 24 * 3600

// gauge measures gaps.
type gauge struct {
	from, to, last time.Duration
	longest        Gap
}

func (g *gauge) at(t time.Duration) {
	if t < g.from || t > g.to {
		return
	}
	if t-g.last > g.longest.Length() {
		g.longest = Gap{g.last, t}
	}
	g.last = t
}

// figures measures the run.
func (k *checker) figures() Figures {
	f := Figures{Duplicates: map[string]int{}, Codes: map[string]int{}, Redeliver: map[string]Latency{}, Drain: -1, Converge: -1}
	seconds := int(min(k.ended/time.Second+1, maxSeconds))
	f.Seconds = make([]Second, seconds)
	in := func(t time.Duration) *Second { return &f.Seconds[max(0, min(int(t/time.Second), seconds-1))] }
	var confirm, deliver []time.Duration
	redeliver := map[string][]time.Duration{}
	var firsts []time.Duration
	for i := range k.lives {
		x := &k.lives[i]
		s, a := k.sentOf(x), k.answerOf(x)
		f.Sent++
		switch {
		case a == nil:
			f.Unanswered++
		case a.Kind == Confirmed:
			f.Confirmed++
			confirm = append(confirm, a.At-s.At)
			in(a.At).Confirmed++
		default:
			if a.Kind == Refused {
				f.Refused++
			} else {
				f.Unknown++
			}
			f.Codes[a.Code]++
			in(a.At).Failed++
		}
		seen := time.Duration(0) // by all groups
		missing := len(k.groups[s.Queue]) == 0
		for j := range x.courses {
			if first := k.courseFigures(&x.courses[j], &f, in, redeliver); first != nil {
				firsts = append(firsts, first.At)
				deliver = append(deliver, first.At-s.At)
			}
		}
		for _, g := range k.groups[s.Queue] {
			if first := k.first(x.in(g)); first != nil {
				seen = max(seen, first.At)
			} else {
				missing = true
			}
		}
		if (a == nil || a.Kind == Unknown) && len(x.courses) > 0 {
			f.Recovered++
		}
		if a != nil && a.Kind == Confirmed && (missing || seen > a.At) {
			in(a.At).Unseen++
			if !missing {
				in(seen).Unseen--
			}
		}
	}
	unseen := 0
	for i := range f.Seconds { // so far it is the change
		unseen += f.Seconds[i].Unseen
		f.Seconds[i].Unseen = unseen
		f.MaxUnseen = max(f.MaxUnseen, unseen)
	}
	f.ConfirmGap, f.DeliveryGap = k.gaps(firsts)
	f.Confirm, f.Deliver = newLatency(confirm), newLatency(deliver)
	for _, cause := range slices.Sorted(maps.Keys(redeliver)) {
		f.Redeliver[cause] = newLatency(redeliver[cause])
	}
	f.Failover = newLatency(k.failovers())
	if k.hasHealed && k.hasDrained {
		f.Drain = k.drained - k.healed
		if k.atRest != forever && k.atRest >= k.healed {
			f.Converge = k.atRest - k.healed
		}
	}
	for i := range k.events {
		if e := &k.events[i]; e.Kind == Sample {
			f.Memory, f.Disk = max(f.Memory, e.Memory), max(f.Disk, e.Disk)
		}
	}
	return f
}

// courseFigures counts the deliveries of one message to one group, and returns the first.
func (k *checker) courseFigures(c *course, f *Figures, in func(time.Duration) *Second, redeliver map[string][]time.Duration) (first *Event) {
	handed := false
	var last *Event // delivery
	var back *Event // what ended it
	for _, i := range c.events {
		e := &k.events[i]
		switch e.Kind {
		case Dropped:
			f.Dropped++
			handed = true
		case Delivered:
			f.Delivered++
			if !handed {
				first = e
				in(e.At).First++
			} else {
				in(e.At).Again++
				cause := e.Cause
				if cause == "" {
					cause = "attempt"
				}
				f.Duplicates[cause]++
				if at, ok := k.causeOf(e, last, back); ok && at <= e.At {
					redeliver[cause] = append(redeliver[cause], e.At-at)
				}
			}
			handed, last, back = true, e, nil
		case Acked:
			f.Acked++
			in(e.At).Acked++
		case Nacked, Released, LeaseOver:
			back = e
		}
	}
	return first
}

// causeOf is when what made a message come again happened.
func (k *checker) causeOf(e, last, back *Event) (time.Duration, bool) {
	if last == nil {
		return 0, false
	}
	switch e.Cause {
	case "nack", "released":
		if back != nil {
			return back.At, true
		}
	case "lease":
		if back != nil && back.Kind == LeaseOver {
			return back.At, true
		}
		return last.At + last.Lease, last.Lease > 0
	case "consumer":
		if at, ok := k.diedIn(last.Who, last.At-1, e.At); ok {
			return at, true
		}
		return k.faults.last(last.At, e.At, last.Who)
	case "takeover":
		return k.faults.last(last.At, e.At, last.Node)
	}
	return 0, false
}

// gaps are the longest times without a confirm and without a first delivery, while
// producers sent.
func (k *checker) gaps(firsts []time.Duration) (confirm, deliver Gap) {
	slices.Sort(firsts)
	c := gauge{from: k.loadFrom, to: k.loadTo, last: k.loadFrom}
	d := c
	for i := range k.events {
		if e := &k.events[i]; e.Kind == Confirmed {
			c.at(e.At)
		}
	}
	for _, t := range firsts {
		d.at(t)
	}
	c.at(k.loadTo)
	d.at(k.loadTo)
	return c.longest, d.longest
}

// failovers are the times from the end of a node to the next delivery, in another term,
// of each partition that it handed out last.
func (k *checker) failovers() []time.Duration {
	type owner struct {
		term Term
		node string
	}
	type end struct {
		at   time.Duration
		term Term
	}
	owners := map[partitionName]owner{}
	ends := map[partitionName]end{}
	var out []time.Duration
	for i := range k.events {
		e := &k.events[i]
		switch e.Kind {
		case NodeDown:
			for p, o := range owners {
				if o.node == e.Who {
					ends[p] = end{e.At, o.term}
				}
			}
		case Delivered:
			p := partitionName{e.Queue, e.Partition}
			if x, ok := ends[p]; ok && e.Term != x.term {
				out = append(out, e.At-x.at)
				delete(ends, p)
			}
			owners[p] = owner{e.Term, cmp.Or(e.Term.Node, e.Node)}
		}
	}
	return out
}

// String is the verdict for people: promises first, then figures.
func (v *Verdict) String() string {
	var b strings.Builder
	for i := range v.Violations {
		if i == 10 {
			fmt.Fprintf(&b, "... %d more\n", len(v.Violations)-i)
			break
		}
		fmt.Fprintf(&b, "%v: %v\n", ms(v.Violations[i].At), &v.Violations[i])
	}
	var seen, unseen []string
	for _, p := range v.Promises {
		if p.Checked == 0 && p.Broken == 0 {
			unseen = append(unseen, p.Name)
		} else {
			seen = append(seen, p.String())
		}
	}
	fmt.Fprintln(&b, strings.Join(seen, "; "))
	if unseen != nil {
		fmt.Fprintln(&b, "not seen:", strings.Join(unseen, " "))
	}
	b.WriteString(v.Figures.String())
	return b.String()
}

// String is the figures in a few lines.
func (f *Figures) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d sent: %d confirmed, %d refused, %d unknown, %d without an answer; %d of the last two were delivered\n", f.Sent, f.Confirmed, f.Refused, f.Unknown, f.Unanswered, f.Recovered)
	fmt.Fprintf(&b, "%d deliveries, %d acked, %d again%s\n", f.Delivered, f.Acked, f.again(), counts(f.Duplicates))
	fmt.Fprintf(&b, "longest without a confirm %v, without a first delivery %v; at most %d unseen\n", ms(f.ConfirmGap.Length()), ms(f.DeliveryGap.Length()), f.MaxUnseen)
	fmt.Fprintf(&b, "confirm: %v; first delivery: %v; failover: %v\n", f.Confirm, f.Deliver, f.Failover)
	for _, cause := range slices.Sorted(maps.Keys(f.Redeliver)) {
		fmt.Fprintf(&b, "again after %s: %v\n", cause, f.Redeliver[cause])
	}
	if f.Drain >= 0 {
		fmt.Fprintf(&b, "all delivered %v after healing", ms(f.Drain))
		if f.Converge >= 0 {
			fmt.Fprintf(&b, ", replicas equal after %v", ms(f.Converge))
		}
		b.WriteByte('\n')
	}
	return b.String()
}

func (f *Figures) again() int {
	n := 0
	for _, c := range f.Duplicates {
		n += c
	}
	return n
}

// counts is a map of numbers as text.
func counts(m map[string]int) string {
	if len(m) == 0 {
		return ""
	}
	var out []string
	for _, name := range slices.Sorted(maps.Keys(m)) {
		out = append(out, fmt.Sprintf("%s %d", name, m[name]))
	}
	return " (" + strings.Join(out, ", ") + ")"
}
