package sim

import (
	"fmt"

	"github.com/cespare/xxhash/v2"

	"github.com/meshq/meshq/node/core"
	"github.com/meshq/meshq/ring"
	"github.com/meshq/meshq/transport/wire"
)

// The hash of a run covers each event that a core of a node gets, each effect that it
// gives, each message on its way, by all that they hold, and each commit; all in order and with their time.
// Two runs with the same hash did the same.

// Marks of what is hashed, so that two things with equal numbers differ.
const (
	hashBoot uint64 = iota + 1
	hashEvent
	hashArrive
	hashOpen
	hashClose
	hashCommit
	hashGossip
	hashLibraryBoot
	hashLibraryStep
	hashEffect
	hashSend
)

func (w *world) hashIn(vs ...uint64) {
	h := w.hash
	for _, v := range vs {
		h = mix(h, v)
	}
	w.hash = mix(h, uint64(w.now))
}

// hashTakes hashes what a core is given. The digest of a message was taken when it arrived.
func (w *world) hashTakes(h *host, ev core.Event) {
	var kind, a, b uint64
	switch e := ev.(type) {
	case core.Tick:
		kind = 1
	case core.ConnOpened:
		kind, a, b = 2, uint64(e.Conn), uint64(e.Node)
	case core.ConnClosed:
		kind, a = 3, uint64(e.Conn)
	case core.Request:
		kind, a, b = 4, uint64(e.Req), uint64(e.Conn)
	case core.Received:
		kind, a = 5, uint64(e.Conn)
	case core.Pushed:
		kind, a = 6, uint64(e.From)
	case core.Answered:
		kind, a = 7, uint64(e.Token)
	case core.PeerUp:
		kind, a, b = 8, uint64(e.Node), e.Hello.Commit
	case core.PeerDown:
		kind, a = 9, uint64(e.Node)
	case core.Members:
		kind, a = 10, hashIDs(e.Alive)
	case core.Persisted:
		kind, a, b = 11, uint64(e.Token), e.Commit
	case core.ReadDone:
		kind, a, b = 12, uint64(e.Token), uint64(len(e.Batches))<<32|uint64(len(e.Damaged))
	case core.ScanDone:
		kind, a, b = 13, uint64(e.Token), uint64(len(e.Records))
	case core.Damage:
		kind, a = 14, uint64(e.Partition)
	case core.Disk:
		kind = 15
		if e.Full {
			a = 1
		}
	case core.Drain:
		kind = 16
	default:
		panic(fmt.Sprintf("unknown event %T", ev))
	}
	w.hashIn(hashEvent, h.key, kind, a, b)
}

// hashGives hashes what a core asks for. Messages are hashed when they are sent.
func (w *world) hashGives(h *host, effect core.Effect) {
	var kind, a, b uint64
	switch e := effect.(type) {
	case core.Send:
		kind, a, b = 1, uint64(e.To), uint64(e.Msg.Type())
	case core.Call:
		kind, a, b = 2, uint64(e.To), uint64(e.Token)
	case core.Reply:
		kind, a, b = 3, uint64(e.Req), uint64(e.Msg.Type())
	case core.Push:
		kind, a, b = 4, uint64(e.Conn), uint64(e.Before)
	case core.Persist:
		kind, a, b = 5, uint64(e.Token), hashOps(e.Ops)
	case core.Read:
		kind, a, b = 6, uint64(e.Token), uint64(e.Partition)
	case core.Scan:
		kind, a, b = 7, uint64(e.Token), xxhash.Sum64(e.Prefix)
	case core.Peers:
		kind, a = 8, uint64(len(e.Members))
	case core.Drained:
		kind = 9
	case core.Stop:
		kind = 10
	case core.Note:
		kind, a, b = 11, xxhash.Sum64String(e.Text), uint64(e.Partition)
	default:
		panic(fmt.Sprintf("unknown effect %T", effect))
	}
	w.hashIn(hashEffect, h.key, kind, a, b)
}

func hashIDs(ids []ring.NodeID) uint64 {
	h := uint64(len(ids))
	for _, id := range ids {
		h = mix(h, uint64(id))
	}
	return h
}

func hashOps(ops []wire.Op) uint64 {
	h := uint64(len(ops))
	for i := range ops {
		op := &ops[i]
		h = mix(h, uint64(op.Kind))
		if op.Kind == wire.OpBatch {
			h = mix(mix(mix(h, op.Batch.Sequence), uint64(op.Batch.Base)), op.Batch.Checksum)
			continue
		}
		h = mix(mix(h, xxhash.Sum64(op.Key)), xxhash.Sum64(op.Value))
	}
	return h
}
