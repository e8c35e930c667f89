package plan

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Bounds of a plan.
const (
	MaxNodes   = 20
	MaxClients = 200
	MaxFaults  = 10_000
	MaxLength  = Duration(24 * time.Hour)

	maxQueues     = 50
	maxPartitions = 64
	maxReplicas   = 7
	maxDrift      = 500_000 // ppm
	maxApart      = 50_000  // ppm: the rates of two clocks differ by less than 5 %, or the promises do not hold
	maxLease      = Duration(12 * time.Hour)
	maxBody       = 1 << 20
)

var nameForm = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$`)

// Lookup describes a kind of fault.
func Lookup(k Kind) (KindInfo, bool) {
	i := slices.IndexFunc(Kinds, func(x KindInfo) bool { return x.Kind == k })
	if i < 0 {
		return KindInfo{}, false
	}
	return Kinds[i], true
}

// Validate lists all that is wrong with the plan: one error a line, joined.
func (p *Plan) Validate() error {
	v := &validator{p: p, nodes: map[string]bool{}, clients: map[string]bool{}, queues: map[string]*Queue{}}
	if p.Version != Version {
		v.wrong("version is %d, this meshq knows %d", p.Version, Version)
	}
	v.within("length", p.Length, 0, MaxLength)
	v.mesh()
	v.allQueues()
	v.allClients()
	if len(p.Faults) > MaxFaults {
		v.wrong("%d faults, at most %d are allowed", len(p.Faults), MaxFaults)
		return errors.Join(v.errs...)
	}
	for i := range p.Faults {
		v.fault(i, &p.Faults[i])
	}
	v.clocks()
	return errors.Join(v.errs...)
}

type validator struct {
	p       *Plan
	nodes   map[string]bool
	clients map[string]bool
	queues  map[string]*Queue
	errs    []error
}

func (v *validator) wrong(format string, args ...any) {
	v.errs = append(v.errs, fmt.Errorf(format, args...))
}

func (v *validator) within(what string, d, lo, hi Duration) {
	if d < lo || d > hi {
		v.wrong("%s is %v, allowed are %v to %v", what, d, lo, hi)
	}
}

func (v *validator) number(what string, n, lo, hi int) {
	if n < lo || n > hi {
		v.wrong("%s is %d, allowed are %d to %d", what, n, lo, hi)
	}
}

func (v *validator) share(what string, s float64) {
	if !(s >= 0 && s <= 1) {
		v.wrong("%s is %v, allowed are 0 to 1", what, s)
	}
}

// name takes a new name into its set; no two things of a plan have the same.
func (v *validator) name(what, name string, set map[string]bool) {
	switch {
	case !nameForm.MatchString(name):
		v.wrong("%s: the name %q is not 1 to 64 letters, digits and . _ -", what, name)
	case v.nodes[name] || v.clients[name]:
		v.wrong("%s: the name %s is there twice", what, name)
	}
	set[name] = true
}

func (v *validator) mesh() {
	m := &v.p.Mesh
	v.number("mesh: number of nodes", len(m.Nodes), 1, MaxNodes)
	for i := range m.Nodes {
		n := &m.Nodes[i]
		what := "node " + n.Name
		v.name(fmt.Sprintf("mesh: nodes[%d]", i), n.Name, v.nodes)
		v.number(what+": drift", n.Drift, -maxDrift, maxDrift)
		v.within(what+": wall", n.Wall, -MaxLength, MaxLength)
		v.within(what+": joins", n.Joins, 0, MaxLength)
		if i == 0 && n.Joins != 0 {
			v.wrong("%s: the first node founds the mesh, it cannot join later", what)
		}
	}
	if m.Sync != "" && m.Sync != "always" && m.Sync != "interval" {
		v.wrong("mesh: sync is %q, allowed are always and interval", m.Sync)
	}
	v.within("mesh: network: latency", m.Network.Latency, 0, 10*second)
	v.within("mesh: network: jitter", m.Network.Jitter, 0, 10*second)
	v.within("mesh: disk: sync", m.Disk.Sync, 0, 10*second)
	v.within("mesh: disk: jitter", m.Disk.Jitter, 0, 10*second)
	for _, l := range []struct {
		name  string
		value int
	}{
		{"pending_bytes", m.Limits.PendingBytes}, {"cache_bytes", m.Limits.CacheBytes}, {"retries", m.Limits.Retries},
		{"in_flight", m.Limits.InFlight}, {"hint_bytes", m.Limits.HintBytes}, {"segments", m.Limits.Segments},
	} {
		v.number("mesh: limits: "+l.name, l.value, 0, 1<<40)
	}
}

func (v *validator) allQueues() {
	v.number("number of queues", len(v.p.Queues), 0, maxQueues)
	for i := range v.p.Queues {
		q := v.p.Filled().Queues[i]
		what := "queue " + q.Name
		if !nameForm.MatchString(q.Name) {
			v.wrong("queues[%d]: the name %q is not 1 to 64 letters, digits and . _ -", i, q.Name)
		}
		if v.queues[q.Name] != nil {
			v.wrong("%s: the name is there twice", what)
		}
		v.queues[q.Name] = &q
		v.number(what+": partitions", q.Partitions, 1, maxPartitions)
		v.number(what+": replicas", q.Replicas, 1, maxReplicas)
		v.number(what+": write_quorum", q.WriteQuorum, 1, max(1, q.Replicas))
		v.within(what+": lease", q.Lease, second, maxLease)
		v.within(what+": backoff_min", q.BackoffMin, millisecond, maxLease)
		v.within(what+": backoff_max", q.BackoffMax, q.BackoffMin, maxLease)
		for j, g := range q.Groups {
			if !nameForm.MatchString(g) || slices.Contains(q.Groups[:j], g) {
				v.wrong("%s: group %q is not a name, or is there twice", what, g)
			}
		}
	}
}

func (v *validator) allClients() {
	if n := len(v.p.Producers) + len(v.p.Consumers); n > MaxClients {
		v.wrong("%d producers and consumers, at most %d are allowed", n, MaxClients)
	}
	for i := range v.p.Producers {
		x := &v.p.Producers[i]
		what := "producer " + x.Name
		v.name(fmt.Sprintf("producers[%d]", i), x.Name, v.clients)
		if q := v.queue(what, x.Queue); q != nil && x.Raw {
			v.number(what+": partition", x.Partition, 0, q.Partitions-1)
		}
		v.within(what+": think", x.Think, 0, MaxLength)
		v.number(what+": batch", x.Batch, 0, 10_000)
		v.number(what+": bytes", x.Bytes, 0, maxBody)
		v.number(what+": keys", x.Keys, 0, 1<<20)
		v.number(what+": count", x.Count, 0, 1<<30)
		v.within(what+": timeout", x.Timeout, 0, MaxLength)
	}
	for i := range v.p.Consumers {
		x := &v.p.Consumers[i]
		what := "consumer " + x.Name
		v.name(fmt.Sprintf("consumers[%d]", i), x.Name, v.clients)
		if q := v.queue(what, x.Queue); q != nil && x.Group != "" && !slices.Contains(q.Groups, x.Group) {
			v.wrong("%s: queue %s has no group %s, it has %s", what, x.Queue, x.Group, strings.Join(q.Groups, ", "))
		}
		if x.Relay != "" && !v.nodes[x.Relay] {
			v.wrong("%s: relay: there is no node %s", what, x.Relay)
		}
		if x.Relay != "" && !x.Raw {
			v.wrong("%s: relay is for a raw consumer", what)
		}
		v.number(what+": window", x.Window, 0, 100_000)
		v.within(what+": hold", x.Hold, 0, MaxLength)
		v.share(what+": nack", x.Nack)
		v.share(what+": forget", x.Forget)
		v.share(what+": nack and forget together", x.Nack+x.Forget)
	}
}

// clocks checks that the promises cover the clocks of the plan.
func (v *validator) clocks() {
	var rates []int
	for i := range v.p.Mesh.Nodes {
		n := &v.p.Mesh.Nodes[i]
		rates = append(rates, n.Drift)
		for j := range v.p.Faults {
			if f := &v.p.Faults[j]; f.Kind == ClockRate && slices.Contains(f.On, n.Name) {
				rates = append(rates, n.Drift+f.Count)
			}
		}
	}
	if len(rates) > 0 && slices.Max(rates)-slices.Min(rates) >= maxApart && !v.p.Beyond {
		v.wrong("the rates of two clocks differ by %d ppm, the promises hold below %d: say \"beyond\": true", slices.Max(rates)-slices.Min(rates), maxApart)
	}
}

func (v *validator) queue(what, name string) *Queue {
	q := v.queues[name]
	if q == nil {
		v.wrong("%s: there is no queue %q", what, name)
	}
	return q
}

// needs says which of By, Share and Count a kind cannot do without.
var needs = map[Kind]string{
	SlowNode: "by", Flap: "by", Swizzle: "by", SlowLink: "by", DiskSlow: "by", DiskStall: "by", Rollback: "by", UpdateQueue: "by", SlowRead: "by",
	WallJump: "by", ConsumerSlow: "by", Late: "by count", Loss: "share", Duplicate: "share", Corrupt: "share",
	Bandwidth: "count", Join: "count", Amnesia: "count", ClockRate: "count", Poison: "count", Burst: "count",
}

func (v *validator) fault(i int, f *Fault) {
	k, ok := Lookup(f.Kind)
	if !ok {
		v.wrong("faults[%d]: there is no kind of fault %q", i, f.Kind)
		return
	}
	what := fmt.Sprintf("faults[%d] (%s)", i, f.Kind)
	v.within(what+": at", f.At, 0, MaxLength)
	v.within(what+": for", f.For, 0, MaxLength)
	if f.Kind != WallJump {
		v.within(what+": by", f.By, 0, MaxLength)
	} else {
		v.within(what+": by", f.By, -MaxLength, MaxLength)
	}
	v.share(what+": share", f.Share)
	if f.Kind == ClockRate {
		v.number(what+": count", f.Count, -maxDrift, maxDrift)
	} else {
		v.number(what+": count", f.Count, 0, 1<<40)
	}
	if f.Kind == Join {
		v.number(what+": count", f.Count, 0, MaxNodes)
	}
	v.names(what+": on", f.On, k.Subject)
	v.names(what+": to", f.To, k.Other)
	least := map[Kind]int{RingCut: 3, Bridge: 3}[f.Kind]
	if len(f.On) < least {
		v.wrong("%s: needs at least %d nodes", what, least)
	}
	for need := range strings.FieldsSeq(needs[f.Kind]) {
		if need == "by" && f.By == 0 || need == "share" && f.Share == 0 || need == "count" && f.Count == 0 {
			v.wrong("%s: %s is missing: %s", what, need, k.About)
		}
	}
}

// names checks one side of a fault: who is named is there, and is of the right sort.
func (v *validator) names(what string, names []string, sort string) {
	if sort == "" {
		if len(names) > 0 {
			v.wrong("%s: this kind of fault names nobody there", what)
		}
		return
	}
	if len(names) == 0 {
		v.wrong("%s: is missing", what)
	}
	for i, n := range names {
		switch {
		case slices.Contains(names[:i], n):
			v.wrong("%s: %s is there twice", what, n)
		case !v.nodes[n] && !v.clients[n]:
			v.wrong("%s: there is no node or client %q", what, n)
		case sort == "node" && !v.nodes[n]:
			v.wrong("%s: %s is a client, a node is needed", what, n)
		case sort == "client" && !v.clients[n]:
			v.wrong("%s: %s is a node, a client is needed", what, n)
		}
	}
}

// Validate says what is wrong with the options.
func (o *GenerateOptions) Validate() error {
	v := &validator{}
	v.number("number of nodes", o.Nodes, 0, MaxNodes)
	v.number("number of replicas", o.Replicas, 0, maxReplicas)
	most := maxReplicas
	if o.Replicas > 0 {
		most = o.Replicas
	}
	v.number("write quorum", o.WriteQuorum, 0, most)
	v.within("length", o.Length, 0, MaxLength)
	for _, k := range o.Kinds {
		if !slices.Contains(Generated(), k) {
			v.wrong("seeds do not draw the kind of fault %q", k)
		}
	}
	return errors.Join(v.errs...)
}
