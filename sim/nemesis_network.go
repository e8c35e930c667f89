package sim

import (
	"fmt"
	"slices"

	"github.com/meshq/meshq/sim/plan"
)

// hitNetwork brings about a fault of the network.
func (r *runner) hitNetwork(f *fault) (end func(), why impossible) {
	switch f.Kind {
	case plan.Cut:
		return r.cutAll(append(across(f.on, f.to), across(f.to, f.on)...)), ""
	case plan.CutOneWay:
		return r.cutAll(across(f.on, f.to)), ""
	case plan.Split:
		var others []*host
		for _, h := range r.byName {
			if !slices.Contains(f.on, h) {
				others = append(others, h)
			}
		}
		slices.SortFunc(others, func(a, b *host) int { return a.index - b.index })
		return r.cutAll(append(across(f.on, others), across(others, f.on)...)), ""
	case plan.RingCut:
		return r.cutAll(ringCuts(f.on)), ""
	case plan.Bridge:
		half := 1 + len(f.on)/2
		one, two := f.on[1:half], f.on[half:]
		return r.cutAll(append(across(one, two), across(two, one)...)), ""
	case plan.Flap:
		return r.flap(f), ""
	case plan.Swizzle:
		r.swizzle(f)
	case plan.SlowLink:
		r.each(f, func(l *link) { l.slow += int64(f.By) })
		return func() { r.each(f, func(l *link) { l.slow -= int64(f.By) }) }, ""
	case plan.Late:
		l := &late{f.Count, int64(f.By), f.key}
		r.net.late = append(r.net.late, l)
		return func() { r.net.late = slices.DeleteFunc(r.net.late, func(x *late) bool { return x == l }) }, ""
	case plan.Loss:
		r.each(f, func(l *link) { l.loss = append(l.loss, f.Share) })
		return func() {
			r.each(f, func(l *link) { l.loss = remove(l.loss, f.Share) })
		}, ""
	case plan.Corrupt:
		r.each(f, func(l *link) { l.corrupt = append(l.corrupt, f.Share) })
		return func() {
			r.each(f, func(l *link) { l.corrupt = remove(l.corrupt, f.Share) })
		}, ""
	case plan.Bandwidth:
		r.each(f, func(l *link) { l.rates = append(l.rates, int64(f.Count)) })
		return func() {
			r.each(f, func(l *link) { l.rates = remove(l.rates, int64(f.Count)) })
		}, ""
	case plan.Reset:
		r.pairs(f, func(a, b *host) { r.breakConns(a, b) })
	case plan.HalfOpen:
		r.pairs(f, func(a, b *host) { r.halfOpen(a, b) })
	case plan.AnswerLost:
		heal := r.cutAll(across(f.to, f.on))
		return func() {
			r.pairs(f, func(a, b *host) { r.breakConns(a, b) })
			heal()
		}, ""
	default:
		return nil, impossible(fmt.Sprintf("%s is not simulated", f.Kind))
	}
	return nil, ""
}

// remove takes the first x out of a list.
func remove[T comparable](list []T, x T) []T {
	if i := slices.Index(list, x); i >= 0 {
		list = slices.Delete(list, i, i+1)
	}
	return list
}

// across are all directions from one side to the other. Clients do not talk to clients.
func across(from, to []*host) [][2]*host {
	var out [][2]*host
	for _, a := range from {
		for _, b := range to {
			if a != b && (a.client == nil || b.client == nil) {
				out = append(out, [2]*host{a, b})
			}
		}
	}
	return out
}

func (r *runner) pairs(f *fault, do func(a, b *host)) {
	for _, p := range across(f.on, f.to) {
		do(p[0], p[1])
	}
}

// each calls do for each direction from On to To.
func (r *runner) each(f *fault, do func(l *link)) {
	r.pairs(f, func(a, b *host) { do(r.link(a, b)) })
}

// cutAll cuts directions; what it returns heals them.
func (r *runner) cutAll(directions [][2]*host) (heal func()) {
	for _, d := range directions {
		r.cut(d[0], d[1])
	}
	return func() {
		for _, d := range directions {
			r.world.heal(d[0], d[1])
		}
	}
}

// ringCuts let each of the hosts, seen as a ring, reach its nearest: with itself a
// majority, and another one for each.
func ringCuts(hosts []*host) [][2]*host {
	n := len(hosts)
	near := (n/2 + 1) / 2 // on each side: 2*near+1 is a majority
	var out [][2]*host
	for i, a := range hosts {
		for j, b := range hosts {
			if d := (j - i + n) % n; d > near && d < n-near {
				out = append(out, [2]*host{a, b})
			}
		}
	}
	return out
}

// flap cuts and heals in turns of By.
func (r *runner) flap(f *fault) (end func()) {
	directions := append(across(f.on, f.to), across(f.to, f.on)...)
	over := false
	var heal func()
	var turn func()
	turn = func() {
		if over {
			return
		}
		if heal != nil {
			heal()
			heal = nil
		} else {
			heal = r.cutAll(directions)
		}
		r.after(int64(f.By), turn)
	}
	turn()
	return func() {
		over = true
		if heal != nil {
			heal()
		}
	}
}

// swizzle cuts the nodes of On off from all nodes, one after another, and heals them in
// another order.
func (r *runner) swizzle(f *fault) {
	order := slices.Clone(f.on)
	slices.SortFunc(order, func(a, b *host) int {
		if r.luck(luckFault, f.key, a.key, 0) < r.luck(luckFault, f.key, b.key, 0) {
			return -1
		}
		return 1
	})
	f.itself = true
	left := len(f.on)
	over := func() {
		if left--; left == 0 {
			f.over()
		}
	}
	for i, h := range f.on {
		back := slices.Index(order, h)
		r.after(int64(i)*int64(f.By), func() {
			if r.phase != "faults" {
				over()
				return
			}
			others := slices.Clone(r.mesh)
			heal := r.cutAll(append(across([]*host{h}, others), across(others, []*host{h})...))
			r.lasts(plan.Duration(int64(len(f.on)-i+back)*int64(f.By)), func() { heal(); over() })
		})
	}
}
