package history

import (
	"fmt"
	"hash/fnv"
	"strconv"
	"strings"
	"testing"
	"time"
)

// script reads a history as a test writes it: a line for each event, blank lines and
// lines from # on left out.
//
//	10ms sent p p#0 [within=2s] [hash=h] [queue=q] [delayed]
//	12ms confirmed p p#0 2/2 id=a [part=1]
//	12ms refused|unknown p p#0 code=quorum
//	20ms delivered c p#0 term=3.n1 [attempt=2] [cause=lease] [lease=30s] [group=g] [id=a] [hash=h]
//	21ms acking|acked|nacked|released|lease-over|extended|dropped|ack-failed c p#0 term=3.n1
//	30ms node-down|node-up|client-down|client-up n1
//	30ms fault-begin 1 crash on=n1,n2
//	31ms fault-end 1
//	40ms healed|drained
//	50ms state n1 [home] [owns] [repairing] [hints=1] digest=d [messages=1] [done=1] [ready=0] [want=3]
//	60ms sample n1 memory=1 disk=2
//	70ms purged queue=q
func script(t *testing.T, text string) *History {
	t.Helper()
	h := &History{}
	for _, line := range strings.Split(text, "\n") {
		line, _, _ = strings.Cut(line, "// ")
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		at, err := time.ParseDuration(words[0])
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		e := Event{At: at, Kind: Kind(words[1]), Queue: "q"}
		words = words[2:]
		next := func() string {
			w := words[0]
			words = words[1:]
			return w
		}
		switch e.Kind {
		case FaultBegin:
			e.Number, _ = strconv.Atoi(next())
			e.Code = next()
		case FaultEnd:
			e.Number, _ = strconv.Atoi(next())
		case Healed, Drained, Purged:
		case State:
			e.Who = next()
			e.Replica = &Replica{Groups: []GroupState{{Name: "default"}}}
		case Sample, NodeUp, NodeDown, ClientUp, ClientDown:
			e.Who = next()
		default:
			e.Who = next()
			producer, number, _ := strings.Cut(next(), "#")
			n, err := strconv.ParseUint(number, 10, 64)
			if err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			e.Message = Message{producer, n}
			e.Hash = hashOf(producer + number)
			e.Group = "default"
			if e.Kind == Delivered || e.Kind == Acked {
				e.Term, e.Attempt = Term{1, "n1"}, 1
			}
		}
		for _, w := range words {
			name, value, _ := strings.Cut(w, "=")
			if a, b, ok := strings.Cut(w, "/"); ok && value == "" {
				e.Copies, _ = strconv.Atoi(a)
				e.Want, _ = strconv.Atoi(b)
				continue
			}
			if err := e.set(name, value); err != nil {
				t.Fatalf("%q: %v", line, err)
			}
		}
		h.Events = append(h.Events, e)
	}
	return h
}

func hashOf(s string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(s))
	return h.Sum64()
}

// set sets a field of an event by its name in a script.
func (e *Event) set(name, value string) (err error) {
	n, _ := strconv.ParseInt(value, 10, 64)
	switch name {
	case "term":
		counter, node, _ := strings.Cut(value, ".")
		e.Term.Node = node
		e.Term.Counter, err = strconv.ParseUint(counter, 10, 64)
	case "attempt":
		e.Attempt = uint32(n)
	case "cause":
		e.Cause = value
	case "lease":
		e.Lease, err = time.ParseDuration(value)
	case "within":
		e.Within, err = time.ParseDuration(value)
	case "group":
		e.Group = value
	case "queue":
		e.Queue = value
	case "id":
		e.ID = value
	case "part":
		e.Partition = uint32(n)
	case "code":
		e.Code = value
	case "hash":
		e.Hash = hashOf(value)
	case "on":
		e.On = strings.Split(value, ",")
	case "node":
		e.Node = value
	case "delayed":
		e.Delayed = true
	case "home":
		e.Replica.Home = true
	case "owns":
		e.Replica.Owns = true
	case "repairing":
		e.Replica.Repairing = true
	case "hints":
		e.Replica.Hints = int(n)
	case "digest":
		e.Replica.Digest = value
	case "messages":
		e.Replica.Messages = uint64(n)
	case "done":
		e.Replica.Groups[0].Done = uint64(n)
	case "ready":
		e.Replica.Groups[0].Ready = uint64(n)
	case "want":
		e.Want = int(n)
	case "memory":
		e.Memory = n
	case "disk":
		e.Disk = n
	default:
		err = fmt.Errorf("no field %q", name)
	}
	return err
}
