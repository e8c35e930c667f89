package main

import (
	"context"
	"fmt"
	"time"
)

// Latency at a fixed rate, counted from the time at which each message was
// due to be sent.
func init() {
	for _, rate := range []float64{1000, 5000} {
		RegisterWorkload(4, fmt.Sprintf("latency-%.0fk", rate/1000), &Workload{
			About: fmt.Sprintf("%.0f messages/s of 1 KiB, %d producers, %d consumers: latency from the due time",
				rate, defaultProducers, defaultConsumers),
			Columns: []string{"delivered_per_s", "ack_p50_ms", "ack_p99_ms", "ack_p999_ms", "ack_max_ms",
				"e2e_p50_ms", "e2e_p99_ms", "e2e_p999_ms", "e2e_max_ms", "server_cores", "client_cores",
				"flushes_per_s", "rss_peak_mb", "lost", "duplicates"},
			Primary: "e2e_p99_ms", Summary: []string{"ack_p50_ms", "ack_p99_ms", "e2e_p50_ms", "e2e_p99_ms"},
			Run: func(ctx context.Context, b *Bench) error { return runLatency(ctx, b, rate) },
		})
	}
}

func runLatency(ctx context.Context, b *Bench, rate float64) error {
	l, err := NewLoad(ctx, b.Driver, LoadOptions{Size: 1 << 10,
		Producers: defaultProducers, Consumers: defaultConsumers})
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
	if _, err := l.Pace(ctx, rate, warmUp); err != nil {
		return err
	}
	l.OpenWindow()
	profiles := startProfiles(b.Driver, b.Name, b.Duration)
	lag, err := l.Pace(ctx, rate, b.Duration)
	if err != nil {
		return err
	}
	l.CloseWindow(b.Metrics)
	profiles()
	b.Metrics["generator_lag_max_ms"] = lag.Seconds() * 1000
	finish(l, b, redelivery+5*time.Second)
	return nil
}
