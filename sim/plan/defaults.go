package plan

import (
	"cmp"
	"time"
)

// Defaults of a plan, in the units of their fields.
const (
	DefaultLength = Duration(20 * time.Second)

	millisecond = Duration(time.Millisecond)
	second      = Duration(time.Second)
)

// Filled is a copy of the plan in which each field that is missing has its default.
func (p *Plan) Filled() *Plan {
	q := *p
	q.Version = cmp.Or(q.Version, Version)
	q.Length = cmp.Or(q.Length, DefaultLength)
	q.Mesh.Network.Latency = cmp.Or(q.Mesh.Network.Latency, 200*Duration(time.Microsecond))
	q.Mesh.Network.Jitter = cmp.Or(q.Mesh.Network.Jitter, 300*Duration(time.Microsecond))
	q.Mesh.Disk.Sync = cmp.Or(q.Mesh.Disk.Sync, 500*Duration(time.Microsecond))
	q.Mesh.Disk.Jitter = cmp.Or(q.Mesh.Disk.Jitter, millisecond)
	q.Queues = append([]Queue(nil), p.Queues...)
	for i := range q.Queues {
		x := &q.Queues[i]
		x.Partitions = cmp.Or(x.Partitions, 1)
		x.Replicas = cmp.Or(x.Replicas, 3)
		x.WriteQuorum = cmp.Or(x.WriteQuorum, x.Replicas/2+1)
		if len(x.Groups) == 0 {
			x.Groups = []string{"default"}
		}
		x.Lease = cmp.Or(x.Lease, 30*second)
		x.BackoffMin = cmp.Or(x.BackoffMin, second)
		x.BackoffMax = cmp.Or(x.BackoffMax, max(x.BackoffMin, 300*second))
	}
	q.Producers = append([]Producer(nil), p.Producers...)
	for i := range q.Producers {
		x := &q.Producers[i]
		x.Think = cmp.Or(x.Think, 20*millisecond)
		x.Batch = cmp.Or(x.Batch, 4)
		x.Bytes = cmp.Or(x.Bytes, 64)
		x.Timeout = cmp.Or(x.Timeout, 2*second)
	}
	q.Consumers = append([]Consumer(nil), p.Consumers...)
	for i := range q.Consumers {
		x := &q.Consumers[i]
		x.Group = cmp.Or(x.Group, "default")
		x.Window = cmp.Or(x.Window, 16)
		x.Hold = cmp.Or(x.Hold, 50*millisecond)
	}
	return &q
}
