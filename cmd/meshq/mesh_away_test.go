//go:build mesh && linux

package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/meshq/meshq/client"
)

// hints are those that all running nodes keep, as "node show" and /metrics say.
func (m *testMesh) hints() (shown, metered uint64, err error) {
	for i, n := range m.nodes {
		if !n.running() {
			continue
		}
		state, err := m.showNode(i)
		if err != nil {
			return 0, 0, err
		}
		v, err := m.metric(i, "meshq_hints")
		if err != nil {
			return 0, 0, err
		}
		shown, metered = shown+state.Hints, metered+uint64(v)
	}
	return shown, metered, nil
}

// waitNoHints waits until no node keeps hints, and returns how long that took.
func (m *testMesh) waitNoHints() time.Duration {
	m.t.Helper()
	from := time.Now()
	m.eventually(settlePatience, "hints are handed off", func() error {
		shown, metered, err := m.hints()
		if err == nil && (shown > 0 || metered > 0) {
			err = fmt.Errorf("node show says %d hints, metrics say %d", shown, metered)
		}
		return err
	})
	return time.Since(from)
}

// A home replica is away for a while under load. What it missed reaches it when it is
// back: from the other home replicas, or as hints from a fallback that stood in.
func TestMeshNodeAway(t *testing.T) {
	for _, test := range []struct {
		name   string
		nodes  int
		create []string
		hints  bool
	}{
		{"3 nodes", 3, nil, false},
		{"4 nodes, write quorum 3", 4, []string{"--replicas", "3", "--write-quorum", "3"}, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := newMesh(t, test.nodes)
			m.must(append([]string{"queue", "create", "work"}, test.create...)...)
			owner, home := m.waitOwner("work")
			away := home[0]
			if away == owner {
				away = home[1]
			}
			l := m.startLoad(loadPlan{queue: "work", producers: 2, rate: 500, size: 256, consumers: 1})
			l.waitDeliveries(500)
			at := time.Now()
			m.kill(away)
			pass(*awayFor / 2)
			shown, metered, err := m.hints()
			if err != nil {
				t.Fatal(err)
			}
			pass(*awayFor / 2)
			until := time.Now()
			missed := l.count()
			m.restart(away)
			confirms, deliveries := l.gaps(at, until)
			drained := m.waitNoHints()
			l.finish()
			equal := m.waitEqual("work")
			v := l.check()
			t.Logf("home replica %s away for %v under 500/s: enqueue gap %s, delivery gap %s; half way %d hints in node show, %d in metrics; after its return hints were gone within %s, replicas equal %s after the load; %v",
				m.nodes[away].name, *awayFor, ms(confirms), ms(deliveries), shown, metered, ms(drained), ms(equal), v)
			if test.hints && (shown == 0 || metered == 0) {
				t.Errorf("a fallback stood in and %d hints are shown, %d in the metrics", shown, metered)
			}
			if !test.hints && (shown != 0 || metered != 0) {
				t.Errorf("two of three home replicas are a write quorum, yet there are hints: %d shown, %d in the metrics", shown, metered)
			}
			if v.refused > 0 {
				t.Errorf("%d messages were not confirmed, the first: %v", v.refused, l.refused[0])
			}
			if missed == 0 || confirms > 10*time.Second || deliveries > 10*time.Second {
				t.Errorf("%d confirmed; nothing was confirmed for %v, nothing delivered for %v", missed, confirms, deliveries)
			}
			if code, out, errs := m.meshq("receive", "work", "--wait", "1s", "--json"); code != exitNothing {
				t.Errorf("something acked came back: exit code %d: %s%s", code, out, errs)
			}
			if v.again > 0 {
				t.Errorf("%d messages were delivered again, and no owner and no consumer was lost", v.again)
			}
		})
	}
}

// Without a write quorum nothing is confirmed, and the client says so in time. When the
// others are back, all goes on; the one that stayed is not touched.
func TestMeshTwoOfThreeGone(t *testing.T) {
	m := newMesh(t, 3)
	m.must("queue", "create", "jobs")
	owner, _ := m.waitOwner("jobs")
	m.must("send", "jobs", "before")
	mesh := m.dial() // stays connected through it all
	gone := m.but(owner)
	m.kill(gone...)

	from := time.Now()
	code, out, errs := m.meshq("send", "jobs", "during", "--timeout", "3s")
	took := time.Since(from)
	t.Logf("send without a quorum: exit code %d after %s: %s", code, ms(took), strings.TrimSpace(errs))
	if code != exitFailed || out != "" {
		t.Errorf("exit code %d, printed %q", code, out)
	}
	if !strings.Contains(errs, "1 of 2") || !strings.Contains(errs, "may still be delivered") {
		t.Errorf("not the quorum error: %s", errs)
	}
	if took > 10*time.Second {
		t.Errorf("took %v, --timeout is 3s", took)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	if _, err := mesh.Queue("jobs").Send(ctx, client.Message{Body: []byte("from go")}); !errors.Is(err, client.ErrQuorum) {
		t.Errorf("Send: %v, want ErrQuorum", err)
	}
	cancel()
	// What nobody can own is not delivered either.
	if code, out, errs := m.meshq("receive", "jobs", "--wait", "2s"); code == exitDone {
		t.Errorf("received %q in a minority: %s", out, errs)
	}

	from = time.Now()
	m.restart(gone...)
	ctx, cancel = context.WithTimeout(context.Background(), startPatience)
	defer cancel()
	if _, err := mesh.Queue("jobs").Send(ctx, client.Message{Body: []byte("after")}); err != nil {
		t.Errorf("when they are back: %v", err)
	}
	back := time.Since(from)
	got := map[string]int{}
	for _, body := range strings.Fields(m.must("receive", "jobs", "--max", "0", "--wait", "4s")) {
		got[body]++
	}
	t.Logf("confirmed again %s after the others were started; received %v", ms(back), got)
	if got["before"] != 1 || got["after"] != 1 {
		t.Errorf("received %v, want what was confirmed once each", got)
	}
	m.waitEqual("jobs")
}

// Of five nodes any two may be gone, two home replicas of a queue too.
func TestMeshFiveNodes(t *testing.T) {
	m := newMesh(t, 5)
	for _, test := range []struct {
		name   string
		victim func(owner int, home []int) []int
	}{
		{"two home replicas, one owns", func(owner int, home []int) []int {
			for _, h := range home {
				if h != owner {
					return []int{owner, h}
				}
			}
			return nil
		}},
		{"two home replicas, the owner stays", func(owner int, home []int) []int {
			var out []int
			for _, h := range home {
				if h != owner {
					out = append(out, h)
				}
			}
			return out
		}},
		{"one home replica and one other", func(owner int, home []int) []int {
			return []int{owner, m.but(home...)[0]}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := m.in(t)
			queue := strings.NewReplacer(" ", "-", ",", "").Replace(test.name)
			m.must("queue", "create", queue)
			owner, home := m.waitOwner(queue)
			victims := test.victim(owner, home)
			l := m.startLoad(loadPlan{queue: queue, producers: 2, rate: 500, size: 256, consumers: 1})
			l.waitDeliveries(500)
			at := time.Now()
			m.kill(victims...)
			pass(4 * time.Second)
			until := time.Now()
			confirms, worst := l.worst(at, until)
			shown, _, _ := m.hints()
			m.restart(victims...)
			healed := m.waitNoHints()
			l.finish()
			equal := m.waitEqual(queue)
			v := l.check()
			t.Logf("killed %s and %s (owner %s): enqueue gap %s, worst confirm %s; %d hints; after the restart hints were gone within %s, replicas equal %s after the load; %v",
				m.nodes[victims[0]].name, m.nodes[victims[1]].name, m.nodes[owner].name, ms(confirms), ms(worst), shown, ms(healed), ms(equal), v)
			if confirms > 10*time.Second {
				t.Errorf("nothing was confirmed for %v while two of five were gone", confirms)
			}
			if v.refused > 0 {
				t.Errorf("%d messages were not confirmed, the first: %v", v.refused, l.refused[0])
			}
		})
	}
}

// worst is the longest gap of confirms and the longest time to a confirm in a window.
func (l *ledger) worst(from, to time.Time) (gap, confirm time.Duration) {
	gap, _ = l.gaps(from, to)
	return gap, l.worstConfirm(from, to)
}

// A node that keeps nothing of a queue serves it all the same.
func TestMeshAnyNodeServes(t *testing.T) {
	m := newMesh(t, 5)
	m.must("queue", "create", "jobs")
	_, home := m.waitOwner("jobs")
	other := m.but(home...)[0]
	server := m.nodes[other].listen
	const n = 1000
	for _, via := range []bool{false, true} {
		args := []string{"--server", server}
		if via {
			args = append(args, "--via-servers")
		}
		lines := jobLines(n)
		c := m.command(append([]string{"send", "jobs", "--file", "-", "--json"}, args...)...)
		c.Stdin = strings.NewReader(strings.Join(lines, "\n") + "\n")
		from := time.Now()
		code, out, errs := runCommand(t, c)
		if code != exitDone || strings.Count(out, "\n") != n {
			t.Fatalf("send through %s, via %v: exit code %d, %d lines: %s", m.nodes[other].name, via, code, strings.Count(out, "\n"), errs)
		}
		sent := time.Since(from)
		from = time.Now()
		got := decodeLines[receivedJSON](t, m.must(append([]string{"receive", "jobs", "--max", fmt.Sprint(n), "--json", "--wait", "10s"}, args...)...))
		for i, r := range got {
			if *r.Body != lines[i] || r.Redelivered {
				t.Fatalf("message %d is %+v, want %q", i, r, lines[i])
			}
		}
		t.Logf("%d messages through %s, which keeps nothing of the queue (only through it: %v): sent in %s, received %d in %s",
			n, m.nodes[other].name, via, ms(sent), len(got), ms(time.Since(from)))
		if len(got) != n {
			t.Fatalf("%d messages, want %d", len(got), n)
		}
	}
	// Nothing is left: acks through another node are confirmed by the owner.
	m.waitEqual("jobs")
	if code, out, errs := m.meshq("receive", "jobs", "--wait", "1s", "--json"); code != exitNothing {
		t.Errorf("exit code %d: %s%s", code, out, errs)
	}
	state, err := m.showNode(other)
	if err != nil {
		t.Fatal(err)
	}
	if state.Owned != 0 {
		t.Errorf("%s owns %d partitions", state.Name, state.Owned)
	}
}
