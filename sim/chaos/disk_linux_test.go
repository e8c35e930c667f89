//go:build mesh

package chaos

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/meshq/meshq/client"
)

// stock is a queue of one node with messages that are confirmed and not taken.
func stock(t testing.TB, m *Mesh, queue string, messages int) {
	t.Helper()
	ctx := patience(t)
	mesh, err := m.Observer(ctx)
	must(t, err)
	defer mesh.Close()
	if _, err := mesh.CreateQueue(ctx, queue, client.Settings{}); err != nil {
		t.Fatal(err)
	}
	send(t, mesh, queue, messages)
}

func send(t testing.TB, mesh *client.Mesh, queue string, messages int) {
	t.Helper()
	batch := make([]client.Message, messages)
	for i := range batch {
		batch[i].Body = []byte(strings.Repeat("x", 1000))
	}
	if _, err := mesh.Queue(queue).SendBatch(patience(t), batch); err != nil {
		t.Fatal(err)
	}
}

// stocked waits until a queue has so many messages ready.
func stocked(t testing.TB, m *Mesh, queue string, want int) {
	t.Helper()
	ctx := patience(t)
	mesh, err := m.Observer(ctx)
	must(t, err)
	defer mesh.Close()
	err = poll(ctx, fmt.Sprintf("%d messages are there", want), func() error {
		state, err := mesh.DescribeQueue(ctx, queue)
		if err == nil && (state.Unowned > 0 || state.Ready != uint64(want)) {
			err = fmt.Errorf("%d are, and %d partitions have no owner", state.Ready, state.Unowned)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func back(t testing.TB, n *Node) {
	t.Helper()
	must(t, n.Start())
	must(t, n.WaitReady(patience(t)))
}

// A disk that does all that disks do.
func TestDisk(t *testing.T) {
	m := newMesh(t, Config{Disks: true, DiskBytes: 3 << 30})
	grow(t, m, 1)
	n := m.Node("n1")
	stock(t, m, "work", 100)

	// Power cut: what was not synced is gone, what was confirmed is not.
	written := filepath.Join(n.data(), "unsynced")
	must(t, n.files(func() error { return os.WriteFile(written, []byte("x"), 0o600) }))
	if _, err := os.Stat(written); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("others see the mount: %v", err)
	}
	must(t, m.PowerCut(n))
	if n.Running() {
		t.Error("it runs without power")
	}
	if err := n.files(func() error { _, err := os.Stat(written); return err }); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what was not synced survived a power cut: %v", err)
	}
	back(t, n)
	stocked(t, m, "work", 100)

	// A stall holds syncs up. What was not confirmed may be there or not.
	lift, err := n.StallDisk()
	must(t, err)
	mesh, err := m.Observer(patience(t))
	must(t, err)
	defer mesh.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if _, err := mesh.Queue("work").Send(ctx, client.Message{Body: []byte("late")}); err == nil {
		t.Error("confirmed while the disk stood still")
	}
	lift()
	lift()
	send(t, mesh, "work", 1)

	lift, err = n.SlowDisk(20*time.Millisecond, 5*time.Millisecond)
	must(t, err)
	send(t, mesh, "work", 1)
	lift()
	lift()

	// A node that waits for its disk can be killed.
	_, err = n.StallDisk()
	must(t, err)
	must(t, n.Kill())
	back(t, n)

	// Full: refused, and taken again later.
	empty, err := n.FillDisk(200 << 20)
	must(t, err)
	err = poll(patience(t), "it is full", func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
		defer cancel()
		if _, err := mesh.Queue("work").Send(ctx, client.Message{Body: []byte("more")}); !errors.Is(err, client.ErrDiskFull) {
			return errors.New("it is not")
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	empty()
	send(t, mesh, "work", 1)

	// It fails, full: the node hears of it, and the next start has a disk that works and, as it
	// was emptied meanwhile, has room. How it stops is for a scenario to judge (S21).
	empty, err = n.FillDisk(200 << 20)
	must(t, err)
	must(t, n.FailDisk())
	empty()
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_, _ = mesh.Queue("work").Send(ctx, client.Message{Body: []byte("lost")})
	}()
	err = poll(patience(t), "the disk has failed", func() error {
		if !bytes.Contains(logOf(t, n), []byte("input/output error")) {
			return errors.New("the node has not noticed")
		}
		return nil
	})
	must(t, err)
	must(t, n.Kill())
	back(t, n)
}

func TestSnapshotAndWipe(t *testing.T) {
	m := newMesh(t, Config{})
	grow(t, m, 1)
	n := m.Node("n1")
	stock(t, m, "work", 10)
	s, err := n.Snapshot()
	must(t, err)
	if err := n.Rollback(s); err == nil {
		t.Error("the disk of a node that runs was replaced")
	}
	must(t, n.Kill())
	must(t, n.Rollback(s))
	back(t, n)
	stocked(t, m, "work", 10)
	must(t, s.Remove())

	must(t, n.Kill())
	must(t, n.Wipe())
	if entries, err := os.ReadDir(n.data()); err != nil || len(entries) != 0 {
		t.Errorf("wiped, but %d files, %v", len(entries), err)
	}
}

// A twin takes what its original had, and has addresses of its own.
func TestTwin(t *testing.T) {
	for _, network := range []Network{Loopback, Switched} {
		t.Run(string(network), func(t *testing.T) {
			m := newMesh(t, Config{Network: network})
			grow(t, m, 1)
			n := m.Node("n1")
			twin, err := n.Twin()
			must(t, err)
			if twin.Addr() == n.Addr() || twin.data() == n.data() || m.Node(twin.Name()) != nil {
				t.Errorf("twin %s: %s, %s", twin.Name(), twin.Addr(), twin.data())
			}
			if !n.Running() {
				t.Error("the original did not go on")
			}
			must(t, twin.Start())
			identity := func(n *Node) string {
				b, err := os.ReadFile(filepath.Join(n.data(), "identity"))
				must(t, err)
				return string(b[8:16])
			}
			err = poll(patience(t), "the twin has booted", func() error {
				if !strings.Contains(string(logOf(t, twin)), "level=") {
					return errors.New("it has logged nothing")
				}
				return nil
			})
			must(t, err)
			if identity(n) != identity(twin) {
				t.Error("the twin is somebody else")
			}
			must(t, twin.Kill())
		})
	}
}

func logOf(t testing.TB, n *Node) []byte {
	text, err := os.ReadFile(n.Log())
	must(t, err)
	return text
}

func TestDamage(t *testing.T) {
	m := newMesh(t, Config{})
	grow(t, m, 1)
	n := m.Node("n1")
	stock(t, m, "work", 100)
	if _, err := n.Damage(Damage{Files: []string{"meta/MANIFEST"}, Harm: Erase}); err == nil {
		t.Error("a file of a node that runs was erased")
	}
	must(t, n.Kill())
	for _, d := range []Damage{
		{Files: []string{"none/*", "segments/*/*.mem", "segments/*/*.vlog"}, Harm: Flip},
		{Files: []string{"meta/*.mem"}, Harm: Tear, Bytes: 10},
		{Files: []string{"meta/MANIFEST"}, Harm: Halve},
		{Files: []string{"identity"}, Harm: Erase},
	} {
		what, err := n.Damage(d)
		if err != nil {
			t.Errorf("%+v: %v", d, err)
		}
		t.Log(what)
	}
	if _, err := n.Damage(Damage{Files: []string{"none/*"}, Harm: Flip}); !errors.Is(err, ErrNoFile) {
		t.Errorf("damage of no file: %v", err)
	}
	if _, err := n.Damage(Damage{Files: []string{"[", "*"}, Harm: Flip}); err == nil {
		t.Error("a bad pattern is taken")
	}
}
