package sim

import (
	"strings"

	"github.com/meshq/meshq/node/core"
	"github.com/meshq/meshq/transport/wire"
)

// Situation is something that a run may come across. A plan names those that it must
// (Plan.Must): a run that never got there proves nothing. Each kind of fault is one
// too, by its own name, when it was brought about.
type Situation struct {
	Name  string
	About string
}

// Situations are all that are not kinds of faults.
var Situations = []Situation{
	{"takeover", "a new owner waits for what consumers still hold"},
	{"handover", "an owner follows another that handed over what it had"},
	{"resumed", "a consumer tells a new owner what it holds"},
	{"nacked", "a message is delivered again because its consumer nacked it"},
	{"lease-ran-out", "a message is delivered again because its delivery lease ran out"},
	{"consumer-gone", "a message is delivered again because its consumer went away"},
	{"redelivered", "a message is delivered again because its owner went away"},
	{"given-back", "a message is delivered again because its consumer gave it back unused"},
	{"stale-dropped", "a client drops a delivery of an owner that is none any more"},
	{"confirmed-again", "a producer sends what was confirmed before, and is told so again"},
	{"both-sides", "two nodes that are cut off from each other confirm within a second"},
	{"quorum-missed", "a producer is told that the outcome is unknown"},
	{"overloaded", "a producer is told that there is too much"},
	{"disk-refused", "a producer is told that a disk is full"},
	{"ack-unowned", "an ack is kept and not confirmed: nobody owns the partition"},
	{"hint-kept", "a fallback keeps a batch for home replicas that are not there"},
	{"hint-handed-over", "a home replica takes a batch from a node that did not write it"},
	{"repairing", "a replica begins to repair a partition"},
	{"repaired", "it has"},
	{"loss-noticed", "a node is told that its store came back with less than it confirmed"},
	{"damage-found", "a node sets damaged batches or records aside"},
	{"ring-step", "a node learns a ring that is not the first"},
	{"moved", "a partition has moved to a new ring"},
	{"backlog", "a thousand confirmed messages wait for a group"},
	{"queue-deleted", "a queue is deleted, and that is confirmed"},
	{"grown", "a queue that is used gets another partition"},
	{"paused", "a queue or group is paused, and that is confirmed"},
	{"twin-fenced", "the older of two processes of one node stops itself"},
}

func (w *world) reach(name string) { w.reached[name]++ }

// noteMeans are the situations that a note of a core tells of.
var noteMeans = map[string]string{
	"repairing": "repairing", "repaired": "repaired", "store came back with less than it confirmed": "loss-noticed",
	"damaged batches set aside": "damage-found", "damaged hint dropped": "damage-found",
	"moved": "moved",
}

func (w *world) noteSaid(h *host, n *core.Note) {
	if name := noteMeans[n.Text]; name != "" {
		w.reach(name)
		if name == "loss-noticed" {
			h.disk.forgot = false
		}
	}
	if n.Text == "ring" && !strings.HasPrefix(n.Detail, "number 1,") {
		w.reach("ring-step")
	}
}

// causeMeans are the situations that the cause of a delivery tells of.
var causeMeans = [...]string{
	wire.CauseNack: "nacked", wire.CauseLease: "lease-ran-out", wire.CauseConsumer: "consumer-gone",
	wire.CauseTakeover: "redelivered", wire.CauseReleased: "given-back",
}

// pushed is called with each one-way message that a node sends on a connection that it
// did not open. A relay passes on what an owner did.
func (w *world) pushed(h *host, msg wire.Message) {
	switch m := msg.(type) {
	case *wire.Deliver:
		for i := range m.Deliveries {
			if d := &m.Deliveries[i]; d.Receipt.Term.Node == h.id && d.Cause != wire.CauseNone {
				w.reach(causeMeans[d.Cause])
			}
		}
	case *wire.Owner:
		t := termKey{m.Partition, m.Term}
		if _, seen := w.check.handover[t]; seen || m.Node != h.id {
			return
		}
		switch {
		case m.Grace > 0:
			w.reach("takeover")
		case m.Term.Counter > 1:
			w.reach("handover")
		}
	}
}

// answered is called with each answer of a node.
func (w *world) answered(h *host, r *request, answer wire.Message) {
	switch m := r.msg.(type) {
	case *wire.Enqueue:
		if r.conn.from.client != nil {
			w.enqueueAnswered(h, m, answer)
		}
	case *wire.Settle:
		if s, ok := answer.(*wire.Settled); ok {
			for _, c := range s.Codes {
				if c == wire.CodeNotOwner {
					w.reach("ack-unowned")
				}
			}
		}
	case *wire.Replicate:
		s, ok := answer.(*wire.Synced)
		if !ok || s.Code != 0 || len(m.Batches) == 0 {
			return
		}
		if m.Hint {
			w.reach("hint-kept")
		} else if m.Batches[0].Lane.Node != r.conn.from.id {
			w.reach("hint-handed-over")
		}
	}
}

func (w *world) enqueueAnswered(h *host, m *wire.Enqueue, answer wire.Message) {
	switch a := answer.(type) {
	case *wire.Error:
		switch a.Code {
		case wire.CodeQuorum:
			w.reach("quorum-missed")
		case wire.CodeOverloaded:
			w.reach("overloaded")
		case wire.CodeDiskFull:
			w.reach("disk-refused")
		}
	case *wire.Enqueued:
		m0 := msgKey{m.Producer, m.Sequence}
		s := w.check.messages[m0]
		if s == nil {
			return
		}
		if w.told[m0] {
			w.reach("confirmed-again")
			return
		}
		w.told[m0] = true
		h.confirms = w.now
		for _, o := range w.mesh {
			if o != h && w.now-o.confirms < second && w.isCut(h, o) && w.isCut(o, h) {
				w.reach("both-sides")
			}
		}
		w.waiting += int(m.Count) * len(s.q.entry.Groups)
		if w.waiting-w.check.stats.Acks >= 1000 {
			w.reach("backlog")
		}
	}
}

// Missing are the situations that the plan must come across, and that the run did not.
func (r *Result) Missing() []string {
	var out []string
	for _, name := range r.Plan.Must {
		if r.Reached[name] == 0 {
			out = append(out, name)
		}
	}
	return out
}
