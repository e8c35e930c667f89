package main

import (
	"context"
	"fmt"
	"sort"
	"time"
)

// A Workload is one kind of run.
type Workload struct {
	About   string
	Columns []string // metrics of its table
	Primary string   // the metric that pairs of systems are compared by
	Summary []string // metrics of the table over all workloads
	Run     func(ctx context.Context, b *Bench) error
}

// Bench is one run: the started system, and where its figures go.
type Bench struct {
	Name     string // peer and workload
	Driver   Driver
	Duration time.Duration // of the measured part
	Metrics  Metrics
	Notes    []string
}

func (b *Bench) Note(format string, args ...any) {
	b.Notes = append(b.Notes, fmt.Sprintf(format, args...))
}

var (
	workloads     = map[string]*Workload{}
	workloadRank  = map[string]int{}
	workloadOrder []string
)

// RegisterWorkload makes a workload known under a name; the rank orders the
// lists and tables.
func RegisterWorkload(rank int, name string, w *Workload) {
	workloads[name] = w
	workloadRank[name] = rank
	workloadOrder = append(workloadOrder, name)
	sort.SliceStable(workloadOrder, func(i, j int) bool {
		return workloadRank[workloadOrder[i]] < workloadRank[workloadOrder[j]]
	})
}

const (
	defaultProducers = 4
	defaultConsumers = 4
	warmUp           = time.Second
)

var sizes = []struct {
	name     string
	bytes    int
	inFlight int // per producer
}{
	{"128", 128, 1024},
	{"1k", 1 << 10, 1024},
	{"16k", 16 << 10, 128},
}

// finish lets the system complete what is under way after a fixed-rate run,
// and puts the outcome into the metrics.
func finish(l *Load, b *Bench, patience time.Duration) {
	if !l.WaitAcked(patience) {
		b.Note("%d messages were never acknowledged", l.sent.Load()-l.acked.Load())
	}
	if l.opt.Consumers > 0 && !l.WaitDelivered(patience) {
		b.Note("%d acknowledged messages were not delivered", l.acked.Load()-l.delivered.Load())
	}
	l.ackHist.Put(b.Metrics, "ack")
	l.e2eHist.Put(b.Metrics, "e2e")
	l.PutCounts(b.Metrics)
	if e := l.lastError.Load(); e != nil {
		b.Note("last publish error: %s", *e)
	}
}
