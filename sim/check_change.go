package sim

import (
	"fmt"
	"slices"
	"strings"

	"github.com/meshq/meshq/transport/wire"
)

// register is what can be changed of a queue by itself: a setting, or the pause of the queue or
// of a group; and all changes of it that were asked for, in order.
type register struct {
	q       *queue
	pause   bool
	name    string // of the setting or group; "": the queue
	changes []*queueChange
	known   map[*host]knownPause // of a pause
	// fixed is the value of a pause that all nodes knew when all changes were confirmed: until
	// the next is asked for nobody has an excuse. 0: none.
	fixed uint64
}

// queueChange is one change of a register.
type queueChange struct {
	value uint64
	asked int64
	done  int64 // when it was confirmed; 0: not yet
}

// knownPause is since when a node has known that something is paused, in its life.
type knownPause struct {
	life  int
	since int64
}

func (x *register) String() string {
	switch {
	case !x.pause:
		return fmt.Sprintf("%s of queue %s", x.name, x.q.entry.Name)
	case x.name == "":
		return "the pause of queue " + x.q.entry.Name
	}
	return fmt.Sprintf("the pause of group %s of queue %s", x.name, x.q.entry.Name)
}

// in is the value in an entry of the catalog.
func (x *register) in(e *wire.QueueEntry) uint64 {
	if !x.pause {
		for i := range wire.NumSettings {
			if wire.SettingName(i) == x.name {
				return e.Settings.Get(i)
			}
		}
	}
	for i := range e.Groups {
		if x.name == e.Groups[i].Name {
			return e.Groups[i].Pause.Until
		}
	}
	return e.Pause.Until
}

func (x *register) last() *queueChange { return x.changes[len(x.changes)-1] }

// couldBe tells whether a value can be there at rest: no change was asked for after the one
// that set it was confirmed. All are confirmed then.
func (x *register) couldBe(value uint64) bool {
	since := int64(0) // what was confirmed before is overridden
	for _, c := range x.changes {
		since = max(since, c.asked)
	}
	for _, c := range x.changes {
		if c.value == value && c.done >= since {
			return true
		}
	}
	return false
}

// changing is called when a change is asked for.
func (k *checker) changing(q *queue, pause bool, name string, value uint64) *queueChange {
	i := slices.IndexFunc(k.registers, func(x *register) bool { return x.q == q && x.pause == pause && x.name == name })
	if i < 0 {
		i = len(k.registers)
		k.registers = append(k.registers, &register{q: q, pause: pause, name: name, known: map[*host]knownPause{}})
	}
	c := &queueChange{value: value, asked: k.w.now}
	x := k.registers[i]
	x.changes, x.fixed = append(x.changes, c), 0
	return c
}

// changed is called when a change is confirmed: a majority of the members has it, if nothing
// else was asked for meanwhile.
func (k *checker) changed(c *queueChange) {
	c.done = k.w.now
	for _, x := range k.registers {
		if !slices.Contains(x.changes, c) {
			continue
		}
		if slices.ContainsFunc(x.changes, func(o *queueChange) bool { return o != c && (o.done == 0 || o.done > c.asked) }) {
			return
		}
		var others []string
		for _, h := range k.w.nodes() {
			if h.running && h.core.Ready() && !h.core.LostCatalog() {
				if e := h.core.Queue(x.q.entry.Name); e == nil || x.in(e) != c.value {
					others = append(others, h.name)
				}
			}
		}
		if n := k.w.ring().Len(); len(others) > n-(n/2+1) {
			k.w.fail("catalog", msgKey{}, "%s is confirmed to be %d, and of %d members %s have something else", x, c.value, n, strings.Join(others, " "))
		}
	}
}

// changesHold tells what is wrong with the catalogs of the nodes at rest: all are the same,
// and what was changed last is what is there.
func (k *checker) changesHold() error {
	if len(k.registers) == 0 {
		return nil
	}
	var first *host
	for _, h := range k.w.nodes() {
		switch {
		case !h.running || !h.core.Ready():
		case first == nil:
			first = h
		case h.core.CatalogSum() != first.core.CatalogSum():
			return fmt.Errorf("the catalogs of %s and %s differ", first.name, h.name)
		}
	}
	if first == nil {
		return nil
	}
	for _, x := range k.registers {
		e := first.core.Queue(x.q.entry.Name)
		switch {
		case x.q.gone:
		case e == nil:
			return fmt.Errorf("%s does not know queue %s", first.name, x.q.entry.Name)
		case !x.couldBe(x.in(e)):
			return fmt.Errorf("%s is %d, and was changed to %d since", x, x.in(e), x.last().value)
		}
	}
	return nil
}

// runs tells whether a pause until a time goes on by the clock of h.
func runs(h *host, until uint64) bool { return until > h.time().Wall }

// learnsPauses is called after each step of a node.
func (k *checker) learnsPauses(h *host) {
	for _, x := range k.registers {
		if !x.pause {
			continue
		}
		e := h.core.Queue(x.q.entry.Name)
		if e == nil || !runs(h, x.in(e)) {
			delete(x.known, h)
		} else if x.known[h].since == 0 || x.known[h].life != h.life {
			x.known[h] = knownPause{h.life, k.w.now}
		}
	}
}

// spread looks which pauses all nodes know.
func (k *checker) spread() {
	for _, x := range k.registers {
		if !x.pause || x.fixed != 0 || slices.ContainsFunc(x.changes, func(c *queueChange) bool { return c.done == 0 }) {
			continue
		}
		for i, h := range k.w.nodes() {
			e := (*wire.QueueEntry)(nil)
			if h.running {
				e = h.core.Queue(x.q.entry.Name)
			}
			if e == nil || i > 0 && x.in(e) != x.fixed {
				x.fixed = 0
				break
			}
			x.fixed = x.in(e)
		}
	}
}

// inWriter is how long a delivery may be on its way from the step of an owner to a connection.
const inWriter = 50 * millisecond

// mayHandOut checks that nothing is handed out of a queue, or to a group, that is paused: as the
// owner knows it, for longer than a delivery is on its way; or as all nodes knew it once.
func (k *checker) mayHandOut(h *host, r *wire.Receipt, m msgKey) {
	for _, x := range k.registers {
		if !x.pause || k.messages[m].q != x.q || x.name != "" && !slices.ContainsFunc(x.q.entry.Groups, func(g wire.GroupEntry) bool {
			return g.Name == x.name && wire.Group(g.Name, g.Generation) == r.Group
		}) {
			continue
		}
		e := h.core.Queue(x.q.entry.Name)
		own, known := x.known[h]
		if known && own.life == h.life && e != nil && runs(h, x.in(e)) && k.w.now-own.since > inWriter {
			k.w.fail("pause", m, "%s hands out %s to %s, and has known %s for %d ms", h.name, k.about(m), k.w.names.group(r.Group), x, (k.w.now-own.since)/millisecond)
			return
		}
		if runs(h, x.fixed) {
			k.w.fail("pause", m, "%s hands out %s to %s, and all nodes knew %s, which was asked for %d ms ago", h.name, k.about(m), k.w.names.group(r.Group), x, (k.w.now-x.last().asked)/millisecond)
			return
		}
	}
}
