package plan

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"
)

// big is a plan with many faults that matter to nobody.
func big() *Plan {
	p := &Plan{Version: Version, Seed: 1, Length: Duration(20 * time.Second)}
	for _, n := range []string{"a", "b", "c", "d", "e"} {
		p.Mesh.Nodes = append(p.Mesh.Nodes, Node{Name: n, Zone: "x", Drift: 100})
	}
	for i := range 3 {
		q := fmt.Sprintf("q%d", i)
		p.Queues = append(p.Queues, Queue{Name: q, Partitions: 3, Replicas: 3, WriteQuorum: 2})
		p.Producers = append(p.Producers, Producer{Name: "p" + q, Queue: q, Think: Duration(time.Millisecond), Batch: 4})
		p.Consumers = append(p.Consumers, Consumer{Name: "c" + q, Queue: q, Hold: Duration(123456789)})
	}
	for i := range 12 {
		p.Faults = append(p.Faults,
			Fault{Kind: Pause, At: Duration(i) * Duration(time.Second), For: Duration(345678901), On: []string{"c"}},
			Fault{Kind: Split, At: Duration(i) * Duration(time.Second), For: Duration(2 * time.Second), On: []string{"a", "b", "pq1"}})
	}
	p.Faults = append(p.Faults,
		Fault{Kind: Crash, At: Duration(3 * time.Second), For: Duration(time.Second), On: []string{"b"}},
		Fault{Kind: Cut, At: Duration(4 * time.Second), For: Duration(time.Second), On: []string{"a"}, To: []string{"b"}})
	return p
}

// guilty tells whether b crashes and is cut off from a, and somebody sends to q2.
func guilty(p *Plan) bool {
	crash := slices.ContainsFunc(p.Faults, func(f Fault) bool { return f.Kind == Crash && slices.Contains(f.On, "b") })
	cut := slices.ContainsFunc(p.Faults, func(f Fault) bool {
		return f.Kind == Cut && f.For >= Duration(300*time.Millisecond) && slices.Contains(f.On, "a")
	})
	return crash && cut && slices.ContainsFunc(p.Producers, func(x Producer) bool { return x.Queue == "q2" })
}

func TestShrink(t *testing.T) {
	start := big()
	if err := start.Validate(); err != nil {
		t.Fatal(err)
	}
	var runs atomic.Int64
	s := Shrinker{Workers: 4, Broken: func(p *Plan) bool {
		runs.Add(1)
		return guilty(p)
	}}
	small := s.Shrink(context.Background(), start, Duration(10*time.Second))
	if !guilty(small) {
		t.Fatal("the small plan is not broken")
	}
	if err := small.Validate(); err != nil {
		t.Errorf("the small plan is not valid: %v", err)
	}
	if len(small.Faults) != 2 || len(small.Producers) != 1 || len(small.Consumers) != 1 || len(small.Queues) != 1 || len(small.Mesh.Nodes) != 2 {
		t.Errorf("left: %d faults, %d producers, %d consumers, %d queues, %d nodes; want 2 1 1 1 2",
			len(small.Faults), len(small.Producers), len(small.Consumers), len(small.Queues), len(small.Mesh.Nodes))
	}
	if q := small.Queues[0]; q.Partitions != 0 || small.Mesh.Nodes[0].Zone != "" {
		t.Errorf("values are not plain: %+v %+v", q, small.Mesh.Nodes[0])
	}
	if len(start.Faults) != 26 {
		t.Error("the plan that was given has changed")
	}
	again := (&Shrinker{Workers: 4, Broken: guilty}).Shrink(context.Background(), big(), Duration(10*time.Second))
	if slices.Compare(again.size(), small.size()) != 0 {
		t.Error("shrinking twice gives two plans")
	}
	t.Logf("%d runs", runs.Load())
}

// TestShrinkKeepsConsumers takes out consumers that are too many, and groups with all of
// theirs, but leaves no group that is left without one.
func TestShrinkKeepsConsumers(t *testing.T) {
	p := big()
	p.Queues[1].Groups = []string{"one", "two", "three"}
	p.Consumers = nil
	for _, q := range p.Queues {
		for _, group := range append(q.Groups, "")[:max(1, len(q.Groups))] {
			for i := range 3 {
				name := fmt.Sprintf("c%s%s%d", q.Name, group, i)
				p.Consumers = append(p.Consumers, Consumer{Name: name, Queue: q.Name, Group: group})
			}
		}
	}
	p.Consumers = append(p.Consumers, Consumer{Name: "named", Queue: "q2", Group: "default"})
	p.Faults = append(p.Faults, Fault{Kind: ConsumerCrash, At: Duration(time.Second), On: []string{"cq1two2"}})
	if err := p.Validate(); err != nil {
		t.Fatal(err)
	}
	starved := func(p *Plan) bool { // a group of a queue that is sent to has no consumer
		for _, x := range p.Producers {
			q := p.Filled().Queues[slices.IndexFunc(p.Queues, func(q Queue) bool { return q.Name == x.Queue })]
			for _, group := range q.Groups {
				if !slices.ContainsFunc(p.Filled().Consumers, func(c Consumer) bool { return c.Queue == q.Name && c.Group == group }) {
					return true
				}
			}
		}
		return false
	}
	broken := func(p *Plan) bool {
		two := slices.ContainsFunc(p.Producers, func(x Producer) bool { return x.Queue == "q1" }) &&
			slices.ContainsFunc(p.Queues, func(q Queue) bool { return slices.Contains(q.Groups, "two") })
		return two || starved(p)
	}
	small := (&Shrinker{Broken: broken}).Shrink(context.Background(), p, 0)
	if starved(small) {
		t.Errorf("a group without a consumer is left: %+v %+v", small.Queues, small.Consumers)
	}
	if len(small.Queues) != 1 || len(small.Queues[0].Groups) != 1 || len(small.Consumers) != 1 || len(small.Producers) != 1 || len(small.Faults) != 0 {
		t.Errorf("left: %d queues, %d consumers, %d producers, %d faults; want one each with one group, and no fault",
			len(small.Queues), len(small.Consumers), len(small.Producers), len(small.Faults))
	}
}

// TestShrinkBounds ends early by tries and by context, and never gives what is not broken.
func TestShrinkBounds(t *testing.T) {
	for _, tries := range []int{1, 5, 20} {
		runs := 0
		s := Shrinker{Tries: tries, Broken: func(p *Plan) bool { runs++; return guilty(p) }}
		if small := s.Shrink(context.Background(), big(), 0); !guilty(small) || runs > tries {
			t.Errorf("%d tries: %d runs, broken: %t", tries, runs, guilty(small))
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	s := Shrinker{Broken: func(*Plan) bool { t.Error("ran after the end"); return true }}
	if small := s.Shrink(ctx, big(), 0); len(small.Faults) != 26 {
		t.Error("the plan has changed")
	}
}

// TestShrinkLuck keeps a part away when other luck does what it did.
func TestShrinkLuck(t *testing.T) {
	p := big()
	broken := func(p *Plan) bool { // needs the crash, and the cut or the luck of seed 3
		return slices.ContainsFunc(p.Faults, func(f Fault) bool { return f.Kind == Crash }) &&
			(p.Seed == 3 || slices.ContainsFunc(p.Faults, func(f Fault) bool { return f.Kind == Cut }))
	}
	small := (&Shrinker{Broken: broken, Lucks: 3}).Shrink(context.Background(), p, 0)
	if len(small.Faults) != 1 || small.Seed != 3 {
		t.Errorf("%d faults with seed %d; want 1 with seed 3", len(small.Faults), small.Seed)
	}
}
