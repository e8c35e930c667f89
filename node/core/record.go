package core

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/vmihailenco/msgpack/v5"

	"github.com/meshq/meshq/ring"
	"github.com/meshq/meshq/transport/wire"
)

// Records in the store begin with one of these bytes. Those of a partition go on
// with its ID, so that a partition's records are found, and dropped, by prefix.
const (
	recordMesh      = 'm' // the mesh ID
	recordCatalog   = 'c' // name: wire.QueueEntry
	recordRing      = 'R' // ring number: ring.Table
	recordVote      = 'v' // ring number: vote
	recordPartial   = 'C' // whether entries of the catalog may have been lost; written, never deleted
	recordForgot    = 'V' // the highest ring number for which a vote may have been forgotten, 0: none; written, never deleted
	recordNoticed   = 'N' // the last boot in which a loss was noticed
	recordPeer      = 'P' // node: peerRecord
	recordTerm      = 't' // partition: wire.Term, the highest promised
	recordHeard     = 'T' // partition: wire.Term, the highest heard of from other replicas; no promise
	recordAcks      = 'a' // partition, number: []wire.AckItem, not yet folded into pages
	recordPage      = 'A' // partition, group, lane, page: wire.Runs, the done offsets of a page
	recordFloor     = 'F' // partition, group, lane: wire.Offset, all below are done
	recordWatermark = 'w' // partition, part: []wire.Watermark
	recordHint      = 'h' // partition, lane, page: wire.Runs of the batches kept for others
	recordMoved     = 'd' // partition: number of the ring below which all are closed
	recordSegments  = 's' // partition, number: []wire.Segment whose bodies are not here
	recordRepair    = 'x' // partition: whether it lost something and is not repaired yet; written, never deleted
	recordRetry     = 'r' // partition, group, due, lane, offset: wire.Retry; read on demand
)

// LazyPrefix begins the records that Recovered does not contain.
var LazyPrefix = []byte{recordRetry}

// partitionRecords are the prefixes of what is kept by partition.
var partitionRecords = []byte{recordTerm, recordHeard, recordAcks, recordPage, recordFloor, recordWatermark, recordHint, recordMoved, recordSegments, recordRepair, recordRetry}

// No record grows with what happens: the store refuses values over 512 KiB.
const (
	// pageSize is the number of offsets in a page of an ack set, or of hints: at most
	// half as many runs, of 18 bytes.
	pageSize = 4096
	// maxRecordItems is the number of items in a record of a list: each has less than 100 bytes.
	maxRecordItems = 4096
)

func key(prefix byte, parts ...uint64) []byte {
	k := make([]byte, 1, 1+8*len(parts))
	k[0] = prefix
	for _, p := range parts {
		k = binary.BigEndian.AppendUint64(k, p)
	}
	return k
}

// keyParts are the numbers behind the first byte of a key; nil if it has not n of them.
func keyParts(k []byte, n int) []uint64 {
	if len(k) != 1+8*n {
		return nil
	}
	parts := make([]uint64, n)
	for i := range parts {
		parts[i] = binary.BigEndian.Uint64(k[1+8*i:])
	}
	return parts
}

func put(k []byte, value any) wire.Op {
	var b bytes.Buffer
	e := msgpack.NewEncoder(&b)
	e.UseArrayEncodedStructs(true)
	e.UseCompactInts(true)
	if err := e.Encode(value); err != nil {
		panic(fmt.Sprintf("core: encoding a %T: %v", value, err)) // only plain data is encoded
	}
	return wire.Op{Kind: wire.OpPut, Key: k, Value: b.Bytes()}
}

func remove(k []byte) wire.Op      { return wire.Op{Kind: wire.OpDelete, Key: k} }
func removeRange(k []byte) wire.Op { return wire.Op{Kind: wire.OpDeleteRange, Key: k} }

// peerRecord is what is remembered of a member across boots.
type peerRecord struct {
	Boot    uint64
	Commits []wire.CommitNumber
}

// recover fills the core from the store. A record that cannot be read is damage: the
// store has checked its checksum, so this node wrote it in another version, or wrongly.
func (c *Core) recover(rec Recovered) {
	for _, mine := range []bool{false, true} { // partitions are known when the catalog is
		for _, r := range rec.Records {
			if len(r.Key) > 0 && slices.Contains(partitionRecords, r.Key[0]) != mine {
				continue
			}
			if err := c.recoverRecord(r); err != nil {
				c.damagedAll = true
				c.after(0, func() { c.note(NoteWarn, nil, "record not understood", "%x: %v", r.Key, err) })
			}
		}
	}
	for _, ref := range rec.Refs {
		if p := c.known(ref.Partition); p != nil {
			p.lane(ref.Lane).held.Add(wire.Span(ref.Base, ref.Base+wire.Offset(ref.Count)))
			p.remember(wire.Segment{Producer: ref.Producer, Sequence: ref.Sequence, Lane: ref.Lane, Base: ref.Base, Count: ref.Count, Stamp: ref.Stamp})
			c.clock = max(c.clock, ref.Stamp)
		}
	}
	if c.catalogLost { // an earlier boot lost records, and may not have known yet of which partitions
		c.damagedAll = true
	}
	for _, id := range sortedKeys(c.damaged) {
		if c.parts[id] == nil {
			c.damagedAll = true // a record of no partition: it may have concerned any
		}
	}
	for _, id := range sortedKeys(c.parts) {
		p := c.parts[id]
		if c.damagedAll || c.damaged[id] {
			p.repairing = true
		}
		p.recovered()
	}
}

func (c *Core) recoverRecord(r wire.StoredRecord) error {
	if len(r.Key) == 0 {
		return fmt.Errorf("empty key")
	}
	switch r.Key[0] {
	case recordMesh:
		return wire.DecodeValue(r.Value, &c.mesh)
	case recordCatalog:
		e := new(wire.QueueEntry)
		if err := wire.DecodeValue(r.Value, e); err != nil {
			return err
		}
		c.catalog.put(e)
		c.catalogChanged(e)
		return nil
	case recordRing:
		var t ring.Table
		if err := wire.DecodeValue(r.Value, &t); err != nil {
			return err
		}
		c.rings.add(t)
		return nil
	case recordPeer:
		parts := keyParts(r.Key, 1)
		var p peerRecord
		if err := wire.DecodeValue(r.Value, &p); err != nil || parts == nil {
			return fmt.Errorf("peer: %w", err)
		}
		peer := c.peer(ring.NodeID(parts[0]))
		peer.boot, peer.commits = p.Boot, p.Commits
		return nil
	case recordForgot:
		return wire.DecodeValue(r.Value, &c.lostVotes)
	case recordNoticed:
		return wire.DecodeValue(r.Value, &c.noticed)
	case recordPartial:
		return wire.DecodeValue(r.Value, &c.catalogLost)
	case recordVote:
		parts := keyParts(r.Key, 1)
		var v vote
		if err := wire.DecodeValue(r.Value, &v); err != nil || parts == nil {
			return fmt.Errorf("vote: %w", err)
		}
		c.votes[parts[0]] = v
		return nil
	}
	if len(r.Key) < 9 {
		return fmt.Errorf("key of %d bytes", len(r.Key))
	}
	p := c.known(wire.PartitionID(binary.BigEndian.Uint64(r.Key[1:])))
	if p == nil {
		return nil // of a queue that is deleted
	}
	return p.recoverRecord(r.Key, r.Value)
}

func (p *partition) recoverRecord(k, value []byte) error {
	switch k[0] {
	case recordTerm:
		if p.core.planted(bugTermsInMemory) || p.core.planted(bugMemoryGrants) {
			return nil
		}
		if err := wire.DecodeValue(value, &p.promised); err != nil {
			return err
		}
		if p.heard.Less(p.promised) {
			p.heard = p.promised
		}
	case recordHeard:
		if p.core.planted(bugTermsInMemory) || p.core.planted(bugMemoryGrants) {
			return nil
		}
		var heard wire.Term
		if err := wire.DecodeValue(value, &heard); err != nil {
			return err
		}
		if p.heard.Less(heard) {
			p.heard = heard
		}
	case recordMoved:
		return wire.DecodeValue(value, &p.moved)
	case recordRepair:
		return wire.DecodeValue(value, &p.repairing)
	case recordAcks:
		parts := keyParts(k, 2)
		var items []wire.AckItem
		if err := wire.DecodeValue(value, &items); err != nil || parts == nil {
			return fmt.Errorf("acks: %w", err)
		}
		p.ackLog = max(p.ackLog, parts[1])
		for _, item := range items {
			p.markDone(item)
		}
	case recordPage:
		parts := keyParts(k, 5)
		var runs wire.Runs
		if err := wire.DecodeValue(value, &runs); err != nil || parts == nil {
			return fmt.Errorf("page: %w", err)
		}
		done := p.group(wire.GroupID(parts[1])).done(wire.Lane{Node: ring.NodeID(parts[2]), Epoch: parts[3]})
		done.runs.AddAll(runs)
	case recordFloor:
		parts := keyParts(k, 4)
		var floor wire.Offset
		if err := wire.DecodeValue(value, &floor); err != nil || parts == nil {
			return fmt.Errorf("floor: %w", err)
		}
		done := p.group(wire.GroupID(parts[1])).done(wire.Lane{Node: ring.NodeID(parts[2]), Epoch: parts[3]})
		done.runs.Add(wire.Span(0, floor))
		done.floor = floor
	case recordWatermark:
		var marks []wire.Watermark
		if err := wire.DecodeValue(value, &marks); err != nil {
			return err
		}
		p.raiseWatermarks(marks)
		p.watermarksDirty = false
	case recordHint:
		parts := keyParts(k, 4)
		var runs wire.Runs
		if err := wire.DecodeValue(value, &runs); err != nil || parts == nil {
			return fmt.Errorf("hint: %w", err)
		}
		p.addHints(wire.Lane{Node: ring.NodeID(parts[1]), Epoch: parts[2]}, runs)
	case recordSegments:
		parts := keyParts(k, 2)
		var segments []wire.Segment
		if err := wire.DecodeValue(value, &segments); err != nil || parts == nil {
			return fmt.Errorf("segments: %w", err)
		}
		p.headerSaved(parts[1], segments)
		for _, s := range segments {
			p.remember(s)
		}
	}
	return nil
}

// retryKey orders the retry records of a group by the time at which they are due.
func retryKey(p wire.PartitionID, r wire.Retry) []byte {
	return key(recordRetry, uint64(p), uint64(r.Group), r.Due, uint64(r.Lane.Node), r.Lane.Epoch, uint64(r.Run.From))
}

func decodeRetry(value []byte) (r wire.Retry, err error) {
	err = msgpack.NewDecoder(bytes.NewReader(value)).Decode(&r)
	return r, err
}
