package history

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// partitionName names a partition in a history.
type partitionName struct {
	queue string
	index uint32
}

// hurting are the faults after which a node has lost or damaged state (P12).
var hurting = []string{"torn", "amnesia", "damage", "damage-record", "open-error", "rollback", "wipe", "key-returns"}

// states is what the nodes say of one partition, the latest of each.
type states struct {
	name partitionName
	of   map[string]*Event // by node
	why  string            // what is not as it should be at rest; "" when all is
	ill  int               // the promise that why is about
}

// rest checks P7, P11 and P12 by what the nodes say of themselves when all is
// delivered.
func (k *checker) rest() {
	for _, i := range k.strangers {
		if e := &k.events[i]; e.Kind == Delivered {
			k.saw(9, 1)
			k.fail(9, e.At, e.Message, e.Group, "%s got %s, which nobody sent", e.Who, e.Message)
		}
	}
	for _, i := range k.early {
		e := &k.events[i]
		k.fail(9, e.At, e.Message, e.Group, "%s was told of %s (%s) before it was sent", e.Who, e.Message, e.Kind)
	}
	k.repairing()
	byName := map[partitionName]*states{}
	var all []*states
	converged, last := forever, time.Duration(0)
	ill := 0
	for i := range k.events {
		e := &k.events[i]
		if e.Kind != State || e.Replica == nil || !k.hasDrained || e.At < k.drained {
			continue
		}
		n := partitionName{e.Queue, e.Partition}
		s := byName[n]
		if s == nil {
			s = &states{name: n, of: map[string]*Event{}}
			byName[n] = s
			all = append(all, s)
		}
		s.of[e.Who] = e
		if s.why != "" {
			ill--
		}
		s.ill, s.why = s.judge()
		if s.why != "" {
			ill++
		}
		if ill > 0 {
			converged = forever
		} else if converged == forever {
			converged = e.At
		}
		last = e.At
	}
	k.atRest = converged
	slices.SortFunc(all, func(a, b *states) int {
		return cmp.Or(strings.Compare(a.name.queue, b.name.queue), cmp.Compare(a.name.index, b.name.index))
	})
	for _, s := range all {
		k.saw(7, 1)
		if s.why != "" {
			k.fail(s.ill, last, Message{}, "", "%v after all was delivered %s", ms(last-k.drained), s.why)
		}
		k.conserved(s, last)
	}
	if took := converged - k.drained; len(all) > 0 && converged != forever && took > k.rules.Converge {
		k.fail(7, converged, Message{}, "", "the replicas were equal only %v after all was delivered", ms(took))
	}
}

// judge says what keeps a partition from being at rest, and which promise that is.
func (s *states) judge() (promise int, why string) {
	nodes := make([]string, 0, len(s.of))
	for n := range s.of {
		nodes = append(nodes, n)
	}
	slices.Sort(nodes)
	var first, owner *Event
	homes, want := 0, 0
	where := func(n string) string { return n + " in " + s.name.String() }
	for _, n := range nodes {
		e := s.of[n]
		r := e.Replica
		want = max(want, e.Want)
		if r.Hints > 0 {
			return 7, where(n) + " still keeps hints"
		}
		if !r.Home {
			continue
		}
		homes++
		if r.Repairing {
			return 12, where(n) + " is still repairing"
		}
		if first == nil {
			first = e
		} else if r.Digest != first.Replica.Digest {
			return 7, where(n) + " has another state than " + first.Who
		}
		if r.Owns {
			if owner != nil {
				return 7, where(n) + " owns what " + owner.Who + " owns"
			}
			owner = e
		}
	}
	switch {
	case homes == 0:
		return 7, "nobody says that it is a home replica of " + s.name.String()
	case homes < want:
		return 7, "not all home replicas of " + s.name.String() + " answer"
	case owner == nil:
		return 7, "nobody owns " + s.name.String()
	}
	return 0, ""
}

func (n partitionName) String() string {
	return n.queue + "/" + strconv.FormatUint(uint64(n.index), 10)
}

// conserved checks P11 by the owner's own count: at rest all is done.
func (k *checker) conserved(s *states, at time.Duration) {
	if s.why != "" {
		return
	}
	for _, e := range s.of { // one of them owns it
		r := e.Replica
		if !r.Home || !r.Owns {
			continue
		}
		k.saw(11, 1)
		if n := k.positions()[s.name]; r.Messages < n {
			k.fail(11, at, Message{}, "", "%s knows of %d messages in %s, and %d were confirmed there", e.Who, r.Messages, s.name, n)
		}
		for _, g := range r.Groups {
			k.saw(11, 1)
			if g.Ready+g.InFlight+g.Delayed != 0 || g.Done != r.Messages {
				k.fail(11, at, Message{}, g.Name, "all is acked, but %s says of %s in %s: %d ready, %d in flight, %d delayed, %d done of %d",
					e.Who, g.Name, s.name, g.Ready, g.InFlight, g.Delayed, g.Done, r.Messages)
			}
		}
	}
}

// positions counts the confirmed messages by partition.
func (k *checker) positions() map[partitionName]uint64 {
	if k.confirmedIn != nil {
		return k.confirmedIn
	}
	k.confirmedIn = map[partitionName]uint64{}
	for i := range k.lives {
		x := &k.lives[i]
		if _, purged := k.purgedAt(x); k.confirmed(x) && !purged {
			k.confirmedIn[partitionName{k.sentOf(x).Queue, k.answerOf(x).Partition}]++
		}
	}
	return k.confirmedIn
}

// repairing checks P12 as far as it shows: a node that says that it is repairing a
// partition does not own it. That its repair ends is looked at at rest.
func (k *checker) repairing() {
	for i := range k.events {
		e := &k.events[i]
		switch {
		case e.Kind == FaultBegin && slices.Contains(hurting, e.Code) && k.hasDrained:
			k.saw(12, 1)
		case e.Kind == State && e.Replica != nil && e.Replica.Repairing:
			k.saw(12, 1)
			if e.Replica.Owns {
				k.fail(12, e.At, Message{}, "", "%s owns %s/%d and says that it is repairing it", e.Who, e.Queue, e.Partition)
			}
		}
	}
}

// samples checks P8: memory does not grow with the backlog; and that disks are given
// back.
func (k *checker) samples() {
	type node struct{ base, most, disk int64 }
	nodes := map[string]*node{}
	for i := range k.events {
		e := &k.events[i]
		if e.Kind == NodeDown { // the next process starts from nothing
			delete(nodes, e.Who)
		}
		if e.Kind != Sample {
			continue
		}
		n := nodes[e.Who]
		if n == nil {
			n = &node{base: e.Memory}
			nodes[e.Who] = n
		}
		if k.rules.Memory > 0 && e.Memory > 0 {
			k.saw(8, 1)
			if grown := e.Memory - n.base; grown > k.rules.Memory && n.most <= k.rules.Memory {
				k.fail(8, e.At, Message{}, "", "the memory of %s has grown by %d MiB, allowed are %d MiB", e.Who, grown>>20, k.rules.Memory>>20)
			}
			n.most = max(n.most, e.Memory-n.base)
		}
		n.disk = e.Disk
	}
	if k.rules.Disk == 0 || !k.hasDrained {
		return
	}
	for _, name := range k.nodes {
		if n := nodes[name]; n != nil && n.disk > k.rules.Disk && !k.rules.Beyond {
			k.out = append(k.out, Violation{Promise: "disk", At: k.ended, Text: fmt.Sprintf("%s still holds %d MiB on disk when all is acked, allowed are %d MiB", name, n.disk>>20, k.rules.Disk>>20)})
		}
	}
}
