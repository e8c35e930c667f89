package main

import (
	"context"
	"fmt"
	"time"
)

// End to end: producers and consumers at the same time, as fast as every
// message is acknowledged, delivered and acknowledged by its consumer.
func init() {
	for _, s := range sizes {
		backlog := 4 * defaultProducers * s.inFlight
		RegisterWorkload(3, "e2e-"+s.name, &Workload{
			About: fmt.Sprintf("enqueue and consume as fast as sustained, %d B, %d producers with %d in flight each, %d consumers, at most %d messages between them",
				s.bytes, defaultProducers, s.inFlight, defaultConsumers, backlog),
			Columns: []string{"delivered_per_s", "mb_per_s", "e2e_p50_ms", "e2e_p99_ms", "e2e_p999_ms",
				"server_cpu_s_per_million", "server_cores", "client_cores", "idle_pct", "flushes_per_s",
				"rss_peak_mb", "disk_bytes_per_payload_byte", "lost", "duplicates", "publish_errors"},
			Primary: "delivered_per_s", Summary: []string{"delivered_per_s", "e2e_p99_ms", "server_cpu_s_per_million", "disk_bytes_per_payload_byte"},
			Run: func(ctx context.Context, b *Bench) error {
				return runE2E(ctx, b, LoadOptions{Size: s.bytes, InFlight: s.inFlight, Backlog: backlog,
					Producers: defaultProducers, Consumers: defaultConsumers})
			},
		})
	}
}

func runE2E(ctx context.Context, b *Bench, opt LoadOptions) error {
	l, err := NewLoad(ctx, b.Driver, opt)
	if err != nil {
		return err
	}
	defer l.Close()
	if err := l.OpenConsumers(ctx); err != nil {
		return err
	}
	if err := l.OpenProducers(); err != nil {
		return err
	}
	saturateWindow(ctx, l, b)
	finish(l, b, redelivery+5*time.Second)
	return nil
}
