package plan

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
)

// span is a part of a list: [from, to).
type span struct{ from, to int }

func (s span) has(i int) bool { return s.from <= i && i < s.to }

// clone is a deep copy.
func (p *Plan) clone() *Plan {
	text, err := json.Marshal(p)
	if err != nil {
		panic(fmt.Sprintf("plan: %v", err)) // only numbers and text: cannot be
	}
	c := new(Plan)
	if err := json.Unmarshal(text, c); err != nil {
		panic(fmt.Sprintf("plan: %v", err))
	}
	return c
}

// size orders plans: fewer faults first, then fewer clients, queues and nodes, then fewer
// names in faults, then less time, then what is shorter to write.
func (p *Plan) size() []int64 {
	var waits Duration
	for i := range p.Faults {
		waits += p.Faults[i].For + p.Faults[i].By
	}
	text, err := json.Marshal(p)
	if err != nil {
		panic(fmt.Sprintf("plan: %v", err))
	}
	return []int64{
		int64(len(p.Faults)), int64(len(p.Producers) + len(p.Consumers) + len(p.Queues) + len(p.Mesh.Nodes)),
		int64(nameCount(p)), int64(p.Length), int64(waits), int64(len(text)),
	}
}

// endAt is the plan without what comes after a moment.
func (p *Plan) endAt(at Duration) *Plan {
	if at <= 0 || at >= p.Length {
		return nil
	}
	c := p.clone()
	c.Length = at + millisecond
	c.Faults = slices.DeleteFunc(c.Faults, func(f Fault) bool { return f.At >= c.Length })
	return c
}

func faultCount(p *Plan) int { return len(p.Faults) }

func withoutFaults(p *Plan, out span) *Plan {
	c := p.clone()
	c.Faults = slices.Delete(c.Faults, out.from, out.to)
	return c
}

func clientCount(p *Plan) int { return len(p.Producers) + len(p.Consumers) }

// withoutClients takes clients out, but for the last consumer of a group: without one each
// confirmed message breaks P2, and the plan says nothing. A producer needs no such care:
// where nothing is sent, nothing is missed.
func withoutClients(p *Plan, out span) *Plan {
	c := p.clone()
	gone := map[string]bool{}
	kept := map[[2]string]bool{} // queue and group
	for i, x := range p.Consumers {
		gone[x.Name] = out.has(i)
		kept[x.of()] = kept[x.of()] || !out.has(i)
	}
	for _, x := range p.Consumers {
		if !kept[x.of()] {
			kept[x.of()], gone[x.Name] = true, false
		}
	}
	for i, x := range p.Producers {
		gone[x.Name] = out.has(len(p.Consumers) + i)
	}
	c.Consumers = slices.DeleteFunc(c.Consumers, func(x Consumer) bool { return gone[x.Name] })
	c.Producers = slices.DeleteFunc(c.Producers, func(x Producer) bool { return gone[x.Name] })
	c.forget(gone)
	return c
}

// of is the queue and the group of a consumer.
func (c *Consumer) of() [2]string { return [2]string{c.Queue, cmp.Or(c.Group, "default")} }

func groupCount(p *Plan) int {
	n := 0
	for i := range p.Queues {
		n += len(p.Queues[i].Groups)
	}
	return n
}

// withoutGroups takes groups out, with their consumers.
func withoutGroups(p *Plan, out span) *Plan {
	c := p.clone()
	groups, gone := map[[2]string]bool{}, map[string]bool{}
	i := -1
	for k := range c.Queues {
		q := &c.Queues[k]
		had := len(q.Groups)
		q.Groups = slices.DeleteFunc(q.Groups, func(g string) bool {
			i++
			groups[[2]string{q.Name, g}] = out.has(i)
			return out.has(i)
		})
		if had > 0 && len(q.Groups) == 0 {
			return nil
		}
	}
	c.Consumers = slices.DeleteFunc(c.Consumers, func(x Consumer) bool {
		gone[x.Name] = groups[x.of()]
		return gone[x.Name]
	})
	c.forget(gone)
	return c
}

func queueCount(p *Plan) int { return len(p.Queues) }

// withoutQueues takes queues out, with their clients.
func withoutQueues(p *Plan, out span) *Plan {
	c := p.clone()
	queues, gone := map[string]bool{}, map[string]bool{}
	for _, q := range c.Queues[out.from:out.to] {
		queues[q.Name] = true
	}
	c.Queues = slices.Delete(c.Queues, out.from, out.to)
	c.Consumers = slices.DeleteFunc(c.Consumers, func(x Consumer) bool {
		gone[x.Name] = queues[x.Queue]
		return queues[x.Queue]
	})
	c.Producers = slices.DeleteFunc(c.Producers, func(x Producer) bool {
		gone[x.Name] = queues[x.Queue]
		return queues[x.Queue]
	})
	c.forget(gone)
	return c
}

func nodeCount(p *Plan) int { return len(p.Mesh.Nodes) }

// withoutNodes takes nodes out; then the first that is left founds the mesh.
func withoutNodes(p *Plan, out span) *Plan {
	c := p.clone()
	gone := map[string]bool{}
	for _, n := range c.Mesh.Nodes[out.from:out.to] {
		gone[n.Name] = true
	}
	c.Mesh.Nodes = slices.Delete(c.Mesh.Nodes, out.from, out.to)
	if len(c.Mesh.Nodes) == 0 {
		return nil
	}
	c.Mesh.Nodes[0].Joins = 0
	for i := range c.Consumers {
		if gone[c.Consumers[i].Relay] {
			c.Consumers[i].Relay = ""
		}
	}
	c.forget(gone)
	return c
}

// forget takes names out of all faults, and faults that are left without a subject.
func (p *Plan) forget(gone map[string]bool) {
	is := func(name string) bool { return gone[name] }
	p.Faults = slices.DeleteFunc(p.Faults, func(f Fault) bool {
		return len(f.On) > 0 && !slices.ContainsFunc(f.On, func(n string) bool { return !gone[n] }) ||
			len(f.To) > 0 && !slices.ContainsFunc(f.To, func(n string) bool { return !gone[n] })
	})
	for i := range p.Faults {
		p.Faults[i].On = slices.DeleteFunc(p.Faults[i].On, is)
		p.Faults[i].To = slices.DeleteFunc(p.Faults[i].To, is)
	}
}

// nameCount counts the names in faults with more than one on a side.
func nameCount(p *Plan) int {
	n := 0
	for i := range p.Faults {
		n += len(p.Faults[i].On) + len(p.Faults[i].To)
	}
	return n
}

func withoutNames(p *Plan, out span) *Plan {
	c := p.clone()
	i := -1
	drop := func(string) bool { i++; return out.has(i) }
	for k := range c.Faults {
		f := &c.Faults[k]
		on, to := len(f.On), len(f.To)
		f.On = slices.DeleteFunc(f.On, drop)
		f.To = slices.DeleteFunc(f.To, drop)
		if on > 0 && len(f.On) == 0 || to > 0 && len(f.To) == 0 {
			return nil
		}
	}
	return c
}

// round keeps two digits: what a person reads.
func round(d Duration) Duration {
	unit := Duration(1)
	for unit*100 <= d {
		unit *= 10
	}
	return d / unit * unit
}

// simplifications make candidates with plainer values, the boldest first.
var simplifications = []func(*Plan) []*Plan{
	func(p *Plan) []*Plan { // less time
		var out []*Plan
		for _, part := range []Duration{4, 2} {
			c := p.clone()
			c.Length -= c.Length / part
			c.Faults = slices.DeleteFunc(c.Faults, func(f Fault) bool { return f.At >= c.Length })
			out = append(out, c)
		}
		return out
	},
	func(p *Plan) []*Plan { // faults that are shorter, weaker, and at plain times
		var out []*Plan
		for i := range p.Faults {
			for _, change := range []func(*Fault){
				func(f *Fault) { f.For = round(f.For / 2) },
				func(f *Fault) { f.By = round(f.By / 2) },
				func(f *Fault) { f.Count /= 2 },
				func(f *Fault) { f.For = round(f.For) },
				func(f *Fault) { f.By = round(f.By) },
				func(f *Fault) { f.At = round(f.At) },
			} {
				c := p.clone()
				change(&c.Faults[i])
				out = append(out, c)
			}
		}
		return out
	},
	func(p *Plan) []*Plan { // a plain mesh, plain queues, plain clients
		var out []*Plan
		add := func(change func(c *Plan)) {
			c := p.clone()
			change(c)
			out = append(out, c)
		}
		add(func(c *Plan) { c.Mesh.Network, c.Mesh.Disk, c.Mesh.Limits = Network{}, Disk{}, Limits{} })
		add(func(c *Plan) {
			for i := range c.Mesh.Nodes {
				n := &c.Mesh.Nodes[i]
				n.Zone, n.Drift, n.Wall = "", 0, 0
			}
		})
		for i := range p.Mesh.Nodes {
			add(func(c *Plan) { c.Mesh.Nodes[i] = Node{Name: c.Mesh.Nodes[i].Name} })
		}
		for i := range p.Queues {
			add(func(c *Plan) { q := &c.Queues[i]; c.Queues[i] = Queue{Name: q.Name, Groups: q.Groups, Lease: q.Lease} })
			add(func(c *Plan) { c.Queues[i].Partitions = 0 })
			add(func(c *Plan) { c.Queues[i].BackoffMin, c.Queues[i].BackoffMax = 0, 0 })
		}
		for i := range p.Producers {
			add(func(c *Plan) {
				x := &c.Producers[i]
				c.Producers[i] = Producer{Name: x.Name, Queue: x.Queue, Raw: x.Raw, Partition: x.Partition, Think: x.Think}
			})
			add(func(c *Plan) { c.Producers[i].Batch = 1 })
			add(func(c *Plan) { c.Producers[i].Keys, c.Producers[i].Bytes = 0, 0 })
			add(func(c *Plan) { c.Producers[i].Think = round(c.Producers[i].Think) })
		}
		for i := range p.Consumers {
			add(func(c *Plan) {
				x := &c.Consumers[i]
				c.Consumers[i] = Consumer{Name: x.Name, Queue: x.Queue, Group: x.Group, Raw: x.Raw}
			})
			add(func(c *Plan) { c.Consumers[i].Relay = "" })
			add(func(c *Plan) { c.Consumers[i].Nack, c.Consumers[i].Forget = 0, 0 })
			add(func(c *Plan) { c.Consumers[i].Hold = round(c.Consumers[i].Hold) })
		}
		return out
	},
}
