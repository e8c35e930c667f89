package main

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/meshq/meshq/node"
	"github.com/meshq/meshq/store"
)

// serveSettings are the settings of one node as they are typed.
type serveSettings struct {
	config        string
	name          string
	data          string
	listen        string
	gossip        string
	http          string
	advertise     string
	join          []string
	zone          string
	sync          choice
	tls           node.TLS
	gossipKeyFile string
	drainTimeout  time.Duration
	segmentBytes  byteSize
	minFree       byteSize
	log           logSettings
}

func (s *serveSettings) flags(f *pflag.FlagSet) {
	f.SortFlags = false
	f.StringVar(&s.name, "name", "", "name of the node, for people (default: the host name)")
	f.StringVar(&s.data, "data", "data", "directory of all that the node keeps; one process at a time")
	f.StringVar(&s.listen, "listen", "127.0.0.1:7700", "where clients and nodes connect (`host:port`); port 0 takes a free one")
	f.StringVar(&s.gossip, "gossip", "127.0.0.1:7701", "where nodes gossip, TCP and UDP (`host:port`, the host an IP address)")
	f.StringVar(&s.http, "http", "127.0.0.1:7780", "where /healthz, /readyz and /metrics are (`host:port`); \"off\" for none")
	f.StringVar(&s.advertise, "advertise", "", "name or address of the `host` by which others reach this node (default: that of --listen; if that is all addresses, the first private one)")
	f.StringSliceVar(&s.join, "join", nil, "any nodes of the mesh to join (`host:port,...`); without it and without data a new mesh is founded")
	f.StringVar(&s.zone, "zone", "", "what fails together with this node, such as a rack; replicas are kept in distinct zones where possible")
	s.sync = choice{"always", []string{"always", "interval"}}
	f.Var(&s.sync, "sync", "always: what is confirmed is fsynced; interval: faster, survives crashes of processes but not of machines")
	f.StringVar(&s.tls.Cert, "tls-cert", "", "PEM `file` of this node's certificate; TLS needs all three files; they are read again when they change")
	f.StringVar(&s.tls.Key, "tls-key", "", "PEM `file` of the certificate's key")
	f.StringVar(&s.tls.CA, "tls-ca", "", "PEM `file` of the authorities that certificates of nodes and clients are checked against")
	f.StringVar(&s.gossipKeyFile, "gossip-key-file", "", "`file` with the key that encrypts gossip: 16, 24 or 32 bytes in base64, the same on all nodes")
	f.DurationVar(&s.drainTimeout, "drain-timeout", 20*time.Second, "how long a stop waits for other nodes to take over")
	s.segmentBytes = 256 << 20
	f.Var(&s.segmentBytes, "segment-bytes", "`size` at which a data segment is sealed; smaller gives space back sooner and costs more files")
	s.minFree = 1 << 30
	f.Var(&s.minFree, "min-free", "free disk space (`size`, at least 64MiB) below which messages are refused; deliveries and acks go on")
	s.log.flags(f)
	f.StringVar(&s.config, "config", "", "YAML `file` with settings, named as the flags with _ for -; flag and environment win over it")
	explainEnv(f)
}

// node is the configuration that the settings mean.
func (s *serveSettings) node(logger *slog.Logger) (node.Config, error) {
	c := node.Config{
		Name: s.name, Data: s.data, Listen: s.listen, Gossip: s.gossip, HTTP: s.http, Advertise: s.advertise,
		Zone: s.zone, Join: s.join, TLS: s.tls, DrainTimeout: s.drainTimeout, SegmentBytes: int64(s.segmentBytes),
		MinFree: int64(s.minFree), Logger: logger, Version: buildVersion(),
	}
	if s.sync.value == "interval" {
		c.Sync = store.SyncInterval
	}
	if s.gossipKeyFile != "" {
		text, err := os.ReadFile(s.gossipKeyFile)
		if err != nil {
			return c, fmt.Errorf("gossip key: %w", err)
		}
		if c.GossipKey, err = base64.StdEncoding.DecodeString(strings.TrimSpace(string(text))); err != nil {
			return c, fmt.Errorf("gossip key: %s is not base64", s.gossipKeyFile)
		}
	}
	return c, c.Validate()
}

func (a *app) serveCommand() *cobra.Command {
	var s serveSettings
	cmd := &cobra.Command{
		Use:   "serve [flags]",
		Short: "Run one node",
		Long: `Runs one node until it is told to stop. On SIGTERM or SIGINT it hands over what it
owns, syncs and leaves; a second signal ends it at once, which loses nothing that
was confirmed either.

Each setting comes from its flag, else from the environment variable in brackets,
else from the YAML file of --config, else it has its default.`,
		Example: `  meshq serve --name a --data /var/lib/meshq                 # founds a mesh
  meshq serve --name b --data /var/lib/meshq --join a:7700   # on another machine: joins it`,
		Args: argCount(0, 0, ""),
	}
	s.flags(cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if _, set := a.env("GOGC"); !set {
			// Most of a node's heap is buffers of fixed size: let garbage be half of it.
			debug.SetGCPercent(50)
		}
		if err := loadSettings(cmd.Flags(), "config", a.env); err != nil {
			return usage(`"meshq serve --help" explains each setting`, "serve: %w", err)
		}
		config, err := s.node(s.log.logger(a.err))
		if err != nil {
			return usage(`"meshq serve --help" explains each setting`, "serve: %w", err)
		}
		return a.serve(cmd.Context(), config)
	}
	return cmd
}

// serve runs a node until ctx ends or the node fails.
func (a *app) serve(ctx context.Context, config node.Config) error {
	n, err := node.Start(context.WithoutCancel(ctx), config)
	if err != nil {
		return startFailure("serve", config, err)
	}
	stopped := make(chan error, 1)
	go func() { stopped <- n.Wait() }()
	ready := n.Ready()
	for {
		select {
		case <-ready:
			ready = nil
			fmt.Fprintf(a.err, "meshq: ready: mesh %s, gossip %s, http %s\n", n.Addr(), n.GossipAddr(), n.HTTPAddr())
		case err := <-stopped:
			if err == nil {
				err = errors.New("stopped by itself")
			}
			return failed(fmt.Errorf("serve: %w", err), "")
		case <-ctx.Done():
			fmt.Fprintf(a.err, "meshq: stopping: handing over, at most %s; again to stop at once\n", config.DrainTimeout)
			if err := n.Shutdown(context.WithoutCancel(ctx)); err != nil {
				return failed(fmt.Errorf("serve: stop: %w", err), "nothing confirmed is lost; other nodes take over when its leases have ended")
			}
			<-stopped
			return nil
		}
	}
}

// startFailure is what a person can do about a node that does not start.
func startFailure(what string, c node.Config, err error) error {
	hint := node.Hint(err)
	switch {
	case hint != "":
	case errors.Is(err, node.ErrDataInUse):
		hint = fmt.Sprintf("each node needs a directory of its own: --data DIR; %s belongs to a running process", c.Data)
	case errors.Is(err, node.ErrPortInUse):
		hint = "another program, perhaps another node, has that address: choose others with --listen, --gossip and --http"
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		hint = "that address is not of this machine: \"ip address\" lists those that are"
	case errors.Is(err, os.ErrPermission):
		hint = "check the rights on " + c.Data
	}
	return failed(fmt.Errorf("%s: %w", what, err), hint)
}

// logSettings say how a node logs.
type logSettings struct {
	level  choice
	format choice
}

func (l *logSettings) flags(f *pflag.FlagSet) {
	if l.level.value == "" {
		l.level.value = "info"
	}
	l.level.words = []string{"debug", "info", "warn", "error"}
	f.Var(&l.level, "log-level", "least important log lines to write, to stderr")
	l.format = choice{"auto", []string{"auto", "text", "json"}}
	f.Var(&l.format, "log-format", "auto: text on a terminal, JSON elsewhere")
}

func (l *logSettings) logger(w io.Writer) *slog.Logger {
	var level slog.Level
	_ = level.UnmarshalText([]byte(l.level.value)) // the words of the flag are those of slog
	o := &slog.HandlerOptions{Level: level}
	if l.format.value == "json" || l.format.value == "auto" && !isTerminal(w) {
		return slog.New(slog.NewJSONHandler(w, o))
	}
	return slog.New(slog.NewTextHandler(w, o))
}
