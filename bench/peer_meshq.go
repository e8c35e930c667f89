package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/meshq/meshq/client"
)

// meshq: three "meshq serve" processes with the defaults, built from the source next
// to this module, and the Go client. The queues have one partition, three replicas and
// a write quorum of two.
func init() {
	Register(20, "meshq", func() Driver { return &meshqDriver{} })
	Register(21, "meshq-consume", func() Driver { return &meshqDriver{consume: true} })
	Register(22, "meshq-interval", func() Driver { return &meshqDriver{interval: true} })
}

type meshqDriver struct {
	cluster  Cluster
	consume  bool // consumers use Consume and its handler in place of Receive and AckAll
	interval bool // --sync interval
	servers  string
	admin    *client.Mesh
	profiles []string // addresses of the nodes' profilers, with -profile
}

const meshqNodes = 3

func (d *meshqDriver) Info() Info {
	i := Info{Nodes: meshqNodes, Copies: meshqNodes,
		About:    "meshq serve, queues of 1 partition, 3 replicas and write quorum 2; consumers use Receive and AckAll",
		AckMeans: "fsynced on 2 of 3"}
	switch {
	case d.consume:
		i.About = "the same, but consumers use Consume: a handler for each message"
	case d.interval:
		i.About = "meshq serve --sync interval, the rest the same"
		i.AckMeans = "written to the page cache on 2 of 3"
	}
	return i
}

func (d *meshqDriver) Missing(*Env) string {
	_, err := meshqProgram()
	if err != nil {
		return err.Error()
	}
	return ""
}

func (d *meshqDriver) Version(*Env) string {
	program, err := meshqProgram()
	if err != nil {
		return ""
	}
	out, _ := exec.Command(program, "version").Output()
	line, _, _ := strings.Cut(string(out), "\n")
	return strings.TrimSpace(line)
}

func (d *meshqDriver) Cluster() *Cluster { return &d.cluster }

func (d *meshqDriver) Start(ctx context.Context, env *Env) error {
	program, err := meshqProgram()
	if err != nil {
		return err
	}
	var servers []string
	for i := range meshqNodes {
		dir := filepath.Join(env.Dir, fmt.Sprint(i))
		args := []string{"serve", "--name", meshqName(i), "--data", filepath.Join(dir, "data"),
			"--listen", env.Addr(i), "--gossip", env.Addr(10 + i), "--http", env.Addr(20 + i), "--log-level", "warn"}
		if i > 0 {
			args = append(args, "--join", env.Addr(0))
		}
		if d.interval {
			args = append(args, "--sync", "interval")
		}
		spec := NodeSpec{Name: meshqName(i), Path: program, Args: args, Dir: dir,
			Ready: answersOK("http://" + env.Addr(20+i) + "/readyz")}
		if conf.profile != "" {
			d.profiles = append(d.profiles, env.Addr(25+i))
			spec.Env = append(spec.Env, profileVariable+"="+env.Addr(25+i))
		}
		if err := d.cluster.AddNode(spec); err != nil {
			return err
		}
		servers = append(servers, env.Addr(i))
	}
	if err := d.cluster.WaitReady(ctx); err != nil {
		return err
	}
	d.servers = strings.Join(servers, ",")
	if d.admin, err = client.Dial(ctx, d.servers, client.Name("bench")); err != nil {
		return err
	}
	// A queue made before all nodes are in the ring would have fewer replicas.
	return poll(ctx, 20*time.Millisecond, func() error {
		short, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		r, err := d.admin.Ring(short)
		if err != nil {
			return err
		}
		alive := 0
		for _, m := range r.Members {
			if m.Alive {
				alive++
			}
		}
		if alive < meshqNodes {
			return fmt.Errorf("%d of %d nodes are in the ring", alive, meshqNodes)
		}
		return nil
	})
}

func meshqName(i int) string { return fmt.Sprintf("n%d", i) }

// answersOK is the Ready check of a server with a readiness page.
func answersOK(url string) func() error {
	c := &http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	return func() error {
		r, err := c.Get(url)
		if err != nil {
			return err
		}
		defer r.Body.Close()
		if r.StatusCode != http.StatusOK {
			return fmt.Errorf("%s: %s", url, r.Status)
		}
		return nil
	}
}

func (d *meshqDriver) CreateQueues(ctx context.Context, names []string) error {
	return forEach(ctx, names, 8, func(_ int, name string) error {
		if _, err := d.admin.CreateQueue(ctx, name, client.Settings{Lease: redelivery}); err != nil {
			return err
		}
		// The other systems have elected a leader when a queue is made; wait for the owner.
		return poll(ctx, 10*time.Millisecond, func() error {
			_, err := d.Owner(ctx, name)
			return err
		})
	})
}

func (d *meshqDriver) Owner(ctx context.Context, queue string) (int, error) {
	placed, err := d.admin.Lookup(ctx, queue)
	if err != nil {
		return 0, err
	}
	for i := range meshqNodes {
		if placed[0].Owner == meshqName(i) {
			return i, nil
		}
	}
	return 0, fmt.Errorf("nobody owns %s yet", queue)
}

// meshqProducer hands over messages and waits for the answers in the order of sending,
// which is that of the confirmations of one partition.
type meshqProducer struct {
	mesh    *client.Mesh
	ctx     context.Context
	stop    context.CancelFunc
	onAck   AckFunc
	pending chan meshqSent
	done    chan struct{}
}

type meshqSent struct {
	future *client.Future
	seq    uint64
}

// sendTimeout is how long a message is tried before it is reported as failed, the same
// as for the other systems.
const sendTimeout = 5 * time.Second

func (d *meshqDriver) NewProducer(id int, onAck AckFunc) (Producer, error) {
	mesh, err := d.dial(fmt.Sprint("producer", id))
	if err != nil {
		return nil, err
	}
	p := &meshqProducer{mesh: mesh, onAck: onAck, pending: make(chan meshqSent, 1<<17), done: make(chan struct{})}
	p.ctx, p.stop = context.WithCancel(context.Background())
	go p.answers()
	return p, nil
}

func (d *meshqDriver) dial(name string) (*client.Mesh, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	return client.Dial(ctx, d.servers, client.Name(name), client.SendTimeout(sendTimeout), client.SendBuffer(256<<20))
}

func (p *meshqProducer) Publish(queue string, body []byte, seq uint64) {
	f, err := p.mesh.Queue(queue).SendAsync(p.ctx, client.Message{Body: body})
	if err != nil {
		p.onAck(seq, err)
		return
	}
	select {
	case p.pending <- meshqSent{f, seq}:
	case <-p.ctx.Done():
	}
}

func (p *meshqProducer) answers() {
	defer close(p.done)
	for {
		select {
		case s := <-p.pending:
			_, err := s.future.Wait(p.ctx)
			if p.ctx.Err() != nil {
				return
			}
			p.onAck(s.seq, err)
		case <-p.ctx.Done():
			return
		}
	}
}

func (p *meshqProducer) Close() {
	p.stop()
	<-p.done
	p.mesh.Close()
}

// meshqConsumer has a consumer of each of its queues.
type meshqConsumer struct {
	mesh *client.Mesh
	stop context.CancelFunc
	work sync.WaitGroup
}

const (
	meshqPrefetch = 2048
	meshqBatch    = 512
	meshqUnacked  = 8 // batches of a consumer whose acks are under way
)

func (d *meshqDriver) NewConsumer(id int, queues []string, handle Handler) (Consumer, error) {
	mesh, err := d.dial(fmt.Sprint("consumer", id))
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	c := &meshqConsumer{mesh: mesh, stop: stop}
	var turn sync.Mutex // one call of handle at a time
	oneByOne := func(bodies [][]byte) {
		turn.Lock()
		defer turn.Unlock()
		handle(bodies)
	}
	prefetch := meshqPrefetch
	if len(queues) > 1 {
		prefetch = 64
	}
	for _, name := range queues {
		q := mesh.Queue(name)
		if d.consume {
			c.work.Go(func() { consumeEach(ctx, q, prefetch, oneByOne) })
			continue
		}
		open, cancel := context.WithTimeout(ctx, 5*time.Second)
		in, err := q.Consumer(open, "", client.Prefetch(prefetch), client.KeepDemand(time.Hour))
		cancel()
		if err != nil {
			c.Close()
			return nil, err
		}
		c.work.Go(func() { receiveBatches(ctx, in, oneByOne) })
	}
	return c, nil
}

// receiveBatches takes what is there, hands it on and acks it, and does not wait for
// the confirmation of the acks before it takes more.
func receiveBatches(ctx context.Context, in *client.Consumer, handle Handler) {
	defer in.Close()
	slots := make(chan struct{}, meshqUnacked)
	var acks sync.WaitGroup
	defer acks.Wait()
	bodies := make([][]byte, 0, meshqBatch)
	for {
		batch, err := in.Receive(ctx, meshqBatch, 0)
		if err != nil {
			if errors.Is(err, client.ErrClosed) || ctx.Err() != nil {
				return
			}
			continue
		}
		bodies = bodies[:0]
		for _, m := range batch {
			bodies = append(bodies, m.Body)
		}
		handle(bodies)
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		acks.Go(func() {
			defer func() { <-slots }()
			// An ack that fails is followed by a redelivery, which the ledger counts.
			_ = in.AckAll(ctx, batch)
		})
	}
}

// consumeEach is what an application would write.
func consumeEach(ctx context.Context, q *client.Queue, prefetch int, handle Handler) {
	err := q.Consume(ctx, "", func(_ context.Context, d *client.Delivery) error {
		handle([][]byte{d.Body})
		return nil
	}, client.Prefetch(prefetch))
	if err != nil && ctx.Err() == nil {
		fmt.Fprintln(os.Stderr, "consume:", err)
	}
}

func (c *meshqConsumer) Close() {
	c.stop()
	c.work.Wait()
	c.mesh.Close()
}
