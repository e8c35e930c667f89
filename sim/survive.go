package sim

import (
	"slices"

	"github.com/meshq/meshq/transport/wire"
)

// demise is how a store stops being written.
type demise uint8

const (
	// killed is SIGKILL: what was written is in the page cache and survives; of the group
	// under way all or nothing.
	killed demise = iota
	// unpowered is a power cut: what was fsynced survives, and of the group under way all or
	// nothing (it may be torn; the store then leaves it out). Where fsyncs are behind
	// (sync: interval) the files were written back on their own, each up to some point.
	unpowered
	// torn is a log whose end was confirmed and is gone nevertheless: a disk that lies, or a bit
	// that flipped in the log, which ends what is read of it. The watermark tells that it is missing.
	torn
	// forgetful is a disk that loses the end of what was fsynced, the watermark with it:
	// nothing in the store tells (a flipped bit in a log ends what is read of it).
	forgetful
)

// ended is how far the log of groups was when the writing stopped: synced <= confirmed <=
// written, numbers of groups from the beginning. With fsyncs in every group synced is confirmed, and
// written at most one more.
type ended struct {
	synced, confirmed, written int
	interval                   bool // fsyncs are behind
}

// survivor is a state that a store may be found in.
type survivor struct {
	records, batches int  // of how many groups they are there
	told             bool // the store says that something is missing
}

// survivors are all states that a store may be found in. lose is how many groups a
// forgetful disk or a torn log loses. The first is always one that keeps no more than was confirmed.
func survivors(e demise, at ended, log []diskGroup, lose int) []survivor {
	whole := func(from, to int, told bool) (out []survivor) {
		for n := from; n <= to; n++ {
			out = append(out, survivor{n, n, told})
		}
		return out
	}
	switch e {
	case killed:
		return whole(at.confirmed, at.written, false)
	case unpowered:
		if !at.interval {
			return whole(at.synced, at.written, false)
		}
		var out []survivor
		for r := at.synced; r <= at.written; r++ {
			for b := at.synced; b <= at.written; b++ {
				out = append(out, survivor{r, b, true})
			}
		}
		return out
	case torn:
		n := at.confirmed
		if n == 0 {
			return whole(0, 0, false)
		}
		l := min(max(1, lose), n)
		out := whole(n-l, n-l, true)
		if records, batches := log[n-1].parts(); l > 1 || records && batches { // they are in different files
			out = append(out, survivor{n, n - l, true})
		}
		if l > 1 {
			out = append(out, survivor{n - l, withoutRecords(log, n-l), true})
		}
		return out
	default:
		return whole(max(0, at.confirmed-lose), max(0, at.confirmed-lose), false)
	}
}

// withoutRecords is of how many groups the batches are there if the records end after so many: of the last
// group that has batches they are left out where it has records, too.
func withoutRecords(log []diskGroup, records int) int {
	for i := len(log) - 1; i >= records; i-- {
		if r, b := log[i].parts(); r && b {
			return i
		} else if b {
			break
		}
	}
	return len(log)
}

// parts tells what a group has written.
func (g *diskGroup) parts() (records, batches bool) {
	for i := range g.ops {
		switch g.ops[i].Kind {
		case wire.OpBatch:
			batches = true
		case wire.OpPut, wire.OpDelete, wire.OpDeleteRange:
			records = true
		}
	}
	return records, batches
}

// silentLoss is the fewest groups, at least so many, that a forgetful disk can lose such
// that all peers notice: each remembers one of the commits that are lost.
func silentLoss(log []diskGroup, atLeast int, remembered []uint64) (lose int, ok bool) {
	if len(remembered) == 0 {
		return 0, false
	}
	least := slices.Min(remembered)
	for lose = max(1, atLeast); lose <= len(log); lose++ {
		if log[len(log)-lose].commit <= least {
			return lose, true
		}
	}
	return 0, false
}
