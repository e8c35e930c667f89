package ring

import (
	"encoding/binary"
	"math"
	"math/bits"
	"slices"

	"github.com/cespare/xxhash/v2"
)

// tokensPerWeight trades balance against the time and memory of a rebuild: the
// share of a node varies by about 1/sqrt(tokens), 6 % at weight 1.
const tokensPerWeight = 256

// Ring answers lookups for one table. It is immutable.
type Ring struct {
	table Table
	ids   []NodeID // of table.Members, close together
	all   circle   // tokens of all members
	zones []zone   // sorted by name; empty if there is only one
	// zoneOf[i] is the index in zones of table.Members[i].
	zoneOf []uint32
	weight uint64 // of all members
}

// zone is what a ring knows of the members of one zone.
type zone struct {
	circle  // their tokens
	hash    uint64
	members int32
	weight  uint64
	step    uint64 // between its turns
}

// New makes a ring of a table. It copes with members in any order, and takes a
// weight of 0 as 1, so that equal sets of members make equal rings.
func New(t Table) *Ring {
	r := &Ring{table: Table{Number: t.Number, Members: sortedCopy(t.Members)}}
	tokens := r.tokens()
	r.all = newCircle(tokens)

	names := make([]string, 0, len(r.table.Members))
	for i := range r.table.Members {
		r.weight += weightOf(&r.table.Members[i])
		r.ids = append(r.ids, r.table.Members[i].ID)
		names = append(names, r.table.Members[i].Zone)
	}
	slices.Sort(names)
	names = slices.Compact(names)
	if len(names) < 2 {
		return r
	}

	r.zones = make([]zone, len(names))
	r.zoneOf = make([]uint32, len(r.table.Members))
	for i, name := range names {
		r.zones[i].hash = xxhash.Sum64String(name)
	}
	for i := range r.table.Members {
		m := &r.table.Members[i]
		z, _ := slices.BinarySearch(names, m.Zone)
		r.zoneOf[i] = uint32(z)
		r.zones[z].members++
		r.zones[z].weight += weightOf(m)
	}
	split := make([][]token, len(names))
	for z := range split {
		split[z] = make([]token, 0, r.zones[z].weight*tokensPerWeight)
	}
	for _, t := range tokens {
		z := r.zoneOf[t.member]
		split[z] = append(split[z], t)
	}
	for z := range split {
		r.zones[z].circle = newCircle(split[z])
		r.zones[z].step = one * r.weight * 5 / 4 / r.zones[z].weight
	}
	return r
}

// Table returns the table that the ring was made of. It must not be changed.
func (r *Ring) Table() Table { return r.table }

// Number returns the ring number.
func (r *Ring) Number() uint64 { return r.table.Number }

// Len returns the number of members.
func (r *Ring) Len() int { return len(r.table.Members) }

// PartitionKey is where the preference list of a partition begins: the xxhash64 of
// the queue's name, its generation and the partition's index, big endian.
func PartitionKey(queue string, generation uint64, index uint32) uint64 {
	// The two numbers have a fixed length, so no two partitions spell the same bytes.
	var numbers [12]byte
	binary.BigEndian.PutUint64(numbers[:8], generation)
	binary.BigEndian.PutUint32(numbers[8:], index)
	var d xxhash.Digest
	d.Reset()
	_, _ = d.WriteString(queue)
	_, _ = d.Write(numbers[:])
	return d.Sum64()
}

// Preference appends the first n nodes of key's preference list to dst and returns
// it; all nodes if n <= 0 or there are fewer. The nodes are distinct. It allocates
// nothing if dst has room, up to maxStackMembers members and maxStackZones zones.
func (r *Ring) Preference(dst []NodeID, key uint64, n int) []NodeID {
	if n <= 0 || n > r.Len() {
		n = r.Len()
	}
	l := list{nodes: dst, begin: len(dst)}
	if n <= maxScan {
		r.fill(&l, nil, key, n)
	} else {
		r.fillMany(&l, key, n)
	}
	return l.nodes
}

const (
	// maxScan is up to how many listed nodes it is faster to look through them than
	// to clear a bit set.
	maxScan         = 8
	maxStackMembers = 4096
	maxStackZones   = 16
)

// fillMany is apart from Preference so that few nodes do not pay for its memory.
func (r *Ring) fillMany(l *list, key uint64, n int) {
	var stack [maxStackMembers / 64]uint64
	seen := bitset(stack[:])
	if r.Len() > maxStackMembers {
		seen = make(bitset, (r.Len()+63)/64)
	}
	r.fill(l, seen, key, n)
}

func (r *Ring) fill(l *list, seen bitset, key uint64, n int) {
	if len(r.zones) > 0 {
		r.merge(l, seen, key, n)
		return
	}
	if n == 0 {
		return // there may be no token to find
	}
	for at := r.all.find(key); n > 0; n-- {
		at = r.take(l, seen, &r.all, at)
	}
}

// take walks c from token at to the first member that is not listed, lists it, and
// returns where to walk on. There must be such a member.
func (r *Ring) take(l *list, seen bitset, c *circle, at int) int {
	for {
		member := c.tokens[at].member
		if at++; at == len(c.tokens) {
			at = 0
		}
		if l.add(r.ids[member], member, seen) {
			return at
		}
	}
}

// list is a preference list in the making.
type list struct {
	nodes []NodeID
	begin int // nodes before it are the caller's
}

// bitset has a bit per listed member; nil if the list is short enough to be looked
// through. It is not a field of list, where it would be thought to leave the stack.
type bitset []uint64

// add appends a member unless it is listed, and says whether it did.
func (l *list) add(id NodeID, member uint32, seen bitset) bool {
	if seen == nil {
		if slices.Contains(l.nodes[l.begin:], id) {
			return false
		}
	} else {
		word, bit := &seen[member/64], uint64(1)<<(member%64)
		if *word&bit != 0 {
			return false
		}
		*word |= bit
	}
	l.nodes = append(l.nodes, id)
	return true
}

// turn is the state of one zone in a merge.
type turn struct {
	when uint64 // one is the time of a place; math.MaxUint64 when the zone is out
	at   int32  // the token where its walk goes on; -1 before it begins
	left int32  // members not yet listed
}

// one is the number of coins, and the unit of turns. Turns cannot overflow: a zone of
// weight w takes at most w turns, each 1.25*one*weight/w after the last, and the
// weight of all is at most MaxMembers*MaxWeight = 2^26.
const one = 1 << 32

// merge lists n nodes with zones taking turns, as told in doc.go.
func (r *Ring) merge(l *list, seen bitset, key uint64, n int) {
	var stack [maxStackZones]turn
	turns := stack[:0]
	if len(r.zones) > maxStackZones {
		turns = make([]turn, 0, len(r.zones))
	}

	var hashed [16]byte
	binary.BigEndian.PutUint64(hashed[8:], key)
	for i := range r.zones {
		z := &r.zones[i]
		binary.BigEndian.PutUint64(hashed[:8], z.hash)
		coin := xxhash.Sum64(hashed[:]) >> 32
		// The 1 keeps time 0 for the zone that is first.
		turns = append(turns, turn{when: 1 + coin*(r.weight-z.weight)/z.weight, at: -1, left: z.members})
	}
	first := r.all.tokens[r.all.find(key)].member
	turns[r.zoneOf[first]].when = 0

	for ; n > 0; n-- {
		next := 0
		for i := range turns {
			if turns[i].when < turns[next].when {
				next = i
			}
		}
		t, z := &turns[next], &r.zones[next]
		if t.at < 0 {
			t.at = int32(z.find(key))
		}
		t.at = int32(r.take(l, seen, &z.circle, int(t.at)))
		t.when += z.step
		if t.left--; t.left == 0 {
			t.when = math.MaxUint64
		}
	}
}

// token is a point of a circle; member is an index in the table. As the table is
// sorted by NodeID, the lower member is also the lower NodeID.
type token struct {
	hash   uint64
	member uint32
}

func (t token) less(u token) bool {
	return t.hash < u.hash || t.hash == u.hash && t.member < u.member
}

// tokens returns the tokens of all members, not in order.
func (r *Ring) tokens() []token {
	var total uint64
	for i := range r.table.Members {
		total += weightOf(&r.table.Members[i]) * tokensPerWeight
	}
	tokens := make([]token, 0, total)
	var hashed [16]byte
	for i := range r.table.Members {
		m := &r.table.Members[i]
		binary.BigEndian.PutUint64(hashed[:8], uint64(m.ID))
		for j := range weightOf(m) * tokensPerWeight {
			binary.BigEndian.PutUint64(hashed[8:], j)
			tokens = append(tokens, token{hash: xxhash.Sum64(hashed[:]), member: uint32(i)})
		}
	}
	return tokens
}

func weightOf(m *Member) uint64 { return max(1, uint64(m.Weight)) }

// circle is a sorted list of tokens with an index on their leading bits. As hashes
// are uniform, a bucket has about one token, which makes both sorting and finding
// a matter of a few steps.
type circle struct {
	tokens []token
	// start[b] is the first token whose leading bits are b or more.
	start []uint32
	shift int // a hash shifted right by it is its bucket
}

// newCircle sorts tokens into buckets, then each bucket by insertion.
func newCircle(tokens []token) circle {
	width := max(1, bits.Len(uint(len(tokens)))) // of the leading bits
	c := circle{
		tokens: make([]token, len(tokens)),
		start:  make([]uint32, 1<<width+1),
		shift:  64 - width,
	}
	for _, t := range tokens {
		c.start[t.hash>>c.shift+1]++
	}
	for b := 1; b < len(c.start); b++ {
		c.start[b] += c.start[b-1]
	}
	next := slices.Clone(c.start)
	for _, t := range tokens {
		b := t.hash >> c.shift
		i := next[b]
		next[b]++
		for ; i > c.start[b] && t.less(c.tokens[i-1]); i-- {
			c.tokens[i] = c.tokens[i-1]
		}
		c.tokens[i] = t
	}
	return c
}

// find returns the first token at or after key, going round after the last.
func (c *circle) find(key uint64) int {
	i := int(c.start[key>>c.shift])
	for i < len(c.tokens) && c.tokens[i].hash < key {
		i++
	}
	if i == len(c.tokens) {
		return 0
	}
	return i
}
