package store

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	commits  prometheus.Counter
	duration prometheus.Histogram
	synced   prometheus.Counter
	damaged  prometheus.Counter
	all      []prometheus.Collector
	registry prometheus.Registerer
}

func newMetrics(s *Store, r prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		commits: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "meshq_store_commits_total", Help: "Group commits that were synced."}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "meshq_store_commit_duration_seconds", Help: "Time of a group commit from its first write to its last fsync.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 2, 15)}),
		synced: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "meshq_store_synced_bytes_total", Help: "Bytes of batches and records that were synced."}),
		damaged: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "meshq_store_damaged_total", Help: "Batches and records that failed their checksum or were missing."}),
		registry: r,
	}
	gauge := func(name, help string, f func(u Usage) float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 { return f(s.Usage()) })
	}
	m.all = []prometheus.Collector{
		m.commits, m.duration, m.synced, m.damaged,
		gauge("meshq_store_segments", "Segments, the head included.", func(u Usage) float64 { return float64(u.Segments) }),
		gauge("meshq_store_bytes", "Bytes on disk of segments and records, as of some seconds ago.", func(u Usage) float64 { return float64(u.Bytes) }),
		gauge("meshq_store_free_bytes", "Free bytes of the file system.", func(u Usage) float64 { return float64(u.Free) }),
	}
	if r == nil {
		return m, nil
	}
	for i, c := range m.all {
		if err := r.Register(c); err != nil {
			m.all = m.all[:i]
			m.unregister()
			return nil, err
		}
	}
	return m, nil
}

func (m *metrics) committed(d time.Duration, bytes int) {
	m.commits.Inc()
	m.duration.Observe(d.Seconds())
	m.synced.Add(float64(bytes))
}

func (m *metrics) unregister() {
	if m.registry == nil {
		return
	}
	for _, c := range m.all {
		m.registry.Unregister(c)
	}
}
