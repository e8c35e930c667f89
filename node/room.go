package node

import (
	"context"
	"log/slog"
	"time"

	"github.com/meshq/meshq/node/core"
	"github.com/meshq/meshq/store"
)

// room tells the core when the disk has no room for enqueues. It does so well before the
// store refuses batches: a commit that is under way then must still find room, since all
// that come after it, acks too, wait for it.
type room struct {
	usage   func() store.Usage
	minFree int64
	in      *inbox
	log     *slog.Logger
	look    chan struct{} // capacity 1: look now
}

// Limits of the disk. Config.MinFree is where enqueues are refused.
const (
	defaultMinFree = 1 << 30
	leastMinFree   = 64 << 20
	maxUsed        = 0.90 // of the file system; enqueues are refused above it
	storeMaxUsed   = 0.95 // the store refuses batches above it
	usedAgain      = 0.88 // enqueues are taken again below it
	lookEvery      = 200 * time.Millisecond
)

// storeMinFree is the free space at which the store refuses batches, and storeReserve
// that at which it refuses records too.
func storeMinFree(minFree int64) int64 { return minFree / 2 }
func storeReserve(minFree int64) int64 { return max(minFree/8, 16<<20) }

// run watches until ctx ends.
func (r *room) run(ctx context.Context) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	full := false
	for {
		u := r.usage()
		if now := r.full(u, full); now != full {
			full = now
			r.in.force(item{event: core.Disk{Full: full}})
			if full {
				r.log.Warn("disk is full: enqueues are refused", "free_bytes", u.Free, "total_bytes", u.Total,
					"hint", "free space on the disk of the data directory; what is acked gives space back too")
			} else {
				r.log.Info("disk has room: enqueues are taken again", "free_bytes", u.Free)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-r.look:
		}
	}
}

// full tells whether u leaves no room for enqueues; what was full needs some more room
// to be so no longer.
func (r *room) full(u store.Usage, was bool) bool {
	if u.Total <= 0 {
		return u.Full // not known
	}
	used := 1 - float64(u.Free)/float64(u.Total)
	if was {
		return u.Full || u.Free < r.minFree+r.minFree/4 || used > usedAgain
	}
	return u.Full || u.Free < r.minFree || used > maxUsed
}
