package ring

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
)

const (
	// MaxMembers bounds a table. Turn arithmetic relies on it; see Ring.merge.
	MaxMembers = 1 << 16
	// MaxWeight bounds the weight of a member, and so the memory of a ring.
	MaxWeight = 1 << 10
)

// ErrNodeID says that a text is not a NodeID.
var ErrNodeID = errors.New("not a node ID (16 hex digits, not all zero)")

// NodeID is a random 64-bit number that is minted with a data directory and never
// used again. 0 is no node.
type NodeID uint64

// String returns 16 hex digits.
func (id NodeID) String() string { return fmt.Sprintf("%016x", uint64(id)) }

// ParseNodeID reads what String returns.
func ParseNodeID(s string) (NodeID, error) {
	n, err := strconv.ParseUint(s, 16, 64)
	if err != nil || len(s) != 16 || n == 0 {
		return 0, fmt.Errorf("%q: %w", s, ErrNodeID)
	}
	return NodeID(n), nil
}

// Member is one node of a ring.
type Member struct {
	_msgpack struct{} `msgpack:",as_array"` //lint:ignore U1000 read by msgpack

	ID      NodeID
	Name    string // for people
	Address string // of the mesh port, host:port
	HTTP    string // of the HTTP port, host:port; empty if it has none
	Zone    string // nodes that may fail together; empty is a zone too
	Weight  uint16 // 256 tokens each; 1 is the default, and what With makes of 0
	Gossip  string // of the gossip port, host:port
}

// Table is ring number Number: the agreed list of members.
// Invariant: Members are sorted by ID and IDs are distinct; With and Without keep
// it, Validate checks it in what came from elsewhere.
type Table struct {
	_msgpack struct{} `msgpack:",as_array"` //lint:ignore U1000 read by msgpack

	Number  uint64
	Members []Member
}

// Member returns the member of that ID.
func (t Table) Member(id NodeID) (Member, bool) {
	i, found := t.index(id)
	if !found {
		return Member{}, false
	}
	return t.Members[i], true
}

// With returns the next table, with m added or replacing the member of its ID.
// It shares no memory with t.
func (t Table) With(m Member) Table {
	if m.Weight == 0 {
		m.Weight = 1
	}
	next := t.next()
	if i, found := next.index(m.ID); found {
		next.Members[i] = m
	} else {
		next.Members = slices.Insert(next.Members, i, m)
	}
	return next
}

// Without returns the next table, without the member of that ID, if it is there.
// It shares no memory with t.
func (t Table) Without(id NodeID) Table {
	next := t.next()
	if i, found := next.index(id); found {
		next.Members = slices.Delete(next.Members, i, i+1)
	}
	return next
}

// Equal says whether both tables have the same number and members.
func (t Table) Equal(u Table) bool {
	return t.Number == u.Number && slices.Equal(t.Members, u.Members)
}

// Validate lists all that is wrong with a table.
func (t Table) Validate() error {
	var errs []error
	if t.Number == 0 {
		errs = append(errs, errors.New("ring number is 0"))
	}
	if len(t.Members) == 0 {
		errs = append(errs, errors.New("ring has no members"))
	}
	if len(t.Members) > MaxMembers {
		errs = append(errs, fmt.Errorf("ring has %d members, more than %d", len(t.Members), MaxMembers))
	}
	for i, m := range t.Members {
		if m.ID == 0 {
			errs = append(errs, fmt.Errorf("member %q has node ID 0", m.Name))
		}
		if m.Weight == 0 || m.Weight > MaxWeight {
			errs = append(errs, fmt.Errorf("member %s has weight %d, not 1..%d", m.ID, m.Weight, MaxWeight))
		}
		if i > 0 && m.ID == t.Members[i-1].ID {
			errs = append(errs, fmt.Errorf("member %s is listed twice", m.ID))
		}
		if i > 0 && m.ID < t.Members[i-1].ID {
			errs = append(errs, fmt.Errorf("member %s is out of order", m.ID))
		}
	}
	return errors.Join(errs...)
}

func (t Table) next() Table {
	return Table{Number: t.Number + 1, Members: sortedCopy(t.Members)}
}

func (t Table) index(id NodeID) (int, bool) {
	return slices.BinarySearchFunc(t.Members, id, func(m Member, id NodeID) int {
		return cmp.Compare(m.ID, id)
	})
}

func sortedCopy(members []Member) []Member {
	sorted := slices.Clone(members)
	slices.SortStableFunc(sorted, func(a, b Member) int { return cmp.Compare(a.ID, b.ID) })
	return slices.CompactFunc(sorted, func(a, b Member) bool { return a.ID == b.ID })
}
