package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/meshq/meshq/client"
	"github.com/meshq/meshq/transport/wire"
)

func (a *app) queueCommand() *cobra.Command {
	return a.group("queue", "Create, list, show, change and delete queues",
		a.queueCreate(), a.queueList(), a.queueShow(), a.queueUpdate(), a.queuePause(), a.queueResume(), a.queueDelete())
}

// queueJSON is a queue as the catalog has it.
type queueJSON struct {
	Name            string   `json:"name"`
	Generation      uint64   `json:"generation"`
	PartitionCount  int      `json:"partition_count"`
	Replicas        int      `json:"replicas"`
	WriteQuorum     int      `json:"write_quorum"`
	Lease           string   `json:"lease"`
	MaxMessageBytes int      `json:"max_message_bytes"`
	BackoffMin      string   `json:"backoff_min"`
	BackoffMax      string   `json:"backoff_max"`
	Groups          []string `json:"groups"`
	Warning         string   `json:"warning,omitempty"`
	// RFC 3339, or "resumed": until it is told to go on.
	PausedUntil  string            `json:"paused_until,omitempty"`
	PausedGroups map[string]string `json:"paused_groups,omitempty"`
}

func queueAsJSON(q *client.QueueInfo) queueJSON {
	j := queueJSON{
		Name: q.Name, Generation: q.Generation, PartitionCount: q.Settings.Partitions, Replicas: q.Settings.Replicas,
		WriteQuorum: q.Settings.WriteQuorum, Lease: q.Settings.Lease.String(), MaxMessageBytes: q.Settings.MaxMessageBytes,
		BackoffMin: q.Settings.BackoffMin.String(), BackoffMax: q.Settings.BackoffMax.String(), Groups: q.Groups, Warning: q.Warning,
	}
	if !q.PausedUntil.IsZero() {
		j.PausedUntil = pauseEnd(q.PausedUntil)
	}
	for group, until := range q.PausedGroups {
		if j.PausedGroups == nil {
			j.PausedGroups = map[string]string{}
		}
		j.PausedGroups[group] = pauseEnd(until)
	}
	return j
}

func (a *app) queueCreate() *cobra.Command {
	var (
		s      client.Settings
		d      = wire.DefaultSettings()
		size   = byteSize(d.MaxMessageBytes)
		groups []string
		asJSON bool
	)
	flags := func(f *pflag.FlagSet) {
		f.IntVar(&s.Partitions, "partitions", int(d.Partitions), "1 to 1024; each is a FIFO of its own, so more give more throughput and less order")
		f.IntVar(&s.Replicas, "replicas", int(d.Replicas), "1 to 7 nodes that keep each message")
		f.IntVar(&s.WriteQuorum, "write-quorum", 0, "nodes that have a message on disk when it is confirmed (default: the majority of the replicas)")
		f.StringSliceVar(&groups, "groups", nil, "`names` of consumer groups; each gets every message (default: one, called default)")
		f.DurationVar(&s.Lease, "lease", time.Duration(d.Lease)*time.Millisecond, "1s to 12h that a consumer may hold a message before it is delivered to another")
		f.Var(&size, "max-message-bytes", "largest message: key, headers and body, to 4MiB")
		f.DurationVar(&s.BackoffMin, "backoff-min", time.Duration(d.BackoffMin)*time.Millisecond, "wait before the first retry of a message that a consumer gave back")
		f.DurationVar(&s.BackoffMax, "backoff-max", time.Duration(d.BackoffMax)*time.Millisecond, "longest wait between retries")
		f.BoolVar(&asJSON, "json", false, "print a JSON object")
	}
	cmd := a.meshCommand("create NAME [flags]", "Create a queue, or confirm that it exists with these settings", argCount(1, 1, "NAME"), flags,
		func(ctx context.Context, mesh *client.Mesh, args []string) error {
			info, err := mesh.CreateQueue(ctx, args[0], s, groups...)
			if err != nil {
				return bare(err, "create queue "+args[0])
			}
			if few := tooFewNodes(ctx, mesh, info); few != "" {
				info.Warning = strings.TrimPrefix(info.Warning+"; "+few, "; ")
			}
			if info.Warning != "" {
				fmt.Fprintf(a.err, "meshq: warning: %s\n", info.Warning)
			}
			if asJSON {
				return a.printJSON(queueAsJSON(info))
			}
			fmt.Fprintf(a.out, "queue %s: %s, %s, a message is confirmed when it is on %d of them\n",
				info.Name, plural(info.Settings.Partitions, "partition"), plural(info.Settings.Replicas, "replica"), info.Settings.WriteQuorum)
			return nil
		})
	check := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		s.MaxMessageBytes = int(size)
		if err := checkCreate(args[0], &s, groups, cmd.Flags().Changed("write-quorum")); err != nil {
			return a.explain("queue create "+args[0], args[0], &meshFlags{}, err)
		}
		return check(cmd, args)
	}
	return cmd
}

// tooFewNodes says that the ring is smaller than the queue wants; empty if it is not.
func tooFewNodes(ctx context.Context, mesh *client.Mesh, q *client.QueueInfo) string {
	r, err := mesh.Ring(ctx)
	if err != nil || len(r.Members) >= q.Settings.Replicas {
		return ""
	}
	n := len(r.Members)
	return fmt.Sprintf("the mesh has %s: until there are more, %s is kept and a message is confirmed when it is on %d",
		plural(n, "node"), plural(n, "replica"), min(n, q.Settings.WriteQuorum))
}

// checkCreate finds what is wrong before a mesh is asked.
func checkCreate(name string, s *client.Settings, groups []string, quorumGiven bool) error {
	if err := wire.CheckName("queue", name); err != nil {
		return usage("", "%w", err)
	}
	for _, g := range groups {
		if err := wire.CheckName("group", g); err != nil {
			return usage("", "%w", err)
		}
	}
	if len(groups) > wire.MaxGroups {
		return usage("", "%s, allowed are up to %d", plural(len(groups), "group"), wire.MaxGroups)
	}
	if !quorumGiven {
		s.WriteQuorum = s.Replicas/2 + 1
	}
	for _, c := range settingRanges(s) {
		if err := c.check(); err != nil {
			return err
		}
	}
	return nil
}

// settingRange is a setting, as its flag is called, and what it may be.
type settingRange struct {
	name          string
	value, lo, hi int64
	show          func(int64) string
}

func (c *settingRange) check() error {
	if c.value < c.lo || c.value > c.hi {
		return usage("", "%s is %s, allowed are %s to %s", c.name, c.show(c.value), c.show(c.lo), c.show(c.hi))
	}
	return nil
}

func settingRanges(s *client.Settings) []settingRange {
	const maxLease = wire.MaxLease * time.Millisecond
	return []settingRange{
		{"partitions", int64(s.Partitions), 1, wire.MaxPartitions, number},
		{"replicas", int64(s.Replicas), 1, wire.MaxReplicas, number},
		{"write-quorum", int64(s.WriteQuorum), 1, int64(s.Replicas), number},
		{"lease", int64(s.Lease), int64(time.Second), int64(maxLease), duration},
		{"max-message-bytes", int64(s.MaxMessageBytes), 1, 4 << 20, number},
		{"backoff-min", int64(s.BackoffMin), int64(time.Millisecond), int64(24 * time.Hour), duration},
		{"backoff-max", int64(s.BackoffMax), int64(s.BackoffMin), int64(24 * time.Hour), duration},
	}
}

func number(n int64) string { return fmt.Sprint(n) }

// duration is 12h, not 12h0m0s.
func duration(n int64) string {
	s := time.Duration(n).String()
	if rest, ok := strings.CutSuffix(s, "m0s"); ok {
		s = rest + "m"
	}
	if rest, ok := strings.CutSuffix(s, "h0m"); ok {
		s = rest + "h"
	}
	return s
}

func (a *app) queueList() *cobra.Command {
	var asJSON bool
	return a.meshCommand("list [flags]", "List all queues", argCount(0, 0, ""), jsonFlag(&asJSON, "a JSON object for each queue"),
		func(ctx context.Context, mesh *client.Mesh, _ []string) error {
			queues, err := mesh.Queues(ctx)
			if err != nil {
				return bare(err, "list queues")
			}
			if asJSON {
				for i := range queues {
					if err := a.printJSON(queueAsJSON(&queues[i])); err != nil {
						return err
					}
				}
				return nil
			}
			if len(queues) == 0 {
				fmt.Fprintf(a.err, "meshq: there are no queues yet; %q creates one\n", self()+" queue create NAME")
				return nil
			}
			t := newTable(a.out, "NAME", "PARTITIONS", "REPLICAS", "WRITE QUORUM", "LEASE", "GROUPS")
			for _, q := range queues {
				t.row(q.Name, q.Settings.Partitions, q.Settings.Replicas, q.Settings.WriteQuorum, duration(int64(q.Settings.Lease)), strings.Join(q.Groups, ", "))
			}
			return t.flush()
		})
}

// The state of a queue as JSON. Sums are over partitions that have an owner, and over
// groups: a message that waits for two groups counts twice.
type (
	queueStateJSON struct {
		queueJSON
		Ready      uint64          `json:"ready"`
		InFlight   uint64          `json:"in_flight"`
		Delayed    uint64          `json:"delayed"`
		Unowned    int             `json:"unowned"`
		GroupState []groupJSON     `json:"group_state"`
		Partitions []partitionJSON `json:"partitions"`
	}
	groupJSON struct {
		Name     string `json:"name"`
		Ready    uint64 `json:"ready"`
		InFlight uint64 `json:"in_flight"`
		Delayed  uint64 `json:"delayed"`
		Done     uint64 `json:"done"`
	}
	partitionJSON struct {
		Index     int           `json:"index"`
		ID        string        `json:"id"`
		Owner     string        `json:"owner"`
		Term      string        `json:"term"`
		Home      []string      `json:"home"`
		Fallbacks []string      `json:"fallbacks"`
		Messages  uint64        `json:"messages"`
		Ready     uint64        `json:"ready"`
		InFlight  uint64        `json:"in_flight"`
		Delayed   uint64        `json:"delayed"`
		Replicas  []replicaJSON `json:"replica_state"`
	}
	replicaJSON struct {
		Node      string `json:"node"`
		Error     string `json:"error,omitempty"`
		Owns      bool   `json:"owns"`
		Messages  uint64 `json:"messages"`
		Digest    string `json:"digest"` // in hexadecimal; equal when the state is equal
		Hints     uint64 `json:"hints"`
		Repairing bool   `json:"repairing"`
	}
)

// sumGroups adds up the groups over all partitions, in the order of the queue.
func sumGroups(q *client.QueueState) []groupJSON {
	out := make([]groupJSON, len(q.Groups))
	for i, name := range q.Groups {
		out[i].Name = name
		for _, p := range q.Partitions {
			for _, g := range p.Groups {
				if g.Name == name {
					out[i].Ready += g.Ready
					out[i].InFlight += g.InFlight
					out[i].Delayed += g.Delayed
					out[i].Done += g.Done
				}
			}
		}
	}
	return out
}

func (a *app) queueShow() *cobra.Command {
	var asJSON bool
	return a.meshCommand("show NAME [flags]", "Show what is in a queue and where it is", argCount(1, 1, "NAME"), jsonFlag(&asJSON, "a JSON object"),
		func(ctx context.Context, mesh *client.Mesh, args []string) error {
			q, err := mesh.DescribeQueue(ctx, args[0])
			if err != nil {
				return a.meant(ctx, mesh, args[0], bare(err, "describe queue "+args[0]))
			}
			if asJSON {
				return a.printJSON(stateAsJSON(q))
			}
			return a.printState(q)
		})
}

func stateAsJSON(q *client.QueueState) queueStateJSON {
	out := queueStateJSON{
		queueJSON: queueAsJSON(&q.QueueInfo), Ready: q.Ready, InFlight: q.InFlight, Delayed: q.Delayed,
		Unowned: q.Unowned, GroupState: sumGroups(q),
	}
	for i := range q.Partitions {
		p := &q.Partitions[i]
		j := partitionJSON{
			Index: p.Partition, ID: p.ID, Owner: p.Owner, Term: p.Term, Home: p.Home, Fallbacks: p.Fallbacks,
			Messages: p.Messages, Ready: p.Ready, InFlight: p.InFlight, Delayed: p.Delayed,
		}
		for _, r := range p.Replicas {
			rj := replicaJSON{Node: r.Node, Owns: r.Owns, Messages: r.Messages, Digest: fmt.Sprintf("%016x", r.Digest), Hints: r.Hints, Repairing: r.Repairing}
			if r.Err != nil {
				rj.Error, rj.Digest = r.Err.Error(), ""
			}
			j.Replicas = append(j.Replicas, rj)
		}
		out.Partitions = append(out.Partitions, j)
	}
	return out
}

func (a *app) printState(q *client.QueueState) error {
	s := q.Settings
	fmt.Fprintf(a.out, "%s: %s, %s, write quorum %d, lease %s, messages up to %s\n", q.Name, plural(s.Partitions, "partition"),
		plural(s.Replicas, "replica"), s.WriteQuorum, duration(int64(s.Lease)), sizeOf(s.MaxMessageBytes))
	for _, line := range pausesInWords(&q.QueueInfo) {
		fmt.Fprintln(a.out, line)
	}
	fmt.Fprintln(a.out)
	t := newTable(a.out, "GROUP", "READY", "IN FLIGHT", "DELAYED", "DONE")
	for _, g := range sumGroups(q) {
		t.row(g.Name, g.Ready, g.InFlight, g.Delayed, g.Done)
	}
	if err := t.flush(); err != nil {
		return err
	}
	fmt.Fprintln(a.out)
	t = newTable(a.out, "PARTITION", "OWNER", "HOME REPLICAS", "MESSAGES", "STATE")
	for i := range q.Partitions {
		p := &q.Partitions[i]
		t.row(p.Partition, p.Owner, strings.Join(p.Home, ", "), p.Messages, replicasInWords(p))
	}
	return t.flush()
}

func sizeOf(n int) string {
	b := byteSize(n)
	return b.String()
}

// replicasInWords says what is not as it should be with a partition.
func replicasInWords(p *client.PartitionState) string {
	var words []string
	if p.Owner == "" {
		words = append(words, "nobody owns it now: messages are taken and not delivered")
	}
	digests := map[uint64]bool{}
	hints := uint64(0)
	for _, r := range p.Replicas {
		switch {
		case r.Err != nil:
			words = append(words, r.Node+" does not answer")
			continue
		case r.Repairing:
			words = append(words, r.Node+" is repairing")
		}
		digests[r.Digest] = true
		hints += r.Hints
	}
	if len(digests) > 1 {
		words = append(words, "replicas differ")
	}
	if hints > 0 {
		words = append(words, plural(hints, "hint")+" to hand over")
	}
	if len(words) == 0 {
		return "all replicas equal"
	}
	return strings.Join(words, "; ")
}

func (a *app) queueDelete() *cobra.Command {
	return a.meshCommand("delete NAME [flags]", "Delete a queue and all its messages", argCount(1, 1, "NAME"), noFlags,
		func(ctx context.Context, mesh *client.Mesh, args []string) error {
			if err := mesh.DeleteQueue(ctx, args[0]); err != nil {
				return a.meant(ctx, mesh, args[0], bare(err, "delete queue "+args[0]))
			}
			fmt.Fprintf(a.out, "queue %s and its messages are deleted\n", args[0])
			return nil
		})
}

// meant adds to ErrNoQueue the name of a queue that reads like the one typed.
func (a *app) meant(ctx context.Context, mesh *client.Mesh, typed string, err error) error {
	if !errors.Is(err, client.ErrNoQueue) {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	queues, listErr := mesh.Queues(ctx)
	if listErr != nil {
		return err
	}
	for _, q := range queues {
		if q.Name != typed && like(q.Name, typed) {
			return failed(err, fmt.Sprintf("did you mean %q?", q.Name))
		}
	}
	return err
}
