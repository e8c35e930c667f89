package chaos

import (
	"fmt"
	"slices"
	"time"
)

// impose brings effects about that end with the fault.
func (f *fault) impose(effects ...Effect) (func() error, error) {
	lift, err := f.n.mesh.Impose(effects...)
	if err != nil {
		return nil, err
	}
	return func() error { lift(); return nil }, nil
}

// way is from On to To.
func (f *fault) way(e Effect) Effect {
	e.From, e.To = f.On, f.To
	return e
}

func cut(f *fault) (func() error, error)       { return f.impose(f.way(Effect{Cut: true}).Both()...) }
func cutOneWay(f *fault) (func() error, error) { return f.impose(f.way(Effect{Cut: true})) }
func split(f *fault) (func() error, error) {
	return f.impose(Effect{From: f.On, Cut: true}.Both()...)
}

func slowLink(f *fault) (func() error, error) {
	return f.impose(f.way(Effect{Delay: time.Duration(f.By)}))
}
func loss(f *fault) (func() error, error) { return f.impose(f.way(Effect{Loss: f.Share})) }
func duplicate(f *fault) (func() error, error) {
	return f.impose(f.way(Effect{Duplicate: f.Share}))
}
func corrupt(f *fault) (func() error, error) { return f.impose(f.way(Effect{Corrupt: f.Share})) }
func bandwidth(f *fault) (func() error, error) {
	return f.impose(f.way(Effect{Bandwidth: int64(f.Count)}))
}

func late(f *fault) (func() error, error) {
	return f.impose(Effect{Reorder: 1 / float64(max(1, f.Count)), Late: time.Duration(f.By)})
}

func gossipCut(f *fault) (func() error, error) {
	return f.impose(f.way(Effect{Cut: true, Only: Gossip}).Both()...)
}

// resetConnections ends the connections between both sides.
func resetConnections(f *fault) (func() error, error) {
	n, err := f.n.mesh.Reset(f.On, f.To)
	f.say("%d connections were reset", n)
	return nil, err
}

// halfOpen ends the connections for one side alone.
func halfOpen(f *fault) (func() error, error) {
	n, err := f.n.mesh.HalfOpen(f.On, f.To)
	f.say("%d connections are half open", n)
	return nil, err
}

// answerLost loses what nodes send to clients, and then the connections.
func answerLost(f *fault) (func() error, error) {
	lift, err := f.impose(Effect{From: f.To, To: f.On, Cut: true})
	if err != nil {
		return nil, err
	}
	return func() error {
		_, err := f.n.mesh.Reset(f.On, f.To)
		_ = lift()
		return err
	}, nil
}

// names are those of the nodes of a fault.
func (f *fault) names() (names []string) {
	for _, p := range f.nodes {
		names = append(names, p.node.Name())
	}
	return names
}

// ringCut leaves to each node of a ring its neighbours on both sides, as many as make a
// majority with it. Of three nodes, each with two neighbours, two are cut apart.
func ringCut(f *fault) (func() error, error) {
	names := f.names()
	n := len(names)
	reach := (n/2 + 1) / 2 // neighbours on each side: with itself a majority
	var effects []Effect
	for i := range names {
		for j := i + 1; j < n; j++ {
			if apart := min(j-i, n-(j-i)); apart > reach || n == 3 && i == 0 && j == 2 {
				effects = append(effects, Effect{From: names[i : i+1], To: names[j : j+1], Cut: true}.Both()...)
			}
		}
	}
	if len(effects) == 0 {
		return nil, fmt.Errorf("a ring of %d nodes has nothing to cut", n)
	}
	return f.impose(effects...)
}

// bridge splits all nodes of it but the first in halves.
func bridge(f *fault) (func() error, error) {
	names := f.names()
	if len(names) < 3 {
		return nil, fmt.Errorf("a bridge needs three nodes, not %d", len(names))
	}
	rest, half := names[1:], len(names)/2
	return f.impose(Effect{From: rest[:half], To: rest[half:], Cut: true}.Both()...)
}

// flap cuts a link and makes it whole in turns.
func flap(f *fault) (func() error, error) {
	done, stop := make(chan struct{}), make(chan struct{})
	turns := 0
	go func() {
		defer close(done)
		for {
			lift, err := f.n.mesh.Impose(f.way(Effect{Cut: true}).Both()...)
			if err != nil {
				return
			}
			turns++
			on := f.pause(stop)
			lift()
			if !on || !f.pause(stop) {
				return
			}
		}
	}()
	return func() error {
		close(stop)
		<-done
		f.say("it was cut %d times", turns)
		return nil
	}, nil
}

// pause waits By; false: the fault is over.
func (f *fault) pause(stop <-chan struct{}) bool {
	t := time.NewTimer(orElse(time.Duration(f.By), 200*time.Millisecond))
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-stop:
		return false
	}
}

// swizzle cuts nodes off from all others one after the other, and heals them in another
// order: every second one first.
func swizzle(f *fault) (func() error, error) {
	never := f.n.heal.Done()
	names := f.names()
	lifts := map[string]func(){}
	defer func() {
		for _, lift := range lifts {
			lift()
		}
	}()
	for _, name := range names {
		lift, err := f.n.mesh.Impose(Effect{From: []string{name}, Cut: true}.Both()...)
		if err != nil {
			return nil, err
		}
		lifts[name] = lift
		f.pause(never)
	}
	order := make([]string, 0, len(names))
	for i := 1; i < len(names); i += 2 {
		order = append(order, names[i])
	}
	for i := 0; i < len(names); i += 2 {
		order = append(order, names[i])
	}
	for _, name := range slices.Compact(order) {
		lifts[name]()
		f.pause(never)
	}
	return nil, nil
}
