package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/meshq/meshq/client"
)

const defaultServer = "127.0.0.1:7700"

// meshFlags are the flags of every client command: which mesh, and how.
type meshFlags struct {
	servers        []string
	via            bool
	cert, key, ca  string
	timeout        time.Duration
	timeoutMeaning string // empty: the command has a --timeout of its own, or none
}

func (m *meshFlags) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.SortFlags = false
	if m.timeoutMeaning != "" {
		f.DurationVar(&m.timeout, "timeout", 10*time.Second, m.timeoutMeaning)
	}
	f.StringSliceVar(&m.servers, "server", nil, "any nodes of the mesh (`host:port,...`) [MESHQ_SERVERS] (default "+defaultServer+")")
	f.BoolVar(&m.via, "via-servers", false, "talk only to the nodes of --server, which pass on what others own [MESHQ_VIA_SERVERS]")
	f.StringVar(&m.cert, "tls-cert", "", "PEM `file` of the certificate to show to nodes [MESHQ_TLS_CERT]")
	f.StringVar(&m.key, "tls-key", "", "PEM `file` of its key [MESHQ_TLS_KEY]")
	f.StringVar(&m.ca, "tls-ca", "", "PEM `file` of the authorities that nodes are checked against; with it the connection is TLS [MESHQ_TLS_CA]")
}

// load fills from the environment what no flag gave, and checks all of it.
func (m *meshFlags) load(a *app, cmd *cobra.Command) error {
	f := cmd.Flags()
	for flag, variable := range map[string]string{
		"server": "MESHQ_SERVERS", "via-servers": "MESHQ_VIA_SERVERS",
		"tls-cert": "MESHQ_TLS_CERT", "tls-key": "MESHQ_TLS_KEY", "tls-ca": "MESHQ_TLS_CA",
	} {
		if value, ok := a.env(variable); ok && value != "" && !f.Changed(flag) {
			if err := f.Set(flag, value); err != nil {
				return usage("", "environment %s=%q: %w", variable, value, cause(err))
			}
		}
	}
	if len(m.servers) == 0 {
		m.servers = []string{defaultServer}
	}
	for _, s := range m.servers {
		if host, port, err := net.SplitHostPort(s); err != nil || host == "" || port == "" {
			return usage("--server and MESHQ_SERVERS name mesh ports, such as 10.0.0.1:7700", "server %q: host:port is wanted", s)
		}
	}
	if f.Lookup("timeout") != nil && m.timeout <= 0 {
		return usage("", "--timeout is %v, must be more than 0", m.timeout)
	}
	if (m.cert == "") != (m.key == "") || m.cert != "" && m.ca == "" {
		return usage("", "--tls-cert, --tls-key and --tls-ca are needed together; --tls-ca alone shows no certificate")
	}
	return nil
}

// options are what the flags mean to the client.
func (m *meshFlags) options() ([]client.Option, error) {
	opts := []client.Option{client.Name("meshq " + buildVersion())}
	if m.via {
		opts = append(opts, client.ViaServers())
	}
	if m.ca == "" {
		return opts, nil
	}
	pem, err := os.ReadFile(m.ca)
	if err != nil {
		return nil, err
	}
	config := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: x509.NewCertPool()}
	if !config.RootCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s has no certificates in PEM", m.ca)
	}
	if m.cert != "" {
		pair, err := tls.LoadX509KeyPair(m.cert, m.key)
		if err != nil {
			return nil, err
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return append(opts, client.TLS(config)), nil
}

// dial connects to the mesh; within is how long it may take.
func (m *meshFlags) dial(ctx context.Context, within time.Duration, opts ...client.Option) (*client.Mesh, error) {
	own, err := m.options()
	if err != nil {
		return nil, err
	}
	opts = append(own, append([]client.Option{client.DialTimeout(within)}, opts...)...)
	return client.Dial(ctx, strings.Join(m.servers, ","), opts...)
}

// meshCommand makes a command that asks the mesh something, within --timeout. Its
// own flags come first in its help.
func (a *app) meshCommand(use, short string, args cobra.PositionalArgs, own func(*pflag.FlagSet), run func(ctx context.Context, mesh *client.Mesh, args []string) error) *cobra.Command {
	m := &meshFlags{timeoutMeaning: "how long to try"}
	cmd := &cobra.Command{Use: use, Short: short, Args: args}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		what := strings.Join(append([]string{strings.TrimPrefix(cmd.CommandPath(), "meshq ")}, args...), " ")
		queue := ""
		if len(args) > 0 {
			queue = args[0]
		}
		if err := m.load(a, cmd); err != nil {
			return a.explain(what, queue, m, err)
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), m.timeout)
		defer cancel()
		mesh, err := m.dial(ctx, m.timeout)
		if err != nil {
			return a.explain(what, queue, m, err)
		}
		defer mesh.Close()
		if err := run(ctx, mesh, args); err != nil {
			return a.explain(what, queue, m, err)
		}
		return nil
	}
	cmd.Flags().SortFlags = false
	own(cmd.Flags())
	m.flags(cmd)
	return cmd
}

// noFlags are those of a command that has none of its own.
func noFlags(*pflag.FlagSet) {}

// jsonFlag is the flag --json.
func jsonFlag(value *bool, prints string) func(*pflag.FlagSet) {
	return func(f *pflag.FlagSet) { f.BoolVar(value, "json", false, "print "+prints) }
}

// explain makes a failure of what a client command got: what was done, why it
// failed, and what can be done about it.
func (a *app) explain(what, queue string, m *meshFlags, err error) error {
	f := &failure{code: exitFailed}
	var own *failure
	if errors.As(err, &own) {
		*f = *own
		if own.err == nil {
			return f
		}
	}
	f.err = fmt.Errorf("%s: %w", what, bare(err, what))
	if f.hint == "" {
		f.hint = hintFor(queue, m, err)
	}
	return f
}

// shorter is an error without the words that its reader has read already.
type shorter struct {
	err  error
	text string
}

func (s *shorter) Error() string { return s.text }
func (s *shorter) Unwrap() error { return s.err }

// bare takes "what: " off the front of an error.
func bare(err error, what string) error {
	if rest, ok := strings.CutPrefix(err.Error(), what+": "); ok {
		return &shorter{err, rest}
	}
	return err
}

// hintFor is what can be done about an error of the client.
func hintFor(queue string, m *meshFlags, err error) string {
	server := ""
	if len(m.servers) > 0 && (len(m.servers) > 1 || m.servers[0] != defaultServer) {
		server = " --server " + strings.Join(m.servers, ",")
	}
	command := func(s string) string { return fmt.Sprintf("%q", self()+" "+s+server) }
	switch {
	case errors.Is(err, client.ErrUnreachable):
		switch {
		case strings.Contains(err.Error(), "tls: "):
			return "a node is there, but its certificate and those of --tls-ca, --tls-cert and --tls-key do not fit each other"
		case strings.Contains(err.Error(), "closed by the other side") && m.ca == "":
			return "a node is there and hangs up: if the mesh uses TLS, name --tls-ca, --tls-cert and --tls-key"
		}
		if strings.Contains(err.Error(), "dial "+defaultServer) {
			return fmt.Sprintf("is a mesh running? %q starts one on this machine; --server or MESHQ_SERVERS names another", self()+" dev")
		}
		return fmt.Sprintf("is a mesh running there? --server or MESHQ_SERVERS names another; %q starts one on this machine", self()+" dev")
	case errors.Is(err, client.ErrNoQueue):
		return command("queue create "+queue) + " creates it, " + command("queue list") + " lists those that there are"
	case errors.Is(err, client.ErrNoGroup):
		return command("queue show "+queue) + " lists its groups"
	case errors.Is(err, client.ErrTooLarge), errors.Is(err, client.ErrExists):
		return command("queue show "+queue) + " shows its settings"
	case errors.Is(err, client.ErrOverloaded):
		return "the mesh is given more than it takes: try again, with less at a time"
	case errors.Is(err, client.ErrDiskFull):
		return "make room on the disk of that node, or " + command("node list") + " and use others"
	case errors.Is(err, client.ErrQuorum), errors.Is(err, client.ErrNotOwner), errors.Is(err, client.ErrTimeout),
		errors.Is(err, client.ErrNotReady), errors.Is(err, client.ErrNotSent):
		return command("node list") + " shows which nodes are unreachable"
	case errors.Is(err, client.ErrWrongMesh):
		return "the addresses of --server are of nodes of several meshes: name those of one"
	case errors.Is(err, client.ErrVersion):
		return command("version") + " is of another time than the node: use the same version for both"
	}
	return ""
}
