package transport

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"time"
)

// Options are the limits and times of connections. Zero fields take their default.
type Options struct {
	// TLS encrypts connections; nil does not. Dial sets ServerName to the host that
	// it dials where it is empty.
	TLS *tls.Config
	// TLSFiles is the same from files that are read again when they change. It wins
	// over TLS.
	TLSFiles *TLSFiles
	// DialContext makes the connections of Dial, as that of a net.Dialer does, which is
	// the default.
	DialContext func(ctx context.Context, network, addr string) (net.Conn, error)
	// Logger gets one line when a connection ends by a fault; nil: none.
	Logger *slog.Logger

	// WriteQueueBytes bounds the memory of what waits to be written on one connection;
	// default 32 MiB. Over it Send and Go answer ErrSlow. Answers may use twice as much; over
	// that the connection is closed, for its other side does not read. More costs
	// memory for each slow reader, less makes bursts fail.
	WriteQueueBytes int
	// MaxFrameBytes is the longest frame, read or written; default and most 16 MiB.
	MaxFrameBytes int
	// MaxRequests bounds requests of the other side that are not answered yet;
	// default 4096. At the bound nothing more is read from the connection, answers
	// included, until one is answered.
	MaxRequests int
	// MaxRequestBytes bounds the bytes of such requests in the same way; default 64
	// MiB. One request is always taken.
	MaxRequestBytes int
	// MaxPending bounds own requests that wait for an answer; default 65,536. Over
	// it Go and Call answer ErrSlow.
	MaxPending int
	// MaxConns bounds the connections of one Serve, those in hello included; default
	// 10,000. Those over it are told CodeOverloaded, or just closed under TLS.
	MaxConns int

	// HelloTimeout is how long TLS and both hellos may take together; default 5 s.
	HelloTimeout time.Duration
	// Keepalive is how long a connection may be silent before it is asked for a
	// sign of life; default 10 s. After three more such times without one byte the
	// connection is closed with ErrDead. This clears up; it is no failure detector:
	// who needs an answer within less has a timeout of their own.
	Keepalive time.Duration
	// WriteTimeout is how long one write, of at most 256 KiB and one frame, may take;
	// default 30 s.
	WriteTimeout time.Duration
	// FlushTimeout bounds how long Close goes on writing what is queued; default 1 s.
	FlushTimeout time.Duration
}

func (o Options) withDefaults() Options {
	setDefault(&o.WriteQueueBytes, 32<<20)
	setDefault(&o.MaxFrameBytes, maxFrameBytes)
	o.MaxFrameBytes = min(o.MaxFrameBytes, maxFrameBytes)
	setDefault(&o.MaxRequests, 4096)
	setDefault(&o.MaxRequestBytes, 64<<20)
	setDefault(&o.MaxPending, 65_536)
	setDefault(&o.MaxConns, 10_000)
	setDefault(&o.HelloTimeout, 5*time.Second)
	setDefault(&o.Keepalive, 10*time.Second)
	setDefault(&o.WriteTimeout, 30*time.Second)
	setDefault(&o.FlushTimeout, time.Second)
	if o.DialContext == nil {
		o.DialContext = (&net.Dialer{}).DialContext
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

// maxFrameBytes is what the protocol allows; helloFrameBytes holds for the first
// frame, when nobody knows who is there.
const (
	maxFrameBytes   = 16 << 20
	helloFrameBytes = 64 << 10
)

func setDefault[T int | time.Duration](v *T, d T) {
	if *v <= 0 {
		*v = d
	}
}
