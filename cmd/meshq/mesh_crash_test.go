//go:build mesh && linux

package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

const jobs = 10_000

// jobLines are the lines of a file of jobs.
func jobLines(n int) []string {
	lines := make([]string, n)
	for i := range lines {
		lines[i] = newBody("job", i+1, 40)
	}
	return lines
}

// Ten thousand jobs are in, all nodes are killed at once, and all jobs come back.
func TestMeshTenThousandJobs(t *testing.T) {
	m := newMesh(t, 3)
	lines := jobLines(jobs)
	file := filepath.Join(m.dir, "jobs.txt")
	if err := os.WriteFile(file, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	m.must("queue", "create", "jobs")
	from := time.Now()
	m.must("send", "jobs", "--file", file)
	sent := time.Since(from)

	m.kill(m.all()...)
	from = time.Now()
	m.restart(m.all()...)
	back := time.Since(from)

	from = time.Now()
	got := decodeLines[receivedJSON](t, m.must("receive", "jobs", "--max", fmt.Sprint(jobs), "--json", "--wait", "20s"))
	t.Logf("%d jobs: sent in %s; kill -9 of all; active again after %s; received in %s", jobs, ms(sent), ms(back), ms(time.Since(from)))
	if len(got) != jobs {
		t.Fatalf("%d jobs received, want %d", len(got), jobs)
	}
	for i, r := range got {
		if r.Body == nil || *r.Body != lines[i] {
			t.Fatalf("job %d is %+v, want %q", i+1, r, lines[i])
		}
		if r.Redelivered {
			t.Fatalf("job %d is marked as redelivered, it never was: %+v", i+1, r)
		}
	}
	if code, out, errs := m.meshq("receive", "jobs", "--wait", "1s"); code != exitNothing {
		t.Errorf("exit code %d, want %d: there is more: %s %s", code, exitNothing, out, errs)
	}
	m.waitEqual("jobs")
}

// All nodes are killed while the jobs are being sent. What was confirmed is there, in
// order, each once; what was not may be there.
func TestMeshKilledWhileSending(t *testing.T) {
	m := newMesh(t, 3)
	lines := jobLines(jobs)
	m.must("queue", "create", "jobs")
	r, w := io.Pipe()
	c := m.background(r, "send", "jobs", "--file", "-", "--json", "--timeout", "40s")
	go func() { // at 5,000 lines a second, so that there is a middle
		defer w.Close()
		out := bufio.NewWriter(w)
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		for i, line := range lines {
			if i%10 == 0 {
				if out.Flush() != nil {
					return
				}
				<-tick.C
			}
			if _, err := out.WriteString(line + "\n"); err != nil {
				return
			}
		}
		_ = out.Flush()
	}()
	c.waitLines(jobs / 4)
	m.kill(m.all()...)
	atKill := c.count()
	m.restart(m.all()...)
	code := c.code()
	_ = r.Close() // the writer ends too
	if code != exitDone && code != exitFailed {
		t.Errorf("send ended with %d: %s", code, c.stderr)
	}

	type sentJSON struct {
		ID   string `json:"id"`
		Line int    `json:"line"`
	}
	confirmed := decodeLines[sentJSON](t, strings.Join(c.output(), "\n"))
	received := decodeLines[receivedJSON](t, m.must("receive", "jobs", "--max", "0", "--json", "--wait", "4s"))
	number := map[string]int{}
	for i, line := range lines {
		number[line] = i + 1
	}
	seen := map[int]bool{}
	last := 0
	for _, r := range received {
		n := number[*r.Body]
		switch {
		case n == 0:
			t.Fatalf("received what was never sent: %+v", r)
		case seen[n]:
			t.Errorf("line %d is received twice: %+v", n, r)
		case n < last:
			t.Errorf("line %d comes after line %d", n, last)
		}
		seen[n], last = true, max(last, n)
	}
	missing := 0
	for _, s := range confirmed {
		if !seen[s.Line] {
			if missing++; missing <= 5 {
				t.Errorf("line %d (%s) was confirmed and is not there", s.Line, s.ID)
			}
		}
	}
	t.Logf("killed after %d confirmed lines; send ended with %d, %d lines confirmed, %d received, %d missing; it said: %s",
		atKill, code, len(confirmed), len(received), missing, strings.TrimSpace(c.stderr.String()))
	if len(confirmed) < atKill {
		t.Errorf("%d lines confirmed in all, %d at the time of the kill", len(confirmed), atKill)
	}
}

// The owner is killed again and again, with messages in the hands of consumers.
func TestMeshOwnerKilled(t *testing.T) {
	m := newMesh(t, 3)
	m.must("queue", "create", "work")
	m.waitOwner("work")
	l := m.startLoad(loadPlan{queue: "work", producers: 4, rate: 2000, size: 256, consumers: 4, hold: 5 * time.Millisecond})
	l.waitDeliveries(2000)

	var table strings.Builder
	fmt.Fprintf(&table, "\n%-6s %-8s %14s %14s %14s %16s %8s %12s", "kill", "owner", "gap before", "enqueue gap", "worst confirm", "delivery gap", "again", "next owner")
	var confirmGaps, deliveryGaps []time.Duration
	for k := range *ownerKills {
		owner, _ := m.waitOwner("work")
		pass(2 * time.Second)
		at := time.Now()
		m.kill(owner)
		pass(*downFor)
		until := time.Now()
		next, _ := m.waitOwner("work", owner)
		m.restart(owner)
		l.waitDeliveries(1000)
		confirms, deliveries := l.gaps(at, until)
		confirmGaps, deliveryGaps = append(confirmGaps, confirms), append(deliveryGaps, deliveries)
		usual, _ := l.gaps(at.Add(-2*time.Second), at) // what the machine does without a kill
		fmt.Fprintf(&table, "\n%-6d %-8s %14s %14s %14s %16s %8d %12s", k+1, m.nodes[owner].name, ms(usual), ms(confirms), ms(l.worstConfirm(at.Add(-time.Second), until)),
			ms(deliveries), l.deliveredAgain(at, until), m.nodes[next].name)
		if confirms > 10*time.Second || deliveries > 10*time.Second {
			t.Errorf("kill %d: nothing was confirmed for %v, nothing delivered for %v", k+1, confirms, deliveries)
		}
	}
	l.finish()
	v := l.check()
	slices.Sort(confirmGaps)
	slices.Sort(deliveryGaps)
	n := len(deliveryGaps)
	t.Logf("%s\nenqueue gap: median %s, worst %s (goal 100 ms); delivery gap: median %s (goal 2 s), worst %s (goal 2.5 s)\n%v", table.String(),
		ms(confirmGaps[n/2]), ms(confirmGaps[n-1]), ms(deliveryGaps[n/2]), ms(deliveryGaps[n-1]), v)
	if v.refused > 0 {
		t.Errorf("%d messages were not confirmed, the first: %v", v.refused, l.refused[0])
	}
	m.waitEqual("work")
}

// Consumers that hold messages die, or hang, or die together with the owner.
func TestMeshConsumerGone(t *testing.T) {
	m := newMesh(t, 3)
	const held = 20
	for _, test := range []struct {
		queue string
		sig   syscall.Signal
		owner bool // is killed too
		lease time.Duration
		cause string
	}{
		{"killed", syscall.SIGKILL, false, 30 * time.Second, "consumer"},
		{"stopped", syscall.SIGSTOP, false, 2 * time.Second, "lease"},
		{"killed-with-the-owner", syscall.SIGKILL, true, 30 * time.Second, "takeover"},
	} {
		t.Run(test.queue, func(t *testing.T) {
			m := m.in(t)
			m.must("queue", "create", test.queue, "--lease", test.lease.String())
			owner, _ := m.waitOwner(test.queue)
			args := []string{"send", test.queue}
			for i := range held {
				args = append(args, newBody("held", i, 30))
			}
			m.must(args...)
			c := m.background(nil, "receive", test.queue, "--no-ack", "--follow", "--json")
			c.waitLines(held)

			// Another consumer waits already; nothing is there for it.
			mesh := m.dial()
			other, err := mesh.Queue(test.queue).Consumer(context.Background(), "")
			if err != nil {
				t.Fatal(err)
			}
			defer other.Close()
			if ds, err := other.Receive(context.Background(), held, 2*time.Second); err != nil || len(ds) > 0 {
				t.Fatalf("received %d messages that another holds: %v", len(ds), err)
			}
			at := time.Now()
			_ = c.Process.Signal(test.sig)
			if test.owner {
				m.kill(owner)
			}
			var first, last time.Duration
			got := map[string]bool{}
			for len(got) < held && time.Since(at) < settlePatience {
				ds, err := other.Receive(context.Background(), held, time.Second)
				if err != nil {
					t.Fatal(err)
				}
				for _, d := range ds {
					last = time.Since(at)
					if first == 0 {
						first = last
					}
					if got[string(d.Body)] {
						t.Errorf("%q came twice", d.Body)
					}
					got[string(d.Body)] = true
					if !d.Redelivered || d.Cause != test.cause {
						t.Errorf("%q: redelivered %v, cause %q, want %q", d.Body, d.Redelivered, d.Cause, test.cause)
					}
				}
				if err := mesh.AckAll(context.Background(), ds); err != nil {
					t.Error(err)
				}
			}
			t.Logf("%s (the owner too: %v) with %d messages in hand, lease %v: the first came again after %s, the last after %s", test.sig, test.owner, held, test.lease, ms(first), ms(last))
			if len(got) != held {
				t.Fatalf("%d of %d messages came again", len(got), held)
			}
			if test.sig == syscall.SIGKILL && last > test.lease/2 {
				t.Errorf("the messages of a dead consumer waited for their lease")
			}
			if test.sig == syscall.SIGSTOP {
				_ = c.Process.Signal(syscall.SIGCONT)
				_ = c.Process.Signal(os.Interrupt)
				c.code()
			}
			if ds, err := other.Receive(context.Background(), held, time.Second); err != nil || len(ds) > 0 {
				t.Errorf("%d acked messages came back: %v", len(ds), err)
			}
		})
	}
}

// A node that is told to stop hands over: nobody waits for a lease, and no message comes
// twice.
func TestMeshDrain(t *testing.T) {
	m := newMesh(t, 3)
	m.must("queue", "create", "work")
	owner, _ := m.waitOwner("work")
	l := m.startLoad(loadPlan{queue: "work", producers: 2, rate: 500, size: 256, consumers: 2, hold: 5 * time.Millisecond})
	l.waitDeliveries(500)
	at := time.Now()
	if code := m.stop(owner); code != exitDone {
		t.Errorf("exit code %d, want 0:\n%s", code, m.logTail(m.nodes[owner], 10))
	}
	took := time.Since(at)
	l.waitDeliveries(500)
	until := time.Now()
	confirms, deliveries := l.gaps(at, until)
	next, _ := m.waitOwner("work", owner)
	m.restart(owner)
	l.waitDeliveries(500)
	again := l.deliveredAgain(at, time.Now())
	l.finish()
	v := l.check()
	t.Logf("SIGTERM of the owner %s: ended after %s; enqueue gap %s, delivery gap %s, %d delivered again; next owner %s; %v",
		m.nodes[owner].name, ms(took), ms(confirms), ms(deliveries), again, m.nodes[next].name, v)
	if v.again > 0 {
		t.Errorf("%d messages were delivered again: a handover passes on what is in flight", v.again)
	}
	if v.refused > 0 {
		t.Errorf("%d messages were not confirmed: %v", v.refused, l.refused[0])
	}
	if deliveries > 10*time.Second || confirms > 10*time.Second {
		t.Errorf("nothing was confirmed for %v, nothing delivered for %v", confirms, deliveries)
	}
	m.waitEqual("work")
	for _, i := range m.all() {
		if code := m.stop(i); code != exitDone {
			t.Errorf("%s: exit code %d:\n%s", m.nodes[i].name, code, m.logTail(m.nodes[i], 10))
		}
	}
	m.restart(m.all()...)
	if code, out, _ := m.meshq("receive", "work", "--wait", "1s"); code != exitNothing {
		t.Errorf("after a clean stop of all: exit code %d: %s", code, out)
	}
}
