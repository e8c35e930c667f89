package main

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"time"
)

// A Driver runs one system under test: it starts its servers on this
// machine and gives the workloads producers and consumers for it.
//
// To add a system: fill the Cluster with its server processes in Start,
// implement the methods below, and call Register from an init function.
// Killing, restarting, stopping and measuring the processes is done by
// Cluster for every driver alike.
type Driver interface {
	// Info says what the system is and what its acknowledgement means.
	Info() Info

	// Start brings up an empty cluster and returns once it serves.
	Start(ctx context.Context, env *Env) error

	// Cluster has the server processes added in Start.
	Cluster() *Cluster

	// CreateQueues makes empty queues ready for use.
	CreateQueues(ctx context.Context, names []string) error

	// Owner returns the index of the node that leads or owns the queue
	// (0 if the system has no such thing).
	Owner(ctx context.Context, queue string) (int, error)

	// NewProducer opens producer number id. onAck is called exactly once
	// for each published message, from any goroutine.
	NewProducer(id int, onAck AckFunc) (Producer, error)

	// NewConsumer opens consumer number id on some queues. It lives until
	// Close and must find its way to a living node by itself.
	NewConsumer(id int, queues []string, handle Handler) (Consumer, error)
}

// AckFunc reports that the system took message seq, or why it did not. A
// failed message is published again by the workload, under the same seq.
type AckFunc func(seq uint64, err error)

// A Producer publishes asynchronously and batches as it sees fit.
type Producer interface {
	// Publish may block while the connection is busy or down, but never
	// until the acknowledgement. The producer keeps body from then on.
	Publish(queue string, body []byte, seq uint64)
	Close()
}

// Handler is given each batch of delivered messages, one call at a time per
// consumer. When it returns, the consumer acknowledges the whole batch. It
// must not keep the bodies.
type Handler func(batch [][]byte)

// A Consumer delivers to its Handler until Close.
type Consumer interface {
	Close()
}

// Info describes a system for the reader of the results.
type Info struct {
	About    string   // one line: what runs, and how it is configured
	Nodes    int      // server processes that hold data
	Copies   int      // copies of each message
	AckMeans string   // what has happened when an enqueue is acknowledged
	Program  string   // the binary it needs; empty for none
	Without  []string // workloads that make no sense for it
}

// Env is what a Driver's Start gets from the harness.
type Env struct {
	Dir      string   // empty directory for the servers' data
	BasePort int      // first of 30 ports that are this run's own
	BinDirs  []string // looked in before PATH
}

// Port returns the run's own port number i.
func (e *Env) Port(i int) int { return e.BasePort + i }

// Addr returns the loopback address with port number i.
func (e *Env) Addr(i int) string { return fmt.Sprintf("127.0.0.1:%d", e.Port(i)) }

// Binary finds a server program in BinDirs, else in PATH.
func (e *Env) Binary(name string) (string, error) {
	for _, d := range e.BinDirs {
		if p, err := exec.LookPath(filepath.Join(d, name)); err == nil {
			return filepath.Abs(p)
		}
	}
	return exec.LookPath(name)
}

// redelivery is the time after which every system, where that can be set,
// gives an unacknowledged message to another consumer.
const redelivery = 10 * time.Second

var (
	drivers     = map[string]func() Driver{}
	driverRank  = map[string]int{}
	driverOrder []string
)

// Register makes a driver known under a name; the rank orders the lists and
// tables.
func Register(rank int, name string, make func() Driver) {
	drivers[name] = make
	driverRank[name] = rank
	driverOrder = append(driverOrder, name)
	sort.SliceStable(driverOrder, func(i, j int) bool {
		return driverRank[driverOrder[i]] < driverRank[driverOrder[j]]
	})
}

// version asks the driver's program which version it is.
func version(d Driver, env *Env) string {
	if v, ok := d.(interface{ Version(*Env) string }); ok {
		return v.Version(env)
	}
	if program := d.Info().Program; program != "" {
		return commandLine(env, program, "--version")
	}
	return ""
}

// commandLine runs a server program and returns the first line it prints.
func commandLine(env *Env, program string, args ...string) string {
	path, err := env.Binary(program)
	if err != nil {
		return ""
	}
	out, _ := exec.Command(path, args...).CombinedOutput()
	line, _, _ := strings.Cut(string(out), "\n")
	return strings.TrimSpace(line)
}
