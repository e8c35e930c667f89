package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/meshq/meshq/node"
)

const (
	maxDevNodes = 20
	devPort     = 7700
	devPortStep = 100              // between the ports of two nodes
	devPatience = 60 * time.Second // until all nodes serve; a large backlog takes a while to open
)

func (a *app) devCommand() *cobra.Command {
	var (
		nodes   int
		data    string
		base    uint16
		logging = logSettings{level: choice{value: "error"}}
	)
	cmd := &cobra.Command{
		Use:   "dev [flags]",
		Short: "Run a whole mesh in this process, to try it",
		Long: `Runs a whole mesh in one process, on loopback, and says how to use it. The nodes
are those of "meshq serve", with disks of their own: n1 on port 7700 (gossip 7701,
HTTP 7780), n2 on 7800 (7801, 7880), and so on.

With --data the mesh is the same one again at the next start.`,
		Example: `  meshq dev                  # three nodes; their data goes when they stop
  meshq dev --data ./data    # three nodes; their data stays`,
		Args: argCount(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if nodes < 1 || nodes > maxDevNodes {
				return usage("more nodes than that are better on several machines: \"meshq serve --help\"",
					"dev: --nodes is %d, allowed are 1 to %d", nodes, maxDevNodes)
			}
			if base != 0 && int(base)+nodes*devPortStep > 65_536 {
				return usage("", "dev: --port %d leaves no room for the ports of %d nodes", base, nodes)
			}
			d := &dev{app: a, nodes: nodes, data: data, base: int(base), logging: logging}
			return d.run(cmd.Context())
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.IntVar(&nodes, "nodes", 3, "`number` of nodes")
	f.StringVar(&data, "data", "", "directory that keeps the data of all nodes (default: a temporary one, removed at the end)")
	f.Uint16Var(&base, "port", devPort, "mesh `port` of the first node, the next is 100 higher; 0 takes free ports")
	logging.flags(f)
	return cmd
}

// dev is a mesh in one process.
type dev struct {
	*app
	nodes   int
	data    string
	base    int
	logging logSettings

	running []*node.Node
	configs []node.Config
}

func (d *dev) run(ctx context.Context) error {
	if d.data == "" {
		dir, err := os.MkdirTemp("", "meshq-dev-")
		if err != nil {
			return failed(fmt.Errorf("dev: %w", err), "")
		}
		d.data = dir
		err = d.mesh(ctx, true)
		if removeErr := os.RemoveAll(dir); removeErr != nil {
			return errors.Join(err, failed(fmt.Errorf("dev: %w", removeErr), ""))
		}
		return err
	}
	return d.mesh(ctx, false)
}

func (d *dev) mesh(ctx context.Context, temporary bool) error {
	if err := d.configure(); err != nil {
		return err
	}
	fmt.Fprintf(d.err, "meshq: starting %s, data in %s\n", plural(d.nodes, "node"), d.data)
	err := d.start(ctx)
	if err == nil {
		d.welcome(temporary)
		err = d.wait(ctx)
	} else if ctx.Err() != nil {
		err = nil // told to stop before it was ready
	}
	return errors.Join(err, d.stop())
}

// directory is that of a node, by number from 0.
func (d *dev) directory(i int) string { return filepath.Join(d.data, "n"+strconv.Itoa(i+1)) }

func (d *dev) hasData(i int) bool {
	entries, err := os.ReadDir(d.directory(i))
	return err == nil && len(entries) > 0
}

// configure gives each node its name, directory, addresses and the others to join.
func (d *dev) configure() error {
	known := 0
	for i := range maxDevNodes {
		if d.hasData(i) {
			known = i + 1
		}
	}
	if known > d.nodes {
		return usage(fmt.Sprintf("\"%s dev --nodes %d --data %s\" starts them all", self(), known, d.data),
			"dev: %s holds a mesh of %s, not %d", d.data, plural(known, "node"), d.nodes)
	}
	ports, err := d.ports()
	if err != nil {
		return failed(fmt.Errorf("dev: %w", err), "")
	}
	logger := d.logging.logger(d.err)
	at := func(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }
	for i, p := range ports {
		c := node.Config{
			Name: "n" + strconv.Itoa(i+1), Data: d.directory(i),
			Listen: at(p[0]), Gossip: at(p[1]), HTTP: at(p[2]),
			Logger: logger, Version: buildVersion(),
		}
		// The first node founds the mesh, unless another one has data already.
		if i > 0 || known > 1 {
			for j, q := range ports {
				if j != i {
					c.Join = append(c.Join, at(q[0]))
				}
			}
		}
		d.configs = append(d.configs, c)
	}
	return nil
}

// ports are the mesh, gossip and HTTP ports of each node.
func (d *dev) ports() ([][3]int, error) {
	ports := make([][3]int, d.nodes)
	if d.base != 0 {
		for i := range ports {
			p := d.base + i*devPortStep
			ports[i] = [3]int{p, p + 1, p + 80}
		}
		return ports, nil
	}
	// All are held until all are known, so that they differ.
	for i := range ports {
		for j := range ports[i] {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				return nil, err
			}
			defer l.Close()
			ports[i][j] = l.Addr().(*net.TCPAddr).Port
		}
	}
	return ports, nil
}

// start starts the nodes and waits until all serve. A mesh is founded by one node
// before the others start: a directory of another node so always means that there
// is a mesh to join.
func (d *dev) start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, devPatience)
	defer cancel()
	waited := 0
	for i, c := range d.configs {
		n, err := node.Start(context.WithoutCancel(ctx), c)
		if err != nil {
			return d.startFailure(c, err)
		}
		d.running = append(d.running, n)
		if i == 0 && len(c.Join) == 0 || i == len(d.configs)-1 {
			for ; waited < len(d.running); waited++ {
				select {
				case <-d.running[waited].Ready():
				case <-ctx.Done():
					return failed(fmt.Errorf("dev: node %s does not serve after %s", d.configs[waited].Name, devPatience),
						"--log-level info shows what it waits for")
				}
			}
		}
	}
	return nil
}

func (d *dev) startFailure(c node.Config, err error) error {
	f := startFailure("dev: node "+c.Name, c, err).(*failure)
	switch {
	case errors.Is(err, node.ErrDataInUse):
		f.hint = fmt.Sprintf("%s belongs to a running mesh: stop that one, or name another --data", d.data)
	case errors.Is(err, node.ErrPortInUse):
		f.hint = "another program, perhaps another mesh, has that port: choose others with --port, 0 takes free ones"
	}
	return f
}

// welcome says what runs and how to use it.
func (d *dev) welcome(temporary bool) {
	fmt.Fprintf(d.out, "\nA mesh of %s is ready.\n\n", plural(d.nodes, "node"))
	t := newTable(d.out, "  NODE", "MESH", "HTTP", "DATA")
	for i, n := range d.running {
		t.row("  "+d.configs[i].Name, n.Addr(), "http://"+n.HTTPAddr()+"/metrics", d.configs[i].Data)
	}
	_ = t.flush()
	server := ""
	if d.base != devPort {
		server = " --server " + d.running[0].Addr()
	}
	me := self()
	fmt.Fprintf(d.out, `
From another terminal, in this directory:

  %[1]s queue create photos%[2]s
  %[1]s send photos "hello" "world"%[2]s
  %[1]s receive photos --max 2%[2]s
  %[1]s node list%[2]s

Ctrl-C stops it`, me, server)
	if temporary {
		fmt.Fprintf(d.out, " and removes its data.\n\n")
		return
	}
	fmt.Fprintf(d.out, "; the data stays in %s.\n\n", d.data)
}

// wait waits until ctx ends or a node stops by itself.
func (d *dev) wait(ctx context.Context) error {
	stopped := make(chan error, len(d.running))
	for i, n := range d.running {
		go func() {
			err := n.Wait()
			if err == nil {
				err = errors.New("stopped by itself")
			}
			stopped <- fmt.Errorf("dev: node %s: %w", d.configs[i].Name, err)
		}()
	}
	select {
	case err := <-stopped:
		return failed(err, "")
	case <-ctx.Done():
		fmt.Fprintln(d.err, "meshq: stopping")
		return nil
	}
}

// stop stops all nodes at the same time. There is nobody to hand over to, so it
// does not drain.
func (d *dev) stop() error {
	errs := make([]error, len(d.running))
	var wg sync.WaitGroup
	for i, n := range d.running {
		wg.Go(func() {
			if err := n.Close(); err != nil {
				errs[i] = fmt.Errorf("dev: stop node %s: %w", d.configs[i].Name, err)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}
