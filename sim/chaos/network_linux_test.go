package chaos

import (
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"syscall"
	"testing"
	"time"
)

// pair is a TCP connection from host a to host b of a switched network without nodes.
func pair(t testing.TB, m *Mesh) (a, b net.Conn) {
	t.Helper()
	ca, err := m.Client("a")
	must(t, err)
	cb, err := m.Client("b")
	must(t, err)
	var l net.Listener
	must(t, cb.host.thread.do(func() (err error) {
		l, err = net.Listen("tcp4", net.JoinHostPort(cb.host.addr().String(), "0"))
		return err
	}))
	defer l.Close()
	accepted := make(chan net.Conn, 1)
	go func() {
		c, _ := l.Accept()
		accepted <- c
	}()
	a, err = ca.Dial(patience(t), "tcp", l.Addr().String())
	must(t, err)
	b = <-accepted
	t.Cleanup(func() { _ = a.Close(); _ = b.Close() })
	return a, b
}

// echo answers each byte on a connection.
func echo(c net.Conn) {
	b := make([]byte, 1)
	for {
		if _, err := io.ReadFull(c, b); err != nil {
			return
		}
		if _, err := c.Write(b); err != nil {
			return
		}
	}
}

func roundTrips(t testing.TB, c net.Conn, n int) (sorted []time.Duration) {
	t.Helper()
	b := []byte{1}
	for range n {
		from := time.Now()
		if _, err := c.Write(b); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, b); err != nil {
			t.Fatal(err)
		}
		sorted = append(sorted, time.Since(from))
	}
	slices.Sort(sorted)
	return sorted
}

func TestNetworkCut(t *testing.T) {
	m := newMesh(t, Config{Network: Switched})
	a, b := pair(t, m)
	go echo(b)
	roundTrips(t, a, 10)
	lift, err := m.Impose(Effect{From: []string{"a"}, To: []string{"b"}, Cut: true})
	must(t, err)
	_, err = a.Write([]byte{1})
	must(t, err)
	must(t, a.SetReadDeadline(time.Now().Add(100*time.Millisecond)))
	if _, err := a.Read(make([]byte, 1)); !errors.Is(err, context.DeadlineExceeded) && !isTimeout(err) {
		t.Errorf("something came through a cut: %v", err)
	}
	lift()
	must(t, a.SetReadDeadline(time.Now().Add(20*time.Second)))
	if _, err := a.Read(make([]byte, 1)); err != nil {
		t.Errorf("nothing came after it: %v", err)
	}
}

func isTimeout(err error) bool {
	var e net.Error
	return errors.As(err, &e) && e.Timeout()
}

func TestNetworkReset(t *testing.T) {
	m := newMesh(t, Config{Network: Switched})
	// Busy in both directions: the sequence numbers are never those that were last seen.
	a, b := pair(t, m)
	failed, flowing := make(chan error, 4), make(chan struct{}, 2)
	for _, c := range []net.Conn{a, b} {
		go func() {
			buffer := make([]byte, 64<<10)
			for {
				if _, err := c.Write(buffer); err != nil {
					failed <- err
					return
				}
			}
		}()
		go func() {
			_, err := io.CopyN(io.Discard, c, 1<<20)
			flowing <- struct{}{}
			if err == nil {
				_, err = io.Copy(io.Discard, c)
			}
			failed <- err // nil when the writer was told of the reset: each is told once
		}()
	}
	<-flowing
	<-flowing
	if n, err := m.Reset([]string{"a"}, nil); n != 1 || err != nil {
		t.Errorf("%d connections reset, %v", n, err)
	}
	resets := 0
	for range 4 {
		select {
		case err := <-failed:
			if err != nil {
				resets++
			}
			if err != nil && !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
				t.Errorf("ended with %v", err)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("a side goes on after a reset")
		}
	}
	if resets < 2 {
		t.Errorf("%d of 4 were told of it", resets)
	}
}

func TestNetworkDelay(t *testing.T) {
	m := newMesh(t, Config{Network: Switched, Links: Effect{Delay: 5 * time.Millisecond}})
	a, b := pair(t, m)
	go echo(b)
	if trips := roundTrips(t, a, 20); trips[0] < 10*time.Millisecond {
		t.Errorf("a round trip took %v on links of 5 ms", trips[0])
	}
}

// A client that crashed is reset and stays away; one that is paused hears later.
func TestClientCrashAndPause(t *testing.T) {
	for _, network := range []Network{Loopback, Switched} {
		t.Run(string(network), func(t *testing.T) {
			m := newMesh(t, Config{Network: network})
			a, b := pair(t, m)
			c, err := m.Client("a")
			must(t, err)
			c.Pause()
			_, err = b.Write([]byte{1})
			must(t, err)
			read := make(chan error, 1)
			go func() {
				_, err := a.Read(make([]byte, 1))
				read <- err
			}()
			select {
			case err := <-read:
				t.Errorf("a paused client reads: %v", err)
			case <-time.After(50 * time.Millisecond):
			}
			c.Resume()
			must(t, <-read)
			c.Crash()
			if _, err := b.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the other side of a crash hears %v", err)
			}
			if _, err := c.Dial(patience(t), "tcp", "127.0.0.1:1"); !errors.Is(err, errCrashed) {
				t.Errorf("a client that crashed connects: %v", err)
			}
		})
	}
}

// What the switch costs: a byte there and back, and a stream, between two namespaces.
func BenchmarkSwitch(b *testing.B) {
	b.Run("round trip", func(b *testing.B) {
		for _, c := range []struct {
			name  string
			links Effect
		}{{"plain", Effect{}}, {"200us", Effect{Delay: 200 * time.Microsecond}}} {
			b.Run(c.name, func(b *testing.B) {
				x, y := pair(b, newMesh(b, Config{Network: Switched, Links: c.links}))
				go echo(y)
				b.ResetTimer()
				trips := roundTrips(b, x, b.N)
				b.ReportMetric(float64(trips[len(trips)/2].Microseconds()), "p50-us")
				b.ReportMetric(float64(trips[len(trips)*99/100].Microseconds()), "p99-us")
			})
		}
	})
	b.Run("stream", func(b *testing.B) {
		for _, c := range []struct {
			name  string
			links Effect
		}{{"plain", Effect{}}, {"1ms", Effect{Delay: time.Millisecond}}} {
			b.Run(c.name, func(b *testing.B) {
				x, y := pair(b, newMesh(b, Config{Network: Switched, Links: c.links}))
				done := make(chan struct{})
				go func() { defer close(done); _, _ = io.CopyN(io.Discard, y, int64(b.N)<<16) }()
				buffer := make([]byte, 1<<16)
				b.SetBytes(1 << 16)
				b.ResetTimer()
				for range b.N {
					if _, err := x.Write(buffer); err != nil {
						b.Fatal(err)
					}
				}
				<-done
			})
		}
	})
}
