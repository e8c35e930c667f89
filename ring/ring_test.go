package ring_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/cespare/xxhash/v2"
	"github.com/meshq/meshq/ring"
	"github.com/vmihailenco/msgpack/v5"
	"pgregory.net/rapid"
)

const partitions = 10_000

// id mints the i-th node ID of a seed.
func id(seed uint64, i int) ring.NodeID {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], seed)
	binary.BigEndian.PutUint64(b[8:], uint64(i))
	return ring.NodeID(xxhash.Sum64(b[:]) | 1)
}

// table has sizes[z] nodes of weight 1 in zone z.
func table(seed uint64, sizes ...int) ring.Table {
	var t ring.Table
	n := 0
	for z, size := range sizes {
		for range size {
			t = t.With(ring.Member{ID: id(seed, n), Zone: fmt.Sprintf("zone-%d", z)})
			n++
		}
	}
	return t
}

// placements returns the lists of n nodes of all partitions of a queue.
func placements(r *ring.Ring, n int) [][]ring.NodeID {
	lists := make([][]ring.NodeID, partitions)
	for i := range lists {
		lists[i] = r.Preference(nil, ring.PartitionKey("photos", 1, uint32(i)), n)
	}
	return lists
}

// moved is the part of all replicas that are on another node in b than in a.
func moved(a, b [][]ring.NodeID) float64 {
	count, of := 0, 0
	for i := range b {
		for _, node := range b[i] {
			of++
			if !slices.Contains(a[i], node) {
				count++
			}
		}
	}
	return float64(count) / float64(of)
}

// reference is the preference list as doc.go tells it for one zone, the slow way.
func reference(t ring.Table, key uint64) []ring.NodeID {
	type token struct {
		distance uint64
		node     ring.NodeID
	}
	var tokens []token
	for _, m := range t.Members {
		for i := range 256 * uint64(m.Weight) {
			var b [16]byte
			binary.BigEndian.PutUint64(b[:8], uint64(m.ID))
			binary.BigEndian.PutUint64(b[8:], i)
			tokens = append(tokens, token{xxhash.Sum64(b[:]) - key, m.ID})
		}
	}
	slices.SortFunc(tokens, func(a, b token) int {
		switch {
		case a.distance < b.distance:
			return -1
		case a.distance > b.distance:
			return 1
		}
		return int(min(1, a.node-b.node))
	})
	var list []ring.NodeID
	for _, token := range tokens {
		if !slices.Contains(list, token.node) {
			list = append(list, token.node)
		}
	}
	return list
}

func drawTable(t *rapid.T, maxMembers int) ring.Table {
	var table ring.Table
	zones := rapid.IntRange(1, 5).Draw(t, "zones")
	for _, id := range rapid.SliceOfNDistinct(rapid.Uint64Min(1), 1, maxMembers, rapid.ID).Draw(t, "ids") {
		table = table.With(ring.Member{
			ID:     ring.NodeID(id),
			Zone:   fmt.Sprint(rapid.IntRange(1, zones).Draw(t, "zone")),
			Weight: rapid.Uint16Range(1, 4).Draw(t, "weight"),
		})
	}
	return table
}

func TestPreferenceIsTheWalk(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		table := drawTable(t, 8)
		for i := range table.Members {
			table.Members[i].Zone = "one"
		}
		r := ring.New(table)
		// Keys on a token and at both ends of the circle are where a search goes wrong.
		var b [16]byte
		binary.BigEndian.PutUint64(b[:8], uint64(table.Members[0].ID))
		onToken := xxhash.Sum64(b[:])
		for _, key := range []uint64{0, math.MaxUint64, onToken, onToken - 1, onToken + 1, rapid.Uint64().Draw(t, "key")} {
			if got, want := r.Preference(nil, key, 0), reference(table, key); !slices.Equal(got, want) {
				t.Fatalf("key %x: got %v, want %v", key, got, want)
			}
		}
	})
}

func TestPreferenceIsOneOrderOfAllMembers(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		table := drawTable(t, 20)
		r := ring.New(table)
		key := rapid.Uint64().Draw(t, "key")
		all := r.Preference(nil, key, 0)

		sorted := slices.Clone(all)
		slices.Sort(sorted)
		for i, m := range table.Members {
			if len(sorted) != len(table.Members) || sorted[i] != m.ID {
				t.Fatalf("list of all is %v, members are %v", all, table.Members)
			}
		}
		before := []ring.NodeID{all[0]} // the caller's, so not looked at
		for n := 1; n <= len(all)+1; n++ {
			got := r.Preference(before, key, n)
			if want := all[:min(n, len(all))]; got[0] != all[0] || !slices.Equal(got[1:], want) {
				t.Fatalf("n=%d: got %v, want %v", n, got[1:], want)
			}
		}
	})
}

func TestOrderOfMembersDoesNotMatter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		table := drawTable(t, 12)
		shuffled := ring.Table{Number: table.Number, Members: rapid.Permutation(table.Members).Draw(t, "order")}
		a, b := ring.New(table), ring.New(shuffled)
		if !a.Table().Equal(b.Table()) {
			t.Fatal("tables differ")
		}
		key := rapid.Uint64().Draw(t, "key")
		if got, want := b.Preference(nil, key, 0), a.Preference(nil, key, 0); !slices.Equal(got, want) {
			t.Fatalf("got %v, want %v", got, want)
		}
	})
}

// maxOverMean is the bound on the replicas of a node over the mean. Half of it is the
// chance of 10,000 partitions, which on 100 nodes gives 300 replicas each.
const maxOverMean = 1.45

func TestBalance(t *testing.T) {
	var worst float64
	rapid.Check(t, func(t *rapid.T) {
		nodes := rapid.IntRange(3, 100).Draw(t, "nodes")
		zones := rapid.SampledFrom([]int{1, 3}).Draw(t, "zones")
		sizes := make([]int, zones)
		for i := range nodes {
			sizes[i%zones]++
		}
		r := ring.New(table(rapid.Uint64().Draw(t, "seed"), sizes...))
		held := make(map[ring.NodeID]int)
		for _, list := range placements(r, 3) {
			for _, node := range list {
				held[node]++
			}
		}
		mean := float64(3*partitions) / float64(nodes)
		for node, n := range held {
			worst = max(worst, float64(n)/mean)
			if float64(n) > maxOverMean*mean {
				t.Fatalf("%d nodes in %d zones: %v holds %d replicas, mean %.0f", nodes, zones, node, n, mean)
			}
		}
	})
	t.Logf("worst max/mean: %.3f", worst)
}

func TestWeightGivesShare(t *testing.T) {
	table := table(7, 9)
	heavy := table.Members[4]
	heavy.Weight = 3
	held := 0
	for _, list := range placements(ring.New(table.With(heavy)), 1) {
		if list[0] == heavy.ID {
			held++
		}
	}
	if share := float64(held) / partitions; share < 0.22 || share > 0.32 {
		t.Fatalf("weight 3 of 11 comes first for %.3f of the partitions, want about 0.27", share)
	}
}

// A join takes its share of the replicas and little else moves. In zones the turns of
// the other zones shift too, so the bound is wider.
func TestMovement(t *testing.T) {
	for _, zones := range []int{1, 3} {
		bound := map[int]float64{1: 1.45, 3: 2.5}[zones]
		var worst, sum, runs float64
		rapid.Check(t, func(t *rapid.T) {
			nodes := rapid.IntRange(4, 60).Draw(t, "nodes")
			sizes := make([]int, zones)
			for i := range nodes {
				sizes[i%zones]++
			}
			with := table(rapid.Uint64().Draw(t, "seed"), sizes...)
			leaver := with.Members[rapid.IntRange(0, nodes-1).Draw(t, "leaver")]
			without := placements(ring.New(with.Without(leaver.ID)), 3)
			joined := placements(ring.New(with), 3)

			for _, part := range []float64{moved(without, joined), moved(joined, without)} {
				ratio := part * float64(nodes)
				worst, sum, runs = max(worst, ratio), sum+ratio, runs+1
				if ratio > bound {
					t.Fatalf("%d nodes: %.4f of the replicas moved, %.2f/n", nodes, part, ratio)
				}
			}
		})
		t.Logf("%d zones: moved mean %.2f/n, worst %.2f/n", zones, sum/runs, worst)
	}
}

func TestJoinMovesOnlyToTheNewNode(t *testing.T) {
	before := table(3, 10)
	after := before.With(ring.Member{ID: id(3, 99), Zone: "zone-0"})
	a, b := placements(ring.New(before), 3), placements(ring.New(after), 3)
	for i := range b {
		for _, node := range b[i] {
			if node != id(3, 99) && !slices.Contains(a[i], node) {
				t.Fatalf("partition %d moved from %v to %v", i, a[i], b[i])
			}
		}
	}
}

func TestZones(t *testing.T) {
	for _, test := range []struct {
		sizes    []int
		replicas int
		// distinct is the least part of the partitions whose replicas are in as many
		// zones as there can be.
		distinct float64
	}{
		{[]int{1, 1, 1}, 3, 1},
		{[]int{3, 3, 3}, 3, 1},
		{[]int{4, 3, 3}, 3, 1}, // one zone has a node more
		{[]int{10, 8, 9}, 3, 1},
		{[]int{5, 5}, 2, 1},
		{[]int{5, 5}, 3, 1},
		{[]int{2, 2, 2, 2, 2}, 3, 1},
		{[]int{5, 3, 2}, 3, 0.65},
		{[]int{6, 4, 4, 3, 3}, 3, 0.85},
		{[]int{9, 1}, 2, 0.15},    // a brand-new zone
		{[]int{9, 9, 1}, 3, 0.10}, // another one
		{[]int{30, 1, 1}, 3, 0},
	} {
		t.Run(fmt.Sprint(test.sizes, " ", test.replicas), func(t *testing.T) {
			table := table(11, test.sizes...)
			total := len(table.Members)
			held := make([]int, len(test.sizes))
			spread := 0
			for _, list := range placements(ring.New(table), test.replicas) {
				zones := make(map[string]bool)
				for _, node := range list {
					m, _ := table.Member(node)
					zones[m.Zone] = true
					var z int
					_, _ = fmt.Sscanf(m.Zone, "zone-%d", &z)
					held[z]++
				}
				if len(zones) == min(test.replicas, len(test.sizes)) {
					spread++
				}
			}
			distinct := float64(spread) / partitions
			t.Logf("in distinct zones: %.3f", distinct)
			if distinct < test.distinct {
				t.Errorf("%.3f of the partitions are in distinct zones, want %.3f", distinct, test.distinct)
			}
			for z, size := range test.sizes {
				share := float64(size) / float64(total)
				over := float64(held[z]) / (share * float64(test.replicas) * partitions)
				t.Logf("zone of %d: %.3f of its share", size, over)
				// 1.25, and 0.15 for the chance of tokens and partitions.
				if over > 1.4 {
					t.Errorf("zone of %d nodes has %.3f of its share", size, over)
				}
			}
		})
	}
}

// The bytes behind a placement are a protocol: clients in other languages compute them.
func TestPlacementNeverChanges(t *testing.T) {
	if got, want := ring.PartitionKey("photos", 1, 2), xxhash.Sum64String("photos\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x02"); got != want {
		t.Errorf("partition key %x, want %x", got, want)
	}
	one := ring.Table{Number: 1, Members: []ring.Member{{ID: 1}, {ID: 2}, {ID: 3}, {ID: 4}, {ID: 5}, {ID: 6}}}
	three := ring.Table{Number: 1, Members: slices.Clone(one.Members)}
	for i := range three.Members {
		three.Members[i].Zone = []string{"a", "a", "a", "b", "b", "c"}[i]
	}
	for _, test := range []struct {
		table ring.Table
		want  string
	}{
		{one, "351426 214635 513246 526413 643152 154326 "},
		{three, "351642 241563 513462 521463 634125 153462 "},
	} {
		var got string
		for i := range uint32(6) {
			for _, node := range ring.New(test.table).Preference(nil, ring.PartitionKey("photos", 1, i), 0) {
				got += fmt.Sprint(uint64(node))
			}
			got += " "
		}
		if got != test.want {
			t.Errorf("lists %q, want %q", got, test.want)
		}
	}
}

func TestLookupsAllocateNothing(t *testing.T) {
	plain, zoned := ring.New(table(1, 100)), ring.New(table(1, 30, 40, 30))
	dst := make([]ring.NodeID, 0, 100)
	key := uint64(0)
	if n := testing.AllocsPerRun(1000, func() {
		key += 0x9e3779b97f4a7c15
		dst = plain.Preference(dst[:0], key, 3)
		dst = plain.Preference(dst[:0], key, 0)
		dst = zoned.Preference(dst[:0], key, 3)
		dst = zoned.Preference(dst[:0], key, 0)
		key += ring.PartitionKey("photos", 1, 2)
	}); n != 0 {
		t.Fatalf("%v allocations", n)
	}
}

func TestManyMembersAndZones(t *testing.T) {
	sizes := make([]int, 20) // more than fit on the stack
	for i := range sizes {
		sizes[i] = 2
	}
	if got := ring.New(table(1, sizes...)).Preference(nil, 1, 0); len(got) != 40 {
		t.Errorf("%d nodes, want 40", len(got))
	}
	many := ring.Table{Number: 1}
	for i := range 5000 {
		many.Members = append(many.Members, ring.Member{ID: id(1, i)})
	}
	if got := ring.New(many).Preference(nil, 1, 0); len(got) != 5000 {
		t.Errorf("%d nodes, want 5000", len(got))
	}
}

func TestEmptyRing(t *testing.T) {
	r := ring.New(ring.Table{})
	if got := r.Preference(nil, 1, 3); len(got) != 0 || r.Len() != 0 || r.Number() != 0 {
		t.Fatalf("an empty ring has nodes %v", got)
	}
}

func TestTableSteps(t *testing.T) {
	a, b, c := ring.Member{ID: 1, Weight: 1}, ring.Member{ID: 2, Weight: 1}, ring.Member{ID: 3, Weight: 1}
	one := ring.Table{}.With(c).With(a)
	two := one.With(b)
	if want := (ring.Table{Number: 3, Members: []ring.Member{a, b, c}}); !two.Equal(want) {
		t.Errorf("got %v, want %v", two, want)
	}
	if want := (ring.Table{Number: 2, Members: []ring.Member{a, c}}); !one.Equal(want) {
		t.Errorf("With changed its receiver: %v", one)
	}
	b.Zone = "north"
	if m, found := two.With(b).Member(2); !found || m.Zone != "north" {
		t.Errorf("replaced member is %v", m)
	}
	if three := two.Without(2); three.Number != 4 || len(three.Members) != 2 || len(two.Members) != 3 {
		t.Errorf("without 2: %v", three)
	}
	if _, found := two.Member(9); found {
		t.Error("found a member that is not there")
	}
}

func TestValidate(t *testing.T) {
	if err := (ring.Table{}).With(ring.Member{ID: 1}).Validate(); err != nil {
		t.Error(err)
	}
	for _, bad := range []ring.Table{
		{},
		{Number: 1},
		{Members: []ring.Member{{ID: 1, Weight: 1}}},
		{Number: 1, Members: []ring.Member{{Weight: 1}}},
		{Number: 1, Members: []ring.Member{{ID: 1}}},
		{Number: 1, Members: []ring.Member{{ID: 1, Weight: ring.MaxWeight + 1}}},
		{Number: 1, Members: []ring.Member{{ID: 2, Weight: 1}, {ID: 1, Weight: 1}}},
		{Number: 1, Members: []ring.Member{{ID: 1, Weight: 1}, {ID: 1, Weight: 1}}},
		{Number: 1, Members: make([]ring.Member, ring.MaxMembers+1)},
	} {
		if bad.Validate() == nil {
			t.Errorf("ring %d with %d members is valid", bad.Number, len(bad.Members))
		}
	}
}

func TestNodeID(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		id := ring.NodeID(rapid.Uint64Min(1).Draw(t, "id"))
		if got, err := ring.ParseNodeID(id.String()); err != nil || got != id {
			t.Fatalf("parsed %v as %v: %v", id, got, err)
		}
	})
	for _, bad := range []string{"", "1", "0000000000000000", "00000000000000001", "+000000000000001", "000000000000000g"} {
		if _, err := ring.ParseNodeID(bad); !errors.Is(err, ring.ErrNodeID) {
			t.Errorf("parsed %q: %v", bad, err)
		}
	}
}

func TestTableTravelsAsArrays(t *testing.T) {
	want := ring.Table{}.With(ring.Member{ID: 5, Name: "a", Address: "b:1", HTTP: "c:2", Zone: "d"})
	encoded, err := msgpack.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	if encoded[0] != 0x92 { // an array of 2
		t.Errorf("encoded as % x", encoded)
	}
	var got ring.Table
	if err := msgpack.Unmarshal(encoded, &got); err != nil || !got.Equal(want) {
		t.Fatalf("got %v, want %v: %v", got, want, err)
	}
}

func Example() {
	t := ring.Table{}
	for i, name := range []string{"ada", "bob", "cyd", "dan"} {
		t = t.With(ring.Member{ID: ring.NodeID(i + 1), Name: name})
	}
	r := ring.New(t)

	key := ring.PartitionKey("photos", 1, 0)
	for _, id := range r.Preference(nil, key, 3) { // N = 3: the home replicas
		m, _ := t.Member(id)
		fmt.Println(m.ID, m.Name)
	}
	// Output:
	// 0000000000000003 cyd
	// 0000000000000001 ada
	// 0000000000000004 dan
}

func BenchmarkPreference(b *testing.B) {
	for _, bench := range []struct {
		name  string
		sizes []int
		n     int
	}{
		{"nodes=3/n=3", []int{3}, 3},
		{"nodes=10/n=3", []int{10}, 3},
		{"nodes=100/n=3", []int{100}, 3},
		{"nodes=1000/n=3", []int{1000}, 3},
		{"nodes=9/zones=3/n=3", []int{3, 3, 3}, 3},
		{"nodes=100/zones=3/n=3", []int{33, 33, 34}, 3},
		{"nodes=100/n=all", []int{100}, 0},
	} {
		b.Run(bench.name, func(b *testing.B) {
			r := ring.New(table(1, bench.sizes...))
			dst := make([]ring.NodeID, 0, 1000)
			b.ReportAllocs()
			key := uint64(0)
			for b.Loop() {
				key += 0x9e3779b97f4a7c15
				dst = r.Preference(dst[:0], key, bench.n)
			}
		})
	}
}

func BenchmarkPartitionKey(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		_ = ring.PartitionKey("photos", 1, 2)
	}
}

func BenchmarkNew(b *testing.B) {
	for _, bench := range []struct {
		name  string
		sizes []int
	}{
		{"nodes=1000", []int{1000}},
		{"nodes=1000/zones=3", []int{333, 333, 334}},
	} {
		b.Run(bench.name, func(b *testing.B) {
			t := table(1, bench.sizes...)
			b.ReportAllocs()
			for b.Loop() {
				_ = ring.New(t)
			}
		})
	}
}
