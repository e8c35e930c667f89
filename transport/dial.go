package transport

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/meshq/meshq/transport/wire"
)

// Dial connects to addr (host:port) and returns after both hellos. ctx and
// Options.HelloTimeout bound it; afterwards ctx has no effect. Version and
// MinVersion of hello are filled in. A nil h refuses requests and drops one-way
// messages. A refusal by the other side comes as *wire.Error,
// a hello that arrived damaged as ErrBadFrame.
func Dial(ctx context.Context, addr string, hello *wire.Hello, h Handler, o Options) (*Conn, error) {
	o = o.withDefaults()
	ctx, cancel := context.WithTimeout(ctx, o.HelloTimeout)
	defer cancel()
	c, err := dial(ctx, addr, hello, h, o)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil && !errors.Is(err, cause) {
			err = fmt.Errorf("%w (%w)", err, cause)
		}
		return nil, fmt.Errorf("connect to %s: %w", addr, err)
	}
	go c.run()
	return c, nil
}

func dial(ctx context.Context, addr string, hello *wire.Hello, h Handler, o Options) (*Conn, error) {
	config := o.TLS
	if o.TLSFiles != nil {
		var err error
		if config, err = o.TLSFiles.Client(); err != nil {
			return nil, err
		}
	}
	nc, err := o.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	if config != nil {
		if config.ServerName == "" {
			host, _, err := net.SplitHostPort(addr)
			if err != nil {
				_ = nc.Close()
				return nil, err
			}
			config = config.Clone()
			config.ServerName = host
		}
		t := tls.Client(nc, config)
		if err := t.HandshakeContext(ctx); err != nil {
			_ = nc.Close()
			return nil, err
		}
		nc = t
	}
	c := newConn(nc, o)
	c.h = h
	stop := context.AfterFunc(ctx, func() { c.fail(context.Cause(ctx), false) })
	err = c.greet(hello)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		_ = nc.Close()
		return nil, err
	}
	return c, nil
}

// greet says hello and hears one.
func (c *Conn) greet(hello *wire.Hello) error {
	c.local = versioned(hello)
	if err := c.writeNow(c.local); err != nil {
		return err
	}
	if err := c.hear(); err != nil {
		return err
	}
	return c.agree()
}

func versioned(hello *wire.Hello) *wire.Hello {
	h := *hello
	h.Version, h.MinVersion = wire.Version, wire.MinVersion
	return &h
}

// writeNow writes one message, before there is a writer.
func (c *Conn) writeNow(msg wire.Message) error {
	f, err := c.encode(msg, 0, 0)
	if err != nil {
		return err
	}
	defer f.release()
	if size := len(*f.head); size > helloFrameBytes {
		return wire.Errorf(wire.ErrTooLarge, "first frame of %d bytes, limit %d", size, helloFrameBytes)
	}
	_, err = (&net.Buffers{*f.head}).WriteTo(c.nc)
	return err
}

// hear reads the first frame of the other side: a hello, or why there is none.
func (c *Conn) hear() error {
	p, header, payload, err := c.frames.next()
	if err == io.EOF {
		return errRemoteClosed
	}
	if err != nil {
		return err
	}
	if p.flags != 0 || p.typ != wire.TypeHello && p.typ != wire.TypeError {
		return fmt.Errorf("%w: type %d in place of a hello", ErrBadFrame, p.typ)
	}
	msg, err := wire.DecodeMessage(p.typ, header, payload)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrBadFrame, plainError{err})
	}
	if e, ok := msg.(*wire.Error); ok {
		return &toldError{e}
	}
	c.remote = msg.(*wire.Hello)
	return nil
}

// agree settles the version.
func (c *Conn) agree() error {
	v := min(wire.Version, c.remote.Version)
	if v < max(wire.MinVersion, c.remote.MinVersion) {
		return wire.Errorf(wire.ErrVersion, "no common protocol version: %d to %d here, %d to %d there",
			wire.MinVersion, wire.Version, c.remote.MinVersion, c.remote.Version)
	}
	c.version = v
	return nil
}

// Serve accepts connections until ctx ends, then closes l and all connections that
// it accepted, and returns nil when they have ended; any other end of l is an
// error. accept decides about a connection whose hello has arrived: own hello and
// Handler, or an error, which is told to the other side (*wire.Error as it is). It
// runs on a goroutine of its own; messages that it sends follow the hello.
func Serve(ctx context.Context, l net.Listener, accept func(c *Conn, remote *wire.Hello) (*wire.Hello, Handler, error), o Options) error {
	o = o.withDefaults()
	config := o.TLS
	if o.TLSFiles != nil {
		var err error
		if config, err = o.TLSFiles.Server(); err != nil {
			_ = l.Close()
			return err
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	var conns sync.WaitGroup
	defer conns.Wait()
	defer cancel() // before the wait
	slots := make(chan struct{}, o.MaxConns)
	wait := time.Duration(0)
	for {
		nc, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if errors.Is(err, net.ErrClosed) {
				return fmt.Errorf("accept: %w", err)
			}
			// Out of descriptors, or a connection that ended while it waited: go on, slowly.
			wait = min(max(5*time.Millisecond, 2*wait), time.Second)
			o.Logger.Warn("accept", "error", err, "retry_after", wait)
			select {
			case <-time.After(wait):
			case <-ctx.Done():
				return nil
			}
			continue
		}
		wait = 0
		select {
		case slots <- struct{}{}:
		default:
			if config == nil { // a small write to a new socket does not block
				_ = nc.SetWriteDeadline(time.Now().Add(time.Second))
				_ = newConn(nc, o).writeNow(wire.Errorf(wire.ErrOverloaded, "node has %d connections, its limit", o.MaxConns))
			}
			_ = nc.Close()
			continue
		}
		if config != nil {
			nc = tls.Server(nc, config)
		}
		conns.Go(func() {
			defer func() { <-slots }()
			serveConn(ctx, newConn(nc, o), accept)
		})
	}
}

// serveConn is the life of an accepted connection.
func serveConn(ctx context.Context, c *Conn, accept func(*Conn, *wire.Hello) (*wire.Hello, Handler, error)) {
	hello, cancel := context.WithTimeout(ctx, c.o.HelloTimeout)
	stop := context.AfterFunc(hello, func() { c.fail(context.Cause(hello), false) })
	err := c.welcome(hello, accept)
	if !stop() && err == nil {
		err = context.Cause(hello)
	}
	cancel()
	if err != nil {
		level := slog.LevelWarn
		if errors.Is(err, errRemoteClosed) || errors.Is(err, io.EOF) {
			level = slog.LevelDebug // it went away before it had said who it is
		}
		c.o.Logger.Log(ctx, level, "connection refused", "remote", c.nc.RemoteAddr(), "error", err)
		c.fail(err, false)
		_ = c.nc.Close()
		c.finish()
		return
	}
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	c.run()
}

// welcome hears a hello and answers it. What it sends on an error is sent before it
// returns.
func (c *Conn) welcome(ctx context.Context, accept func(*Conn, *wire.Hello) (*wire.Hello, Handler, error)) error {
	if t, ok := c.nc.(*tls.Conn); ok {
		if err := t.HandshakeContext(ctx); err != nil {
			return err
		}
	}
	err := c.hear()
	if err == nil {
		err = c.agree()
	}
	var own *wire.Hello
	var h Handler
	if err == nil {
		own, h, err = accept(c, c.remote)
	}
	var refused *wire.Error
	switch {
	case err == nil:
		c.h = h // so that Closed comes, whatever happens from here on
		c.local = versioned(own)
		return c.writeNow(c.local)
	case errors.As(err, &refused):
		c.say(refused)
	case errors.Is(err, ErrBadFrame):
		c.say(wire.Errorf(wire.ErrBadRequest, "%s", clip(err.Error())))
	case c.remote != nil: // accept said no
		c.say(wire.Errorf(wire.ErrInternal, "%s", clip(err.Error())))
	}
	return err
}

// say tells the other side why the connection closes, and waits until it has seen
// it or the time for the hello is over.
func (c *Conn) say(e *wire.Error) {
	if c.writeNow(e) != nil {
		return
	}
	if half, ok := c.nc.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
		_, _ = io.Copy(io.Discard, io.LimitReader(c.nc, 1<<20))
	}
}
