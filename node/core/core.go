package core

import (
	"github.com/meshq/meshq/ring"
	"github.com/meshq/meshq/transport/wire"
)

// Config is who this node is. All of it is fixed for the life of the Core.
type Config struct {
	Self   ring.Member // ID, name, addresses, zone, weight
	Boot   uint64      // number of this boot, from 1; higher than any before
	Random uint64      // random bits of this boot: lane epoch, jitter
	Found  bool        // without data: found a new mesh. Otherwise wait to join one
	Mesh   wire.MeshID // of the mesh to found, or that was joined; 0 before joining
	Limits Limits
}

// Limits bound what the core holds in memory (P8, P10). Zero fields take their default.
type Limits struct {
	PendingBytes int // batches that wait for their quorum; default 64 MiB; over it ErrOverloaded
	CacheBytes   int // recent batches kept for delivery; default 32 MiB
	Retries      int // retry records in memory per partition and group; default 10,000
	InFlight     int // messages handed out per partition and group; default 100,000
	HintBytes    int // hints kept for others; default 1 GiB; over it a fallback refuses
}

// Recovered is what the store holds at boot.
type Recovered struct {
	Records []wire.StoredRecord // all records but retries, in key order
	Refs    []wire.BatchRef     // all batches, in key order
	Commit  uint64              // number of the last commit that is there
	// Damaged names partitions of which the store knows that it lost something;
	// DamagedAll says that it cannot tell which (a part did not open, or it came back
	// with less than it confirmed).
	Damaged    []wire.PartitionID
	DamagedAll bool
}
