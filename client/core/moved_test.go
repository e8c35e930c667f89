package core

import (
	"testing"

	"github.com/meshq/meshq/transport/wire"
)

// What is asked of a node is not asked of another one that has its address now, and the
// client asks where its nodes are.
func TestAddressOfAnother(t *testing.T) {
	w := newWorld(t)
	a, b := w.nodes[0], w.nodes[1]
	var calls []Call
	step := func(ev Event) {
		for _, ef := range w.core.Step(w.now, ev) {
			if call, ok := ef.(Call); ok {
				calls = append(calls, call)
				if _, ok := call.Msg.(*wire.GetMesh); ok {
					for _, ef := range w.core.Step(w.now, Answered{Call: call.Call, Msg: w.mesh}) {
						if call, ok := ef.(Call); ok {
							calls = append(calls, call)
						}
					}
				}
			}
		}
	}
	step(Tick{})
	step(LinkUp{Link: 0, Hello: &wire.Hello{Mesh: 7, Node: a.ID, Ring: 1}}) // learns the ring
	step(LinkDown{Link: 0})
	w.now = w.now.Add(10_000_000_000)
	step(Tick{})
	calls = nil
	step(LinkUp{Link: 0, Hello: &wire.Hello{Mesh: 7, Node: b.ID, Ring: 1}})
	step(Ask{Ticket: "x", Node: a.ID, Msg: &wire.Ping{}, Until: w.now.Add(1_000_000_000)})
	fresh := false
	for _, call := range calls {
		switch call.Msg.(type) {
		case *wire.GetMesh:
			fresh = true
		case *wire.Ping:
			t.Errorf("what is for %s was asked on the link %d to %s", a.Name, call.Link, b.Name)
		}
	}
	if !fresh {
		t.Error("the ring was not asked for")
	}
}
