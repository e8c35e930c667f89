package history

import (
	"testing"
	"time"
)

func TestBiography(t *testing.T) {
	m := Message{"p", 12}
	h := &History{Events: []Event{
		{At: 1, Kind: Sent, Who: "p", Message: m},
		{At: 2, Kind: Sent, Who: "p", Message: Message{"p", 13}},
		{At: 3, Kind: NodeDown, Who: "a"},
		{At: 4, Kind: Confirmed, Who: "p", Message: m, Copies: 2, Want: 2},
		{At: 5, Kind: Delivered, Who: "c", Node: "b", Group: "default", Message: m, Term: Term{5, "b"}, Attempt: 2, Cause: "lease ran out", Lease: 1800 * time.Millisecond},
		{At: 6, Kind: Delivered, Who: "d", Group: "audit", Message: m},
	}}
	want := []Line{
		{At: 1, Where: "p", Text: "sends it"},
		{At: 4, Where: "p", Text: "is told that it is stored: on 2 of 2"},
		{At: 5, Where: "c", Text: "has it in hand, from b, term 5.b, attempt 2, again: lease ran out, lease 1.8s"},
	}
	got := Biography(h, m, "default")
	if len(got) != len(want) {
		t.Fatalf("got %d lines, want %d: %v", len(got), len(want), got)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("line %d: got %+v, want %+v", i, got[i], want[i])
		}
	}
	if len(Biography(h, m, "")) != 4 {
		t.Error("no group is not all groups")
	}
	if Biography(h, Message{}, "") != nil {
		t.Error("no message has a biography")
	}
}

func TestShort(t *testing.T) {
	for want, d := range map[string]time.Duration{
		"412µs": 412_345, "3.4ms": 3_412_345, "35ms": 34_612_345, "1.25s": 1_249_000_000, "2m5s": 125_100_000_000, "-1s": -time.Second, "0s": 0, "1m": time.Minute,
	} {
		if got := Short(d); got != want {
			t.Errorf("%d: got %s, want %s", d, got, want)
		}
	}
}
