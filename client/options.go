package client

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"time"
)

// Option changes what Dial does.
type Option func(*options)

type options struct {
	tls          *tls.Config
	dial         func(ctx context.Context, network, addr string) (net.Conn, error)
	logger       *slog.Logger
	name         string
	token        string
	via          bool
	dialTimeout  time.Duration
	sendTimeout  time.Duration
	closeTimeout time.Duration
	bufferBytes  int64
	failWhenFull bool
}

func defaults() options {
	return options{
		logger:       slog.New(slog.DiscardHandler),
		name:         "meshq-go",
		dialTimeout:  5 * time.Second,
		sendTimeout:  30 * time.Second,
		closeTimeout: 2 * time.Second,
		bufferBytes:  64 << 20,
	}
}

// TLS makes all connections use TLS. Default: none.
func TLS(config *tls.Config) Option { return func(o *options) { o.tls = config } }

// DialContext makes the client connect with dial instead of a net.Dialer: through a
// proxy, or from another network. It is called by many goroutines at once, with "tcp" and
// host:port; TLS comes on top of what it returns.
func DialContext(dial func(ctx context.Context, network, addr string) (net.Conn, error)) Option {
	return func(o *options) { o.dial = dial }
}

// Logger takes what is worth a line: links lost and found, retries. Default: silent.
func Logger(l *slog.Logger) Option {
	return func(o *options) {
		if l != nil {
			o.logger = l
		}
	}
}

// Name says to nodes which program this is. Default: "meshq-go".
func Name(name string) Option { return func(o *options) { o.name = name } }

// Token says to nodes who this is. Default: none.
func Token(token string) Option { return func(o *options) { o.token = token } }

// ViaServers makes the client talk only to the servers that Dial was given, which
// pass on what others own. It costs a hop; it is for load balancers and for nodes
// whose own addresses cannot be reached from here.
func ViaServers() Option { return func(o *options) { o.via = true } }

// DialTimeout bounds how long Dial looks for a node when its context has no earlier
// deadline. Default: 5 s.
func DialTimeout(d time.Duration) Option { return func(o *options) { o.dialTimeout = d } }

// SendTimeout bounds how long a message is tried when the context has no deadline.
// Default: 30 s.
func SendTimeout(d time.Duration) Option { return func(o *options) { o.sendTimeout = d } }

// CloseTimeout bounds how long Close waits for what is under way. Default: 2 s.
func CloseTimeout(d time.Duration) Option { return func(o *options) { o.closeTimeout = d } }

// SendBuffer bounds the bytes of messages that wait for their confirmation: bodies,
// keys, headers and 64 bytes each. Default: 64 MiB. A single message may be larger
// than the buffer; it is then alone in it.
func SendBuffer(bytes int64) Option { return func(o *options) { o.bufferBytes = max(1, bytes) } }

// FailWhenFull makes a send fail with ErrOverloaded when the buffer is full. Default:
// it waits for room until its context ends.
func FailWhenFull() Option { return func(o *options) { o.failWhenFull = true } }

// ConsumeOption changes how messages are consumed.
type ConsumeOption func(*consumeOptions)

type consumeOptions struct {
	concurrency int
	prefetch    int // -1: not set
	keep        time.Duration
	stop        time.Duration
}

// Concurrency is how many handlers run at once, from 1 to 10,000. Default: 1, which
// keeps the order of each partition.
func Concurrency(n int) ConsumeOption {
	return func(o *consumeOptions) { o.concurrency = min(max(1, n), 10_000) }
}

// Prefetch is how many messages are taken from each home replica ahead of need, from
// 0 to 100,000. More hides the way to the node; fewer leaves more for others. Default: 16,
// or twice the concurrency if that is more; 0 for Consumer and Receive.
func Prefetch(n int) ConsumeOption {
	return func(o *consumeOptions) { o.prefetch = min(max(0, n), 100_000) }
}

// KeepDemand is how long a Consumer stays subscribed when no Receive waits. What
// comes in that time is kept for the next Receive, and given back when the time is
// over. Default: 1 s.
func KeepDemand(d time.Duration) ConsumeOption { return func(o *consumeOptions) { o.keep = max(0, d) } }

// StopTimeout bounds how long Consume waits for running handlers after its context
// has ended; then their contexts end too. Default: 10 s.
func StopTimeout(d time.Duration) ConsumeOption {
	return func(o *consumeOptions) { o.stop = max(0, d) }
}
