package node

import (
	"context"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/meshq/meshq/node/core"
	"github.com/meshq/meshq/store"
)

func TestRoom(t *testing.T) {
	const gib = 1 << 30
	r := &room{minFree: gib}
	for _, c := range []struct {
		free, total int64
		storeFull   bool
		was, want   bool
	}{
		{50 * gib, 100 * gib, false, false, false},
		{gib - 1, 5 * gib, false, false, true},
		{9 * gib, 100 * gib, false, false, true}, // more than 90 % used
		{50 * gib, 100 * gib, true, false, true},
		{gib + 1, 5 * gib, false, true, true}, // not enough more
		{gib + gib/3, 5 * gib, false, true, false},
		{11 * gib, 100 * gib, false, true, true},
		{0, 0, false, true, false}, // not known
	} {
		if got := r.full(store.Usage{Free: c.free, Total: c.total, Full: c.storeFull}, c.was); got != c.want {
			t.Errorf("%+v: full %v", c, got)
		}
	}
}

func TestRoomTellsOnce(t *testing.T) {
	var free atomic.Int64
	free.Store(10)
	r := &room{
		usage:   func() store.Usage { return store.Usage{Free: free.Load(), Total: 10} },
		minFree: 4, in: newInbox(10, 10), log: slog.New(slog.DiscardHandler), look: make(chan struct{}, 1),
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- r.run(ctx) }()
	for _, c := range []struct {
		free int64
		full bool
	}{{3, true}, {9, false}} {
		free.Store(c.free)
		poke(r.look)
		select {
		case <-r.in.wake:
		case <-time.After(patience):
			t.Fatal("nothing is told")
		}
		got := r.in.take(nil)
		if len(got) != 1 || got[0].event != (core.Disk{Full: c.full}) {
			t.Errorf("free %d: told %+v", c.free, got)
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
