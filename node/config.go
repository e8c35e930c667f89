package node

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/meshq/meshq/node/core"
	"github.com/meshq/meshq/ring"
	"github.com/meshq/meshq/store"
)

// Off as the address of HTTP means that the node does not serve it.
const Off = "off"

// Config is all that can be set about a node. Only Data is required.
type Config struct {
	// Name is for people: lists, logs. 1 to 64 bytes without spaces; default: the
	// host name. Two nodes with one name confuse people only.
	Name string

	// Data is the directory of everything that the node keeps. It is made if it is not
	// there. It belongs to one process; a second one is refused (ErrDataInUse).
	Data string

	// Listen is host:port of the mesh port, for clients and nodes (TCP). Default
	// 127.0.0.1:7700. Port 0 takes a free one.
	Listen string

	// Gossip is host:port for gossip (TCP and UDP, the host an IP address). Default
	// 127.0.0.1:7701.
	Gossip string

	// HTTP is host:port for health and metrics. Default 127.0.0.1:7780; Off: none.
	HTTP string

	// Advertise is the host (no port) by which other nodes and clients reach this one.
	// Default: the host of Listen, or where that is every address (0.0.0.0, ::), the
	// first private address of the machine. For gossip a name is resolved once, at start.
	Advertise string

	// Zone names what may fail together (a rack, a data centre). Nodes of distinct
	// zones are preferred as replicas. At most 64 bytes; default: the empty zone.
	Zone string

	// Weight is the node's share of the partitions, relative to others: 1 to
	// ring.MaxWeight, default 1. A heavier node holds and serves more.
	Weight uint16

	// Join names mesh addresses (host:port) of any members, at most 64. Without data, a
	// node without Join founds a mesh of its own, and one with Join waits until it finds a
	// member. With data it is a help to find the others after all of them have moved.
	Join []string

	// Sync says when a commit counts as synced. store.SyncAlways (default): after the
	// fsync. store.SyncInterval: faster, and P1 and P3 hold through crashes of processes
	// but not of machines.
	Sync store.SyncMode

	// SegmentBytes is the size at which the store seals a data segment; default: the
	// store's. Small segments give space back sooner and cost more files.
	SegmentBytes int64

	// MinFree is the free space in bytes below which enqueues are refused; they are taken
	// again a quarter above it. Default: 1 GiB or two segments, at least 64 MiB. Half of it is
	// for what is under way then, the other half for acks and for giving space back. Less
	// uses a small disk better and copes with smaller bursts.
	MinFree int64

	// TLS names files in PEM. With it clients and nodes use TLS on the mesh port, and
	// nodes prove who they are. Default: none, fit for loopback only.
	TLS TLS

	// GossipKey encrypts gossip: 16, 24 or 32 bytes, the same on all nodes. Default: none.
	GossipKey []byte

	// DrainTimeout is how long Shutdown waits for other nodes to take over, before it
	// stops all the same (they then notice by the end of the lease). Default 20 s, from
	// 100 ms to 10 min.
	DrainTimeout time.Duration

	// Limits bound what the protocol holds in memory; zero fields take core's defaults.
	Limits core.Limits

	// Logger gets changes of state; default: discarded. It is used by many goroutines.
	Logger *slog.Logger

	// Registry gets the node's metrics, and /metrics serves all of it. Default: one of
	// the node's own. Two nodes must not share one.
	Registry *prometheus.Registry

	// Version is the program's version, for metrics and /healthz.
	Version string
}

// TLS names the files of a certificate, its key, and the authorities that both nodes
// and clients are checked against. They are read again when they change. All of
// them or none.
type TLS struct{ Cert, Key, CA string }

func (t TLS) on() bool { return t != TLS{} }

// ConfigError lists all that is wrong with a Config.
type ConfigError struct{ Problems []string }

func (e *ConfigError) Error() string {
	return "configuration: " + strings.Join(e.Problems, "; ")
}

const (
	maxName         = 64
	maxSeeds        = 64
	minDrainTimeout = 100 * time.Millisecond
	maxDrainTimeout = 10 * time.Minute
)

// withDefaults returns c with all that is not set at its default.
func (c Config) withDefaults() Config {
	if c.Name == "" {
		c.Name, _ = os.Hostname()
		c.Name = c.Name[:min(len(c.Name), maxName)]
		if c.Name == "" {
			c.Name = "node"
		}
	}
	for _, d := range []struct {
		field *string
		value string
	}{{&c.Listen, "127.0.0.1:7700"}, {&c.Gossip, "127.0.0.1:7701"}, {&c.HTTP, "127.0.0.1:7780"}, {&c.Version, "unknown"}} {
		if *d.field == "" {
			*d.field = d.value
		}
	}
	if c.Weight == 0 {
		c.Weight = 1
	}
	if c.MinFree == 0 {
		c.MinFree = max(defaultMinFree, 2*c.SegmentBytes)
	}
	if c.DrainTimeout == 0 {
		c.DrainTimeout = 20 * time.Second
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Registry == nil {
		c.Registry = prometheus.NewRegistry()
	}
	return c
}

// Validate lists all that is wrong, as a *ConfigError. Fields that are not set are
// right, except for Data.
func (c Config) Validate() error {
	c = c.withDefaults()
	var problems []string
	bad := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }

	if len(c.Name) > maxName || strings.ContainsAny(c.Name, " \t\r\n") {
		bad("name %q: 1 to %d bytes without spaces are allowed", c.Name, maxName)
	}
	if c.Data == "" {
		bad("no data directory is named")
	} else if info, err := os.Stat(c.Data); err == nil && !info.IsDir() {
		bad("data %s is not a directory", c.Data)
	}
	if err := checkAddress(c.Listen); err != nil {
		bad("listen %v", err)
	}
	if err := checkAddress(c.Gossip); err != nil {
		bad("gossip %v", err)
	} else if host, _, _ := net.SplitHostPort(c.Gossip); host != "" && net.ParseIP(host) == nil {
		bad("gossip %q: the host must be an IP address", c.Gossip)
	}
	if c.HTTP != Off {
		if err := checkAddress(c.HTTP); err != nil {
			bad("http %v", err)
		}
	}
	for _, pair := range [][4]string{
		{"listen", c.Listen, "gossip", c.Gossip}, {"listen", c.Listen, "http", c.HTTP}, {"gossip", c.Gossip, "http", c.HTTP},
	} {
		if _, port, err := net.SplitHostPort(pair[1]); err == nil && port != "0" && pair[1] == pair[3] {
			bad("%s and %s are both %s", pair[0], pair[2], pair[1])
		}
	}
	if strings.ContainsAny(c.Advertise, " \t\r\n/") || strings.Contains(c.Advertise, ":") && net.ParseIP(c.Advertise) == nil {
		bad("advertise %q: a host name or IP address without a port is wanted", c.Advertise)
	}
	if len(c.Zone) > maxName {
		bad("zone has %d bytes, allowed are up to %d", len(c.Zone), maxName)
	}
	if c.Weight > ring.MaxWeight {
		bad("weight is %d, allowed are 1 to %d", c.Weight, ring.MaxWeight)
	}
	if len(c.Join) > maxSeeds {
		bad("join names %d nodes, allowed are up to %d", len(c.Join), maxSeeds)
	}
	for _, seed := range c.Join {
		if err := checkAddress(seed); err != nil {
			bad("join %v", err)
		} else if host, port, _ := net.SplitHostPort(seed); host == "" || port == "0" {
			bad("join %q: both host and port are needed", seed)
		}
	}
	if c.SegmentBytes < 0 {
		bad("segment size is %d bytes", c.SegmentBytes)
	}
	if c.MinFree < leastMinFree {
		bad("free space to keep is %d bytes, allowed are %d or more", c.MinFree, leastMinFree)
	}
	if c.TLS.on() {
		for _, f := range []struct{ what, file string }{{"cert", c.TLS.Cert}, {"key", c.TLS.Key}, {"ca", c.TLS.CA}} {
			if f.file == "" {
				bad("tls %s file is not named; cert, key and ca are needed together", f.what)
			} else if _, err := os.Stat(f.file); err != nil {
				bad("tls %s: %v", f.what, err)
			}
		}
	}
	switch len(c.GossipKey) {
	case 0, 16, 24, 32:
	default:
		bad("gossip key has %d bytes, allowed are 16, 24 or 32", len(c.GossipKey))
	}
	if c.DrainTimeout < minDrainTimeout || c.DrainTimeout > maxDrainTimeout {
		bad("drain timeout is %v, allowed are %v to %v", c.DrainTimeout, minDrainTimeout, maxDrainTimeout)
	}
	if len(problems) > 0 {
		return &ConfigError{Problems: problems}
	}
	return nil
}

// checkAddress tells what is wrong with host:port.
func checkAddress(address string) error {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		var a *net.AddrError
		if errors.As(err, &a) {
			return fmt.Errorf("%q: %s, host:port is wanted", address, a.Err)
		}
		return fmt.Errorf("%q: host:port is wanted", address)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("%q: port %q is not a number from 0 to 65535", address, port)
	}
	return nil
}
