//go:build mesh && linux

package main

import (
	"context"
	"testing"
	"time"

	"github.com/meshq/meshq/client"
)

// A backlog costs disk, not memory (P8), and does not hold up a start.
func TestMeshBacklog(t *testing.T) {
	m := newMesh(t, 3)
	m.must("queue", "create", "work")
	m.must("queue", "create", "warm")
	m.waitOwner("work")
	mesh := m.dial()
	fill := func(queue string, n int) {
		t.Helper()
		const chunk = 10_000
		messages := make([]client.Message, chunk)
		for from := 0; from < n; from += chunk {
			batch := messages[:min(chunk, n-from)]
			for i := range batch {
				batch[i].Body = []byte(newBody("b", from+i, 256))
			}
			if _, err := mesh.Queue(queue).SendBatch(context.Background(), batch); err != nil {
				t.Fatal(err)
			}
		}
	}
	// What a node takes for the work itself, whatever then waits: as much sent and
	// received as keeps its buffers filled.
	fill("warm", 20_000)
	m.must("receive", "warm", "--max", "20000", "--wait", "20s")
	m.waitEqual("warm")
	var empty, before []int64
	for _, i := range m.all() {
		before = append(before, m.anonymousBytes(i))
	}
	empty = before

	from := time.Now()
	fill("work", *backlog)
	sent := time.Since(from)
	m.waitEqual("work")
	for _, i := range m.all() {
		now := m.anonymousBytes(i)
		t.Logf("%s: %s anonymous before, %s with %d messages of 256 B waiting: %s more", m.nodes[i].name, mib(empty[i]), mib(now), *backlog, mib(now-empty[i]))
		if now-empty[i] > 100<<20 {
			t.Errorf("%s grew by %s", m.nodes[i].name, mib(now-empty[i]))
		}
	}

	m.kill(m.all()...)
	from = time.Now()
	m.start(m.all()...)
	again := m.dial()
	c, err := again.Queue("work").Consumer(context.Background(), "")
	if err != nil {
		t.Fatal(err)
	}
	ds, err := c.Receive(context.Background(), 1, startPatience)
	first := time.Since(from)
	if err != nil || len(ds) != 1 || string(ds[0].Body) != newBody("b", 0, 256) {
		t.Fatalf("first delivery after the restart: %d messages, %v", len(ds), err)
	}
	if err := ds[0].Ack(context.Background()); err != nil {
		t.Error(err)
	}
	_ = c.Close()
	m.waitActive(3)
	for _, i := range m.all() {
		t.Logf("%s: %s anonymous after the restart", m.nodes[i].name, mib(m.anonymousBytes(i)))
	}
	t.Logf("%d messages sent in %s (%.0f/s); first delivery %s after the start of all (goal 5 s)", *backlog, ms(sent), float64(*backlog)/sent.Seconds(), ms(first))
	if first > 15*time.Second {
		t.Errorf("first delivery after %v", first)
	}

	// All of it comes out, and memory stays what it was.
	want := *backlog - 1
	from = time.Now()
	got, code := 0, 0
	receive := m.background(nil, "receive", "work", "--max", "0", "--wait", "5s")
	code = receive.code()
	got = receive.count()
	took := time.Since(from) - 5*time.Second
	for _, i := range m.all() {
		t.Logf("%s: %s anonymous after all was received", m.nodes[i].name, mib(m.anonymousBytes(i)))
	}
	t.Logf("%d messages received in %s (%.0f/s)", got, ms(took), float64(got)/took.Seconds())
	if code != exitDone || got != want {
		t.Errorf("receive ended with %d, %d messages, want %d: %s", code, got, want, receive.stderr)
	}
	m.waitEqual("work")
}
