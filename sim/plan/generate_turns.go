package plan

import "slices"

// What the draws of single kinds seldom bring about: faults that last, and faults of which
// the second matters because of the first.

// lasting makes up to two of the faults last for most of the plan, in one plan of six: what
// the mesh does only after 8 s (it gives up a ring step, the checks miss an owner) no
// shorter one reaches.
func (g *generator) lasting(d dice) {
	p := g.plan
	if !d.oneIn(6) {
		return
	}
	var long []int
	for i := range p.Faults {
		if f := &p.Faults[i]; f.For > 0 && f.Kind != Rollback { // which needs time after
			long = append(long, i)
		}
	}
	for range min(len(long), d.from(1, 2)) {
		f := &p.Faults[long[d.below(len(long))]]
		f.At, f.For = d.time(0, p.Length/4), d.time(p.Length*2/5, p.Length*3/4)
	}
}

// turns draw two faults that follow each other. Each is in one plan of sixteen.
var turns = []struct {
	about string
	kinds []Kind
	draw  func(g *generator, d dice) []Fault
}{
	{"a node joins while another is cut off", []Kind{Split, Join}, func(g *generator, d dice) []Fault {
		if len(g.names) > 5 {
			return nil
		}
		cut := g.cutOff(d, d.one(g.names), 4*second, 12*second)
		return []Fault{cut, {Kind: Join, At: cut.At + d.time(100*millisecond, 3*second), Count: 1}}
	}},
	{"a node loses its disk right after another was cut off, and half of the time it is not replaced", []Kind{Split, Wipe}, func(g *generator, d dice) []Fault {
		away, lost := d.two(g.names)
		cut := g.cutOff(d, away, 2*second, 10*second)
		cut.At += g.plan.Length / 4
		wipe := Fault{Kind: Wipe, At: cut.At + d.time(50*millisecond, 2*second), On: lost}
		if d.oneIn(2) {
			wipe.For = d.time(10*millisecond, 5*second)
		}
		g.whole(wipe.At)
		return []Fault{cut, wipe}
	}},
	{"gossip says of a dead node that it lives", []Kind{Crash, StaleRevive}, func(g *generator, d dice) []Fault {
		told, dead := d.two(g.names)
		crash := Fault{Kind: Crash, At: d.time(0, g.plan.Length/4), On: dead, For: d.time(g.plan.Length*2/5, g.plan.Length*3/4)}
		return []Fault{crash, {Kind: StaleRevive, At: crash.At + d.time(0, second), On: told, To: dead, For: crash.For}}
	}},
}

// inTurn draws faults that follow each other.
func (g *generator) inTurn() {
	for _, t := range turns {
		if d := g.dice(t.about); d.oneIn(16) && !slices.ContainsFunc(t.kinds, func(k Kind) bool { return !g.allows(k) }) {
			g.plan.Faults = append(g.plan.Faults, t.draw(g, d)...)
		}
	}
}

// whole takes out the faults that keep a node or a disk from being whole at a moment: the
// promises cover the loss of a disk only where all others are, and it would be left out.
func (g *generator) whole(at Duration) {
	g.plan.Faults = slices.DeleteFunc(g.plan.Faults, func(f Fault) bool {
		switch f.Kind {
		case Crash, PowerCut, Restart, Pause, Join, DiskError, Torn, Amnesia, Damage, DamageRecord, OpenError, Rollback, Wipe, KeyReturns:
			return f.At < at && at < f.At+f.For+5*second
		}
		return false
	})
}

// cutOff cuts a node off from all other nodes, and some of the clients with it.
func (g *generator) cutOff(d dice, node []string, least, most Duration) Fault {
	clients := append(g.producers(), g.consumers()...)
	return Fault{
		Kind: Split, At: d.time(0, g.plan.Length/2), For: d.time(least, most),
		On: append(node, d.some(clients, 0, len(clients)/2)...),
	}
}
