package wire

import "github.com/meshq/meshq/ring"

// Messages between nodes. Requests (those with an answer named) carry a request
// ID of their connection; the others are one-way and may be lost.

// Beat is sent to every connected member each quarter of an ownership lease. It
// says how far the sender is, so that who is behind fetches, and so that every
// member remembers the highest commit number that the sender ever announced.
type Beat struct {
	Ring       uint64
	Catalog    uint64
	Commit     uint64
	Boot       uint64
	CatalogSum uint64 // of all catalog entries: equal sums, equal catalogs
	Stored     uint64 // the ring of which the sender holds that no grant of an older one can run
	Settled    bool   // all partitions that the sender keeps have moved to Ring
}

// CommitNumber is a commit of one boot of a node.
type CommitNumber struct {
	Boot   uint64
	Commit uint64
}

// Remembered tells a node, first of all on every connection between the two, whoever opens
// it, the highest commit number that the sender remembers of each of its last boots. A node
// that came back with less is damaged (P12). One-way; pushed to who opened the connection.
type Remembered struct {
	Commits []CommitNumber
}

// Replicate gives batches of one partition to a replica (the payload is the
// encoded batches). Answer: Synced, once they are fsynced.
type Replicate struct {
	Queue   string // for a node that does not know the partition yet
	Ring    uint64
	Catalog uint64
	Hint    bool    // to a fallback: keep them for the home replicas
	Batches []Batch `msgpack:"-"`
}

// Synced answers Replicate and StoreAcks: the records are fsynced in commit
// number Commit of the answering node's boot. Code 0 means that the copy counts.
// CodeNotOwner: kept, but a higher term or a newer ring is promised, so it does
// not count. CodeNotReady: kept, but the replica is repairing and does not count.
type Synced struct {
	Commit uint64
	Code   Code
}

// Reason says why an offset is done.
type Reason uint8

// The reasons (P11).
const (
	ReasonAcked Reason = iota
	ReasonPurged
	ReasonDuplicate // the same message was done at another position
)

// AckItem says that offsets of a lane are done for a group. Producer and
// Sequence (of Run.From) are those of the batch: the replica may not hold it.
type AckItem struct {
	Group    GroupID
	Lane     Lane
	Run      Run
	Producer ProducerID
	Sequence uint64
	Reason   Reason
}

// StoreAcks gives acks to a home replica. Answer: Synced. Term zero means that
// the sender is not the owner: the acks are kept and do not count.
type StoreAcks struct {
	Queue     string
	Partition PartitionID
	Term      Term
	Ring      uint64
	Catalog   uint64
	Items     []AckItem
}

// Claim asks a home replica for the ownership lease of a partition. With Pre it
// only asks "would you?" and raises nothing. Answer: Granted.
type Claim struct {
	Queue     string
	Partition PartitionID
	Term      Term // Pre: zero
	Pre       bool
	Rank      uint32 // place of the claimant in the preference list
	Ring      uint64
	Catalog   uint64
	Handover  bool // the claimant was offered the ownership
}

// Granted answers a Claim.
type Granted struct {
	OK       bool
	Promised Term        // the highest term that the grantor has promised or heard of
	Holder   ring.NodeID // of a grant that still runs; 0: none
	Left     uint32      // milliseconds that it still runs
	Sum      uint64      // of the grantor's state, taken after the promise was synced
	Moved    uint64      // all rings below this number are closed for the partition
	Rings    []uint64    // the open rings that the grantor knows
	Previous Term        // the highest term that was promised before this one
}

// PartitionTerm names an ownership.
type PartitionTerm struct {
	Partition PartitionID
	Term      Term
}

// Renew extends all ownership leases that the sender holds from the receiver: set
// number Set, which is the set before it with Add and without Drop. With Full, Add
// is the whole set. Answer: Renewed.
type Renew struct {
	Set  uint64
	Full bool
	Add  []PartitionTerm
	Drop []PartitionID
	Ring uint64
}

// News is what a grantor tells the owner of a partition whose state has changed
// by others than the owner.
type News struct {
	Partition PartitionID
	Sum       uint64
}

// Renewed answers Renew. Known false: the grantor does not have that set; send it
// in full. Lost names partitions whose lease is not extended, with the term that
// the grantor has promised.
type Renewed struct {
	Known bool
	Lost  []PartitionTerm
	News  []News
}

// InFlight is one delivery under way, as it goes from one owner to the next.
type InFlight struct {
	Group    GroupID
	Receipt  Receipt
	Runs     Runs // not settled
	Acking   Runs // acked, not yet confirmed
	Consumer ConsumerID
	Left     uint32 // milliseconds left of the delivery lease
}

// Offer asks a home replica to catch up and take over a partition. Answer: Done
// when it has caught up, or Error.
type Offer struct {
	Queue     string
	Partition PartitionID
	Term      Term
}

// Release says that the sender has stopped handing out and gives up its lease
// under Term in favour of To. It goes to all home replicas; InFlight and HandedOut are
// only for To. Answer: Done.
type Release struct {
	Partition PartitionID
	Term      Term
	To        ring.NodeID
	InFlight  []InFlight
	HandedOut []HandedOut
}

// HandedOut is what of a lane was handed out before, is not done, and in flight no more:
// the next delivery is not the first.
type HandedOut struct {
	Group GroupID
	Lane  Lane
	Runs  Runs
}

// GetState asks a replica for the state of a partition, without bodies. Answer:
// State or Error.
type GetState struct {
	Queue     string
	Partition PartitionID
	Catalog   uint64
	Sum       uint64 // of the asking replica; equal sums need no lists
	Ring      uint64 // of a new home replica that copies; 0: any
}

// LaneRuns is a set of offsets of a lane.
type LaneRuns struct {
	Lane Lane
	Runs Runs
}

// GroupDone is what of a lane is done for a group.
type GroupDone struct {
	Group GroupID
	Lane  Lane
	Runs  Runs
}

// Segment says where consecutive messages of a producer are: sequence
// Sequence+i is at Base+i of the lane, for i in [0, Count).
type Segment struct {
	Producer ProducerID
	Sequence uint64
	Lane     Lane
	Base     Offset
	Count    uint64
	Stamp    uint64
}

// Retry is a run of messages of one batch that waits for its time: after a nack,
// or because it was sent with a delay.
type Retry struct {
	Group   GroupID
	Lane    Lane
	Run     Run
	Attempt uint32 // of the last delivery; 0: not delivered yet
	Due     uint64 // wall clock, milliseconds since 1970; orders the records
	Wait    uint64 // milliseconds from the beginning: a clock that jumped delays no longer than that
	Cause   Cause  // of the next delivery
	Term    Term   // (Term, Serial) is the delivery that ended in it; zero: none has
	Serial  uint64
}

// Watermark says that offsets of a lane below To may have been handed out to a
// group. It only grows; it serves the mark "redelivered" and nothing else.
type Watermark struct {
	Group GroupID
	Lane  Lane
	To    Offset
}

// State answers GetState. When Equal, the lists are empty: the sums are the same.
// Have includes what is done and gone.
type State struct {
	Partition  PartitionID
	Equal      bool
	Repairing  bool
	Stored     bool // the sender has stored GetState.Ring and no older grant of its own runs
	Promised   Term
	Moved      uint64
	Have       []LaneRuns
	Done       []GroupDone
	Segments   []Segment
	Retries    []Retry
	Watermarks []Watermark
	Ring       uint64 // the newest that the sender knows
}

// GetBatches asks a replica for batches of a lane that overlap Runs, at most
// MaxBytes of them, at least one if there is any. Answer: Batches or Error.
type GetBatches struct {
	Partition PartitionID
	Lane      Lane
	Runs      Runs
	MaxBytes  uint32
}

// Batches answers GetBatches; the payload is the encoded batches. Gone is what of
// the asked runs the replica knows to be done for all groups and no longer holds.
type Batches struct {
	Gone    Runs
	Batches []Batch `msgpack:"-"`
}

// PartitionSum is the digest of a partition's state.
type PartitionSum struct {
	Partition PartitionID
	Sum       uint64
}

// Digests compares partitions that both sides are home replicas of. Answer:
// Differing.
type Digests struct {
	Sums []PartitionSum
}

// Differing answers Digests: the partitions whose sums are not equal, with the
// answering side's sums.
type Differing struct {
	Sums []PartitionSum
}

// Watermarks spreads how far an owner may have handed out. One-way.
type Watermarks struct {
	Partition PartitionID
	Items     []Watermark
}

// Retries spreads retry records. One-way: they are kept, merged by the highest
// attempt, and not awaited.
type Retries struct {
	Partition PartitionID
	Items     []Retry
}

// GetCatalog asks for the catalog entries that changed after Version. Answer: Catalog.
type GetCatalog struct {
	Version uint64
}

// Catalog answers GetCatalog. Partial: the sender may have lost entries, and does not count
// in a majority that knows the catalog.
type Catalog struct {
	Version uint64
	Entries []QueueEntry
	Partial bool
}

// PutCatalog gives catalog entries to a member. Answer: Done, once they are synced, or
// Catalog with those of which it knows that the generation that was given is over, or that
// something was changed since.
type PutCatalog struct {
	Version uint64
	Entries []QueueEntry
}

// Join asks a member to add the sender to the ring. Answer: Rings with the sender
// in it, or Error.
type Join struct {
	Member ring.Member
	Boot   uint64
}

// GetRings asks for all rings from number From on. Answer: Rings.
type GetRings struct {
	From uint64
}

// BootNumber is the highest boot number that a member is known to have had.
type BootNumber struct {
	Node ring.NodeID
	Boot uint64
}

// Rings are agreed rings in the order of their numbers; also pushed, one-way, to
// who is behind.
type Rings struct {
	Tables []ring.Table
	Boots  []BootNumber
}

// Ballot orders the proposals for one ring step (single-decree Paxos, Lamport,
// "Paxos Made Simple", 2001). Node breaks ties.
type Ballot struct {
	Counter uint64
	Node    ring.NodeID
}

// Less tells whether b is below c.
func (b Ballot) Less(c Ballot) bool {
	return b.Counter < c.Counter || b.Counter == c.Counter && b.Node < c.Node
}

// RingPrepare is the first phase of the vote for ring Number. Answer: RingPromise.
type RingPrepare struct {
	Number uint64
	Ballot Ballot
}

// RingPromise answers RingPrepare. Accepted and Table are the highest proposal that
// the voter has accepted; Accepted zero: none.
type RingPromise struct {
	OK       bool
	Highest  Ballot // that the voter has promised
	Accepted Ballot
	Table    ring.Table
}

// RingAccept is the second phase of the vote for ring Table.Number. Answer:
// RingAccepted.
type RingAccept struct {
	Ballot Ballot
	Table  ring.Table
}

// RingAccepted answers RingAccept.
type RingAccepted struct {
	OK      bool
	Highest Ballot
}

// Copied says that the sender, a new home replica of the partitions in ring Ring,
// has their state. One-way, repeated until the partitions are marked moved.
type Copied struct {
	Ring       uint64
	Partitions []PartitionID
}

// Moved says that all rings below Ring are closed for the partitions. One-way.
type Moved struct {
	Ring       uint64
	Partitions []PartitionID
}
