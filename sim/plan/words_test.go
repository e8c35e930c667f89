package plan

import (
	"strings"
	"testing"
	"time"
)

func TestFaultWords(t *testing.T) {
	sec := Duration(time.Second)
	for _, c := range []struct {
		fault Fault
		want  string
	}{
		{Fault{Kind: Crash, On: []string{"b"}, For: sec}, "crash b, back after 1s"},
		{Fault{Kind: Crash, On: []string{"b"}, Count: 2}, "crash b between two effects, the 2nd from then"},
		{Fault{Kind: Cut, On: []string{"a", "b", "c"}, To: []string{"d"}, For: 2 * sec}, "cut a, b and c off from d for 2s"},
		{Fault{Kind: Loss, On: []string{"a"}, To: []string{"b"}, Share: 0.05}, "lose 5 % of the packets from a to b"},
		{Fault{Kind: Join}, "1 new node joins"},
		{Fault{Kind: ClockRate, On: []string{"a"}, Count: -300, For: sec}, "the clock of a runs 300 ppm slow for 1s"},
	} {
		if got := c.fault.String(); got != c.want {
			t.Errorf("%s: got %q, want %q", c.fault.Kind, got, c.want)
		}
	}
	for _, k := range Kinds { // each has words of its own
		f := Fault{Kind: k.Kind, On: []string{"x"}, To: []string{"y"}, For: sec, Count: 3}
		if got := f.String(); strings.HasPrefix(got, string(k.Kind)+" x y") {
			t.Errorf("%s has no words: %q", k.Kind, got)
		}
	}
}
