package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/meshq/meshq/client"
	"github.com/meshq/meshq/transport/wire"
)

func (a *app) queueUpdate() *cobra.Command {
	var (
		s      client.Settings
		size   byteSize
		asJSON bool
	)
	flags := func(f *pflag.FlagSet) {
		f.IntVar(&s.Partitions, "partitions", 0, "more partitions; messages of one key may then be in another one than those before")
		f.IntVar(&s.WriteQuorum, "write-quorum", 0, "nodes that have a message on disk when it is confirmed")
		f.DurationVar(&s.Lease, "lease", 0, "1s to 12h that a consumer may hold a message, from its next delivery on")
		f.Var(&size, "max-message-bytes", "largest message: key, headers and body, to 4MiB")
		f.DurationVar(&s.BackoffMin, "backoff-min", 0, "wait before the first retry of a message that a consumer gives back")
		f.DurationVar(&s.BackoffMax, "backoff-max", 0, "longest wait between retries")
		f.BoolVar(&asJSON, "json", false, "print a JSON object")
	}
	cmd := a.meshCommand("update NAME [flags]", "Change settings of a queue while it is used", argCount(1, 1, "NAME"), flags,
		func(ctx context.Context, mesh *client.Mesh, args []string) error {
			u, err := mesh.UpdateQueue(ctx, args[0], s)
			if err != nil {
				return a.meant(ctx, mesh, args[0], bare(err, "update queue "+args[0]))
			}
			if asJSON {
				return a.printJSON(updateJSON{queueAsJSON(&u.QueueInfo), changesOf(u)})
			}
			return a.printUpdate(u)
		})
	check := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		s.MaxMessageBytes = int(size)
		if err := checkUpdate(args[0], cmd.Flags(), &s); err != nil {
			return a.explain("queue update "+args[0], args[0], &meshFlags{}, err)
		}
		return check(cmd, args)
	}
	return cmd
}

// checkUpdate finds what is wrong before a mesh is asked, which knows the rest.
func checkUpdate(name string, given *pflag.FlagSet, s *client.Settings) error {
	if err := wire.CheckName("queue", name); err != nil {
		return usage("", "%w", err)
	}
	any := false
	for _, c := range settingRanges(s) {
		if !given.Changed(c.name) {
			continue
		}
		any = true
		if c.name == "write-quorum" {
			c.hi = wire.MaxReplicas // it depends on the queue
		}
		if c.name == "backoff-max" && !given.Changed("backoff-min") {
			c.lo = int64(time.Millisecond)
		}
		if err := c.check(); err != nil {
			return err
		}
	}
	if !any {
		return usage("name what to change, such as --lease 1m", "nothing to change in queue %s", name)
	}
	return nil
}

type updateJSON struct {
	queueJSON
	Changed []changeJSON `json:"changed"`
}

// changeJSON is one setting that was changed.
type changeJSON struct {
	Setting string `json:"setting"`
	Before  string `json:"before"`
	After   string `json:"after"`
}

func changesOf(u *client.QueueUpdate) []changeJSON {
	out := []changeJSON{}
	before, after := settingRanges(&u.Before), settingRanges(&u.Settings)
	for i := range after {
		if before[i].value != after[i].value {
			out = append(out, changeJSON{after[i].name, before[i].show(before[i].value), after[i].show(after[i].value)})
		}
	}
	return out
}

func (a *app) printUpdate(u *client.QueueUpdate) error {
	changes := changesOf(u)
	if len(changes) == 0 {
		fmt.Fprintf(a.out, "queue %s has these settings already\n", u.Name)
		return nil
	}
	for _, c := range changes {
		fmt.Fprintf(a.out, "queue %s: %s is %s, was %s\n", u.Name, c.Setting, c.After, c.Before)
	}
	return nil
}

func (a *app) queuePause() *cobra.Command {
	var (
		group  string
		long   time.Duration
		asJSON bool
	)
	flags := func(f *pflag.FlagSet) {
		f.StringVar(&group, "group", "", "pause only this `group`")
		f.DurationVar(&long, "for", 0, "go on by itself after that long (default: when it is resumed)")
		f.BoolVar(&asJSON, "json", false, "print a JSON object")
	}
	cmd := a.meshCommand("pause NAME [flags]", "Stop handing out messages of a queue; it goes on taking them", argCount(1, 1, "NAME"), flags,
		func(ctx context.Context, mesh *client.Mesh, args []string) error {
			until := client.Forever
			if long > 0 {
				until = time.Now().Add(long)
			}
			info, err := mesh.PauseQueue(ctx, args[0], group, until)
			return a.paused(ctx, mesh, args[0], "pause", info, err, asJSON)
		})
	check := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if long < 0 || long == 0 && cmd.Flags().Changed("for") {
			return a.explain("queue pause "+args[0], args[0], &meshFlags{}, usage("", "--for is %s, must be more than 0", long))
		}
		return check(cmd, args)
	}
	return cmd
}

func (a *app) queueResume() *cobra.Command {
	var (
		group  string
		asJSON bool
	)
	flags := func(f *pflag.FlagSet) {
		f.StringVar(&group, "group", "", "resume this `group`, which was paused by itself")
		f.BoolVar(&asJSON, "json", false, "print a JSON object")
	}
	return a.meshCommand("resume NAME [flags]", "Hand out messages of a paused queue again", argCount(1, 1, "NAME"), flags,
		func(ctx context.Context, mesh *client.Mesh, args []string) error {
			info, err := mesh.ResumeQueue(ctx, args[0], group)
			return a.paused(ctx, mesh, args[0], "resume", info, err, asJSON)
		})
}

// paused prints what a pause or its end has come to.
func (a *app) paused(ctx context.Context, mesh *client.Mesh, name, verb string, info *client.QueueInfo, err error, asJSON bool) error {
	if err != nil {
		return a.meant(ctx, mesh, name, bare(err, verb+" queue "+name))
	}
	if asJSON {
		return a.printJSON(queueAsJSON(info))
	}
	lines := pausesInWords(info)
	if len(lines) == 0 {
		lines = []string{"not paused"}
	}
	for _, line := range lines {
		fmt.Fprintf(a.out, "queue %s: %s\n", name, line)
	}
	return nil
}

// pausesInWords says what of a queue is paused; empty: nothing.
func pausesInWords(q *client.QueueInfo) []string {
	var out []string
	if !q.PausedUntil.IsZero() {
		out = append(out, "paused until "+pauseEnd(q.PausedUntil))
	}
	for _, g := range q.Groups {
		if until, paused := q.PausedGroups[g]; paused {
			out = append(out, fmt.Sprintf("group %s paused until %s", g, pauseEnd(until)))
		}
	}
	return out
}

func pauseEnd(until time.Time) string {
	if until.Equal(client.Forever) {
		return "resumed"
	}
	return until.Local().Format(time.RFC3339)
}
