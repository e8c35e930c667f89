package chaos

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/meshq/meshq/sim/plan"
)

// Shape is what random plans are drawn for.
type Shape struct {
	Nodes       int // default 4
	Replicas    int // default 3
	WriteQuorum int // default: majority of the replicas
	// Can says which kinds of faults can be brought about; nil: all.
	Can func(plan.Kind) bool
}

// round is one plan of a long run: some time with load and faults, after which all heals.
type round struct {
	seed   uint64
	number int      // from 1
	nodes  []string // that the mesh has now
	last   bool     // no round follows
	joined int      // nodes that have joined in the rounds before
	lost   bool     // a disk was lost for good in the rounds before
	shape  Shape
}

const (
	roundLength = 25 * time.Second
	calmAtEnd   = 3 * time.Second // of a round, in which no fault begins
	mostJoins   = 2               // in all rounds
)

// draw makes the plan of a round. Its faults stay within the promises: at most one disk
// loses something before all is repaired, and a disk is lost for good in the last round
// alone, for a node that never comes back stays a home replica.
func (r round) draw() *plan.Plan {
	d := dice{rand.New(rand.NewPCG(r.seed, uint64(r.number)))}
	p := &plan.Plan{
		Version: plan.Version, Name: fmt.Sprintf("random-%d-%d", r.seed, r.number), About: fmt.Sprintf("round %d of the random run of seed %d", r.number, r.seed),
		Seed: r.seed*1000 + uint64(r.number), Length: plan.Duration(roundLength),
	}
	for _, n := range r.nodes {
		p.Mesh.Nodes = append(p.Mesh.Nodes, plan.Node{Name: n})
	}
	r.load(d, p)
	var drawn []plan.Fault
	for _, k := range generators {
		if (r.shape.Can == nil || r.shape.Can(k.kind)) && d.IntN(8) < 3 {
			for range 1 + d.IntN(k.most) {
				f := k.draw(d, p)
				f.Kind = k.kind
				f.At = d.time(time.Second, roundLength-calmAtEnd)
				drawn = append(drawn, f)
			}
		}
	}
	drawn = append(drawn, r.disk(d, p)...)
	if r.joined < mostJoins && (r.shape.Can == nil || r.shape.Can(plan.Join)) && d.IntN(4) == 0 {
		drawn = append(drawn, plan.Fault{Kind: plan.Join, Count: 1, At: d.time(time.Second, roundLength/2)})
	}
	p.Faults = r.within(drawn)
	slices.SortStableFunc(p.Faults, func(a, b plan.Fault) int { return cmp.Compare(a.At, b.At) })
	return p
}

// load draws queues, producers and consumers.
func (r round) load(d dice, p *plan.Plan) {
	for i := range 1 + d.IntN(2) {
		q := plan.Queue{
			Name: fmt.Sprintf("round-%d-q%d", r.number, i), Partitions: 1 + d.IntN(3), Replicas: orElse(r.shape.Replicas, 3), WriteQuorum: r.shape.WriteQuorum,
			Lease: d.time(2*time.Second, 6*time.Second), BackoffMin: d.time(20*time.Millisecond, 500*time.Millisecond),
		}
		q.BackoffMax = 4 * q.BackoffMin
		if d.IntN(3) == 0 {
			q.Groups = []string{"one", "two"}
		}
		p.Queues = append(p.Queues, q)
		for range 1 + d.IntN(2) {
			producer := plan.Producer{
				Name: fmt.Sprintf("p%d", len(p.Producers)+1), Queue: q.Name, Think: d.time(20*time.Millisecond, 120*time.Millisecond),
				Batch: 1 + d.IntN(6), Bytes: 64 << d.IntN(8), Timeout: d.time(time.Second, 5*time.Second),
			}
			if d.IntN(2) == 0 {
				producer.Keys = 1 + d.IntN(20)
			}
			p.Producers = append(p.Producers, producer)
		}
		for _, g := range groupsOf(q) {
			for range 1 + d.IntN(2) {
				c := plan.Consumer{
					Name: fmt.Sprintf("c%d", len(p.Consumers)+1), Queue: q.Name, Group: g, Window: 4 + d.IntN(28), Hold: d.time(time.Millisecond, 40*time.Millisecond),
				}
				if d.IntN(3) == 0 {
					c.Nack, c.Forget = 0.1, 0.05
				}
				p.Consumers = append(p.Consumers, c)
			}
		}
	}
}

// disk draws at most one fault that makes a disk lose something.
func (r round) disk(d dice, p *plan.Plan) []plan.Fault {
	f := plan.Fault{
		Kind: hurting[d.IntN(len(hurting))], On: d.one(r.nodes), At: d.time(5*time.Second, roundLength-calmAtEnd),
		For: d.time(200*time.Millisecond, 3*time.Second), By: d.time(time.Second, 4*time.Second), Count: 1 + d.IntN(5),
	}
	if f.Kind == plan.Wipe && !r.last {
		f.Kind = plan.Amnesia
	}
	if d.IntN(2) == 0 || r.lost || r.shape.Can != nil && !r.shape.Can(f.Kind) {
		return nil
	}
	return []plan.Fault{f}
}

// hurting are the kinds of faults after which a disk has less than it had.
var hurting = []plan.Kind{plan.Torn, plan.Amnesia, plan.Damage, plan.DamageRecord, plan.OpenError, plan.Rollback, plan.Wipe}

// within takes out what would be more than the promises cover, or more than one node
// can go through: a disk that is set back behind a start of its node is a disk that is
// lost, and so may be that of a node with a twin; so nothing else takes that node down,
// and no other disk loses anything.
func (r round) within(drawn []plan.Fault) (kept []plan.Fault) {
	alone := ""
	for _, f := range drawn {
		if f.Kind == plan.Rollback || f.Kind == plan.Wipe {
			alone = f.On[0]
		}
	}
	lossy := slices.ContainsFunc(drawn, func(f plan.Fault) bool { return slices.Contains(hurting, f.Kind) })
	for _, f := range drawn {
		switch f.Kind {
		case plan.Twin:
			if lossy || r.lost {
				continue
			}
			alone, lossy = f.On[0], true
		}
		kept = append(kept, f)
	}
	drawn, kept = kept, nil
	for _, f := range drawn {
		switch f.Kind {
		case plan.Crash, plan.PowerCut, plan.Restart, plan.DiskError, plan.DiskFull:
			if alone != "" && slices.Contains(f.On, alone) {
				continue
			}
		}
		kept = append(kept, f)
	}
	return kept
}

// dice draw what a plan has.
type dice struct{ *rand.Rand }

// time is in [lo, hi), in whole milliseconds.
func (d dice) time(lo, hi time.Duration) plan.Duration {
	return plan.Duration((lo + time.Duration(d.Int64N(int64(hi-lo)))).Truncate(time.Millisecond))
}

func (d dice) one(names []string) []string { return names[d.IntN(len(names)):][:1:1] }

// some are at least one and at most all but one of the names.
func (d dice) some(names []string) []string {
	all := slices.Clone(names)
	d.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all[:1+d.IntN(max(1, len(all)-1))]
}

// two are two different names, where there are two.
func (d dice) two(names []string) (a, b []string) {
	all := slices.Clone(names)
	d.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all[:1], all[len(all)-1:]
}

func nodesOf(p *plan.Plan) (names []string) {
	for _, n := range p.Mesh.Nodes {
		names = append(names, n.Name)
	}
	return names
}

func producersOf(p *plan.Plan) (names []string) {
	for _, c := range p.Producers {
		names = append(names, c.Name)
	}
	return names
}

func consumersOf(p *plan.Plan) (names []string) {
	for _, c := range p.Consumers {
		names = append(names, c.Name)
	}
	return names
}

// generators draw faults, without their time. most is how many of a kind a round has.
var generators = []struct {
	kind plan.Kind
	most int
	draw func(d dice, p *plan.Plan) plan.Fault
}{
	{plan.Crash, 3, func(d dice, p *plan.Plan) plan.Fault {
		f := plan.Fault{On: d.one(nodesOf(p)), For: d.time(50*time.Millisecond, 5*time.Second)}
		if d.IntN(4) == 0 {
			f.On = nodesOf(p)
		}
		return f
	}},
	{plan.PowerCut, 2, func(d dice, p *plan.Plan) plan.Fault {
		return plan.Fault{On: d.some(nodesOf(p)), For: d.time(100*time.Millisecond, 5*time.Second)}
	}},
	{plan.Restart, 2, func(d dice, p *plan.Plan) plan.Fault {
		return plan.Fault{On: d.one(nodesOf(p)), For: d.time(10*time.Millisecond, time.Second)}
	}},
	{plan.Pause, 3, func(d dice, p *plan.Plan) plan.Fault {
		return plan.Fault{On: d.one(nodesOf(p)), For: d.time(100*time.Millisecond, 5*time.Second)}
	}},
	{plan.SlowNode, 1, func(d dice, p *plan.Plan) plan.Fault {
		return plan.Fault{On: d.one(nodesOf(p)), For: d.time(time.Second, 6*time.Second), By: d.time(time.Millisecond, 40*time.Millisecond)}
	}},
	{plan.Twin, 1, func(d dice, p *plan.Plan) plan.Fault {
		return plan.Fault{On: d.one(nodesOf(p)), For: d.time(time.Second, 6*time.Second)}
	}},
	{plan.Cut, 2, betweenNodes(plan.Fault{}, 8*time.Second)},
	{plan.CutOneWay, 2, betweenNodes(plan.Fault{}, 8*time.Second)},
	{plan.Split, 1, func(d dice, p *plan.Plan) plan.Fault {
		all := slices.Concat(nodesOf(p), producersOf(p), consumersOf(p))
		return plan.Fault{On: d.some(all), For: d.time(500*time.Millisecond, 8*time.Second)}
	}},
	{plan.RingCut, 1, func(d dice, p *plan.Plan) plan.Fault {
		return plan.Fault{On: nodesOf(p), For: d.time(500*time.Millisecond, 6*time.Second)}
	}},
	{plan.Bridge, 1, func(d dice, p *plan.Plan) plan.Fault {
		return plan.Fault{On: nodesOf(p), For: d.time(500*time.Millisecond, 6*time.Second)}
	}},
	{plan.Flap, 1, func(d dice, p *plan.Plan) plan.Fault {
		f := betweenNodes(plan.Fault{}, 8*time.Second)(d, p)
		f.By = d.time(50*time.Millisecond, time.Second)
		return f
	}},
	{plan.Swizzle, 1, func(d dice, p *plan.Plan) plan.Fault {
		return plan.Fault{On: nodesOf(p), By: d.time(100*time.Millisecond, time.Second)}
	}},
	{plan.SlowLink, 2, func(d dice, p *plan.Plan) plan.Fault {
		return betweenNodes(plan.Fault{By: d.time(10*time.Millisecond, 500*time.Millisecond)}, 6*time.Second)(d, p)
	}},
	{plan.Late, 1, func(d dice, p *plan.Plan) plan.Fault {
		return plan.Fault{Count: 20 + d.IntN(200), By: d.time(5*time.Millisecond, 200*time.Millisecond), For: d.time(time.Second, 10*time.Second)}
	}},
	{plan.Loss, 2, func(d dice, p *plan.Plan) plan.Fault {
		return betweenNodes(plan.Fault{Share: float64(1+d.IntN(20)) / 100}, 6*time.Second)(d, p)
	}},
	{plan.Duplicate, 1, func(d dice, p *plan.Plan) plan.Fault {
		return betweenNodes(plan.Fault{Share: float64(1+d.IntN(50)) / 100}, 6*time.Second)(d, p)
	}},
	{plan.Bandwidth, 1, func(d dice, p *plan.Plan) plan.Fault {
		return betweenNodes(plan.Fault{Count: 1000 * (20 + d.IntN(200))}, 6*time.Second)(d, p)
	}},
	{plan.Reset, 3, betweenNodes(plan.Fault{}, 0)},
	{plan.HalfOpen, 2, betweenNodes(plan.Fault{}, 0)},
	{plan.Corrupt, 1, func(d dice, p *plan.Plan) plan.Fault {
		return betweenNodes(plan.Fault{Share: float64(1+d.IntN(20)) / 1000}, 4*time.Second)(d, p)
	}},
	{plan.GossipCut, 1, betweenNodes(plan.Fault{}, 8*time.Second)},
	{plan.AnswerLost, 2, func(d dice, p *plan.Plan) plan.Fault {
		return plan.Fault{On: d.one(slices.Concat(producersOf(p), consumersOf(p))), To: d.one(nodesOf(p)), For: d.time(50*time.Millisecond, 2*time.Second)}
	}},
	{plan.DiskFull, 1, func(d dice, p *plan.Plan) plan.Fault {
		return plan.Fault{On: d.one(nodesOf(p)), For: d.time(time.Second, 6*time.Second)}
	}},
	{plan.DiskSlow, 1, func(d dice, p *plan.Plan) plan.Fault {
		return plan.Fault{On: d.one(nodesOf(p)), For: d.time(time.Second, 6*time.Second), By: d.time(5*time.Millisecond, 200*time.Millisecond)}
	}},
	{plan.DiskStall, 1, func(d dice, p *plan.Plan) plan.Fault {
		return plan.Fault{On: d.one(nodesOf(p)), By: d.time(500*time.Millisecond, 8*time.Second)}
	}},
	{plan.DiskError, 1, func(d dice, p *plan.Plan) plan.Fault {
		return plan.Fault{On: d.one(nodesOf(p)), For: d.time(100*time.Millisecond, 3*time.Second)}
	}},
	{plan.ConsumerCrash, 2, ofConsumer(3 * time.Second)},
	{plan.ConsumerPause, 2, ofConsumer(8 * time.Second)},
	{plan.ConsumerSlow, 1, func(d dice, p *plan.Plan) plan.Fault {
		f := ofConsumer(6*time.Second)(d, p)
		f.By = d.time(50*time.Millisecond, 2*time.Second)
		return f
	}},
	{plan.ProducerCrash, 2, ofProducer(2 * time.Second)},
	{plan.NackStorm, 1, ofConsumer(4 * time.Second)},
	{plan.Poison, 1, func(d dice, p *plan.Plan) plan.Fault {
		f := ofConsumer(5*time.Second)(d, p)
		f.Count = 10 + d.IntN(50)
		return f
	}},
	{plan.Burst, 1, func(d dice, p *plan.Plan) plan.Fault {
		f := ofProducer(2*time.Second)(d, p)
		f.Count = 3 + d.IntN(10)
		return f
	}},
	{plan.DeleteQueue, 1, func(d dice, _ *plan.Plan) plan.Fault {
		return plan.Fault{For: d.time(3*time.Second, 10*time.Second)}
	}},
	{plan.UpdateQueue, 1, func(d dice, p *plan.Plan) plan.Fault {
		return plan.Fault{On: d.one(consumersOf(p)), For: d.time(3*time.Second, 10*time.Second), By: d.time(50*time.Millisecond, time.Second)}
	}},
	{plan.PauseQueue, 2, func(d dice, p *plan.Plan) plan.Fault {
		f := ofConsumer(5*time.Second)(d, p)
		if f.Count = d.IntN(2); d.IntN(2) == 0 {
			f.By, f.For = f.For, f.For+plan.Duration(time.Second)
		}
		return f
	}},
}

// betweenNodes draws two nodes; most 0 is a fault that is over at once.
func betweenNodes(f plan.Fault, most time.Duration) func(dice, *plan.Plan) plan.Fault {
	return func(d dice, p *plan.Plan) plan.Fault {
		f.On, f.To = d.two(nodesOf(p))
		if most > 0 {
			f.For = d.time(100*time.Millisecond, most)
		}
		return f
	}
}

func ofConsumer(most time.Duration) func(dice, *plan.Plan) plan.Fault {
	return func(d dice, p *plan.Plan) plan.Fault {
		return plan.Fault{On: d.one(consumersOf(p)), For: d.time(50*time.Millisecond, most)}
	}
}

func ofProducer(most time.Duration) func(dice, *plan.Plan) plan.Fault {
	return func(d dice, p *plan.Plan) plan.Fault {
		return plan.Fault{On: d.one(producersOf(p)), For: d.time(50*time.Millisecond, most)}
	}
}
