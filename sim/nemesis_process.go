package sim

import (
	"fmt"

	"github.com/meshq/meshq/node/core"
	"github.com/meshq/meshq/sim/plan"
)

// drainLimit is how long a node that is asked to end may take to hand over what it owns.
const drainLimit = 10 * second

// hitProcess brings about a fault of processes.
func (r *runner) hitProcess(f *fault) (end func(), why impossible) {
	switch f.Kind {
	case plan.Crash:
		for _, h := range f.on {
			h.down++
			if f.Count > 0 {
				h.crashIn = f.Count - 1
			} else {
				h.crash()
			}
		}
		return func() {
			for _, h := range f.on {
				h.crashIn = -1
				h.up()
			}
		}, ""
	case plan.Restart:
		for _, h := range f.on {
			if !h.running || h.paused {
				return nil, impossible(h.name + " does not run")
			}
		}
		f.itself = true
		left := len(f.on)
		for _, h := range f.on {
			r.restart(h, f.For, func() {
				if left--; left == 0 {
					f.over()
				}
			})
		}
	case plan.Pause:
		for _, h := range f.on {
			h.pause(r.span(f))
		}
		return func() {}, ""
	case plan.SlowNode:
		for _, h := range f.on {
			h.slow += int64(f.By)
		}
		return func() {
			for _, h := range f.on {
				h.slow -= int64(f.By)
			}
		}, ""
	case plan.Twin:
		return r.twin(f)
	case plan.Join:
		for i := range max(1, f.Count) {
			name := fmt.Sprintf("j%d", int64(f.At)/millisecond)
			if i > 0 {
				name += string(rune('a' + i))
			}
			r.newNode(&plan.Node{Name: name}).start()
		}
	default:
		return nil, impossible(fmt.Sprintf("%s is not simulated", f.Kind))
	}
	return nil, ""
}

// up ends one fault that keeps the node down; when there is no other it starts.
func (h *host) up() {
	if h.down--; h.down == 0 {
		h.start()
	}
}

// restart asks a node to drain, ends its process when it has, and starts it again
// after d. It ends it in any case when its time is over. Then it calls over.
func (r *runner) restart(h *host, d plan.Duration, over func()) {
	life := h.life
	late := r.now + drainLimit
	h.step(core.Drain{})
	var wait func()
	wait = func() {
		if h.life != life { // something else ended it
			over()
			return
		}
		if !h.drained && r.now < late && r.phase == "faults" {
			r.after(20*millisecond, wait)
			return
		}
		h.down++
		h.crash()
		r.lasts(max(d, plan.Duration(millisecond)), func() { h.up(); over() })
	}
	wait()
}
