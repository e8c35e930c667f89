package chaos

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
)

// observerName is the host of this process's own clients; no effect touches it.
const observerName = "observer"

// place says what a host is for; on a switched network each has a range of addresses.
type place byte

const (
	placeNode     place = 1
	placeClient   place = 2
	placeObserver place = 3
)

var errClosed = errors.New("chaos: the mesh is closed")

// host is where processes or clients run: a thread with, as the mesh is configured, a
// network namespace and a mount namespace.
type host struct {
	name   string
	thread *thread
	nic    *nic // nil on loopback
}

// newHost makes a host; with mounts it can mount what nobody else sees.
func (m *Mesh) newHost(name string, p place, mounts bool) (*host, error) {
	h := &host{name: name}
	var err error
	h.thread, err = newThread(func() error {
		if mounts {
			if err := isolateMounts(); err != nil {
				return err
			}
		}
		if m.net == nil {
			return nil
		}
		var err error
		h.nic, err = m.net.attach(name, p)
		return err
	})
	if err != nil {
		return nil, err
	}
	return h, nil
}

// addr is the address of the host.
func (h *host) addr() netip.Addr {
	if h.nic == nil {
		return netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return h.nic.port.addr
}

// start forks a process that has the host's namespaces, is killed when this process ends,
// and is not interrupted with it by a terminal.
func (h *host) start(cmd *exec.Cmd) error {
	bind(cmd)
	return h.thread.do(cmd.Start)
}

// dial connects from the host.
func (h *host) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	var d net.Dialer
	if h.nic == nil {
		return d.DialContext(ctx, network, addr)
	}
	if ip, err := netip.ParseAddrPort(addr); err != nil || !ip.Addr().Is4() {
		return nil, fmt.Errorf("dial %s: on a switched network there are IPv4 addresses alone", addr)
	}
	// A socket belongs to the network of the thread that makes it. For an address without
	// a name to look up, net makes it in the calling goroutine. Connecting takes a while,
	// so it has a thread of its own.
	t, err := newThread(h.nic.enter)
	if err != nil {
		return nil, err
	}
	defer t.close()
	var nc net.Conn
	err = t.do(func() (err error) {
		nc, err = d.DialContext(ctx, "tcp4", addr)
		return err
	})
	return nc, err
}

// close ends the thread and its namespaces with it; what runs there must have ended.
func (h *host) close() {
	if h.nic != nil {
		h.nic.close()
	}
	h.thread.close()
}
