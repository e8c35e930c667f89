package wire

import "github.com/meshq/meshq/ring"

// Enqueue asks to store one batch. The payload is the records. The node answers
// with Enqueued or Error. A retry carries the same Producer, Sequence, Count and
// records.
type Enqueue struct {
	Partition   PartitionID
	Queue       string // for a node that does not know the partition yet
	Catalog     uint64 // highest catalog version that the client has seen
	Producer    ProducerID
	Sequence    uint64
	AfterLane   Lane
	AfterOffset Offset
	Count       uint32
	Flags       uint8
	Checksum    uint64
	Timeout     uint32 // milliseconds that the client will wait; 0 means 5,000
	Passed      bool   // passed on by a node that is not the owner: not to be passed on again
	Records     []byte `msgpack:"-"`
}

// Enqueued confirms a batch: it is synced on Nodes, which are at least Want (P1).
type Enqueued struct {
	Lane  Lane
	Base  Offset
	Nodes []ring.NodeID
	Want  uint8       // effective write quorum: min(setting, ring size)
	Owner ring.NodeID // send the next batch here; 0 when not known
}

// Subscribe gives a consumer's demand to a node: it may hand out messages of the
// group, of all partitions of the queue that it owns, until Credit messages have
// been handed out under this Sub. It has no answer but an Error; deliveries are
// pushed. Sent again with a higher Credit it adds demand; Credit is a running
// total, so a repeated frame changes nothing. A node that owns nothing of the
// queue keeps the demand for when it does; with Relay it passes it on to the
// owners and relays what they hand out.
type Subscribe struct {
	Sub      uint64 // chosen by the client, unique on its connection
	Consumer ConsumerID
	Queue    string
	Group    string
	Credit   uint64
	Catalog  uint64
	Relay    bool
	// Generation of the queue that the client knows: what is left of earlier ones is not for
	// it. 0: any.
	Generation uint64
}

// Unsubscribe ends a Sub: no more is handed out under it. What was handed out
// stays with the consumer until settled, or until its lease ends.
type Unsubscribe struct {
	Sub uint64
}

// Cause says why a message is delivered again.
type Cause uint8

// The causes. CauseNone is a first delivery.
const (
	CauseNone     Cause = iota
	CauseNack           // the consumer gave it back
	CauseLease          // the delivery lease ran out
	CauseConsumer       // the consumer went away
	CauseTakeover       // the owner went away; it may have been delivered before
	CauseReleased       // given back without an attempt
)

// Delivery is one run of messages of one batch, handed to one consumer. Its
// records follow in the payload of Deliver, Length bytes of them.
type Delivery struct {
	Receipt Receipt
	Stamp   uint64
	Cause   Cause
	Lease   uint32 // milliseconds from arrival
	Length  uint32
	// Checksum is the xxhash64 of Records, by the owner: a run is a part of a batch, so
	// that of the batch does not cover it (P9). 0: it has none.
	Checksum uint64
	Records  []byte `msgpack:"-"`
}

// Deliver pushes messages to a consumer.
type Deliver struct {
	Sub        uint64
	Deliveries []Delivery
}

// Owner tells subscribers that Node owns the partition in Term and, when Grace
// is set, that it hands out nothing yet and waits for Resume.
type Owner struct {
	Partition PartitionID
	Node      ring.NodeID
	Term      Term
	Grace     uint32 // milliseconds; 0: none
}

// Settling is what a consumer did with messages.
type Settling uint8

// The settlings. SettleRelease gives back without counting an attempt.
const (
	SettleAck Settling = iota
	SettleNack
	SettleExtend
	SettleRelease
)

// SettleItem settles some messages of one delivery.
type SettleItem struct {
	Receipt Receipt
	Runs    Runs
	Kind    Settling
	Delay   uint32 // SettleNack: milliseconds until the next delivery, 0: the queue's backoff. SettleExtend: new lease from now, 0: the queue's; it does not end sooner than before
	Reason  string // SettleNack: for people, at most 1 KiB
}

// Settle settles deliveries. The node answers with Settled or Error. Items are of
// one queue; those of a partition that the node does not own are passed on.
type Settle struct {
	Queue   string
	Catalog uint64
	Items   []SettleItem
	Passed  bool
}

// Settled answers a Settle: one code for each item in its order, 0 is done.
// CodeNotOwner means not confirmed: ask again.
type Settled struct {
	Codes []Code
}

// Held is one delivery that a consumer still works on.
type Held struct {
	Receipt Receipt
	Runs    Runs
	Left    uint32 // milliseconds left of the lease
}

// Resume tells a home replica what a consumer still holds (section 7, reclaim
// grace). It names the Sub of this connection that owns the deliveries from now
// on. It has no answer.
type Resume struct {
	Sub      uint64
	Consumer ConsumerID
	Queue    string
	Group    string
	Held     []Held
}

// CreateQueue creates a queue, or confirms that it exists with these settings.
// Answer: QueueInfo or Error (ErrExists, ErrBadRequest, ErrQuorum).
type CreateQueue struct {
	Name     string
	Settings Settings // Partitions 0: defaults for all; other zero fields take their default
	Groups   []string // none: "default"
}

// DeleteQueue deletes a queue and its messages. With a Generation it deletes no later one,
// so that it can be repeated: that it is deleted already is Done, too. Answer: Done or Error.
type DeleteQueue struct {
	Name       string
	Generation uint64 // 0: the one that the first node to be asked knows
}

// UpdateQueue changes settings of a queue while it is used: those that are named, all or
// none. Partitions can only grow, Replicas cannot be changed. It can be repeated, and come
// late, where it says what its sender knows: with a Generation it changes no other queue, and
// with Seen no setting that another change has given another value since. Answer:
// QueueUpdated or Error (ErrNoQueue, ErrBadRequest, ErrExists, ErrQuorum).
type UpdateQueue struct {
	Name       string
	Set        []Setting
	Generation uint64 // 0: any
	Seen       uint64 // QueueEntry.Seen; 0: nothing
}

// QueueUpdated answers UpdateQueue: what was changed, with the values before, and the
// entry since.
type QueueUpdated struct {
	Before  []Setting
	Entry   QueueEntry
	Catalog uint64
}

// PauseQueue pauses or resumes the deliveries of a queue, or of one of its groups.
// Generation and Seen are those of UpdateQueue. Answer: QueueInfo or Error (ErrNoQueue,
// ErrNoGroup, ErrExists, ErrQuorum).
type PauseQueue struct {
	Name       string
	Group      string // empty: the queue
	Until      uint64 // as in Pause; 0 resumes
	Generation uint64
	Seen       uint64
}

// ListQueues asks for all queues. Answer: Queues.
type ListQueues struct {
}

// DescribeQueue asks for one queue, "" never matches. Answer: QueueInfo, ErrNoQueue when a
// majority of the members knows of no such queue, or ErrNotReady when none can be asked.
type DescribeQueue struct {
	Name    string
	Catalog uint64
}

// QueueInfo is the catalog's entry of a queue.
type QueueInfo struct {
	Entry   QueueEntry
	Catalog uint64
	Warning string // said at create: for example W too small for N
}

// Queues answers ListQueues; sorted by name.
type Queues struct {
	Entries []QueueEntry
	Catalog uint64
}

// Inspect asks a node for what it knows of partitions. Answer: Inspected.
type Inspect struct {
	Partitions []PartitionID
}

// GroupState is the state of a group in one partition, as its owner sees it.
type GroupState struct {
	Group    GroupID
	Ready    uint64 // may be handed out now
	InFlight uint64
	Delayed  uint64 // waits for its time: delay or retry
	Done     uint64
}

// PartitionState is what one node knows of one partition.
type PartitionState struct {
	Partition PartitionID
	Home      bool
	Owns      bool
	Owner     ring.NodeID // that this node has heard of; 0: none
	Term      Term
	Messages  uint64 // offsets held or done
	Digest    uint64 // equal on two replicas when their state is equal (P7)
	Hints     uint64 // batches kept for the home replicas
	Repairing bool   // counts for nothing until repaired (P12)
	Moved     uint64 // highest ring for which the partition has moved
	Groups    []GroupState
}

// Inspected answers Inspect, one state for each partition asked, in its order.
type Inspected struct {
	States []PartitionState
}

// GetMesh asks for the ring and the members. Answer: Mesh.
type GetMesh struct {
}

// Mesh is the ring and who of it is alive, as the answering node sees it. It is
// also pushed to every client when the ring changes.
type Mesh struct {
	ID      MeshID
	Table   ring.Table
	Alive   []ring.NodeID // sorted
	Catalog uint64
	Node    ring.NodeID // who answers
}

// GetNode asks a node about itself. Answer: NodeInfo.
type GetNode struct {
}

// NodeInfo is a node's account of itself.
type NodeInfo struct {
	Node       ring.NodeID
	Name       string
	State      string // joining, active, repairing, draining
	Boot       uint64
	Ring       uint64
	Catalog    uint64
	Commits    uint64 // number of the last synced group
	Partitions uint64 // of which the node holds state
	Owned      uint64
	Hints      uint64
	InFlight   uint64
	Repairing  uint64 // partitions under repair
	Version    string
}

// Done answers a request that has nothing to tell.
type Done struct {
}
