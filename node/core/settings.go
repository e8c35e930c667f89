package core

import (
	"slices"

	"github.com/meshq/meshq/transport/wire"
)

// mergeSettings gives m each field of the settings from the entry that changed it last. A
// field is a register of its own (the highest counter wins), so changes of different fields
// at two nodes at once both stay. Partitions only grow: what is in one must stay there.
func mergeSettings(m, b *wire.QueueEntry) {
	merged, at := m.Settings, make([]wire.Counter, wire.NumSettings)
	changed := false
	for i := range at {
		at[i] = m.SettingAt(i)
		if theirs := b.SettingAt(i); at[i].Less(theirs) {
			at[i] = theirs
			merged.Set(i, b.Settings.Get(i))
		}
		changed = changed || at[i] != maxCounter(m.SettingsAt, b.SettingsAt)
	}
	m.GrownRings = mergeGrown(m, b)
	merged.Partitions = max(m.Settings.Partitions, b.Settings.Partitions)
	m.Settings, m.SettingsAt, m.ChangedAt = merged, maxCounter(m.SettingsAt, b.SettingsAt), nil
	if changed {
		m.ChangedAt = at
	}
}

// mergeGrown is, by partition, the lowest ring number at which one of two entries that have the
// partition says that it was added; 0, at the creation, is the lowest.
func mergeGrown(a, b *wire.QueueEntry) []uint64 {
	if slices.Equal(a.GrownRings, b.GrownRings) {
		return a.GrownRings
	}
	out := make([]uint64, max(len(a.GrownRings), len(b.GrownRings)))
	for i := range out {
		var known []uint64
		for _, e := range []*wire.QueueEntry{a, b} {
			switch {
			case i < len(e.GrownRings):
				known = append(known, e.GrownRings[i])
			case i < int(e.Settings.Partitions):
				known = append(known, 0)
			}
		}
		out[i] = slices.Min(known)
	}
	return out
}

// outdone tells whether of one generation known has a setting or pause that was changed after
// the one in e: who changed e did not know of it.
func outdone(e, known *wire.QueueEntry) bool {
	if e.Generation != known.Generation {
		return false
	}
	for i := range wire.NumSettings {
		if e.SettingAt(i).Less(known.SettingAt(i)) {
			return true
		}
	}
	if e.Pause.At.Less(known.Pause.At) {
		return true
	}
	return slices.ContainsFunc(e.Groups, func(g wire.GroupEntry) bool {
		return slices.ContainsFunc(known.Groups, func(k wire.GroupEntry) bool {
			return k.Name == g.Name && k.Generation == g.Generation && g.Pause.At.Less(k.Pause.At)
		})
	})
}

func maxCounter(a, b wire.Counter) wire.Counter {
	if a.Less(b) {
		return b
	}
	return a
}

func mergePause(a, b wire.Pause) wire.Pause {
	if a.At.Less(b.At) {
		return b
	}
	return a
}

// updateQueue answers UpdateQueue. asked says that this node knows what a majority knows; until
// is how long it may wait for a ring step to be stored.
func (c *Core) updateQueue(req ReqID, m *wire.UpdateQueue, until Instant, asked bool) {
	old := c.catalog.live(m.Name)
	if old == nil || m.Generation != 0 && old.Generation != m.Generation {
		if !c.sure(req, asked, func() { c.updateQueue(req, m, until, true) }) {
			c.reply(req, wire.Errorf(wire.ErrNoQueue, "no such queue: %s", m.Name))
		}
		return
	}
	before := old.Settings.InForce()
	after := before
	if err := checkUpdate(&after, m.Set); err != nil {
		// What is allowed depends on the other settings, which may have changed.
		if !c.sure(req, asked, func() { c.updateQueue(req, m, until, true) }) {
			c.reply(req, asError(err))
		}
		return
	}
	e := *old
	at := make([]wire.Counter, wire.NumSettings)
	answer := &wire.QueueUpdated{}
	for i := range at {
		at[i] = old.SettingAt(i)
		was, is := before.Get(i), after.Get(i)
		if was == is {
			continue
		}
		if m.Seen != 0 && at[i].N > m.Seen {
			c.reply(req, wire.Errorf(wire.ErrExists, "%s was changed to %d meanwhile: look at the queue, and try again", wire.SettingName(i), was))
			return
		}
		e.Settings.Set(i, is)
		at[i] = c.follows(at[i], m.Seen)
		answer.Before = append(answer.Before, wire.Setting{Name: wire.SettingName(i), Value: was})
	}
	if len(answer.Before) > 0 {
		e.ChangedAt = at
	}
	if after.Partitions > before.Partitions {
		number, settling := c.openRing(&e, before.Partitions)
		if settling && c.now.Mono < until {
			c.after(renewEvery, func() { c.updateQueue(req, m, until, asked) })
			return
		}
		e.GrownRings = make([]uint64, after.Partitions)
		copy(e.GrownRings, old.GrownRings)
		for i := before.Partitions; i < after.Partitions; i++ {
			e.GrownRings[i] = number
		}
	}
	c.changeCatalog(&e, func() { c.updateQueue(req, m, until, asked) }, func(err *wire.Error) {
		if err != nil {
			c.reply(req, err)
			return
		}
		answer.Entry, answer.Catalog = *c.catalog.entries[m.Name], c.catalog.version
		c.reply(req, answer)
	})
}

// follows is the counter of a change of what has the counter at here. seen is what the request
// is based on: of all that may be made of one request, repeated at other nodes, none is above a
// change that followed the first.
func (c *Core) follows(at wire.Counter, seen uint64) wire.Counter {
	return wire.Counter{N: max(at.N, seen) + 1, Node: uint64(c.self)}
}

// checkUpdate applies changes to s, if a queue that is used may have them.
func checkUpdate(s *wire.Settings, changes []wire.Setting) error {
	before := *s
	if err := s.Apply(changes); err != nil {
		return err
	}
	if s.Partitions < before.Partitions {
		return wire.Errorf(wire.ErrBadRequest, "partitions is %d, allowed are %d to %d: it can only grow", s.Partitions, before.Partitions, wire.MaxPartitions)
	}
	if s.Replicas != before.Replicas {
		return wire.Errorf(wire.ErrBadRequest, "replicas is %d and cannot be changed: create another queue", before.Replicas)
	}
	return nil
}

// pauseQueue answers PauseQueue. asked says that this node knows what a majority knows.
func (c *Core) pauseQueue(req ReqID, m *wire.PauseQueue, asked bool) {
	old := c.catalog.live(m.Name)
	if old != nil && m.Generation != 0 && old.Generation != m.Generation {
		old = nil
	}
	i := -1
	if old != nil {
		i = slices.IndexFunc(old.Groups, func(g wire.GroupEntry) bool { return g.Name == m.Group })
	}
	if old == nil || m.Group != "" && i < 0 {
		if c.sure(req, asked, func() { c.pauseQueue(req, m, true) }) {
			return
		}
		if old == nil {
			c.reply(req, wire.Errorf(wire.ErrNoQueue, "no such queue: %s", m.Name))
		} else {
			c.reply(req, wire.Errorf(wire.ErrNoGroup, "queue %s has no group %q", m.Name, m.Group))
		}
		return
	}
	e := *old
	pause := &e.Pause
	if m.Group != "" {
		e.Groups = slices.Clone(old.Groups)
		pause = &e.Groups[i].Pause
	}
	if pause.Until != m.Until {
		if m.Seen != 0 && pause.At.N > m.Seen {
			c.reply(req, wire.Errorf(wire.ErrExists, "it was paused or resumed meanwhile: look at the queue, and try again"))
			return
		}
		*pause = wire.Pause{Until: m.Until, At: c.follows(pause.At, m.Seen)}
	}
	c.changeCatalog(&e, func() { c.pauseQueue(req, m, asked) }, func(err *wire.Error) {
		if err != nil {
			c.reply(req, err)
			return
		}
		c.reply(req, &wire.QueueInfo{Entry: *c.catalog.entries[m.Name], Catalog: c.catalog.version})
	})
}

// pausedUntil is when the deliveries to a group go on, in Unix milliseconds; 0: they go on now.
func (p *partition) pausedUntil(group string) uint64 {
	until := p.entry.Pause.Until
	for i := range p.entry.Groups {
		if g := &p.entry.Groups[i]; g.Name == group {
			until = max(until, g.Pause.Until)
		}
	}
	if until <= p.core.now.Wall {
		return 0
	}
	return until
}

// paused tells whether nothing is to be handed out to the group now, and sees to it that it
// goes on by itself.
func (f *feed) paused() bool {
	p, c := f.o.p, f.o.p.core
	until := p.pausedUntil(f.name)
	c.timers.stop(f.resume)
	if until != 0 && until != wire.PauseForever {
		f.resume = c.after(Instant(min(until-c.now.Wall, uint64(maxPauseWait/Millisecond)))*Millisecond, f.o.pump)
	}
	if c.planted(bugPauseByFirst) && f.o.term.Counter > 1 {
		return false
	}
	return until != 0
}

// maxPauseWait is after how long a pause is looked at again: the wall clock may have been set.
const maxPauseWait = 60 * Second
