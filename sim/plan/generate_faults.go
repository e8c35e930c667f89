package plan

// generators draw the faults of each kind that random plans have.
var generators = []struct {
	kind Kind
	draw func(g *generator, d dice)
}{
	{Crash, func(g *generator, d dice) {
		g.times(d, 6, func() Fault {
			f := Fault{Kind: Crash, On: d.one(g.names), For: d.time(millisecond, 5*second)}
			if d.oneIn(2) {
				f.Count = d.from(1, 4)
			}
			return f
		})
		if d.oneIn(3) { // of all at once
			at := d.time(0, g.plan.Length-2*second)
			for _, n := range g.names {
				g.add(Fault{Kind: Crash, At: at, On: []string{n}, For: d.time(millisecond, 3*second)})
			}
		}
	}},
	{Restart, func(g *generator, d dice) {
		g.times(d, 3, func() Fault {
			return Fault{Kind: Restart, On: d.one(g.names), For: d.time(millisecond, second)}
		})
	}},
	{Pause, func(g *generator, d dice) {
		g.times(d, 4, func() Fault {
			return Fault{Kind: Pause, On: d.one(g.names), For: d.time(50*millisecond, 4*second)}
		})
	}},
	{SlowNode, func(g *generator, d dice) {
		g.times(d, 2, func() Fault {
			return Fault{Kind: SlowNode, On: d.one(g.names), For: d.time(500*millisecond, 6*second), By: d.time(millisecond, 5*millisecond)}
		})
	}},
	{Join, func(g *generator, d dice) {
		if len(g.names) < 6 {
			g.times(d, 1, func() Fault { return Fault{Kind: Join, Count: 1} })
		}
	}},

	{Cut, func(g *generator, d dice) {
		g.times(d, 4, func() Fault {
			a, b := d.two(g.names)
			return Fault{Kind: Cut, On: a, To: b, For: d.time(50*millisecond, 6*second)}
		})
		if d.oneIn(2) {
			g.times(d, 3, func() Fault {
				return Fault{Kind: Cut, On: d.one(append(g.producers(), g.consumers()...)), To: d.one(g.names), For: d.time(50*millisecond, 4*second)}
			})
		}
	}},
	{CutOneWay, func(g *generator, d dice) {
		g.times(d, 4, func() Fault {
			a, b := d.two(g.names)
			return Fault{Kind: CutOneWay, On: a, To: b, For: d.time(50*millisecond, 6*second)}
		})
		if d.oneIn(2) {
			g.times(d, 3, func() Fault {
				return Fault{Kind: CutOneWay, On: d.one(append(g.producers(), g.consumers()...)), To: d.one(g.names), For: d.time(50*millisecond, 4*second)}
			})
		}
	}},
	{Split, func(g *generator, d dice) {
		g.times(d, 2, func() Fault {
			all := g.all()
			return Fault{Kind: Split, On: d.some(all, 1, len(all)-1), For: d.time(500*millisecond, 8*second)}
		})
	}},
	{RingCut, func(g *generator, d dice) {
		if len(g.names) >= 4 {
			g.times(d, 2, func() Fault {
				return Fault{Kind: RingCut, On: d.some(g.names, len(g.names), len(g.names)), For: d.time(500*millisecond, 6*second)}
			})
		}
	}},
	{Bridge, func(g *generator, d dice) {
		g.times(d, 2, func() Fault {
			on := d.some(g.names, len(g.names), len(g.names))
			d.Shuffle(len(on), func(i, j int) { on[i], on[j] = on[j], on[i] })
			return Fault{Kind: Bridge, On: on, For: d.time(500*millisecond, 6*second)}
		})
	}},
	{Flap, func(g *generator, d dice) {
		g.times(d, 2, func() Fault {
			a, b := d.two(g.names)
			return Fault{Kind: Flap, On: a, To: b, For: d.time(second, 8*second), By: d.time(50*millisecond, second)}
		})
	}},
	{Swizzle, func(g *generator, d dice) {
		g.times(d, 1, func() Fault {
			on := d.some(g.names, 2, len(g.names))
			d.Shuffle(len(on), func(i, j int) { on[i], on[j] = on[j], on[i] })
			return Fault{Kind: Swizzle, On: on, By: d.time(100*millisecond, 1500*millisecond)}
		})
	}},
	{SlowLink, func(g *generator, d dice) {
		g.times(d, 3, func() Fault {
			a, b := d.talking(g)
			return Fault{Kind: SlowLink, On: a, To: b, For: d.time(500*millisecond, 6*second), By: d.time(20*millisecond, 2*second)}
		})
	}},
	{Late, func(g *generator, d dice) {
		g.times(d, 2, func() Fault {
			return Fault{Kind: Late, For: d.time(second, 20*second), Count: d.from(50, 500), By: d.time(10*millisecond, second)}
		})
	}},
	{Loss, func(g *generator, d dice) {
		g.times(d, 3, func() Fault {
			a, b := d.two(g.names)
			return Fault{Kind: Loss, On: a, To: b, For: d.time(500*millisecond, 8*second), Share: float64(d.from(1, 30)) / 100}
		})
	}},
	{Bandwidth, func(g *generator, d dice) {
		g.times(d, 2, func() Fault {
			a, b := d.two(g.names)
			return Fault{Kind: Bandwidth, On: a, To: b, For: d.time(500*millisecond, 6*second), Count: 1000 * d.from(5, 100)}
		})
	}},
	{Reset, func(g *generator, d dice) {
		g.times(d, 8, func() Fault {
			f := Fault{Kind: Reset}
			f.On, f.To = d.two(g.names)
			if d.oneIn(3) {
				f.On = d.one(append(g.producers(), g.consumers()...))
			}
			return f
		})
	}},
	{HalfOpen, func(g *generator, d dice) {
		g.times(d, 4, func() Fault {
			f := Fault{Kind: HalfOpen}
			f.On, f.To = d.two(g.names)
			if d.oneIn(2) {
				f.On = d.one(append(g.producers(), g.consumers()...))
			}
			if d.oneIn(2) {
				f.On, f.To = f.To, f.On
			}
			return f
		})
	}},
	{Corrupt, func(g *generator, d dice) {
		g.times(d, 2, func() Fault {
			a, b := d.talking(g)
			return Fault{Kind: Corrupt, On: a, To: b, For: d.time(500*millisecond, 5*second), Share: float64(d.from(1, 20)) / 200}
		})
	}},
	{DeleteQueue, func(g *generator, d dice) {
		g.times(d, 1, func() Fault { return Fault{Kind: DeleteQueue, For: d.time(4*second, 15*second)} })
	}},
	{UpdateQueue, func(g *generator, d dice) {
		g.times(d, 2, func() Fault {
			return Fault{Kind: UpdateQueue, On: d.one(append(g.producers(), g.consumers()...)), For: d.time(2*second, 15*second), By: d.time(50*millisecond, 2*second)}
		})
	}},
	{PauseQueue, func(g *generator, d dice) {
		g.times(d, 3, func() Fault {
			f := Fault{Kind: PauseQueue, On: d.one(g.consumers()), For: d.time(200*millisecond, 8*second), Count: d.from(0, 1)}
			if d.oneIn(2) { // the clock of an owner may be four seconds off
				f.By, f.For = f.For, f.For+9*second
			}
			return f
		})
	}},
	{AnswerLost, func(g *generator, d dice) {
		g.times(d, 4, func() Fault {
			return Fault{Kind: AnswerLost, On: d.one(append(g.producers(), g.consumers()...)), To: d.one(g.names), For: d.time(20*millisecond, 2*second)}
		})
	}},

	{PowerCut, func(g *generator, d dice) {
		g.times(d, 4, func() Fault {
			f := Fault{Kind: PowerCut, On: d.one(g.names), For: d.time(millisecond, 5*second)}
			if d.oneIn(4) {
				f.On = g.names // at once
			}
			return f
		})
	}},
	{DiskSlow, func(g *generator, d dice) {
		g.times(d, 2, func() Fault {
			return Fault{Kind: DiskSlow, On: d.one(g.names), For: d.time(500*millisecond, 6*second), By: d.time(5*millisecond, 100*millisecond)}
		})
	}},
	{DiskStall, func(g *generator, d dice) {
		g.times(d, 6, func() Fault {
			return Fault{Kind: DiskStall, On: d.one(g.names), By: d.time(30*millisecond, 4*second)}
		})
	}},
	{DiskFull, func(g *generator, d dice) {
		g.times(d, 2, func() Fault {
			return Fault{Kind: DiskFull, On: d.one(g.names), For: d.time(200*millisecond, 6*second)}
		})
	}},
	{DiskError, func(g *generator, d dice) {
		g.times(d, 2, func() Fault {
			return Fault{Kind: DiskError, On: d.one(g.names), For: d.time(100*millisecond, 4*second)}
		})
	}},
	{SlowRead, func(g *generator, d dice) {
		g.times(d, 2, func() Fault {
			return Fault{Kind: SlowRead, On: d.one(g.names), For: d.time(500*millisecond, 6*second), By: d.time(5*millisecond, 500*millisecond)}
		})
	}},
	{Torn, func(g *generator, d dice) {
		g.times(d, 2, func() Fault {
			return Fault{Kind: Torn, On: d.one(g.names), For: d.time(millisecond, 3*second)}
		})
	}},
	{Amnesia, func(g *generator, d dice) {
		g.times(d, 2, func() Fault {
			return Fault{Kind: Amnesia, On: d.one(g.names), For: d.time(10*millisecond, 3*second), Count: d.from(1, 200)}
		})
	}},
	{Damage, func(g *generator, d dice) {
		g.times(d, 3, func() Fault {
			return Fault{Kind: Damage, On: d.one(g.names), Count: d.from(0, 1)}
		})
	}},
	{DamageRecord, func(g *generator, d dice) {
		g.times(d, 2, func() Fault {
			return Fault{Kind: DamageRecord, On: d.one(g.names), For: d.time(10*millisecond, 3*second), Count: d.from(0, 3)}
		})
	}},
	{OpenError, func(g *generator, d dice) {
		g.times(d, 2, func() Fault {
			return Fault{Kind: OpenError, On: d.one(g.names), For: d.time(10*millisecond, 3*second), Count: d.from(0, 1)}
		})
	}},
	{Rollback, func(g *generator, d dice) {
		g.times(d, 1, func() Fault {
			return Fault{Kind: Rollback, On: d.one(g.names), For: d.time(10*millisecond, 2*second), By: d.time(second, 10*second)}
		})
	}},
	{Wipe, func(g *generator, d dice) {
		g.times(d, 1, func() Fault {
			return Fault{Kind: Wipe, On: d.one(g.names), For: d.time(10*millisecond, 3*second)}
		})
	}},
	{KeyReturns, func(g *generator, d dice) {
		g.times(d, 2, func() Fault {
			return Fault{Kind: KeyReturns, On: d.one(g.names), For: d.time(10*millisecond, 3*second)}
		})
	}},

	{FalseDeath, func(g *generator, d dice) {
		g.times(d, 3, func() Fault {
			a, b := d.two(g.names)
			return Fault{Kind: FalseDeath, On: a, To: b, For: d.time(500*millisecond, 8*second)}
		})
	}},
	{GossipCut, func(g *generator, d dice) {
		g.times(d, 2, func() Fault {
			a, b := d.two(g.names)
			return Fault{Kind: GossipCut, On: a, To: b, For: d.time(second, 12*second)}
		})
	}},
	{GossipSilent, func(g *generator, d dice) {
		g.times(d, 2, func() Fault {
			return Fault{Kind: GossipSilent, On: d.one(g.names), For: d.time(second, 12*second)}
		})
	}},
	{StaleRevive, func(g *generator, d dice) {
		g.times(d, 2, func() Fault {
			a, b := d.two(g.names)
			return Fault{Kind: StaleRevive, On: a, To: b, For: d.time(500*millisecond, 6*second)}
		})
	}},

	{ClockRate, func(g *generator, d dice) {
		g.times(d, 2, func() Fault {
			i := d.below(len(g.names))
			drift := g.plan.Mesh.Nodes[i].Drift
			return Fault{Kind: ClockRate, On: g.names[i : i+1], For: d.time(second, 10*second), Count: d.from(-24_000, 24_000) - drift}
		})
	}},
	{WallJump, func(g *generator, d dice) {
		g.times(d, 2, func() Fault {
			return Fault{Kind: WallJump, On: d.one(g.names), By: d.time(-3600*second, 3600*second)}
		})
	}},

	{ConsumerCrash, func(g *generator, d dice) {
		g.times(d, 4, func() Fault {
			return Fault{Kind: ConsumerCrash, On: d.one(g.consumers()), For: d.time(millisecond, 3*second)}
		})
	}},
	{ConsumerPause, func(g *generator, d dice) {
		g.times(d, 3, func() Fault {
			return Fault{Kind: ConsumerPause, On: d.one(g.consumers()), For: d.time(100*millisecond, 6*second)}
		})
	}},
	{ConsumerSlow, func(g *generator, d dice) {
		g.times(d, 2, func() Fault {
			return Fault{Kind: ConsumerSlow, On: d.one(g.consumers()), For: d.time(second, 8*second), By: d.time(100*millisecond, 4*second)}
		})
	}},
	{ProducerCrash, func(g *generator, d dice) {
		g.times(d, 3, func() Fault {
			return Fault{Kind: ProducerCrash, On: d.one(g.producers()), For: d.time(millisecond, 2*second)}
		})
	}},
	{NackStorm, func(g *generator, d dice) {
		g.times(d, 2, func() Fault {
			return Fault{Kind: NackStorm, On: d.one(g.consumers()), For: d.time(500*millisecond, 5*second)}
		})
	}},
	{Poison, func(g *generator, d dice) {
		g.times(d, 1, func() Fault {
			return Fault{Kind: Poison, On: d.some(g.consumers(), 1, 3), For: d.time(second, 10*second), Count: d.from(5, 50)}
		})
	}},
	{Burst, func(g *generator, d dice) {
		g.times(d, 2, func() Fault {
			return Fault{Kind: Burst, On: d.one(g.producers()), For: d.time(200*millisecond, 2*second), Count: d.from(5, 30)}
		})
	}},
}
