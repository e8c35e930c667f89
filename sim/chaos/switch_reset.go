package chaos

import "time"

// flows are the TCP connections of which packets came along one link, by their ports.
type flows map[flowKey]*flow

type flowKey struct{ source, target uint16 }

// flow is one direction of a connection.
type flow struct {
	ack  uint32 // the last that its sender acked: what that sender expects next
	seen time.Time
	// doomed: it was reset. What its sender still sends is answered with a RST that fits
	// exactly what it acks, for the first RST may have missed: a receiver takes only that
	// sequence number which it expects (RFC 5961).
	doomed bool
	// mute: its receiver has forgotten it and may not say so. What its sender sends is lost.
	mute  bool
	ended bool // its sender sent a FIN
}

const (
	manyFlows = 1024
	flowIdle  = 5 * time.Minute // more than any keepalive
)

// track notes what a TCP packet says about its connection. false: the packet goes no
// further, for its connection was reset; the sender may have to be told by a RST.
func (l *link) track(p *packet) (answer []byte, pass bool) {
	if p.protocol != protocolTCP {
		return nil, true
	}
	flags, key := p.flags(), flowKey{p.source, p.target}
	l.mu.Lock()
	defer l.mu.Unlock()
	f := l.flows[key]
	switch {
	case flags&tcpRST != 0:
		muted := f != nil && f.mute
		delete(l.flows, key)
		return nil, !muted
	case flags&tcpSYN != 0, f == nil:
		if l.flows == nil {
			l.flows = flows{}
		}
		if len(l.flows) >= manyFlows {
			l.flows.forget()
		}
		f = &flow{}
		l.flows[key] = f
	}
	f.seen = time.Now()
	if flags&tcpACK != 0 {
		f.ack = p.ack()
	}
	f.ended = f.ended || flags&tcpFIN != 0
	if f.doomed && flags&tcpACK != 0 {
		return rst(p.to(), p.from(), p.target, p.source, p.ack()), false
	}
	return nil, !f.mute
}

// forget drops the connections that nothing was heard of for long.
func (f flows) forget() {
	now := time.Now()
	for key, flow := range f {
		if now.Sub(flow.seen) > flowIdle {
			delete(f, key)
		}
	}
}

// reset ends the connections between hosts on both sides, and says how many it knew.
func (s *netSwitch) reset(from, to []string) int { return s.end(Effect{From: from, To: to}, true) }

// halve ends them for the hosts of from alone: those of to are not told.
func (s *netSwitch) halve(from, to []string) int { return s.end(Effect{From: from, To: to}, false) }

func (s *netSwitch) end(e Effect, both bool) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	ended := map[[2]end]bool{}
	for _, p := range s.ports {
		for _, l := range *p.links.Load() {
			there, back := e.covers(l.from.name, l.to.name), e.covers(l.to.name, l.from.name)
			if l.from.exempt || l.to.exempt || !there && !back {
				continue
			}
			for _, key := range l.doom(both || there) {
				a, b := end{l.from, key.source}, end{l.to, key.target}
				if !ended[[2]end{b, a}] {
					ended[[2]end{a, b}] = true
				}
			}
		}
	}
	s.count.resets.Add(uint64(len(ended)))
	return len(ended)
}

// end is one side of a connection.
type end struct {
	port *port
	at   uint16
}

// doom resets the senders of all connections along a link, or makes them mute.
func (l *link) doom(tell bool) (keys []flowKey) {
	type victim struct {
		key flowKey
		ack uint32
	}
	var victims []victim
	l.mu.Lock()
	for key, f := range l.flows {
		if !f.doomed && !f.mute && !f.ended {
			f.doomed, f.mute = tell, !tell
			victims = append(victims, victim{key, f.ack})
		}
	}
	l.mu.Unlock()
	for _, v := range victims {
		if tell {
			l.from.put(rst(l.to.addr, l.from.addr, v.key.target, v.key.source, v.ack))
		}
		keys = append(keys, v.key)
	}
	return keys
}
