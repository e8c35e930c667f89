package sim

import (
	"fmt"
	"strings"

	"github.com/meshq/meshq/ring"
	"github.com/meshq/meshq/transport/wire"
)

// names make traces and scripts readable: a for a node, photos/0 for a partition,
// a.1 for the lane of its first boot, p for a producer.
type names struct {
	nodes      map[ring.NodeID]string
	partitions map[wire.PartitionID]string
	groups     map[wire.GroupID]string
	producers  map[wire.ProducerID]string
	consumers  map[wire.ConsumerID]string
	lanes      map[wire.Lane]string
	perBoot    map[string]int
}

func (n *names) init() {
	*n = names{
		map[ring.NodeID]string{}, map[wire.PartitionID]string{}, map[wire.GroupID]string{},
		map[wire.ProducerID]string{}, map[wire.ConsumerID]string{}, map[wire.Lane]string{}, map[string]int{},
	}
}

func (n *names) node(id ring.NodeID, name string) { n.nodes[id] = name }

func (n *names) of(id ring.NodeID) string {
	if id == 0 {
		return "none"
	}
	if s := n.nodes[id]; s != "" {
		return s
	}
	return id.String()
}

func (n *names) queue(q *wire.QueueEntry) {
	for i := range q.Settings.Partitions {
		n.partitions[q.Partition(i)] = fmt.Sprintf("%s/%d", q.Name, i)
	}
	for _, g := range q.Groups {
		n.groups[wire.Group(g.Name, g.Generation)] = g.Name
	}
}

func (n *names) partition(p wire.PartitionID) string {
	if p == 0 {
		return ""
	}
	if s := n.partitions[p]; s != "" {
		return s
	}
	return p.String()
}

func (n *names) group(g wire.GroupID) string {
	if s := n.groups[g]; s != "" {
		return s
	}
	return fmt.Sprintf("%x", uint64(g))
}

func (n *names) producer(p wire.ProducerID) string {
	if s := n.producers[p]; s != "" {
		return s
	}
	return fmt.Sprintf("%x", uint64(p))
}

func (n *names) consumer(c wire.ConsumerID) string {
	if s := n.consumers[c]; s != "" {
		return s
	}
	return fmt.Sprintf("%x", uint64(c))
}

// lane is node.boot; further lanes of one boot get a letter.
func (n *names) lane(l wire.Lane) string {
	if l.IsZero() {
		return "none"
	}
	if s := n.lanes[l]; s != "" {
		return s
	}
	s := fmt.Sprintf("%s.%d", n.of(l.Node), l.Epoch>>32)
	k := n.perBoot[s]
	n.perBoot[s]++
	if k > 0 {
		s += string(rune('a' + k))
	}
	n.lanes[l] = s
	return s
}

func (n *names) term(t wire.Term) string {
	if t == (wire.Term{}) {
		return "0"
	}
	return fmt.Sprintf("%d.%s", t.Counter, n.of(t.Node))
}

func (n *names) run(r wire.Run) string { return fmt.Sprintf("[%d,%d)", r.From, r.To) }

func (n *names) batch(b *wire.Batch) string {
	s := fmt.Sprintf("%s lane %s %s (%s#%d)", n.partition(b.Partition), n.lane(b.Lane), n.run(b.Run()), n.producer(b.Producer), b.Sequence)
	if !b.AfterLane.IsZero() {
		s += fmt.Sprintf(" after %s:%d", n.lane(b.AfterLane), b.AfterOffset)
	}
	return s
}

func (n *names) receipt(r *wire.Receipt) string {
	return fmt.Sprintf("%s lane %s %s (%s#%d) to %s, term %s attempt %d", n.partition(r.Partition), n.lane(r.Lane), n.run(r.Run),
		n.producer(r.Producer), r.Sequence, n.group(r.Group), n.term(r.Term), r.Attempt)
}

func (n *names) list(ids []ring.NodeID) string {
	var out []string
	for _, id := range ids {
		out = append(out, n.of(id))
	}
	return strings.Join(out, " ")
}

var settlings = [...]string{"ack", "nack", "extend", "release"}

var causes = [...]string{"", " again: nack", " again: lease ran out", " again: consumer went away", " again: takeover", " again: released"}

// codeName is a short word for the code of an answer.
func codeName(c wire.Code) string {
	switch c {
	case 0:
		return "ok"
	case wire.CodeQuorum:
		return "no quorum"
	case wire.CodeNotOwner:
		return "not confirmed"
	case wire.CodeNotReady:
		return "not ready"
	case wire.CodeStaleReceipt:
		return "stale receipt"
	}
	return (&wire.Error{Code: c}).Error()
}

// describe is a message in readable form.
func (w *world) describe(msg wire.Message) string {
	n := &w.names
	switch m := msg.(type) {
	case *wire.Hello, *wire.Beat:
		return strings.ToLower(strings.TrimPrefix(fmt.Sprintf("%T", msg), "*wire."))
	case *wire.Error:
		return "error: " + m.Error()
	case *wire.Enqueue:
		s := fmt.Sprintf("enqueue %s (%s#%d) %d", n.partition(m.Partition), n.producer(m.Producer), m.Sequence, m.Count)
		if m.Passed {
			s += " passed on"
		}
		if !m.AfterLane.IsZero() {
			s += fmt.Sprintf(" after %s:%d", n.lane(m.AfterLane), m.AfterOffset)
		}
		return s
	case *wire.Enqueued:
		return fmt.Sprintf("confirm lane %s base %d  %d of %d: %s", n.lane(m.Lane), m.Base, len(m.Nodes), m.Want, n.list(m.Nodes))
	case *wire.Deliver:
		var out []string
		for i := range m.Deliveries {
			out = append(out, n.receipt(&m.Deliveries[i].Receipt)+causes[m.Deliveries[i].Cause])
		}
		return "deliver " + strings.Join(out, "; ")
	case *wire.Owner:
		s := fmt.Sprintf("owner %s is %s in term %s", n.partition(m.Partition), n.of(m.Node), n.term(m.Term))
		if m.Grace > 0 {
			s += fmt.Sprintf(", grace %d ms", m.Grace)
		}
		return s
	case *wire.Settle:
		var out []string
		for i := range m.Items {
			it := &m.Items[i]
			out = append(out, fmt.Sprintf("%s %s of %s", settlings[it.Kind], it.Runs, n.receipt(&it.Receipt)))
		}
		s := strings.Join(out, "; ")
		if m.Passed {
			s += " passed on"
		}
		return s
	case *wire.Settled:
		var out []string
		for _, c := range m.Codes {
			out = append(out, codeName(c))
		}
		return "settled " + strings.Join(out, ", ")
	case *wire.Subscribe:
		return fmt.Sprintf("subscribe %s %s credit %d", m.Queue, m.Group, m.Credit)
	case *wire.Resume:
		var out []string
		for i := range m.Held {
			out = append(out, fmt.Sprintf("%s of %s", m.Held[i].Runs, n.receipt(&m.Held[i].Receipt)))
		}
		return fmt.Sprintf("resume %s %s", n.consumer(m.Consumer), strings.Join(out, "; "))
	case *wire.Replicate:
		var out []string
		for i := range m.Batches {
			out = append(out, n.batch(&m.Batches[i]))
		}
		kind := "batch "
		if m.Hint {
			kind = "hint  "
		}
		return kind + strings.Join(out, "; ")
	case *wire.Synced:
		if m.Code == 0 {
			return "synced"
		}
		return "synced, does not count: " + codeName(m.Code)
	case *wire.StoreAcks:
		var out []string
		for _, it := range m.Items {
			out = append(out, fmt.Sprintf("%s lane %s %s (%s#%d)", n.group(it.Group), n.lane(it.Lane), n.run(it.Run), n.producer(it.Producer), it.Sequence))
		}
		return fmt.Sprintf("acks %s term %s: %s", n.partition(m.Partition), n.term(m.Term), strings.Join(out, "; "))
	case *wire.Claim:
		word := "claim"
		if m.Pre {
			word = "would-you"
		}
		s := fmt.Sprintf("%s %s", word, n.partition(m.Partition))
		if !m.Pre {
			s += " term " + n.term(m.Term)
		}
		if m.Handover {
			s += " handover"
		}
		return s
	case *wire.Granted:
		if m.OK {
			return "granted"
		}
		return fmt.Sprintf("refused: promised %s, holder %s", n.term(m.Promised), n.of(m.Holder))
	case *wire.Renew:
		s := fmt.Sprintf("renew set %d", m.Set)
		for _, a := range m.Add {
			s += fmt.Sprintf(" +%s term %s", n.partition(a.Partition), n.term(a.Term))
		}
		for _, d := range m.Drop {
			s += " -" + n.partition(d)
		}
		return s
	case *wire.Renewed:
		s := "renewed"
		if !m.Known {
			s = "renewed: unknown set"
		}
		for _, l := range m.Lost {
			s += fmt.Sprintf(" lost %s to %s", n.partition(l.Partition), n.term(l.Term))
		}
		return s
	case *wire.Offer:
		return fmt.Sprintf("offer %s term %s", n.partition(m.Partition), n.term(m.Term))
	case *wire.Release:
		return fmt.Sprintf("release %s term %s to %s, %d in flight", n.partition(m.Partition), n.term(m.Term), n.of(m.To), len(m.InFlight))
	case *wire.GetState:
		return "get state " + n.partition(m.Partition)
	case *wire.State:
		if m.Equal {
			return "state " + n.partition(m.Partition) + " equal"
		}
		return "state " + n.partition(m.Partition)
	case *wire.GetBatches:
		return fmt.Sprintf("get batches %s lane %s %s", n.partition(m.Partition), n.lane(m.Lane), m.Runs)
	case *wire.Batches:
		var out []string
		for i := range m.Batches {
			out = append(out, n.batch(&m.Batches[i]))
		}
		s := "batches " + strings.Join(out, "; ")
		if len(m.Gone) > 0 {
			s += " gone " + m.Gone.String()
		}
		return s
	case *wire.Retries:
		var out []string
		for _, r := range m.Items {
			out = append(out, fmt.Sprintf("%s lane %s %s attempt %d", n.group(r.Group), n.lane(r.Lane), n.run(r.Run), r.Attempt))
		}
		return fmt.Sprintf("retries %s %s", n.partition(m.Partition), strings.Join(out, "; "))
	case *wire.CreateQueue:
		return "create " + m.Name
	case *wire.UpdateQueue:
		var out []string
		for _, x := range m.Set {
			out = append(out, fmt.Sprintf("%s=%d", x.Name, x.Value))
		}
		return fmt.Sprintf("update %s %s", m.Name, strings.Join(out, " "))
	case *wire.QueueUpdated:
		var out []string
		for _, x := range m.Before {
			out = append(out, fmt.Sprintf("%s was %d", x.Name, x.Value))
		}
		return fmt.Sprintf("updated %s %s", m.Entry.Name, strings.Join(out, ", "))
	case *wire.PauseQueue:
		return strings.TrimSpace(fmt.Sprintf("pause %s %s until %d", m.Name, m.Group, m.Until))
	case *wire.QueueInfo:
		return "queue " + m.Entry.Name
	case *wire.Join:
		return "join " + m.Member.Name
	case *wire.Rings:
		var out []string
		for _, t := range m.Tables {
			out = append(out, fmt.Sprint(t.Number))
		}
		return "rings " + strings.Join(out, " ")
	case *wire.RingPrepare:
		return fmt.Sprintf("ring prepare %d", m.Number)
	case *wire.RingPromise:
		return fmt.Sprintf("ring promise %t", m.OK)
	case *wire.RingAccept:
		return fmt.Sprintf("ring accept %d with %d members", m.Table.Number, len(m.Table.Members))
	case *wire.RingAccepted:
		return fmt.Sprintf("ring accepted %t", m.OK)
	case *wire.Copied:
		return fmt.Sprintf("copied for ring %d: %d partitions", m.Ring, len(m.Partitions))
	case *wire.Moved:
		return fmt.Sprintf("moved to ring %d: %d partitions", m.Ring, len(m.Partitions))
	case *wire.Done:
		return "done"
	}
	return strings.ToLower(strings.TrimPrefix(fmt.Sprintf("%T", msg), "*wire."))
}

// mentions tells whether a trace line is about a message: for biographies. Lines
// spell the messages of a batch "[0,4) (p#12)", or "(p#12) 4", or "(p#12)" for one.
func mentions(line, producer string, sequence uint64) bool {
	mark := "(" + producer + "#"
	for at := 0; ; {
		i := strings.Index(line[at:], mark)
		if i < 0 {
			return false
		}
		before := line[:at+i]
		at += i + len(mark)
		var first, count uint64
		if _, err := fmt.Sscanf(line[at:], "%d)", &first); err != nil {
			continue
		}
		count = 1
		var from, to uint64
		if j := strings.LastIndex(before, "["); j >= 0 && strings.HasSuffix(before, ") ") {
			if _, err := fmt.Sscanf(before[j:], "[%d,%d)", &from, &to); err == nil {
				count = to - from
			}
		} else if _, err := fmt.Sscanf(line[at:], "%d) %d", &from, &to); err == nil {
			count = to
		}
		if first <= sequence && sequence < first+count {
			return true
		}
	}
}
