package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestLedgerAudit(t *testing.T) {
	l := &Ledger{size: 64}
	for i := range 3 * chunkSize {
		if seq := l.Add(int64(i)); seq != uint64(i) {
			t.Fatalf("message %d got seq %d", i, seq)
		}
	}
	ok := l.Body(5)
	seq, e, good := l.Check(ok)
	if !good || seq != 5 || e.due != 5 {
		t.Fatalf("Check = %d, %v, %v", seq, e, good)
	}
	damaged := l.Body(6)
	damaged[40]++
	if _, _, good := l.Check(damaged); good {
		t.Error("a damaged body passed")
	}
	if _, _, good := l.Check(ok[:32]); good {
		t.Error("a short body passed")
	}

	for i := range uint64(10) { // 0..9 acknowledged, 0..7 delivered, 3 twice
		l.entry(i).acked.Store(true)
	}
	for i := range uint64(8) {
		l.entry(i).delivered.Add(1)
	}
	l.entry(3).delivered.Add(1)
	want := Audit{Acked: 10, Lost: 2, Delivered: 8, Duplicates: 1, Unacked: 3*chunkSize - 10}
	if got := l.Audit(); got != want {
		t.Errorf("Audit = %+v, want %+v", got, want)
	}
}

func TestBatcher(t *testing.T) {
	b := NewBatcher()
	for i := range 10 {
		b.Add(Msg{Seq: uint64(i), Body: make([]byte, 10)})
	}
	if got := b.Take(nil, 4, 1000); len(got) != 4 || got[0].Seq != 0 {
		t.Errorf("first Take = %d messages", len(got))
	}
	if got := b.Take(nil, 100, 25); len(got) != 2 || got[0].Seq != 4 {
		t.Errorf("Take by bytes = %d messages", len(got))
	}
	if got := b.Take(nil, 1, 0); len(got) != 1 || got[0].Seq != 6 {
		t.Errorf("a message beyond the byte limit was not taken alone")
	}
	b.Close()
	if b.Take(nil, 1, 1) != nil || b.Add(Msg{}) {
		t.Error("the batcher works after Close")
	}
}

func TestPaceKeepsDueTimes(t *testing.T) {
	start := clock() + int64(5*time.Millisecond)
	var due []int64
	_, err := pace(context.Background(), start, start+int64(100*time.Millisecond), 1000, func(at int64) {
		if len(due) == 10 {
			time.Sleep(30 * time.Millisecond) // a stall moves no due time
		}
		due = append(due, at)
	})
	if err != nil || len(due) != 100 {
		t.Fatalf("%d messages, %v", len(due), err)
	}
	for i, at := range due {
		if want := start + int64(i)*int64(time.Millisecond); at != want {
			t.Fatalf("message %d was due at %d, want %d", i, at, want)
		}
	}
}

func TestGap(t *testing.T) {
	var g Gap
	g.Event(1)
	g.Start(100)
	for _, at := range []int64{110, 150, 140, 160} {
		g.Event(at)
	}
	if worst, at := g.Stop(180); worst != 40 || at != 110 {
		t.Errorf("gap %d at %d", worst, at)
	}
}

func TestThrottle(t *testing.T) {
	th := NewThrottle(10_000)
	began := time.Now()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 10 {
				th.Wait(25, nil)
			}
		})
	}
	wg.Wait()
	if took := time.Since(began); took < 90*time.Millisecond {
		t.Errorf("1,000 units at 10,000/s took %v", took)
	}
}

// memoryDriver is a queue in memory that refuses some messages at first,
// delivers some twice and loses those it is told to.
type memoryDriver struct {
	cluster Cluster
	queue   chan []byte
	lose    uint64
	mu      sync.Mutex
	refused map[uint64]bool
}

func (d *memoryDriver) Info() Info                                   { return Info{} }
func (d *memoryDriver) Cluster() *Cluster                            { return &d.cluster }
func (d *memoryDriver) CreateQueues(context.Context, []string) error { return nil }
func (d *memoryDriver) Owner(context.Context, string) (int, error)   { return 0, nil }

func (d *memoryDriver) Start(ctx context.Context, env *Env) error {
	return d.cluster.AddNode(NodeSpec{Name: "sleep", Path: "/bin/sleep", Args: []string{"60"}, Dir: env.Dir})
}

type memoryProducer struct {
	d     *memoryDriver
	onAck AckFunc
}

func (d *memoryDriver) NewProducer(_ int, onAck AckFunc) (Producer, error) {
	return &memoryProducer{d, onAck}, nil
}

func (p *memoryProducer) Publish(_ string, body []byte, seq uint64) {
	p.d.mu.Lock()
	refuse := seq%100 == 7 && !p.d.refused[seq]
	p.d.refused[seq] = true
	p.d.mu.Unlock()
	if refuse {
		p.onAck(seq, errors.New("refused"))
		return
	}
	if seq != p.d.lose {
		p.d.queue <- body
	}
	if seq%50 == 3 {
		p.d.queue <- body
	}
	p.onAck(seq, nil)
}

func (p *memoryProducer) Close() {}

type memoryConsumer struct{ quit chan struct{} }

func (d *memoryDriver) NewConsumer(_ int, _ []string, handle Handler) (Consumer, error) {
	c := &memoryConsumer{make(chan struct{})}
	go func() {
		for {
			batch := takeBatch(d.queue, c.quit, 100)
			if batch == nil {
				return
			}
			handle(batch)
		}
	}()
	return c, nil
}

func (c *memoryConsumer) Close() { close(c.quit) }

func TestLoadKeepsBooks(t *testing.T) {
	d := &memoryDriver{queue: make(chan []byte, 1<<16), lose: 11, refused: map[uint64]bool{}}
	ctx := context.Background()
	if err := d.Start(ctx, &Env{Dir: t.TempDir()}); err != nil {
		t.Fatal(err)
	}
	defer d.cluster.Stop()
	l, err := NewLoad(ctx, d, LoadOptions{Size: 100, Queues: 3, Producers: 2, Consumers: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := errors.Join(l.OpenConsumers(ctx), l.OpenProducers()); err != nil {
		t.Fatal(err)
	}
	l.OpenWindow()
	if _, err := l.Pace(ctx, 5000, 200*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if !l.WaitAcked(2 * time.Second) {
		t.Error("not all messages were acknowledged: a refused one is sent again")
	}
	m := Metrics{}
	l.CloseWindow(m)
	l.WaitDelivered(100 * time.Millisecond)
	l.e2eHist.Put(m, "e2e")
	l.PutCounts(m)
	for name, want := range map[string]float64{"acked": 1000, "lost": 1, "duplicates": 20,
		"publish_errors": 10, "unacked": 0, "foreign": 0} {
		if m[name] != want {
			t.Errorf("%s = %v, want %v", name, m[name], want)
		}
	}
	if p50 := m["e2e_p50_ms"]; p50 <= 0 || p50 > 50 {
		t.Errorf("e2e p50 = %v ms", p50)
	}
}

func TestClusterKillRestart(t *testing.T) {
	var c Cluster
	defer c.Stop()
	spec := NodeSpec{Name: "shell", Path: "/bin/sh", Args: []string{"-c", "echo up >> up; sleep 60 & wait"}, Dir: t.TempDir()}
	if err := c.AddNode(spec); err != nil {
		t.Fatal(err)
	}
	first := c.nodes[0].cmd.Process.Pid
	if !waitUntil(2*time.Second, func() bool { c.usage.sample(); return len(c.usage.procs) == 2 }) {
		t.Error("the child of a server process was not found")
	}
	c.Kill(0)
	if err := c.Restart(0); err != nil {
		t.Fatal(err)
	}
	if again := c.nodes[0].cmd.Process.Pid; again == first {
		t.Error("the process was not replaced")
	}
}

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		of   []float64
		want float64
	}{{[]float64{3, 1, 2}, 2}, {[]float64{4, 1, 2, 3}, 2.5}, {[]float64{7}, 7}} {
		if got, ok := medianOf(c.of); !ok || got != c.want {
			t.Errorf("median of %v = %v", c.of, got)
		}
	}
	if _, ok := medianOf(nil); ok {
		t.Error("an empty list has a median")
	}
}

// The harness goes through all of a run with a system whose answers are known: the
// floor, whose nodes are this test binary's own processes.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == floorCommand {
		floorMain(os.Args[2:])
		return
	}
	os.Exit(m.Run())
}

func TestRunOnFloor(t *testing.T) {
	conf.data, conf.maxBacklog, conf.duration, conf.basePort = t.TempDir(), 2<<30, 200*time.Millisecond, 18600
	for _, work := range []string{"enqueue-1k", "e2e-1k", "latency-1k"} {
		r, err := runOne(context.Background(), "floor", work, 1)
		if err != nil || r.Error != "" {
			t.Fatal(work, err, r.Error)
		}
		if r.Metrics["acked"] == 0 || r.Metrics["lost"] != 0 || r.Metrics["unacked"] != 0 || r.Metrics["foreign"] != 0 {
			t.Errorf("%s: %v", work, r.Metrics)
		}
	}
}

func TestMissingPeersSayWhy(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	conf.bin, conf.source, conf.meshq = "", t.TempDir(), ""
	if why := missing("nats"); !strings.Contains(why, "nats-server") {
		t.Errorf("nats: %q", why)
	}
	if why := missing("floor"); why != "" {
		t.Errorf("floor: %q", why)
	}
	if _, err := buildMeshq(conf.source, false); err == nil || !strings.Contains(err.Error(), "-source") {
		t.Errorf("no source: %v", err)
	}
}

func TestPortsInUseAreLeftOut(t *testing.T) {
	first, err := freePorts(18600)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", first+portsPerRun+3)) // in the next block
	if err != nil {
		t.Skip("another program has just taken the port: ", err)
	}
	defer l.Close()
	next, err := freePorts(18600)
	if err != nil {
		t.Fatal(err)
	}
	if next == first+portsPerRun {
		t.Errorf("port %v is used, and the block from %d was taken", l.Addr(), next)
	}
}

func TestSummaryHasMedians(t *testing.T) {
	run := func(peer, work string, m Metrics) Result { return Result{Peer: peer, Workload: work, Metrics: m} }
	var out strings.Builder
	PrintSummary(&out, []Result{
		run("floor", "enqueue-1k", Metrics{"acked_per_s": 1001}), run("floor", "enqueue-1k", Metrics{"acked_per_s": 3003}),
		run("floor", "enqueue-1k", Metrics{"acked_per_s": 2002}), run("nats", "latency-1k", Metrics{"ack_p50_ms": 7}),
	})
	fields := map[string][]string{}
	for line := range strings.Lines(out.String()) {
		if f := strings.Fields(line); len(f) > 1 {
			fields[f[0]] = f[1:]
		}
	}
	if got := fields["floor"]; len(got) != 6 || got[0] != "2002" || got[2] != "-" {
		t.Errorf("floor: %v", got)
	}
	if got := fields["nats"]; len(got) != 6 || got[0] != "-" || got[2] != "7" {
		t.Errorf("nats: %v", got)
	}
}

func Example_headers() {
	fmt.Println(headers([]string{"delivered_per_s", "server_cpu_s_per_million", "e2e_p99_ms"}))
	// Output: [delivered/s cpu_s/M e2e p99 ms]
}
