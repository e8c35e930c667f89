package node

import (
	"runtime"

	"github.com/prometheus/client_golang/prometheus"
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
	all := append(n.meter.collectors(),
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
