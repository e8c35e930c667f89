package node

import (
	"context"
	"runtime"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/meshq/meshq/node/core"
	"github.com/meshq/meshq/transport/wire"
)

// meter has the metrics of the shell itself. Those of the protocol come from the core
// when they are asked for; see collector.
type meter struct {
	batch  prometheus.Histogram
	late   prometheus.Histogram
	stalls prometheus.Counter
	slow   *prometheus.CounterVec
	dials  *prometheus.CounterVec
	notes  *prometheus.CounterVec
}

func newMeter() *meter {
	seconds := prometheus.ExponentialBuckets(10e-6, 4, 10) // 10 us to 2.6 s
	return &meter{
		batch: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "meshq_loop_batch_seconds", Help: "Time that the event loop took for one batch of events.", Buckets: seconds,
		}),
		late: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "meshq_loop_late_seconds", Help: "How late the event loop acted on time.", Buckets: seconds,
		}),
		stalls: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "meshq_loop_stalls_total", Help: "Times that the event loop was more than 250 ms late.",
		}),
		slow: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "meshq_connections_slow_total", Help: "Connections closed because the other side did not read fast enough.",
		}, []string{"side"}),
		dials: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "meshq_peer_dials_total", Help: "Tries to connect to a peer, by result.",
		}, []string{"result"}),
		notes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "meshq_notes_total", Help: "What the protocol found worth telling, by level.",
		}, []string{"level"}),
	}
}

func (m *meter) collectors() []prometheus.Collector {
	return []prometheus.Collector{m.batch, m.late, m.stalls, m.slow, m.dials, m.notes}
}

// gauge is a metric whose value is asked for.
func gauge(name, help string, value func() float64) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value)
}

// labelled is one of several gauges of a name.
func labelled(name, help, label, value string, f func() float64) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: name, Help: help, ConstLabels: prometheus.Labels{label: value},
	}, f)
}

// measure registers the metrics of the node; the error names one that is there already.
func (n *Node) measure() error {
	all := append(n.meter.collectors(), &collector{loop: n.loop},
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "meshq_build_info", Help: "The program that runs; always 1.",
			ConstLabels: prometheus.Labels{"version": n.config.Version, "go": runtime.Version()},
		}, func() float64 { return 1 }),
		gauge("meshq_ready", "1 when the node serves.", func() float64 {
			if n.state().ready {
				return 1
			}
			return 0
		}),
		gauge("meshq_ring_number", "Number of the ring that the node knows.", func() float64 {
			return float64(n.loop.facts.Load().table.Number)
		}),
		gauge("meshq_catalog_version", "Highest catalog version that the node knows.", func() float64 {
			return float64(n.loop.facts.Load().catalog)
		}),
		gauge("meshq_store_commit", "Number of the last synced commit.", func() float64 {
			return float64(n.loop.facts.Load().commit)
		}),
		labelled("meshq_members", "Members of the ring, by what gossip says of them.", "state", "alive", func() float64 {
			alive, _ := n.memberCounts()
			return float64(alive)
		}),
		labelled("meshq_members", "Members of the ring, by what gossip says of them.", "state", "dead", func() float64 {
			_, dead := n.memberCounts()
			return float64(dead)
		}),
		labelled("meshq_peers", "Outgoing connections to peers.", "state", "connected", func() float64 {
			up, _ := n.peers.connected()
			return float64(up)
		}),
		labelled("meshq_peers", "Outgoing connections to peers.", "state", "unreachable", func() float64 {
			up, all := n.peers.connected()
			return float64(all - up)
		}),
		labelled("meshq_connections", "Connections that others hold to this node.", "side", "client", func() float64 {
			clients, _ := n.door.count()
			return float64(clients)
		}),
		labelled("meshq_connections", "Connections that others hold to this node.", "side", "node", func() float64 {
			_, nodes := n.door.count()
			return float64(nodes)
		}),
		gauge("meshq_loop_events", "Events that wait for the event loop.", func() float64 {
			items, _ := n.in.depth()
			return float64(items)
		}),
		gauge("meshq_loop_bytes", "Bytes of events that wait for the event loop.", func() float64 {
			_, bytes := n.in.depth()
			return float64(bytes)
		}),
		gauge("meshq_store_reads", "Reads and scans that wait for a reader.", func() float64 {
			return float64(n.disk.waiting())
		}),
	)
	for _, c := range all {
		if err := n.registry.Register(c); err != nil {
			return err
		}
	}
	return n.config.Registry.Register(n.registry)
}

// memberCounts is how many members of the ring gossip holds for alive, and for dead.
func (n *Node) memberCounts() (alive, dead int) {
	living, _ := n.gossip.living()
	for _, m := range n.loop.facts.Load().table.Members {
		found := false
		for _, id := range living {
			if id == m.ID {
				found = true
				break
			}
		}
		if found {
			alive++
		} else {
			dead++
		}
	}
	return alive, dead
}

// collector brings the counters of the core to a scrape. It asks the loop, for scrapeWait
// at most; when the loop is busy for longer, the numbers are those of the scrape before.
type collector struct {
	loop *loop

	mu   sync.Mutex // last
	last core.Stats
}

const scrapeWait = 500 * time.Millisecond

// stat is one metric of the core.
type stat struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(*core.Stats) uint64
}

func newStat(kind prometheus.ValueType, name, help string, value func(*core.Stats) uint64) stat {
	return stat{prometheus.NewDesc(name, help, nil, nil), kind, value}
}

// stats are all metrics of the core but deliveries.
var stats = []stat{
	newStat(prometheus.CounterValue, "meshq_messages_enqueued_total", "Messages accepted into lanes of this node.",
		func(s *core.Stats) uint64 { return s.Accepted }),
	newStat(prometheus.CounterValue, "meshq_messages_confirmed_total", "Messages accepted here and synced on their write quorum.",
		func(s *core.Stats) uint64 { return s.Confirmed }),
	newStat(prometheus.CounterValue, "meshq_messages_unknown_total", "Messages accepted here whose write quorum was not reached in time.",
		func(s *core.Stats) uint64 { return s.Unknown }),
	newStat(prometheus.CounterValue, "meshq_enqueues_repeated_total", "Requests to enqueue a batch that was here already.",
		func(s *core.Stats) uint64 { return s.Repeated }),
	newStat(prometheus.CounterValue, "meshq_messages_duplicate_total", "Messages found at a second position.",
		func(s *core.Stats) uint64 { return s.Duplicates }),
	newStat(prometheus.CounterValue, "meshq_acks_total", "Messages whose ack this node confirmed.",
		func(s *core.Stats) uint64 { return s.Acked }),
	newStat(prometheus.CounterValue, "meshq_nacks_total", "Messages that consumers gave back to this node.",
		func(s *core.Stats) uint64 { return s.Nacked }),
	newStat(prometheus.CounterValue, "meshq_deliveries_resumed_total", "Deliveries of an earlier owner that their consumers kept.",
		func(s *core.Stats) uint64 { return s.Resumed }),
	newStat(prometheus.CounterValue, "meshq_takeovers_total", "Ownerships of partitions that began at this node.",
		func(s *core.Stats) uint64 { return s.Takeovers }),
	newStat(prometheus.CounterValue, "meshq_order_wait_expired_total", "Batches handed out without the one before them of their producer.",
		func(s *core.Stats) uint64 { return s.OrderWaitExpired }),
	newStat(prometheus.CounterValue, "meshq_hints_handed_off_total", "Batches kept for home replicas and given to them.",
		func(s *core.Stats) uint64 { return s.HintsHandedOff }),
	newStat(prometheus.CounterValue, "meshq_damage_found_total", "Times that damaged state was found and set aside.",
		func(s *core.Stats) uint64 { return s.Damaged }),
	newStat(prometheus.GaugeValue, "meshq_hints", "Batches kept for home replicas that could not be reached.",
		func(s *core.Stats) uint64 { return s.Hints }),
	newStat(prometheus.GaugeValue, "meshq_partitions", "Partitions of which this node keeps something.",
		func(s *core.Stats) uint64 { return s.Partitions }),
	newStat(prometheus.GaugeValue, "meshq_partitions_owned", "Partitions that this node hands out now.",
		func(s *core.Stats) uint64 { return s.Owned }),
	newStat(prometheus.GaugeValue, "meshq_partitions_repairing", "Partitions that this node does not count for until repaired.",
		func(s *core.Stats) uint64 { return s.Repairing }),
	newStat(prometheus.GaugeValue, "meshq_messages_in_flight", "Messages handed out by this node and not settled.",
		func(s *core.Stats) uint64 { return s.InFlight }),
	newStat(prometheus.GaugeValue, "meshq_messages_retrying", "Messages in memory that wait for their next delivery.",
		func(s *core.Stats) uint64 { return s.Retrying }),
	newStat(prometheus.GaugeValue, "meshq_pending_bytes", "Bytes of batches that wait for their write quorum.",
		func(s *core.Stats) uint64 { return s.PendingBytes }),
	newStat(prometheus.GaugeValue, "meshq_cache_bytes", "Bytes of recent batches kept for delivery.",
		func(s *core.Stats) uint64 { return s.CacheBytes }),
	newStat(prometheus.GaugeValue, "meshq_subscriptions", "Subscriptions of consumers at this node.",
		func(s *core.Stats) uint64 { return s.Subs }),
}

// causes are the names of wire.Cause as a label.
var causes = [core.Causes]string{
	wire.CauseNone: "first", wire.CauseNack: "nack", wire.CauseLease: "lease_ran_out", wire.CauseConsumer: "consumer_gone",
	wire.CauseTakeover: "takeover", wire.CauseReleased: "released",
}

var deliveries = prometheus.NewDesc("meshq_deliveries_total", "Messages handed out, by why: first, or why again.", []string{"cause"}, nil)

// Describe lists the metrics.
func (c *collector) Describe(out chan<- *prometheus.Desc) {
	out <- deliveries
	for _, s := range stats {
		out <- s.desc
	}
}

// Collect gives the numbers.
func (c *collector) Collect(out chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeWait)
	defer cancel()
	got := make(chan core.Stats, 1)
	c.loop.ask(ctx, func(m machine) { got <- m.Stats() })
	c.mu.Lock()
	select {
	case c.last = <-got:
	default:
	}
	now := c.last
	c.mu.Unlock()
	for cause, name := range causes {
		out <- prometheus.MustNewConstMetric(deliveries, prometheus.CounterValue, float64(now.Delivered[cause]), name)
	}
	for _, s := range stats {
		out <- prometheus.MustNewConstMetric(s.desc, s.kind, float64(s.value(&now)))
	}
}
