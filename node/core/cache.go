package core

import (
	"sort"

	"github.com/meshq/meshq/transport/wire"
)

// cache keeps the batches that came last, so that a consumer that keeps up reads
// nothing from disk. It is bounded by bytes; the oldest go first.
type cache struct {
	limit, bytes int
	live         int                    // batches in lanes
	lanes        map[cacheKey][]*cached // by Base
	order        []*cached              // in order of arrival; removed ones are nil inside
}

type cacheKey struct {
	partition wire.PartitionID
	lane      wire.Lane
}

// cached is a batch with the place of the last record that was looked for.
type cached struct {
	batch   wire.Batch
	key     cacheKey
	offset  wire.Offset // of the record at rest
	rest    []byte      // the records from offset on
	removed bool
}

// records returns the bytes of run, which must be within the batch.
func (b *cached) records(run wire.Run) ([]byte, error) {
	if run.From < b.offset || b.rest == nil {
		b.offset, b.rest = b.batch.Base, b.batch.Records
	}
	rest, err := wire.SkipRecords(b.rest, int(run.From-b.offset))
	if err != nil {
		return nil, err
	}
	after, err := wire.SkipRecords(rest, int(run.Len()))
	if err != nil {
		return nil, err
	}
	b.offset, b.rest = run.To, after
	return rest[:len(rest)-len(after)], nil
}

func (k *cache) add(b *wire.Batch) {
	if k.lanes == nil {
		k.lanes = map[cacheKey][]*cached{}
	}
	key := cacheKey{b.Partition, b.Lane}
	list := k.lanes[key]
	i := sort.Search(len(list), func(i int) bool { return list[i].batch.Base >= b.Base })
	if i < len(list) && list[i].batch.Base == b.Base {
		return
	}
	x := &cached{batch: *b, key: key}
	list = append(list, nil)
	copy(list[i+1:], list[i:])
	list[i] = x
	k.lanes[key] = list
	k.order = append(k.order, x)
	k.bytes += b.Size()
	k.live++
	for k.bytes > k.limit && len(k.order) > 0 {
		oldest := k.order[0]
		k.order = k.order[1:]
		if !oldest.removed {
			k.remove(oldest)
		}
	}
}

// get returns the batch that has an offset, nil if it is not here.
func (k *cache) get(p wire.PartitionID, l wire.Lane, o wire.Offset) *cached {
	list := k.lanes[cacheKey{p, l}]
	i := sort.Search(len(list), func(i int) bool { return list[i].batch.Base > o })
	if i == 0 || !list[i-1].batch.Run().Has(o) {
		return nil
	}
	return list[i-1]
}

// drop forgets the batches that lie within run.
func (k *cache) drop(p wire.PartitionID, l wire.Lane, run wire.Run) {
	key := cacheKey{p, l}
	list := k.lanes[key]
	from := sort.Search(len(list), func(i int) bool { return list[i].batch.Base >= run.From })
	for from < len(list) && list[from].batch.Run().To <= run.To {
		k.remove(list[from])
		list = k.lanes[key]
	}
	if len(k.order) > 1024 && len(k.order) > 8*k.live {
		kept := k.order[:0:0]
		for _, x := range k.order {
			if !x.removed {
				kept = append(kept, x)
			}
		}
		k.order = kept
	}
}

func (k *cache) remove(x *cached) {
	x.removed = true
	list := k.lanes[x.key]
	i := sort.Search(len(list), func(i int) bool { return list[i].batch.Base >= x.batch.Base })
	if i >= len(list) || list[i] != x {
		return
	}
	k.bytes -= x.batch.Size()
	k.live--
	list = append(list[:i], list[i+1:]...)
	if len(list) == 0 {
		delete(k.lanes, x.key)
		return
	}
	k.lanes[x.key] = list
}
