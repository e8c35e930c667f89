package report

import (
	"cmp"
	"fmt"
	"time"

	"github.com/meshq/meshq/sim/history"
	"github.com/meshq/meshq/sim/plan"
)

// Run is one run and all that is known of it. Only Plan is a must.
type Run struct {
	Plan      *plan.Plan
	Violation *history.Violation // nil: all promises were kept
	Verdict   *history.Verdict   // nil: the history was not checked
	Story     *history.Story     // nil: drawn from the history, without arrows
	History   *history.History   // nil: nothing is drawn over time

	Real    bool   // of real processes
	Command string // that runs it again
	Commit  string // of meshq
	Hash    string // of the trace; equal runs have equal hashes
	Steps   int
	Length  time.Duration  // of the run, in its own time
	Took    time.Duration  // by the clock on the wall
	Reached map[string]int // situations, and how often
	// From and To are the numbers of faults before and after the plan was made smaller;
	// From 0: it was not.
	From, To int
}

// Passed tells whether the run kept all promises and reached what it had to.
func (r *Run) Passed() bool { return r.Violation == nil }

// promises are P1..P12 in a few words, for people who have not read the design.
var promises = []struct{ number, name, about string }{
	{"P1", "durable", "a confirmed message is synced on as many disks as it says"},
	{"P2", "delivered", "a confirmed message is delivered until it is acked"},
	{"P3", "an ack is final", "after a confirmed ack no owner delivers the message again"},
	{"P4", "one at a time", "while a lease runs no other consumer of the group gets the message"},
	{"P5", "first in, first out", "what a producer sends is first delivered in the order sent"},
	{"P6", "always writable", "a send succeeds while enough nodes can be reached"},
	{"P7", "convergence", "when faults stop, all replicas come to hold the same"},
	{"P8", "flat memory", "memory does not grow with the backlog"},
	{"P9", "no bad bytes", "damaged bytes are never used, and are repaired"},
	{"P10", "clear refusals", "every refusal is a typed error in bounded time"},
	{"P11", "nothing vanishes", "a message leaves only by ack, expiry, purge or as a dead letter"},
	{"P12", "damage counts for nothing", "a replica that lost state counts for nothing until it is repaired"},
}

// promiseName is "an ack is final" for P3, "" for what is no promise.
func promiseName(number string) string {
	for _, p := range promises {
		if p.number == number {
			return p.name
		}
	}
	return ""
}

// broken is "BROKEN P3 an ack is final".
func broken(v *history.Violation) string {
	if name := promiseName(v.Promise); name != "" {
		return "BROKEN " + v.Promise + " " + name
	}
	return "BROKEN " + v.Promise
}

// guilty is the message that the violation is about, as people name it: p#12.
func guilty(v *history.Violation) string {
	if v == nil || v.Message == (history.Message{}) {
		return ""
	}
	return fmt.Sprintf("%s#%d", v.Message.Producer, v.Message.Number)
}

// biography is the life of the guilty message, from the story if that tells one.
func (r *Run) biography() []history.Line {
	if r.Story != nil && len(r.Story.Biography) > 0 {
		return r.Story.Biography
	}
	if r.Violation == nil || r.History == nil {
		return nil
	}
	lines := history.Biography(r.History, r.Violation.Message, r.Violation.Group)
	if len(lines) == 0 {
		return nil
	}
	return append(lines, history.Line{At: r.Violation.At, Text: broken(r.Violation) + ": " + r.Violation.Text, Bad: true})
}

// length is how long the run was in its own time.
func (r *Run) length() time.Duration {
	end := cmp.Or(r.Length, time.Duration(r.Plan.Length))
	if r.Violation != nil {
		if !r.Real { // it stopped there, or the history goes on
			end = 0
		}
		end = max(end, r.Violation.At)
	}
	if r.History != nil {
		if n := len(r.History.Events); n > 0 {
			end = max(end, r.History.Events[n-1].At)
		}
	}
	return max(end, time.Millisecond)
}

// mesh says in one line what the plan runs on and how it is loaded.
func mesh(p *plan.Plan) string {
	text := count(len(p.Mesh.Nodes), "node")
	for i, q := range p.Queues {
		if i == 3 {
			text += fmt.Sprintf("; %d queues more", len(p.Queues)-i)
			break
		}
		replicas := cmp.Or(q.Replicas, 3)
		text += fmt.Sprintf("; queue %s: %s, %s, write quorum %d", q.Name, count(cmp.Or(q.Partitions, 1), "partition"),
			count(replicas, "replica"), cmp.Or(q.WriteQuorum, replicas/2+1))
	}
	return text + fmt.Sprintf("; %s, %s; %s under load", count(len(p.Producers), "producer"), count(len(p.Consumers), "consumer"), history.Short(time.Duration(p.Length)))
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return thousands(n) + " " + what + "s"
}

// thousands groups digits: 6,120.
func thousands(n int) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// at is a moment of a run, always with three digits so that they line up: 3.204s.
func at(d time.Duration) string { return fmt.Sprintf("%.3fs", d.Seconds()) }
