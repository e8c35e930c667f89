package chaos

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// network is a switch with a TUN device in a namespace of its own at each port.
type network struct {
	sw *netSwitch

	mu   sync.Mutex
	used map[place]int // addresses that were given away
}

// nic is the host's end: its TUN device. What its kernel sends is read from tun, and
// what is written to tun it receives.
type nic struct {
	network *network
	place   place
	port    *port
	tun     *os.File
	ns      *os.File      // the network namespace
	done    chan struct{} // closed when nothing is read any more
	once    sync.Once
}

const (
	tunName = "meshq0" // in a namespace of its own there is no other
	tunMTU  = 1500
	// tunQueue is how many packets the kernel holds for the switch; more are dropped, as
	// by a real one that is too slow.
	tunQueue = 10_000
)

func newNetwork(seed uint64, links Effect) *network {
	n := &network{sw: newSwitch(seed, links), used: map[place]int{}}
	n.sw.nap = nap
	return n
}

// nap blocks the thread: the kernel wakes it some 50 us late at most.
func nap(d time.Duration) {
	t := unix.NsecToTimespec(int64(d))
	_ = unix.Nanosleep(&t, nil) // cut short by a signal it is called again
}

// checkSwitched tries all that a switched network needs, on a thread that ends with it.
func checkSwitched() error {
	missing := func(need string, err error) error {
		return &MissingError{What: "a switched network", Need: need, Hint: "run as root, or use --network loopback", Err: err}
	}
	if os.Geteuid() != 0 {
		return missing("root", nil)
	}
	t, err := newThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return missing("network namespaces (CAP_SYS_ADMIN)", err)
		}
		tun, err := openTUN()
		if err != nil {
			return missing("TUN devices (/dev/net/tun, CAP_NET_ADMIN)", err)
		}
		return tun.Close()
	})
	if err != nil {
		return err
	}
	t.close()
	return nil
}

// attach gives the calling thread a network namespace with a port of the switch.
func (n *network) attach(name string, p place) (*nic, error) {
	c, err := n.open(p)
	if err != nil {
		return nil, fmt.Errorf("network of %s: %w", name, err)
	}
	c.port = n.sw.plug(name, n.address(p), p == placeObserver, func(b []byte) {
		// Write fails while the device goes away, and for what the kernel takes for no
		// packet (a corrupt one): lost, either way.
		_, _ = c.tun.Write(b)
	})
	if err := configure(c.port.addr); err != nil {
		n.sw.unplug(c.port)
		_ = c.tun.Close()
		_ = c.ns.Close()
		return nil, fmt.Errorf("network of %s: %w", name, err)
	}
	go c.read()
	return c, nil
}

func (n *network) open(p place) (*nic, error) {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return nil, err
	}
	ns, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, err
	}
	tun, err := openTUN()
	if err != nil {
		_ = ns.Close()
		return nil, err
	}
	return &nic{network: n, place: p, tun: tun, ns: ns, done: make(chan struct{})}, nil
}

// address is a new one: 10.77.PLACE.1 to .250 and on in 10.77.PLACE+16 and so on.
func (n *network) address(p place) netip.Addr {
	n.mu.Lock()
	defer n.mu.Unlock()
	i := n.used[p]
	n.used[p]++
	return netip.AddrFrom4([4]byte{10, 77, byte(p) + byte(i/250)*16, byte(i%250) + 1})
}

// openTUN makes the device in the namespace of the calling thread.
func openTUN() (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: "/dev/net/tun", Err: err}
	}
	r, err := unix.NewIfreq(tunName)
	if err == nil {
		r.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, r)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("make TUN device: %w", err)
	}
	return os.NewFile(uintptr(fd), "/dev/net/tun"), nil
}

// configure brings up loopback and the TUN device of the calling thread's namespace.
func configure(addr netip.Addr) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	a := addr.As4()
	for _, c := range []struct {
		what, device string
		request      uint
		set          func(r *unix.Ifreq) error
	}{
		{"bring up", "lo", unix.SIOCSIFFLAGS, func(r *unix.Ifreq) error { r.SetUint16(unix.IFF_UP); return nil }},
		{"set the MTU of", tunName, unix.SIOCSIFMTU, func(r *unix.Ifreq) error { r.SetUint32(tunMTU); return nil }},
		{"set the queue of", tunName, unix.SIOCSIFTXQLEN, func(r *unix.Ifreq) error { r.SetUint32(tunQueue); return nil }},
		{"bring up", tunName, unix.SIOCSIFFLAGS, func(r *unix.Ifreq) error { r.SetUint16(unix.IFF_UP); return nil }},
		{"set the address of", tunName, unix.SIOCSIFADDR, func(r *unix.Ifreq) error { return r.SetInet4Addr(a[:]) }},
		{"set the mask of", tunName, unix.SIOCSIFNETMASK, func(r *unix.Ifreq) error { return r.SetInet4Addr([]byte{255, 255, 0, 0}) }},
	} {
		r, err := unix.NewIfreq(c.device)
		if err == nil {
			if err = c.set(r); err == nil {
				err = unix.IoctlIfreq(fd, c.request, r)
			}
		}
		if err != nil {
			return fmt.Errorf("%s %s: %w", c.what, c.device, err)
		}
	}
	return nil
}

// enter puts the calling thread into the host's network.
func (c *nic) enter() error {
	if err := unix.Setns(int(c.ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace: %w", err)
	}
	return nil
}

// move gives the host another address; the calling thread is that of the host.
func (c *nic) move() error {
	addr := c.network.address(c.place)
	if err := configure(addr); err != nil {
		return err
	}
	c.network.sw.move(c.port, addr)
	return nil
}

// read forwards what the host sends until the device is closed.
func (c *nic) read() {
	defer close(c.done)
	b := make([]byte, 64<<10)
	for {
		n, err := c.tun.Read(b)
		if err != nil {
			if errors.Is(err, os.ErrClosed) {
				return
			}
			var e unix.Errno
			if errors.As(err, &e) && (e == unix.EIO || e == unix.EBADFD) {
				return // the device is down or gone: its namespace has ended
			}
			continue
		}
		c.port.forward(b[:n])
	}
}

func (c *nic) close() {
	c.once.Do(func() {
		_ = c.tun.Close()
		<-c.done
		c.network.sw.unplug(c.port)
		_ = c.ns.Close()
	})
}
