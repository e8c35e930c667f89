package wire

// OpKind is a kind of store operation.
type OpKind uint8

// The kinds.
const (
	OpBatch       OpKind = iota // keep Batch; the same bytes again change nothing
	OpPut                       // set the record Key to Value
	OpDelete                    // remove the record Key
	OpDeleteRange               // remove all records whose key begins with Key
	OpFree                      // the bodies of Run in (Partition, Lane) may go
)

// Op is one operation of an atomic, ordered commit of the store. The core writes
// them, the store executes them verbatim. Key, Value and Batch.Records are shared
// and never written to.
type Op struct {
	Kind      OpKind
	Batch     Batch
	Key       []byte
	Value     []byte
	Partition PartitionID
	Lane      Lane
	Run       Run
}

// BatchRef is what a store knows of batches without reading them: where they are,
// and whose. Consecutive batches of one lane and one producer whose offsets and
// sequences continue each other may come as one ref, with the last Stamp.
type BatchRef struct {
	Partition PartitionID
	Lane      Lane
	Base      Offset
	Count     uint64
	Producer  ProducerID
	Sequence  uint64
	Stamp     uint64
}

// StoredRecord is a record as the store gives it back.
type StoredRecord struct {
	Key, Value []byte
}
