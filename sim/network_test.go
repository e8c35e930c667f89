package sim

import (
	"testing"

	"github.com/meshq/meshq/transport/wire"
)

// TestDamage flips each bit of messages with a payload: all are noticed, but for those in
// the records of a delivery that has no checksum.
func TestDamage(t *testing.T) {
	records := wire.AppendRecord(nil, &wire.Record{Body: []byte("a body")})
	run := wire.Span(0, 1)
	batch := wire.Batch{BatchHeader: wire.BatchHeader{Count: 1, Length: uint64(len(records)), Checksum: wire.Checksum(records)}, Records: records}
	deliver := func(checksum uint64) wire.Message {
		return &wire.Deliver{Deliveries: []wire.Delivery{{Receipt: wire.Receipt{Run: run}, Length: uint32(len(records)), Checksum: checksum, Records: records}}}
	}
	for what, msg := range map[string]wire.Message{
		"enqueue":                    &wire.Enqueue{Count: 1, Checksum: batch.Checksum, Records: records},
		"replicate":                  &wire.Replicate{Batches: []wire.Batch{batch, batch}},
		"batches":                    &wire.Batches{Batches: []wire.Batch{batch}},
		"deliver":                    deliver(batch.Checksum),
		"deliver without a checksum": deliver(0),
		"no payload":                 &wire.Ping{},
	} {
		encoded, err := wire.Encode(msg)
		if err != nil {
			t.Fatal(err)
		}
		unnoticed := 0
		for bit := range 8 * len(encoded) {
			if got := damage(encoded, []int{bit}); got != nil {
				unnoticed++
			}
		}
		if want := what == "deliver without a checksum"; want != (unnoticed >= 8*len("a body")) || !want && unnoticed > 0 {
			t.Errorf("%s: %d of %d flipped bits are not noticed", what, unnoticed, 8*len(encoded))
		}
	}
}
