package wire

import (
	"encoding/binary"

	"github.com/cespare/xxhash/v2"
)

// Receipt names one delivery of a run of messages: what was delivered, to which
// group, in which term, as which attempt. (Term, Serial) grows with every delivery
// of a message, so handlers may use it as a fencing token.
type Receipt struct {
	Partition PartitionID
	Group     GroupID
	Lane      Lane
	Run       Run // of one batch
	Term      Term
	Attempt   uint32 // 1 for the first delivery
	Producer  ProducerID
	Sequence  uint64 // of the first message of Run
	MAC       uint64 // keyed checksum over all the other fields
	Serial    uint64 // number of the delivery in its term; no other has it
}

// Sign sets the keyed checksum. key is the mesh's secret.
func (r *Receipt) Sign(key uint64) { r.MAC = r.sum(key) }

// Valid tells whether the receipt was signed with key.
func (r *Receipt) Valid(key uint64) bool { return r.MAC == r.sum(key) && r.Run.From < r.Run.To }

// Sequences are the producer's sequence numbers of the offsets in runs.
func (r *Receipt) Sequences(runs Runs) Runs {
	var out Runs
	for _, x := range runs {
		out.Add(Span(x.From-r.Run.From+Offset(r.Sequence), x.To-r.Run.From+Offset(r.Sequence)))
	}
	return out
}

func (r *Receipt) sum(key uint64) uint64 {
	var b [14 * 8]byte
	for i, v := range [...]uint64{
		key, uint64(r.Partition), uint64(r.Group), uint64(r.Lane.Node), r.Lane.Epoch, uint64(r.Run.From), uint64(r.Run.To),
		r.Term.Counter, uint64(r.Term.Node), uint64(r.Attempt), uint64(r.Producer), r.Sequence, r.Serial, key,
	} {
		binary.BigEndian.PutUint64(b[i*8:], v)
	}
	return xxhash.Sum64(b[:])
}
