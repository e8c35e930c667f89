package chaos

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// wires is a switch with ports that keep what reaches them.
type wires struct {
	*netSwitch
	ends map[string]*wireEnd
}

type wireEnd struct {
	port *port
	got  []arrival
}

type arrival struct {
	at    time.Duration
	bytes []byte
}

// newWires makes one in a synctest bubble: all times are exact.
func newWires(t *testing.T, base Effect, names ...string) *wires {
	w := &wires{newSwitch(7, base), map[string]*wireEnd{}}
	start := time.Now()
	for i, name := range names {
		end := &wireEnd{}
		end.port = w.plug(name, netip.AddrFrom4([4]byte{10, 77, 1, byte(i + 1)}), name == observerName, func(b []byte) {
			end.got = append(end.got, arrival{time.Since(start), slices.Clone(b)})
		})
		w.ends[name] = end
	}
	t.Cleanup(func() {
		for _, end := range w.ends {
			w.unplug(end.port)
		}
	})
	return w
}

// send sends packets with the numbers [from, to) as payload.
func (w *wires) send(a, b string, protocol byte, port uint16, from, to int) {
	for i := from; i < to; i++ {
		w.ends[a].port.forward(w.packet(a, b, protocol, port, tcpACK, 100, 200, fmt.Appendf(nil, "%06d", i)))
	}
}

func (w *wires) packet(a, b string, protocol byte, port uint16, flags byte, seq, ack uint32, load []byte) []byte {
	head := 20
	if protocol == protocolUDP {
		head = 8
	}
	p := make([]byte, 20+head+len(load))
	p[0], p[8], p[9] = 0x45, 64, protocol
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	from, to := w.ends[a].port.addr.As4(), w.ends[b].port.addr.As4()
	copy(p[12:], from[:])
	copy(p[16:], to[:])
	q := packet{bytes: p, transport: p[20:], protocol: protocol}
	binary.BigEndian.PutUint16(q.transport, 40_000)
	binary.BigEndian.PutUint16(q.transport[2:], port)
	if protocol == protocolTCP {
		binary.BigEndian.PutUint32(q.transport[4:], seq)
		binary.BigEndian.PutUint32(q.transport[8:], ack)
		q.transport[12], q.transport[13] = 5<<4, flags
	} else {
		binary.BigEndian.PutUint16(q.transport[4:], uint16(len(q.transport)))
	}
	copy(q.transport[head:], load)
	q.seal()
	return p
}

// numbers are the payloads that arrived, in order; those that were damaged are -1.
func (e *wireEnd) numbers() (ns []int) {
	for _, a := range e.got {
		p, _ := parse(a.bytes)
		n := -1
		if len(p.payload()) == 6 {
			if _, err := fmt.Sscanf(string(p.payload()), "%06d", &n); err != nil {
				n = -1
			}
		}
		ns = append(ns, n)
	}
	return ns
}

func TestSwitchCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWires(t, Effect{}, "a", "b", "c", observerName)
		count := func(from, to string, protocol byte, port uint16) int {
			before := len(w.ends[to].got)
			w.send(from, to, protocol, port, 0, 10)
			synctest.Wait()
			return len(w.ends[to].got) - before
		}
		check := func(what, from, to string, protocol byte, port uint16, want int) {
			t.Helper()
			if got := count(from, to, protocol, port); got != want {
				t.Errorf("%s: %d of 10 packets from %s to %s arrived, want %d", what, got, from, to, want)
			}
		}
		check("whole", "a", "b", protocolTCP, meshPort, 10)

		lift := w.impose([]Effect{{From: []string{"a"}, To: []string{"b"}, Cut: true}})
		check("one way", "a", "b", protocolTCP, meshPort, 0)
		check("one way", "b", "a", protocolTCP, meshPort, 10)
		check("one way", "a", "c", protocolTCP, meshPort, 10)
		again := w.impose(Effect{From: []string{"a"}, Cut: true}.Both())
		lift()
		lift()
		check("cut off", "a", "b", protocolUDP, gossipPort, 0)
		check("cut off", "c", "a", protocolTCP, meshPort, 0)
		check("cut off", "b", "c", protocolTCP, meshPort, 10)
		check("cut off", "a", observerName, protocolTCP, meshPort, 10)
		// Who comes later is cut off too.
		w.ends["d"] = &wireEnd{}
		w.ends["d"].port = w.plug("d", netip.MustParseAddr("10.77.1.9"), false, func(b []byte) {
			w.ends["d"].got = append(w.ends["d"].got, arrival{bytes: slices.Clone(b)})
		})
		check("cut off", "a", "d", protocolTCP, meshPort, 0)
		again()
		check("healed", "a", "d", protocolTCP, meshPort, 10)

		lift = w.impose(Effect{From: []string{"a"}, To: []string{"b"}, Cut: true, Only: Gossip}.Both())
		check("gossip cut", "a", "b", protocolUDP, gossipPort, 0)
		check("gossip cut", "a", "b", protocolTCP, gossipPort, 0)
		check("gossip cut", "a", "b", protocolTCP, meshPort, 10)
		lift()
		lift = w.impose([]Effect{{Cut: true, Only: TCP}})
		check("TCP cut", "a", "b", protocolUDP, gossipPort, 10)
		check("TCP cut", "a", "b", protocolTCP, gossipPort, 0)
		lift()

		w.ends["a"].port.down.Store(true)
		check("no power", "a", observerName, protocolTCP, meshPort, 0)
		check("no power", "b", "a", protocolTCP, meshPort, 0)
	})
}

func TestSwitchDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWires(t, Effect{Delay: time.Millisecond}, "a", "b")
		w.send("a", "b", protocolUDP, gossipPort, 0, 1)
		lift := w.impose([]Effect{{From: []string{"a"}, Delay: 100 * time.Millisecond, Jitter: 50 * time.Millisecond}})
		w.send("a", "b", protocolUDP, gossipPort, 1, 100)
		lift()
		// Nothing overtakes what is delayed already.
		w.send("a", "b", protocolUDP, gossipPort, 100, 101)
		w.send("b", "a", protocolUDP, gossipPort, 0, 1)
		time.Sleep(time.Minute)
		synctest.Wait()
		b := w.ends["b"]
		if ns := b.numbers(); len(ns) != 101 || !slices.IsSorted(ns) {
			t.Errorf("arrived: %v", ns)
		}
		if at := b.got[0].at; at != time.Millisecond {
			t.Errorf("the first arrived after %v", at)
		}
		if at := b.got[1].at; at < 101*time.Millisecond {
			t.Errorf("the first that was delayed arrived after %v", at)
		}
		if at := w.ends["a"].got[0].at; at != time.Millisecond {
			t.Errorf("the other way took %v", at)
		}
	})
}

func TestSwitchLuck(t *testing.T) {
	for _, c := range []struct {
		name   string
		effect Effect
		check  func(ns []int, got SwitchStats) bool
	}{
		{"loss", Effect{Loss: 0.3}, func(ns []int, got SwitchStats) bool {
			return len(ns) > 600 && len(ns) < 800 && got.Lost == uint64(1000-len(ns))
		}},
		{"duplicate", Effect{Duplicate: 0.3}, func(ns []int, got SwitchStats) bool {
			return len(ns) > 1200 && len(ns) < 1400 && len(slices.Compact(ns)) == 1000
		}},
		{"reorder", Effect{Reorder: 0.1, Late: 20 * time.Millisecond}, func(ns []int, got SwitchStats) bool {
			return len(ns) == 1000 && !slices.IsSorted(ns) && got.Reordered > 50 && got.Reordered < 150
		}},
		{"corrupt", Effect{Corrupt: 0.2}, func(ns []int, got SwitchStats) bool {
			wrong := 0
			for i, n := range ns {
				if n != i {
					wrong++
				}
			}
			return len(ns) == 1000 && wrong > 100 && got.Corrupted >= uint64(wrong) && got.Corrupted < 300
		}},
		{"two losses", Effect{Loss: 1}, func(ns []int, got SwitchStats) bool { return len(ns) == 0 }},
	} {
		t.Run(c.name, func(t *testing.T) {
			var runs [2][]int
			for i := range runs {
				synctest.Test(t, func(t *testing.T) {
					w := newWires(t, Effect{}, "a", "b")
					w.impose([]Effect{c.effect})
					for n := range 1000 {
						w.send("a", "b", protocolUDP, gossipPort, n, n+1)
						time.Sleep(time.Millisecond)
					}
					time.Sleep(time.Second)
					synctest.Wait()
					runs[i] = w.ends["b"].numbers()
					if got := w.stats(); !c.check(slices.Clone(runs[i]), got) {
						t.Errorf("%d arrived, %+v", len(runs[i]), got)
					}
					for _, a := range w.ends["b"].got {
						p, ok := parse(a.bytes)
						sum := sum16(p.bytes[12:20]) + sum16(p.transport) + protocolUDP + uint64(len(p.transport))
						if !ok || fold(sum) != 0 {
							t.Fatalf("an invalid packet arrived: %x", a.bytes)
						}
					}
				})
			}
			if !slices.Equal(runs[0], runs[1]) {
				t.Error("the same seed had other luck")
			}
		})
	}
}

func TestSwitchBandwidth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWires(t, Effect{}, "a", "b")
		w.impose([]Effect{{Bandwidth: 34_000}, {Bandwidth: 50_000}}) // 1000 packets of 34 bytes
		w.send("a", "b", protocolUDP, gossipPort, 0, 3000)
		time.Sleep(time.Minute)
		synctest.Wait()
		got := w.ends["b"].got
		if len(got) < 1000 || len(got) > 1010 {
			t.Errorf("%d packets arrived, room is for a second of them", len(got))
		}
		if last := got[len(got)-1].at; last < time.Second || last > 1010*time.Millisecond {
			t.Errorf("the last one arrived after %v", last)
		}
		if s := w.stats(); s.Overflowed != uint64(3000-len(got)) {
			t.Errorf("%+v", s)
		}
	})
}

func TestSwitchReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWires(t, Effect{}, "a", "b", "c")
		send := func(from, to string, flags byte, seq, ack uint32) {
			w.ends[from].port.forward(w.packet(from, to, protocolTCP, 40_000, flags, seq, ack, nil))
		}
		send("a", "b", tcpSYN, 10, 0)
		send("b", "a", tcpSYN|tcpACK, 20, 11)
		send("a", "b", tcpACK, 11, 21)
		send("a", "c", tcpACK, 5, 6)
		w.ends["a"].got, w.ends["b"].got, w.ends["c"].got = nil, nil, nil
		if n := w.reset([]string{"a"}, []string{"b"}); n != 1 {
			t.Errorf("%d connections were reset", n)
		}
		rsts := func(name string, sequences ...uint32) {
			t.Helper()
			var got []uint32
			for _, a := range w.ends[name].got {
				if p, ok := parse(a.bytes); ok && p.protocol == protocolTCP && p.flags() == tcpRST {
					got = append(got, p.sequence())
				}
			}
			if !slices.Equal(got, sequences) {
				t.Errorf("%s got resets with the sequence numbers %v, want %v", name, got, sequences)
			}
		}
		rsts("a", 21)
		rsts("b", 11)
		rsts("c")
		// What was under way made the first one miss: the next packet brings the right one.
		send("b", "a", tcpACK, 21, 15)
		rsts("b", 11, 15)
		rsts("a", 21)
		// A new connection with the same ports lives.
		send("a", "b", tcpSYN, 1000, 0)
		send("b", "a", tcpSYN|tcpACK, 2000, 1001)
		send("a", "b", tcpACK, 1001, 2001)
		rsts("a", 21)
		rsts("b", 11, 15)
		if n := len(w.ends["b"].got); n != 4 {
			t.Errorf("%d packets reached b, want 2 resets, SYN and ACK", n)
		}
		if n := w.reset(nil, []string{"c"}); n != 1 {
			t.Errorf("%d connections to c were reset", n)
		}
	})
}

func TestSwitchHalfOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWires(t, Effect{}, "a", "b")
		send := func(from, to string, flags byte, seq, ack uint32) (a, b int) {
			w.ends["a"].got, w.ends["b"].got = nil, nil
			w.ends[from].port.forward(w.packet(from, to, protocolTCP, 40_000, flags, seq, ack, nil))
			return len(w.ends["a"].got), len(w.ends["b"].got)
		}
		send("a", "b", tcpSYN, 10, 0)
		send("b", "a", tcpSYN|tcpACK, 20, 11)
		send("a", "b", tcpACK, 11, 21)
		w.ends["a"].got, w.ends["b"].got = nil, nil
		if n := w.halve([]string{"a"}, []string{"b"}); n != 1 || len(w.ends["a"].got) != 1 || len(w.ends["b"].got) != 0 {
			t.Errorf("%d connections, a got %d packets, b %d", n, len(w.ends["a"].got), len(w.ends["b"].got))
		}
		if a, b := send("b", "a", tcpACK, 21, 11); a != 0 || b != 0 {
			t.Errorf("b sends: a got %d packets, b %d", a, b)
		}
		if a, b := send("a", "b", tcpACK, 11, 21); a != 1 || b != 0 {
			t.Errorf("a sends: a got %d packets, b %d", a, b)
		}
		if a, b := send("a", "b", tcpSYN, 50, 0); a != 0 || b != 1 {
			t.Errorf("a connects again: a got %d packets, b %d", a, b)
		}
	})
}

func TestParseRefuses(t *testing.T) {
	for _, b := range [][]byte{nil, make([]byte, 19), append([]byte{0x60}, make([]byte, 40)...), {0x45, 0, 0, 40, 19: 0}, append([]byte{0x41, 0, 0, 20}, make([]byte, 20)...)} {
		if _, ok := parse(b); ok {
			t.Errorf("%x is taken for a packet", b)
		}
	}
	// A TCP packet that is too short for its header is carried as it is.
	b := append([]byte{0x45, 0, 0, 30}, make([]byte, 26)...)
	b[9] = protocolTCP
	if p, ok := parse(b); !ok || p.class() != 2 || p.flip(0.5) {
		t.Errorf("%+v, %v", p, ok)
	}
}
