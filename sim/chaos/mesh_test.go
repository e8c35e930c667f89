//go:build mesh

package chaos

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/meshq/meshq/client"
)

// use sends and receives one message from a client's place.
func use(t testing.TB, m *Mesh, place string, queue string) {
	t.Helper()
	ctx := patience(t)
	c, err := m.Client(place)
	must(t, err)
	mesh, err := client.Dial(ctx, m.Servers(), c.Option())
	must(t, err)
	defer mesh.Close()
	if _, err := mesh.CreateQueue(ctx, queue, client.Settings{}); err != nil {
		t.Fatal(err)
	}
	if _, err := mesh.Queue(queue).Send(ctx, client.Message{Body: []byte("one")}); err != nil {
		t.Fatal(err)
	}
	consumer, err := mesh.Queue(queue).Consumer(ctx, "")
	must(t, err)
	defer consumer.Close()
	ds, err := consumer.Receive(ctx, 1, 0)
	must(t, err)
	must(t, ds[0].Ack(ctx))
}

func TestMeshOnLoopback(t *testing.T) {
	m := newMesh(t, Config{})
	grow(t, m, 1)
	use(t, m, "c1", "work")
	if _, err := m.Inspect(patience(t), 0, "work"); err != nil {
		t.Error(err)
	}
	n := m.Node("n1")
	code, err := n.Stop(patience(t))
	if code != 0 || err != nil {
		t.Errorf("stop: exit code %d, %v", code, err)
	}
	must(t, n.Move())
	must(t, n.Start())
	must(t, n.WaitReady(patience(t)))
	if memory, disk, err := n.Usage(); err != nil || memory == 0 || disk == 0 {
		t.Errorf("usage: %d bytes of memory, %d of disk, %v", memory, disk, err)
	}
	var cannot *CannotError
	if _, err := m.Impose(Effect{Cut: true}); !errors.As(err, &cannot) {
		t.Errorf("a cut on loopback: %v", err)
	}
	if err := m.PowerCut(n); !errors.As(err, &cannot) {
		t.Errorf("a power cut without disks: %v", err)
	}
}

func TestMeshPause(t *testing.T) {
	m := newMesh(t, Config{})
	grow(t, m, 1)
	n := m.Node("n1")
	ask := func(within time.Duration) error {
		ctx, cancel := context.WithTimeout(context.Background(), within)
		defer cancel()
		return n.WaitReady(ctx)
	}
	must(t, n.Pause())
	if ask(300*time.Millisecond) == nil {
		t.Error("a node that stands still says that it is ready")
	}
	must(t, n.Resume())
	must(t, ask(10*time.Second))
	lift, err := n.Slow(5*time.Millisecond, 5*time.Millisecond)
	must(t, err)
	must(t, ask(10*time.Second))
	lift()
	lift()
	must(t, n.Kill())
	must(t, n.Kill())
	if n.Running() || n.ExitCode() != -1 {
		t.Errorf("killed, but runs: %v, exit code %d", n.Running(), n.ExitCode())
	}
	must(t, n.Resume())
}

func TestMeshSwitched(t *testing.T) {
	m := newMesh(t, Config{Network: Switched})
	grow(t, m, 3)
	use(t, m, "c1", "work")
	t.Logf("%+v", m.SwitchStats())
}
