package core

import "container/heap"

// timer is a function that waits for its time.
type timer struct {
	at    Instant
	seq   uint64 // of equal times the first added runs first
	index int    // in the heap; -1 when it has run or was stopped
	fn    func()
}

// timers is a heap of timers.
type timers struct {
	heap timerHeap
	seq  uint64
}

func (t *timers) add(at Instant, fn func()) *timer {
	t.seq++
	x := &timer{at: at, seq: t.seq, fn: fn}
	heap.Push(&t.heap, x)
	return x
}

// stop takes x out; x may be nil, have run or been stopped.
func (t *timers) stop(x *timer) {
	if x != nil && x.index >= 0 {
		heap.Remove(&t.heap, x.index)
	}
}

// run runs what is due, what it adds included unless it is later.
func (t *timers) run(now Instant) {
	for len(t.heap) > 0 && t.heap[0].at <= now {
		heap.Pop(&t.heap).(*timer).fn()
	}
}

func (t *timers) next() Instant {
	if len(t.heap) == 0 {
		return Never
	}
	return t.heap[0].at
}

type timerHeap []*timer

func (h timerHeap) Len() int { return len(h) }
func (h timerHeap) Less(i, j int) bool {
	return h[i].at < h[j].at || h[i].at == h[j].at && h[i].seq < h[j].seq
}
func (h timerHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}
func (h *timerHeap) Push(x any) {
	t := x.(*timer)
	t.index = len(*h)
	*h = append(*h, t)
}
func (h *timerHeap) Pop() any {
	old := *h
	t := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	t.index = -1
	return t
}
