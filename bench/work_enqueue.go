package main

import (
	"context"
	"fmt"
	"time"
)

// Enqueue only: how many messages a second get acknowledged.
func init() {
	for _, s := range sizes {
		RegisterWorkload(1, "enqueue-"+s.name, &Workload{
			About: fmt.Sprintf("enqueue as fast as acknowledged, %d B, %d producers with %d in flight each, no consumers",
				s.bytes, defaultProducers, s.inFlight),
			Columns: enqueueColumns, Primary: "acked_per_s", Summary: []string{"acked_per_s", "server_cpu_s_per_million"},
			Run: func(ctx context.Context, b *Bench) error { return runEnqueue(ctx, b, s.bytes, s.inFlight) },
		})
	}
}

var enqueueColumns = []string{"acked_per_s", "mb_per_s", "ack_p50_ms", "ack_p99_ms", "ack_p999_ms",
	"server_cpu_s_per_million", "server_cores", "client_cores", "idle_pct", "flushes_per_s",
	"rss_peak_mb", "disk_bytes_per_payload_byte", "publish_errors"}

func runEnqueue(ctx context.Context, b *Bench, size, inFlight int) error {
	l, err := NewLoad(ctx, b.Driver, LoadOptions{Size: size, Producers: defaultProducers, InFlight: inFlight})
	if err != nil {
		return err
	}
	defer l.Close()
	if err := l.OpenProducers(); err != nil {
		return err
	}
	saturateWindow(ctx, l, b)
	finish(l, b, 10*time.Second)
	return nil
}

// saturateWindow loads the system fully for the warm-up and the measured
// time. It ends early rather than fill the disk or the memory.
func saturateWindow(ctx context.Context, l *Load, b *Bench) {
	ctx, cancel := context.WithTimeout(ctx, warmUp+b.Duration)
	defer cancel()
	opened := make(chan func(), 1)
	go func() {
		time.Sleep(warmUp)
		l.OpenWindow()
		opened <- startProfiles(b.Driver, b.Name, b.Duration)
	}()
	maxBytes := int64(conf.maxBacklog)
	if l.backlog != nil {
		maxBytes = 1 << 50
	}
	l.Saturate(ctx, maxBytes)
	profiles := <-opened
	if ctx.Err() == nil {
		b.Note("ended early at %d MB sent", maxBytes>>20)
	}
	l.CloseWindow(b.Metrics)
	profiles()
}
