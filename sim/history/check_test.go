package history

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// oneMessage is sent, confirmed, delivered and acked.
const oneMessage = `
	0ms sent p p#0 within=2s
	2ms confirmed p p#0 2/2 id=a
	4ms delivered c p#0 id=a lease=30s
	5ms acking c p#0
	6ms acked c p#0
`

// atEnd is an end at which three nodes agree on one message.
const atEnd = `
	100s healed
	101s drained
	102s state n1 home owns digest=d messages=1 done=1 want=3
	102s state n2 home digest=d messages=1 want=3
	102s state n3 home digest=d messages=1 want=3
`

var checkTests = []struct {
	name   string
	rules  Rules
	broken string // promises, one for each violation; "" when all are kept
	seen   string // promises that must have been checked
	text   string
}{
	{name: "calm", rules: Rules{Calm: true}, seen: "P1 P2 P3 P4 P6 P7 P9 P10 P11", text: oneMessage + atEnd},
	{name: "nothing", text: ""},

	// P1
	{name: "P1: fewer copies than wanted", broken: "P1", text: `
		0ms sent p p#0
		2ms confirmed p p#0 1/2 id=a`},
	{name: "P1: one copy of one in a ring of one", text: `
		0ms sent p p#0
		2ms confirmed p p#0 1/1 id=a`},
	{name: "P1: it wants fewer than the queue does", rules: Rules{Quorum: map[string]int{"q": 2}}, broken: "P1", text: `
		0ms sent p p#0
		2ms confirmed p p#0 1/1 id=a`},
	{name: "P1: two messages at one position", broken: "P1", text: `
		0ms sent p p#0
		0ms sent p p#1
		2ms confirmed p p#0 2/2 id=a
		3ms confirmed p p#1 2/2 id=a`},
	{name: "P1: lost", broken: "P1", seen: "P2", text: oneMessage + `
		7ms sent p p#1
		8ms confirmed p p#1 2/2 id=b
		10s healed
		11s drained`},
	{name: "P1: unknown and never seen is no loss", text: oneMessage + `
		7ms sent p p#1
		8ms unknown p p#1 code=quorum
		10s healed
		11s drained`},
	{name: "P1: the history ends before it is drained", text: `
		0ms sent p p#0
		1ms confirmed p p#0 2/2 id=a
		10s healed`},
	{name: "P1: its queue was deleted", text: oneMessage + `
		7ms sent p p#1
		8ms confirmed p p#1 2/2 id=b
		9ms purged
		10s healed
		11s drained`},
	{name: "P1: sent to a queue that is created again after the deletion", broken: "P1", text: oneMessage + `
		7ms purged
		8ms sent p p#1
		9ms confirmed p p#1 2/2 id=b
		10s healed
		11s drained`},

	// P2
	{name: "P2: one group never got it", broken: "P2", text: oneMessage + `
		7ms sent p p#1
		8ms confirmed p p#1 2/2 id=b
		9ms delivered c p#1
		9ms acking c p#1
		9ms delivered d p#0 group=other
		9ms acking d p#0 group=other
		10s healed
		11s drained`},
	{name: "P2: a group that the rules know never got any", rules: Rules{Groups: map[string][]string{"q": {"default", "other"}}}, broken: "P2", text: oneMessage + `
		10s healed
		11s drained`},
	{name: "P2: stuck, so it was never drained", broken: "P2", text: `
		0ms sent p p#0
		1ms confirmed p p#0 2/2 id=a
		10s healed
		101s sample n1`, rules: Rules{Groups: map[string][]string{"q": {"default"}}}},
	{name: "P2: delivered, given back, and stuck", broken: "P2", text: `
		0ms sent p p#0
		1ms confirmed p p#0 2/2 id=a
		2ms delivered c p#0
		3ms nacked c p#0
		10s healed
		101s sample n1`},
	{name: "P2: delivered in the end", text: `
		0ms sent p p#0
		1ms confirmed p p#0 2/2 id=a
		10s healed
		80s delivered c p#0
		80s acking c p#0
		81s drained`},
	{name: "P2: beyond what is promised", rules: Rules{Beyond: true}, seen: "P2", text: oneMessage + `
		7ms sent p p#1
		8ms confirmed p p#1 2/2 id=b
		10s healed
		11s drained`},

	// P3
	{name: "P3: acked and back", broken: "P3", seen: "P3", text: oneMessage + `
		9s delivered c p#0 attempt=2`},
	{name: "P3: by the next owner", broken: "P3", text: oneMessage + `
		9s fault-begin 1 crash on=n1
		20s delivered c p#0 term=2.n2 cause=takeover`},
	{name: "P3: under way when the ack was confirmed", text: `
		0ms sent p p#0
		1ms delivered c p#0 lease=1s
		1s acking c p#0
		1100ms delivered d p#0 attempt=2 cause=lease lease=1s
		1101ms acked c p#0
		1103ms acked d p#0 attempt=2`},
	{name: "P3: an earlier attempt that was late", text: `
		0ms sent p p#0
		1ms delivered c p#0 attempt=2 cause=lease
		2ms acked c p#0 attempt=2
		1900ms delivered d p#0 attempt=1 cause=lease`},
	{name: "P3: held up by a link that was cut", text: `
		0ms sent p p#0
		1ms delivered c p#0 lease=1s
		1s fault-begin 1 cut on=d
		2s acked c p#0
		30s fault-end 1
		30s delivered d p#0 attempt=2 cause=lease`},
	{name: "P3: a link that was cut holds up nobody else", broken: "P3", text: `
		0ms sent p p#0
		1ms delivered c p#0 lease=1s
		1s fault-begin 1 cut on=e
		2s acked c p#0
		30s fault-end 1
		30s delivered d p#0 attempt=2 cause=lease`},
	{name: "P3: nor for ever", broken: "P3", text: `
		0ms sent p p#0
		1ms delivered c p#0 lease=1s
		1s fault-begin 1 cut on=d
		2s acked c p#0
		3s fault-end 1
		30s delivered d p#0 attempt=2 cause=lease`},
	{name: "P3: the client dropped it", text: oneMessage + `
		9s dropped c p#0`},
	{name: "P3: an ack that was not confirmed", text: `
		0ms sent p p#0
		1ms delivered c p#0 lease=1s
		2ms acking c p#0
		1s ack-failed c p#0 code=timeout
		9s delivered d p#0 attempt=2 cause=lease`},

	// P4
	{name: "P4: two at once", broken: "P4", text: `
		0ms sent p p#0
		1ms delivered c p#0 lease=30s
		9s delivered d p#0 attempt=2 cause=lease`},
	{name: "P4: the lease ran out", rules: Rules{Calm: true}, text: `
		0ms sent p p#0
		1ms delivered c p#0 lease=10s
		10s delivered d p#0 attempt=2 cause=lease`},
	{name: "P4: the lease was extended", broken: "P4", text: `
		0ms sent p p#0
		1ms delivered c p#0 lease=10s
		9s extended c p#0 lease=10s
		12s delivered d p#0 attempt=2 cause=lease`},
	{name: "P4: nacked", rules: Rules{Calm: true}, text: `
		0ms sent p p#0
		1ms delivered c p#0 lease=10s
		2ms nacked c p#0
		9ms delivered d p#0 attempt=2 cause=nack`},
	{name: "P4: nobody nacked it", broken: "P4", text: `
		0ms sent p p#0
		1ms delivered c p#0 lease=1s
		9s delivered d p#0 attempt=2 cause=nack`},
	{name: "P4: released", rules: Rules{Calm: true}, text: `
		0ms sent p p#0
		1ms delivered c p#0 lease=10s
		2ms released c p#0
		9ms delivered d p#0 cause=released`},
	{name: "P4: the consumer died", text: `
		0ms sent p p#0
		1ms delivered c p#0 lease=30s
		2s client-down c
		3s delivered d p#0 attempt=2 cause=consumer`},
	{name: "P4: another consumer died", broken: "P4", text: `
		0ms sent p p#0
		1ms delivered c p#0 lease=30s
		2s client-down e
		3s delivered d p#0 attempt=2 cause=consumer`},
	{name: "P4: the consumer was cut off", text: `
		0ms sent p p#0
		1ms delivered c p#0 lease=30s
		2s fault-begin 1 cut on=c,n1
		6s delivered d p#0 attempt=2 cause=consumer`},
	{name: "P4: that was long before", broken: "P4", text: `
		0ms fault-begin 1 cut on=c,n1
		1s fault-end 1
		20s sent p p#0
		21s delivered c p#0 lease=30s
		26s delivered d p#0 attempt=2 cause=consumer`},
	{name: "P4: the owner died", text: `
		0ms sent p p#0
		1ms delivered c p#0 lease=30s
		2s fault-begin 1 crash on=n1
		2s node-down n1
		4s delivered d p#0 term=2.n2 cause=takeover`},
	{name: "P4: a new owner without a fault", broken: "P4", text: `
		0ms sent p p#0
		1ms delivered c p#0 lease=30s
		4s delivered d p#0 term=2.n2 cause=takeover`},
	{name: "P4: the first one is late", text: `
		0ms sent p p#0
		1ms fault-begin 1 consumer-pause on=d
		9s delivered c p#0 attempt=2 cause=lease lease=30s
		10s acked c p#0 attempt=2
		11s fault-end 1
		11s delivered d p#0`},
	{name: "P4: not marked", broken: "P4", text: `
		0ms sent p p#0
		1ms delivered c p#0 lease=1s
		9s delivered d p#0`},
	{name: "P4: a second message after the dedup window", rules: Rules{Dedup: time.Minute}, text: `
		0ms sent p p#0
		1ms delivered c p#0 id=a lease=1s
		90s delivered d p#0 id=b`},
	{name: "P4: to the same consumer again, without a fault", rules: Rules{Calm: true}, broken: "P4", text: `
		0ms sent p p#0
		1ms delivered c p#0 lease=30s
		9s delivered c p#0 attempt=2 cause=consumer`},
	{name: "P4: two groups have it", rules: Rules{Calm: true}, text: `
		0ms sent p p#0
		1ms delivered c p#0 lease=30s
		1ms delivered d p#0 lease=30s group=other`},
	{name: "P4: how long its lease is is not known", text: `
		0ms sent p p#0
		1ms delivered c p#0
		9s delivered d p#0 attempt=2 cause=lease`},

	// P5
	{name: "P5: out of order", broken: "P5", seen: "P5", text: two + `
		4ms delivered c p#1
		5ms delivered c p#0`},
	{name: "P5: in order", text: two + `
		4ms delivered c p#0
		5ms delivered c p#1`},
	{name: "P5: the first was handed out before and lost", text: two + `
		4ms fault-begin 1 cut on=c
		4ms delivered d p#1
		5ms delivered d p#0 cause=consumer attempt=2`},
	{name: "P5: two consumers get them at almost the same time", text: two + `
		4ms delivered c p#1
		5ms delivered d p#0`},
	{name: "P5: two consumers, long after each other", broken: "P5", text: two + `
		4ms delivered c p#1
		5s delivered d p#0`},
	{name: "P5: the client of the first was paused", text: two + `
		3ms fault-begin 1 consumer-pause on=d
		4ms delivered c p#1
		5s fault-end 1
		5s delivered d p#0`},
	{name: "P5: from the next owner, to the only consumer", broken: "P5", text: two + `
		4ms delivered c p#1
		5s fault-begin 1 crash on=n1
		7s delivered c p#0 term=2.n2`},
	{name: "P5: from the next owner, and it may have been lost on the way to who relays", text: two + `
		3ms fault-begin 1 cut on=n1
		4ms delivered c p#1 node=
		7s delivered c p#0 term=2.n2 node=`},
	{name: "P5: from the next owner, and nobody relays", broken: "P5", text: two + `
		3ms fault-begin 1 cut on=n1
		4ms delivered c p#1 node=n1
		7s delivered c p#0 term=2.n2 node=n2`},
	{name: "P5: from the next owner, and another consumer may have had it", text: two + `
		3ms fault-begin 1 crash on=n1,d
		4ms delivered c p#1
		7s delivered c p#0 term=2.n2
		8s delivered d p#0 term=2.n2 attempt=2 cause=consumer`},
	{name: "P5: an owner before had got further, and its delivery was lost", text: `
		0ms sent p p#0
		0ms sent p p#1
		0ms sent p p#2
		2ms confirmed p p#0 2/2 id=a
		2ms confirmed p p#1 2/2 id=b
		2ms confirmed p p#2 2/2 id=c
		3ms fault-begin 1 crash on=n1
		4ms delivered d p#1
		7s delivered c p#2 term=2.n2
		8s delivered c p#0 term=2.n2`},
	{name: "P5: it waited its time", text: two + `
		40s delivered c p#1
		41s delivered c p#0`},
	{name: "P5: one of them was not confirmed", text: `
		0ms sent p p#0
		0ms sent p p#1
		2ms unknown p p#0 code=timeout
		2ms confirmed p p#1 2/2 id=b
		4ms delivered c p#1
		5ms delivered c p#0`},
	{name: "P5: delayed", text: `
		0ms sent p p#0 delayed
		0ms sent p p#1
		2ms confirmed p p#0 2/2 id=a
		2ms confirmed p p#1 2/2 id=b
		4ms delivered c p#1
		5ms delivered c p#0`},
	{name: "P5: two partitions", text: `
		0ms sent p p#0
		0ms sent p p#1
		2ms confirmed p p#0 2/2 id=a part=1
		2ms confirmed p p#1 2/2 id=b part=2
		4ms delivered c p#1 part=2
		5ms delivered c p#0 part=1`},
	{name: "P5: two producers", text: `
		0ms sent p p#0
		0ms sent r r#1
		2ms confirmed p p#0 2/2 id=a
		2ms confirmed r r#1 2/2 id=b
		4ms delivered c r#1
		5ms delivered c p#0`},

	// P6
	{name: "P6: no quorum, and no fault", broken: "P6", seen: "P6", text: `
		0ms node-up n1
		0ms sent p p#0 within=2s
		2s unknown p p#0 code=quorum`},
	{name: "P6: no quorum in a fault", text: `
		0ms node-up n1
		0ms fault-begin 1 cut on=n1
		0ms sent p p#0 within=2s
		2s unknown p p#0 code=quorum`},
	{name: "P6: soon after a fault", text: `
		0ms node-up n1
		0ms fault-begin 1 cut on=n1
		1s fault-end 1
		3s sent p p#0 within=2s
		5s unknown p p#0 code=quorum`},
	{name: "P6: a consumer's fault is no reason", broken: "P6", text: `
		0ms node-up n1
		0ms client-up c
		0ms fault-begin 1 consumer-pause on=c
		0ms sent p p#0 within=2s
		2s unknown p p#0 code=quorum`},
	{name: "P6: no room", text: `
		0ms node-up n1
		0ms sent p p#0 within=2s
		2s refused p p#0 code=overloaded`},
	{name: "P6: never confirmed", broken: "P6", text: `
		0ms sent p p#0
		10s healed
		101s sample n1`},

	// P7
	{name: "P7: digests differ", broken: "P7", seen: "P7", text: oneMessage + `
		10s healed
		11s drained
		12s state n1 home owns digest=d messages=1 done=1
		12s state n2 home digest=e messages=1`},
	{name: "P7: they differed for a while", text: oneMessage + `
		10s healed
		11s drained
		12s state n1 home owns digest=d messages=1 done=1
		12s state n2 home digest=e messages=1
		13s state n1 home owns digest=d messages=1 done=1
		13s state n2 home digest=d messages=1`},
	{name: "P7: for too long", broken: "P7", text: oneMessage + `
		10s healed
		11s drained
		12s state n1 home owns digest=d messages=1 done=1
		12s state n2 home digest=e messages=1
		99s state n1 home owns digest=d messages=1 done=1
		99s state n2 home digest=d messages=1`},
	{name: "P7: before all is delivered they may differ", text: oneMessage + `
		7s state n1 home owns digest=d messages=1 done=1
		7s state n2 home digest=e messages=1`},
	{name: "P7: hints are left", broken: "P7", text: oneMessage + `
		10s healed
		11s drained
		12s state n1 home owns digest=d messages=1 done=1
		12s state n4 hints=1`},
	{name: "P7: no owner", broken: "P7", text: oneMessage + `
		10s healed
		11s drained
		12s state n1 home digest=d messages=1 done=1`},
	{name: "P7: two owners", broken: "P7", text: oneMessage + `
		10s healed
		11s drained
		12s state n1 home owns digest=d messages=1 done=1
		12s state n2 home owns digest=d messages=1 done=1`},
	{name: "P7: a home replica does not answer", broken: "P7", text: oneMessage + `
		10s healed
		11s drained
		12s state n1 home owns digest=d messages=1 done=1 want=2`},
	{name: "P7: no home replica any more, and another digest", text: oneMessage + atEnd + `
		102s state n4 digest=other`},

	// P8
	{name: "P8: memory grows", rules: Rules{Memory: 1 << 20}, broken: "P8", seen: "P8", text: `
		0ms sample n1 memory=1000
		1s sample n1 memory=2000000
		2s sample n1 memory=3000000`},
	{name: "P8: memory is flat", rules: Rules{Memory: 1 << 20}, seen: "P8", text: `
		0ms sample n1 memory=5000000
		1s sample n1 memory=6000000`},
	{name: "P8: a node that was started again starts from nothing", rules: Rules{Memory: 1 << 20}, text: `
		0ms sample n1 memory=1000
		1s fault-begin 1 crash on=n1
		1s node-down n1
		2s node-up n1
		3s sample n1 memory=2000000`},
	{name: "disk is not given back", rules: Rules{Disk: 1 << 20}, broken: "disk", text: oneMessage + `
		10s healed
		11s drained
		12s sample n1 disk=2000000`},

	// P9
	{name: "P9: other bytes", broken: "P9", seen: "P9", text: `
		0ms sent p p#0
		1ms delivered c p#0 hash=x`},
	{name: "P9: nobody sent it", broken: "P9", text: `
		0ms sent p p#0
		1ms delivered c p#7`},
	{name: "P9: delivered before it was sent", broken: "P9", text: `
		0ms delivered c p#0
		1ms sent p p#0`},
	{name: "P9: told at the same time", text: `
		1ms delivered c p#0
		1ms sent p p#0`},
	{name: "P9: from another queue", broken: "P9", text: `
		0ms sent p p#0
		1ms delivered c p#0 queue=r`},
	{name: "P9: from another partition", broken: "P9", text: `
		0ms sent p p#0
		1ms confirmed p p#0 2/2 id=a part=1
		1ms delivered c p#0 part=2`},

	// P10
	{name: "P10: refused and delivered", broken: "P10", seen: "P10", text: `
		0ms sent p p#0
		1ms refused p p#0 code=overloaded
		2ms delivered c p#0`},
	{name: "P10: unknown and delivered", seen: "P10", text: `
		0ms sent p p#0
		1ms unknown p p#0 code=quorum
		2ms delivered c p#0`},
	{name: "P10: refused with what means unknown", broken: "P10", text: `
		0ms sent p p#0
		1ms refused p p#0 code=timeout`},
	{name: "P10: answered twice", broken: "P10", text: `
		0ms sent p p#0
		1ms confirmed p p#0 2/2 id=a
		2ms unknown p p#0 code=quorum`},
	{name: "P10: answered late", broken: "P10", text: `
		0ms sent p p#0 within=2s
		9s confirmed p p#0 2/2 id=a`},
	{name: "P10: its client was paused", text: `
		0ms sent p p#0 within=2s
		1s fault-begin 1 pause on=p
		9s fault-end 1
		9s confirmed p p#0 2/2 id=a`},
	{name: "P10: never answered", broken: "P10", text: `
		0ms sent p p#0 within=2s
		9s sample n1`},
	{name: "P10: its client died", text: `
		0ms sent p p#0 within=2s
		1s client-down p
		9s sample n1`},
	{name: "P10: the history ends before", text: `
		0ms sent p p#0 within=2s
		2s sample n1`},
	{name: "P10: an internal error", broken: "P10", text: `
		0ms sent p p#0 within=2s
		1ms refused p p#0 code=internal`},
	{name: "P10: no code", broken: "P10", text: `
		0ms sent p p#0 within=2s
		1ms refused p p#0 code=oops`},
	{name: "P10: the queue was deleted", text: `
		0ms sent p p#0 within=2s
		1ms refused p p#0 code=no-queue
		2ms purged`},

	// P11
	{name: "P11: seen, and gone without an ack", broken: "P11", seen: "P11", text: `
		0ms sent p p#0
		1ms confirmed p p#0 2/2 id=a
		2ms delivered c p#0 lease=1s
		3ms nacked c p#0
		10s healed
		11s drained`},
	{name: "P11: its ack was kept and not confirmed", text: `
		0ms sent p p#0
		1ms confirmed p p#0 2/2 id=a
		2ms delivered c p#0 lease=1s
		3ms acking c p#0
		4ms client-down c
		10s healed
		11s drained`},
	{name: "P11: the owner has some left", broken: "P11", text: oneMessage + `
		10s healed
		11s drained
		12s state n1 home owns digest=d messages=2 done=1 ready=1`},
	{name: "P11: the owner lost count", broken: "P11 P11", text: oneMessage + `
		7ms sent p p#1
		8ms confirmed p p#1 2/2 id=b
		9ms delivered c p#1
		9ms acking c p#1
		10s healed
		11s drained
		12s state n1 home owns digest=d messages=1 done=0`},
	{name: "P11: back after its queue was deleted", broken: "P11", text: `
		0ms sent p p#0
		1ms confirmed p p#0 2/2 id=a
		2ms purged
		9s delivered c p#0`},

	// P12
	{name: "P12: repairs for ever", broken: "P12", seen: "P12", text: oneMessage + `
		1s fault-begin 1 wipe on=n2
		2s fault-end 1
		10s healed
		11s drained
		12s state n1 home owns digest=d messages=1 done=1
		12s state n2 home digest=d repairing`},
	{name: "P12: repaired", seen: "P12", text: oneMessage + `
		1s fault-begin 1 wipe on=n2
		2s fault-end 1
		3s state n2 home digest=d repairing` + atEnd},
	{name: "P12: owns what it repairs", broken: "P12", text: oneMessage + `
		1s fault-begin 1 wipe on=n2
		3s state n2 home owns digest=d repairing` + atEnd},

	// Processes
	{name: "Stop: a node ends by itself", broken: "Stop", text: `
		1s node-down n1`},
	{name: "Stop: it was killed", text: `
		1s fault-begin 1 crash on=n1
		1s node-down n1`},
	{name: "Stop: at the end", text: `
		1s healed
		2s drained
		3s node-down n1`},
}

// two messages are confirmed in order.
const two = `
	0ms sent p p#0
	0ms sent p p#1
	2ms confirmed p p#0 2/2 id=a
	2ms confirmed p p#1 2/2 id=b
`

func TestCheck(t *testing.T) {
	for _, test := range checkTests {
		t.Run(test.name, func(t *testing.T) {
			v := Check(script(t, test.text), test.rules)
			var broken []string
			for i := range v.Violations {
				broken = append(broken, v.Violations[i].Promise)
			}
			if got := strings.Join(broken, " "); got != test.broken {
				t.Errorf("broken %q, want %q\n%v", got, test.broken, v)
			}
			for _, want := range strings.Fields(test.seen) {
				if !slices.ContainsFunc(v.Promises, func(p Promise) bool { return p.Name == want && p.Checked > 0 }) {
					t.Errorf("%s was not checked", want)
				}
			}
			if v.Passed() != (v.First() == nil) || !v.Passed() && v.First().Error() == "" {
				t.Errorf("first is %v of %d", v.First(), len(v.Violations))
			}
		})
	}
}

// A promise that no event put to the test is not kept.
func TestNotSeen(t *testing.T) {
	v := Check(script(t, oneMessage), Rules{})
	if got := v.Promises[4].String(); got != "P5 not seen" {
		t.Errorf("got %q", got)
	}
	if got := v.Promises[0].String(); got != "P1 kept, checked 1 times" {
		t.Errorf("got %q", got)
	}
	if !strings.Contains(v.String(), "not seen: P2 P5 P7 P8 P11 P12") {
		t.Errorf("got %v", v)
	}
}

// Parts of several processes come one after the other.
func TestUnsorted(t *testing.T) {
	h := script(t, oneMessage+atEnd)
	slices.Reverse(h.Events)
	before := slices.Clone(h.Events)
	if v := Check(h, Rules{Calm: true}); !v.Passed() {
		t.Error(v)
	}
	for i := range before {
		if before[i].At != h.Events[i].At {
			t.Fatal("the history was changed")
		}
	}
}

func TestLarge(t *testing.T) {
	const n = 50_000
	h := &History{Events: make([]Event, 0, 6*n)}
	tell := func(at time.Duration, kind Kind, who string, i int) *Event {
		h.Events = append(h.Events, Event{At: at, Kind: kind, Who: who, Queue: "q", Group: "default", Message: Message{"p", uint64(i)}, Term: Term{1, "n1"}, Attempt: 1})
		return &h.Events[len(h.Events)-1]
	}
	for i := range n {
		at := time.Duration(i) * time.Millisecond
		tell(at, Sent, "p", i)
		e := tell(at, Confirmed, "p", i)
		e.Copies, e.Want, e.ID = 2, 2, fmt.Sprint(i)
		tell(at, Delivered, fmt.Sprintf("c%d", i%7), i).Lease = time.Second
		if i%10 == 0 {
			tell(at, Nacked, fmt.Sprintf("c%d", i%7), i)
			e := tell(at, Delivered, fmt.Sprintf("c%d", i%7), i)
			e.Attempt, e.Cause = 2, "nack"
		}
		tell(at, Acking, fmt.Sprintf("c%d", i%7), i)
		tell(at, Acked, fmt.Sprintf("c%d", i%7), i).Attempt = 2
		if i%100 == 0 {
			h.Events = append(h.Events, Event{At: at, Kind: FaultBegin, Number: i, Code: "cut", On: []string{"n1"}}, Event{At: at + 1, Kind: FaultEnd, Number: i})
		}
	}
	end := time.Duration(n) * time.Millisecond
	h.Events = append(h.Events, Event{At: end, Kind: Healed}, Event{At: end + time.Second, Kind: Drained})
	v := Check(h, Rules{})
	if !v.Passed() {
		t.Error(v)
	}
	if f := &v.Figures; f.Confirmed != n || f.Delivered != n+n/10 || f.Duplicates["nack"] != n/10 {
		t.Errorf("got %v", f)
	}
}
