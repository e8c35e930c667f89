package wire

import (
	"encoding/base32"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cespare/xxhash/v2"

	"github.com/meshq/meshq/ring"
)

// PartitionID names a partition in every message and record. It is
// ring.PartitionKey(queue, generation, index), so it is also the partition's
// place on the ring; the catalog maps it back to its queue.
type PartitionID uint64

// String is the partition's key in hexadecimal.
func (p PartitionID) String() string { return fmt.Sprintf("%016x", uint64(p)) }

// Partition is the ID of one partition of a queue generation.
func Partition(queue string, generation uint64, index uint32) PartitionID {
	return PartitionID(ring.PartitionKey(queue, generation, index))
}

// GroupID names one generation of a group of consumers.
type GroupID uint64

// Group is the ID of a generation of the group called name.
func Group(name string, generation uint64) GroupID {
	var d xxhash.Digest
	d.Reset()
	_, _ = d.WriteString(name)
	var g [9]byte
	binary.BigEndian.PutUint64(g[1:], generation)
	_, _ = d.Write(g[:])
	return GroupID(d.Sum64())
}

// ProducerID names one producer object of one client process: 64 random bits.
type ProducerID uint64

// ConsumerID names one consumer object of one client process: 64 random bits.
type ConsumerID uint64

// MeshID names a mesh; it is minted when the mesh is founded. 0 is no mesh.
type MeshID uint64

// String is the mesh's ID in hexadecimal.
func (m MeshID) String() string { return fmt.Sprintf("%016x", uint64(m)) }

// Lane is a log with a single writer inside a partition: the node that accepts
// the writes, and the epoch of that node's boot (boot number << 32 | 32 random
// bits), so that no offset of a lane is ever used twice.
type Lane struct {
	Node  ring.NodeID
	Epoch uint64
}

// IsZero tells whether l names no lane.
func (l Lane) IsZero() bool { return l.Node == 0 }

// Compare orders lanes by node, then epoch: -1, 0 or 1.
func (l Lane) Compare(m Lane) int {
	switch {
	case l.Node < m.Node:
		return -1
	case l.Node > m.Node:
		return 1
	case l.Epoch < m.Epoch:
		return -1
	case l.Epoch > m.Epoch:
		return 1
	}
	return 0
}

// String is node.epoch in hexadecimal.
func (l Lane) String() string { return fmt.Sprintf("%016x.%x", uint64(l.Node), l.Epoch) }

// Offset is the dense position, from 0, of a message in its lane.
type Offset uint64

// Position is where a message is: it never changes and is never used twice.
type Position struct {
	Partition PartitionID
	Lane      Lane
	Offset    Offset
}

// idLength is the length of a message ID: 256 bits in base 32.
const idLength = 52

// ErrBadID means that a text is not a message ID.
var ErrBadID = errors.New("not a message ID")

var idEncoding = base32.NewEncoding("0123456789abcdefghjkmnpqrstvwxyz").WithPadding(base32.NoPadding)

// String is the message ID: it spells the position, so that a message can be
// found from its ID alone.
func (p Position) String() string {
	var b [32]byte
	binary.BigEndian.PutUint64(b[0:], uint64(p.Partition))
	binary.BigEndian.PutUint64(b[8:], uint64(p.Lane.Node))
	binary.BigEndian.PutUint64(b[16:], p.Lane.Epoch)
	binary.BigEndian.PutUint64(b[24:], uint64(p.Offset))
	return idEncoding.EncodeToString(b[:])
}

// ParsePosition reads a message ID, exactly as String spells it. The error is ErrBadID.
func ParsePosition(id string) (Position, error) {
	if len(id) != idLength {
		return Position{}, fmt.Errorf("text of %d bytes: %w", len(id), ErrBadID)
	}
	b, err := idEncoding.DecodeString(id)
	if err != nil || len(b) != 32 {
		return Position{}, fmt.Errorf("%q: %w", id, ErrBadID)
	}
	p := Position{
		Partition: PartitionID(binary.BigEndian.Uint64(b[0:])),
		Lane:      Lane{Node: ring.NodeID(binary.BigEndian.Uint64(b[8:])), Epoch: binary.BigEndian.Uint64(b[16:])},
		Offset:    Offset(binary.BigEndian.Uint64(b[24:])),
	}
	if p.String() != id { // line breaks, or bits in the last digit that mean nothing
		return Position{}, fmt.Errorf("%q: %w", id, ErrBadID)
	}
	return p, nil
}

// Term numbers the claims of ownership of a partition. Node breaks ties, so no
// two claims ever have the same term. The zero term is below all others.
type Term struct {
	Counter uint64
	Node    ring.NodeID
}

// Compare orders terms: -1, 0 or 1.
func (t Term) Compare(u Term) int {
	switch {
	case t.Counter < u.Counter:
		return -1
	case t.Counter > u.Counter:
		return 1
	case t.Node < u.Node:
		return -1
	case t.Node > u.Node:
		return 1
	}
	return 0
}

// Less tells whether t is below u.
func (t Term) Less(u Term) bool { return t.Compare(u) < 0 }

// String is counter.node.
func (t Term) String() string { return fmt.Sprintf("%d.%s", t.Counter, t.Node) }

// NodeID is ring.NodeID, so that packages that only store or carry it need not
// know the ring.
type NodeID = ring.NodeID
