package store

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/meshq/meshq/transport/wire"
)

// The errors. All but ErrFailed mean that nothing of the commit was or will be
// done.
var (
	// ErrInUse means that another process (or another Store of this one) has the
	// directory open.
	ErrInUse = errors.New("data directory is in use by another process")
	// ErrOverloaded means that the queue of commits is at its bound.
	ErrOverloaded = errors.New("store: queue of commits is full")
	// ErrFull means that the disk is too full for what the commit holds: batches are
	// refused first, records later.
	ErrFull = errors.New("store: disk is full")
	// ErrClosed means that Close was called.
	ErrClosed = errors.New("store: closed")
	// ErrTooLarge means that a key, value or batch is over its limit.
	ErrTooLarge = errors.New("store: too large")
	// ErrFailed means that a write or fsync failed. The outcome of every commit that
	// was not done by then is unknown, and the store takes no more.
	ErrFailed = errors.New("store: write failed")
)

// Limits of one operation.
const (
	MaxKeyBytes   = 4 << 10   // key of a record
	MaxValueBytes = 512 << 10 // value of a record
)

// SyncMode says when a commit is done.
type SyncMode uint8

const (
	// SyncAlways calls done after the commit is fsynced.
	SyncAlways SyncMode = iota
	// SyncInterval calls done after the commit is written, and fsyncs every 100 ms.
	// A crash of the process loses nothing. A crash of the machine may lose
	// everything since the kernel last wrote back, not only the last 100 ms, and not
	// as a clean prefix; the next Open reports DamagedAll.
	SyncInterval
)

// Options of Open. Zero fields take the default.
type Options struct {
	// Dir is the data directory. It is made if it is missing. The store owns all in it.
	Dir string
	// Sync says when a commit is done; default SyncAlways.
	Sync SyncMode
	// SegmentBytes is the size at which a segment of batches is sealed; default
	// 256 MiB, from 1 MiB to 1 GiB. Larger segments are fewer directories; smaller ones give
	// space back sooner.
	SegmentBytes int64
	// SegmentAge is the age at which a segment with freed batches is sealed, so that
	// their space can be given back; default 10 minutes.
	SegmentAge time.Duration
	// OpenSegments bounds how many sealed segments are open at once for reading;
	// default 6. Each costs some goroutines and about 1 MiB.
	OpenSegments int
	// LazyPrefixes are prefixes of record keys that are not in Recovered.Records.
	// Scan finds them.
	LazyPrefixes [][]byte

	// GroupBytes bounds what one group commit takes at once; default 4 MiB. One
	// commit alone may be larger.
	GroupBytes int
	// QueueBytes bounds the commits that wait, in bytes; default 64 MiB. A commit over it gets
	// ErrOverloaded, unless nothing else waits.
	QueueBytes int
	// QueueOps bounds the operations that wait; default 262,144.
	QueueOps int
	// Linger is how long a group of 2 or 3 commits waits for more, which saves
	// fsyncs at low load and costs this much latency; default 0, at most 10 ms. A
	// single client never waits.
	Linger time.Duration

	// MinFree is the free space in bytes below which batches are refused; default
	// max(1 GiB, 2 segments).
	MinFree int64
	// MaxUsed is the used part of the file system above which batches are refused;
	// default 0.9. 1 or more: no such limit.
	MaxUsed float64
	// Reserve is the free space in bytes below which records are refused too;
	// default MinFree/4, at least 64 MiB. A write to a disk without room would kill the process.
	Reserve int64
	// BallastBytes is the size of a file that is deleted when the disk is full at
	// Open; default 64 MiB. Negative: none.
	BallastBytes int64

	// ScrubRate is how many bytes a second the scrubber re-reads; default 8 MiB.
	// Negative: no scrubber, also not after Open.
	ScrubRate int64
	// ScrubFirstRate is the rate of the pass right after Open; default 64 MiB.
	ScrubFirstRate int64

	// Logger takes changes of state; default slog.Default().
	Logger *slog.Logger
	// Registerer takes the metrics; nil: none.
	Registerer prometheus.Registerer

	// OnDamage is told of batches or records that fail their checksum outside of
	// Read. Lane zero and runs nil: some record of the partition, and of partition
	// 0: of an unknown one. It is called from the store's goroutines and must not block.
	OnDamage func(partition wire.PartitionID, lane wire.Lane, runs wire.Runs)
	// OnFull is told once when batches begin to be refused for want of space, and
	// once when they are taken again.
	OnFull func(full bool)
	// OnFailed is told, once, that a write or fsync failed. The process must stop:
	// what was not done by then is unknown (the kernel may have dropped it).
	OnFailed func(error)

	cut       func(label string) // tests: called at each labelled step
	sparseAge time.Duration      // tests: how long a sealed segment is left alone; default 10 s
}

func (o Options) withDefaults() (Options, error) {
	if o.Dir == "" {
		return o, errors.New("store: no data directory given")
	}
	def := func(p *int64, v int64) {
		if *p == 0 {
			*p = v
		}
	}
	def(&o.SegmentBytes, 256<<20)
	if o.SegmentBytes < 1<<20 || o.SegmentBytes > 1<<30 {
		return o, fmt.Errorf("store: segments of %d bytes: not within 1 MiB and 1 GiB", o.SegmentBytes)
	}
	if o.SegmentAge == 0 {
		o.SegmentAge = 10 * time.Minute
	}
	if o.OpenSegments <= 0 {
		o.OpenSegments = 6
	}
	if o.GroupBytes <= 0 {
		o.GroupBytes = 4 << 20
	}
	if o.QueueBytes <= 0 {
		o.QueueBytes = 64 << 20
	}
	if o.QueueOps <= 0 {
		o.QueueOps = 1 << 18
	}
	o.Linger = min(max(o.Linger, 0), 10*time.Millisecond)
	def(&o.MinFree, max(1<<30, 2*o.SegmentBytes))
	if o.MaxUsed == 0 {
		o.MaxUsed = 0.9
	}
	def(&o.Reserve, max(64<<20, o.MinFree/4))
	def(&o.BallastBytes, 64<<20)
	def(&o.ScrubRate, 8<<20)
	def(&o.ScrubFirstRate, 64<<20)
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.OnDamage == nil {
		o.OnDamage = func(wire.PartitionID, wire.Lane, wire.Runs) {}
	}
	if o.OnFull == nil {
		o.OnFull = func(bool) {}
	}
	if o.OnFailed == nil {
		o.OnFailed = func(error) {}
	}
	if o.sparseAge == 0 {
		o.sparseAge = 10 * time.Second
	}
	if o.cut == nil {
		o.cut = func(string) {}
	}
	return o, nil
}

// Recovered is what the directory holds at Open.
type Recovered struct {
	Node    wire.NodeID         // minted with the directory; never 0
	Boot    uint64              // number of this boot, from 1; on disk before Open returns
	Records []wire.StoredRecord // all records but those under LazyPrefixes, in key order
	Refs    []wire.BatchRef     // all batches, in key order, coalesced
	Commit  uint64              // number of the last commit that is there; 0: none
	// Damaged names partitions, sorted, of which the store knows that it lost
	// something. DamagedAll says that it cannot tell which: a part did not open, or
	// less came back than was confirmed. Both are reported again by the next Open if no commit is
	// done in between.
	Damaged    []wire.PartitionID
	DamagedAll bool
}

// Usage is what the store takes and has left.
type Usage struct {
	Bytes     int64 // on disk: segments and records
	LiveBytes int64 // estimate of the batches that are not freed
	Segments  int
	Open      int   // sealed segments that are open
	Free      int64 // of the file system, for this process
	Total     int64 // of the file system
	Full      bool  // batches are refused
	Waiting   int   // commits in the queue
	Damaged   uint64
}
