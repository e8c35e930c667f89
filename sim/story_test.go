package sim

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/meshq/meshq/sim/history"
	"github.com/meshq/meshq/sim/plan"
)

// A story is of the same run: who tells it changes nothing.
func TestStoryChangesNothing(t *testing.T) {
	for seed := uint64(1); seed <= 6; seed++ {
		p := plan.Generate(seed, plan.GenerateOptions{Length: plan.Duration(5 * second)}).Filled()
		plain := newRunner(p, Options{})
		plain.guarded()
		told := newRunner(p, Options{})
		told.story = newStoryteller(told.world, history.Message{Producer: p.Producers[0].Name, Number: 3}, "")
		told.guarded()
		if plain.hash != told.hash || plain.steps != told.steps {
			t.Errorf("seed %d: hash %x after %d steps, with a story %x after %d", seed, plain.hash, plain.steps, told.hash, told.steps)
		}
	}
}

// The life of a message in a mesh where nothing goes wrong, but that a node is killed
// and another is cut off.
func TestStory(t *testing.T) {
	t.Run("raw", func(t *testing.T) { testStory(t, true) })
	t.Run("library", func(t *testing.T) { testStory(t, false) })
}

func testStory(t *testing.T, raw bool) {
	p := &plan.Plan{
		Version: plan.Version, Seed: 5, Length: plan.Duration(4 * second),
		Mesh:      plan.Mesh{Nodes: []plan.Node{{Name: "a"}, {Name: "b"}, {Name: "c"}}},
		Queues:    []plan.Queue{{Name: "photos"}},
		Producers: []plan.Producer{{Name: "p", Queue: "photos", Raw: raw}},
		Consumers: []plan.Consumer{{Name: "x", Queue: "photos", Raw: raw}},
		Faults: []plan.Fault{
			{Kind: plan.Crash, At: plan.Duration(2 * second), For: plan.Duration(second), On: []string{"b"}},
			{Kind: plan.Pause, At: plan.Duration(1 * second), For: plan.Duration(500 * millisecond), On: []string{"c"}},
			{Kind: plan.Cut, At: plan.Duration(3 * second), For: plan.Duration(500 * millisecond), On: []string{"a"}, To: []string{"c"}},
		},
	}
	if res := Run(p, Options{}); res.Violation != nil {
		t.Fatal(res.Violation)
	}
	m := history.Message{Producer: "p", Number: 7}
	s := Story(p, Options{}, &history.Violation{Promise: "P3", Text: "not really", At: 3600 * time.Millisecond, Message: m})

	lane := func(name string) history.Lane {
		for _, l := range s.Lanes {
			if l.Name == name {
				return l
			}
		}
		t.Fatalf("no lane %s", name)
		return history.Lane{}
	}
	var names []string
	for _, l := range s.Lanes {
		names = append(names, l.Name)
	}
	if want := []string{"a", "b", "c", "p", "x"}; !slices.Equal(names, want) {
		t.Errorf("lanes %v, want %v", names, want)
	}
	span := func(name, state string, from, to int64) {
		t.Helper()
		for _, sp := range lane(name).Spans {
			if sp.State == state && int64(sp.From) == from && int64(sp.To) >= to {
				return
			}
		}
		t.Errorf("%s is not %s from %d to %d: %+v", name, state, from, to, lane(name).Spans)
	}
	span("b", "down", 2*second, 3*second)
	span("c", "paused", 1*second, 1500*millisecond)
	span("a", "cut", 3*second, 3500*millisecond)
	span("c", "cut", 3*second, 3500*millisecond)

	var text strings.Builder
	for i, l := range s.Biography {
		text.WriteString(l.Where + " " + l.Text + "\n")
		if i > 0 && l.At < s.Biography[i-1].At {
			t.Errorf("line %d is before the one above it: %+v", i, l)
		}
		if l.Arrow < 0 || l.Arrow > len(s.Arrows) || l.Arrow > 0 && s.Arrows[l.Arrow-1].Sent != l.At {
			t.Errorf("line %d names another's arrow: %+v", i, l)
		}
	}
	for _, want := range []string{"p asks ", " to store it\n", " has it on disk, synced\n", " confirms it: synced on ", " hands it to x: term ", "x acks it, at ", " answers x: done", "BROKEN P3: not really"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("no %q in:\n%s", want, text.String())
		}
	}
	for i, a := range s.Arrows {
		if a.Got < a.Sent || a.Label == "" || a.From == "" || a.To == "" {
			t.Errorf("arrow %d: %+v", i, a)
		}
	}
	if t.Failed() || testing.Verbose() {
		t.Log(text.String())
	}
}
