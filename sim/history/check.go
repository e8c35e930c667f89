package history

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// Rules is what a run may do without breaking a promise. Zero values are the defaults
// that the comments name.
type Rules struct {
	// Calm says that nothing was done to the mesh or its clients, by the run or by
	// others: then a message comes again only because its consumer gave it back or let
	// its lease run out. Rules for a plan without faults.
	Calm bool
	// Ahead says that clients take messages ahead of need, as the client library does, and
	// give back what their program has not seen, of which nobody tells.
	Ahead bool
	// Beyond says that the faults are more than the promises cover: only what must hold
	// then is checked, which is P7 to P10 and P12.
	Beyond bool

	Groups map[string][]string // by queue: those that must get each message; without: those that got any
	Quorum map[string]int      // by queue: fewest copies that a confirm may want; without: whatever it says

	// Flight is how long a delivery is on its way at most, from its owner to the hands of
	// a consumer, while no fault touches either; 1s. Events that are closer than that and
	// told by different clients have no order.
	Flight time.Duration
	// Settle is how long a fault that is over is still a reason for what happens; 5s.
	Settle time.Duration
	// Tolerance is how much later than promised an answer may come; 1s.
	Tolerance time.Duration
	// Writable is how long a send may fail while no fault is there; 1s (P6).
	Writable time.Duration
	// Drain is in what time after Healed everything is delivered and acked; 90s (P2).
	Drain time.Duration
	// Converge is in what time after Drained the replicas are equal; 75s (P7).
	Converge time.Duration
	// Dedup is the time after which a send that is tried again may make a second
	// message; 10m.
	Dedup time.Duration
	// OrderWait is how long a message waits for one before it that is not found; 30s.
	OrderWait time.Duration

	Memory int64 // bytes by which the memory of a node may grow, whatever the backlog; 0: not checked (P8)
	Disk   int64 // bytes that the disk of a node may hold when all is acked; 0: not checked
}

func (r Rules) withDefaults() Rules {
	r.Flight = cmp.Or(r.Flight, time.Second)
	r.Settle = cmp.Or(r.Settle, 5*time.Second)
	r.Tolerance = cmp.Or(r.Tolerance, time.Second)
	r.Writable = cmp.Or(r.Writable, time.Second)
	r.Drain = cmp.Or(r.Drain, 90*time.Second)
	r.Converge = cmp.Or(r.Converge, 75*time.Second)
	r.Dedup = cmp.Or(r.Dedup, 10*time.Minute)
	r.OrderWait = cmp.Or(r.OrderWait, 30*time.Second)
	return r
}

// Verdict is what [Check] finds.
type Verdict struct {
	Violations []Violation `json:"violations"` // all, in order of time
	Promises   []Promise   `json:"promises"`   // P1..P12
	Figures    Figures     `json:"figures"`
}

// Promise says how often a promise was put to the test. One that never was is not kept:
// it was not seen.
type Promise struct {
	Name    string `json:"name"`
	Checked int    `json:"checked"`
	Broken  int    `json:"broken"`
}

func (p Promise) String() string {
	switch {
	case p.Broken > 0:
		return fmt.Sprintf("%s broken %d times, checked %d times", p.Name, p.Broken, p.Checked)
	case p.Checked == 0:
		return p.Name + " not seen"
	}
	return fmt.Sprintf("%s kept, checked %d times", p.Name, p.Checked)
}

// Passed tells whether no promise was broken.
func (v *Verdict) Passed() bool { return len(v.Violations) == 0 }

// First is the violation that came first; nil when there is none.
func (v *Verdict) First() *Violation {
	if len(v.Violations) == 0 {
		return nil
	}
	return &v.Violations[0]
}

const promises = 12

// checker holds the promises against a ledger.
type checker struct {
	rules Rules
	*ledger
	out     []Violation
	checked [promises + 1]int

	atRest      time.Duration // when the replicas were equal; forever: never
	confirmedIn map[partitionName]uint64
}

// Check holds the promises against a history. Where others than the run may do things to
// the mesh, the history must have one FaultBegin on all for the whole time. It takes O(n log n) time, and a history
// whose clients died in the middle of anything.
func Check(h *History, r Rules) *Verdict {
	r = r.withDefaults()
	k := &checker{rules: r, ledger: newLedger(h, r)}
	k.stopped()
	k.sends()
	for i := range k.lives {
		k.life(&k.lives[i])
	}
	k.order()
	k.rest()
	k.samples()
	slices.SortStableFunc(k.out, func(a, b Violation) int { return cmp.Compare(a.At, b.At) })
	v := &Verdict{Violations: k.out, Figures: k.figures()}
	for n := 1; n <= promises; n++ {
		p := Promise{Name: fmt.Sprintf("P%d", n), Checked: k.checked[n]}
		for i := range k.out {
			if k.out[i].Promise == p.Name {
				p.Broken++
			}
		}
		v.Promises = append(v.Promises, p)
	}
	return v
}

// saw counts that a promise was put to the test.
func (k *checker) saw(promise, times int) { k.checked[promise] += times }

// fail is a broken promise.
func (k *checker) fail(promise int, at time.Duration, m Message, group, format string, args ...any) {
	switch promise {
	case 1, 2, 3, 4, 5, 6, 11:
		if k.rules.Beyond {
			return
		}
	}
	k.out = append(k.out, Violation{Promise: fmt.Sprintf("P%d", promise), Text: fmt.Sprintf(format, args...), At: at, Message: m, Group: group})
}

// stopped looks for nodes that ended without a reason.
func (k *checker) stopped() {
	for i := range k.events {
		e := &k.events[i]
		if e.Kind != NodeDown || k.hasDrained && e.At >= k.drained {
			continue
		}
		if !k.faults.planned(e.At, e.Who) {
			k.out = append(k.out, Violation{Promise: "Stop", At: e.At, Text: fmt.Sprintf("%s ended by itself %s", e.Who, e.Text)})
		}
	}
}

func (m Message) String() string { return fmt.Sprintf("%s#%d", m.Producer, m.Number) }

// ms is a time for people.
func ms(d time.Duration) time.Duration { return d.Round(time.Millisecond) }
