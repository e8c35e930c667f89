package chaos

import (
	"encoding/binary"
	"net/netip"
)

// packet is an IPv4 packet, parsed as far as the switch cares.
type packet struct {
	bytes     []byte // all of it
	transport []byte // from the TCP or UDP header on
	protocol  byte
	// Of TCP and UDP; a later fragment has none.
	source, target uint16
}

const (
	protocolTCP = 6
	protocolUDP = 17

	tcpFIN, tcpSYN, tcpRST, tcpACK = 0x01, 0x02, 0x04, 0x10
)

func parse(b []byte) (packet, bool) {
	if len(b) < 20 || b[0]>>4 != 4 {
		return packet{}, false
	}
	head := int(b[0]&15) * 4
	if size := int(binary.BigEndian.Uint16(b[2:])); head < 20 || size < head || size > len(b) {
		return packet{}, false
	} else {
		b = b[:size]
	}
	p := packet{bytes: b, transport: b[head:], protocol: b[9]}
	fragment := binary.BigEndian.Uint16(b[6:])&0x1fff != 0
	least := map[byte]int{protocolTCP: 20, protocolUDP: 8}[p.protocol]
	if least == 0 || fragment || len(p.transport) < least {
		p.protocol = 0
		return p, true
	}
	p.source, p.target = binary.BigEndian.Uint16(p.transport), binary.BigEndian.Uint16(p.transport[2:])
	return p, true
}

func (p *packet) from() netip.Addr { return netip.AddrFrom4([4]byte(p.bytes[12:])) }
func (p *packet) to() netip.Addr   { return netip.AddrFrom4([4]byte(p.bytes[16:])) }

// class is the number of the bit in Traffic.
func (p *packet) class() int {
	switch {
	case p.protocol != protocolTCP:
		return 2
	case p.source == gossipPort || p.target == gossipPort:
		return 1
	}
	return 0
}

// Of TCP.
func (p *packet) sequence() uint32 { return binary.BigEndian.Uint32(p.transport[4:]) }
func (p *packet) ack() uint32      { return binary.BigEndian.Uint32(p.transport[8:]) }
func (p *packet) flags() byte      { return p.transport[13] }

// payload is what the transport carries.
func (p *packet) payload() []byte {
	switch p.protocol {
	case protocolTCP:
		if head := int(p.transport[12]>>4) * 4; head >= 20 && head <= len(p.transport) {
			return p.transport[head:]
		}
	case protocolUDP:
		return p.transport[8:]
	}
	return nil
}

// flip flips one bit of the payload and makes the checksum right; false: there is no
// payload, or no checksum that could be made right.
func (p *packet) flip(where float64) bool {
	load := p.payload()
	if len(load) == 0 {
		return false
	}
	bit := int(where * float64(len(load)) * 8)
	load[bit/8] ^= 1 << (bit % 8)
	p.seal()
	return true
}

// seal computes the checksum of the transport.
func (p *packet) seal() {
	at := 16
	if p.protocol == protocolUDP {
		at = 6
	}
	field := p.transport[at:]
	field[0], field[1] = 0, 0
	sum := uint64(p.protocol) + uint64(len(p.transport))
	sum += sum16(p.bytes[12:20]) + sum16(p.transport)
	c := fold(sum)
	if c == 0 && p.protocol == protocolUDP {
		c = 0xffff // 0 would say that there is none
	}
	binary.BigEndian.PutUint16(field, c)
}

func sum16(b []byte) (sum uint64) {
	for ; len(b) >= 2; b = b[2:] {
		sum += uint64(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint64(b[0]) << 8
	}
	return sum
}

func fold(sum uint64) uint16 {
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// rst is a TCP packet that ends a connection for whoever expects that sequence number.
func rst(from, to netip.Addr, source, target uint16, sequence uint32) []byte {
	b := make([]byte, 40)
	b[0] = 0x45
	binary.BigEndian.PutUint16(b[2:], 40)
	b[8], b[9] = 64, protocolTCP
	a := from.As4()
	copy(b[12:], a[:])
	a = to.As4()
	copy(b[16:], a[:])
	binary.BigEndian.PutUint16(b[10:], fold(sum16(b[:20])))
	p := packet{bytes: b, transport: b[20:], protocol: protocolTCP}
	binary.BigEndian.PutUint16(p.transport, source)
	binary.BigEndian.PutUint16(p.transport[2:], target)
	binary.BigEndian.PutUint32(p.transport[4:], sequence)
	p.transport[12], p.transport[13] = 5<<4, tcpRST
	p.seal()
	return b
}
