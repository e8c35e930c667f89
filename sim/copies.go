package sim

import (
	"math/bits"

	"github.com/meshq/meshq/transport/wire"
)

// copied is called when the disk of a node is copied for its twin.
func (k *checker) copied(h, twin *host) {
	for m, at := range k.holders {
		if at&(1<<h.place) != 0 {
			k.holders[m] |= 1 << twin.place
		}
	}
}

func (k *checker) holds(h *host, b *wire.Batch) {
	for i := range b.Count {
		k.holders[key(b, i)] |= 1 << h.place
		k.synced[key(b, i)] |= 1 << h.place
		k.let[key(b, i)] &^= 1 << h.place
	}
}

func (k *checker) lost(h *host, b *wire.Batch) {
	for i := range b.Count {
		k.holders[key(b, i)] &^= 1 << h.place
	}
}

func (k *checker) forgets(h *host) {
	for m := range k.holders {
		k.holders[m] &^= 1 << h.place
	}
}

// freed is called when a node has let go of batches. What is confirmed stays on W disks
// until it is done, but for disks that lost it by a fault: those are the W - 1 that P1
// allows for. Without this check a hint that goes too early would be found when somebody
// misses the message alone, which takes the loss of the right disk besides.
func (k *checker) freed(h *host, op *wire.Op) {
	for _, b := range h.disk.lanes[diskLane{op.Partition, op.Lane}] {
		if r := b.Run(); b.bad || r.From < op.Run.From || op.Run.To < r.To { // a bad one is no copy
			continue
		}
		for i := range b.Count {
			m := key(&b.Batch, i)
			s := k.messages[m]
			if s == nil || s.confirmed == 0 || k.allDone(m) || h.disk.has(&b.Batch, i) {
				continue
			}
			if k.let[m] |= 1 << h.place; bits.OnesCount64(k.synced[m]&^k.let[m]) < s.want {
				k.w.fail("P1", m, "%s lets go of %s, and fewer than %d disks have it then", h.name, k.about(m), s.want)
				return
			}
		}
	}
}

// returned is called when a node boots. Its disk may have lost that the node let go: what
// is there again, is a copy again.
func (k *checker) returned(h *host) {
	for _, lane := range h.disk.laneKeys() {
		for i := range h.disk.lanes[lane] {
			b := &h.disk.lanes[lane][i]
			if b.gone() || b.bad {
				continue
			}
			for j := range b.Count {
				if m := key(&b.Batch, j); k.synced[m]>>h.place&1 == 1 {
					k.let[m] &^= 1 << h.place
				}
			}
		}
	}
}

// has tells whether a message of a batch is on the disk at another position too.
func (d *disk) has(b *wire.Batch, i uint32) bool {
	for _, k := range d.laneKeys() {
		if k.partition != b.Partition {
			continue
		}
		for j := range d.lanes[k] {
			o := &d.lanes[k][j]
			if !o.gone() && o.Producer == b.Producer && o.Sequence <= b.Sequence+uint64(i) && b.Sequence+uint64(i) < o.Sequence+uint64(o.Count) {
				return true
			}
		}
	}
	return false
}
