package wire

import (
	"fmt"
	"slices"
	"sort"
	"strings"
)

// Run is the half-open range [From, To) of offsets (or of sequence numbers).
type Run struct {
	From, To Offset
}

// Span is the run [from, to).
func Span(from, to Offset) Run { return Run{From: from, To: to} }

// Len is the number of offsets in r.
func (r Run) Len() uint64 { return uint64(r.To - r.From) }

// Has tells whether o is in r.
func (r Run) Has(o Offset) bool { return r.From <= o && o < r.To }

// Runs is a set of offsets as sorted, disjoint, non-adjacent, non-empty runs.
// The zero value is the empty set. Methods that change the set change the
// receiver; the slices that they return share nothing with it.
type Runs []Run

// search is the index of the first run that ends at or after o.
func (s Runs) search(o Offset) int {
	if n := len(s); n > 0 && s[n-1].To < o { // appends at the end are the common case
		return n
	}
	return sort.Search(len(s), func(i int) bool { return s[i].To >= o })
}

// Add adds r and tells how many offsets are new.
func (s *Runs) Add(r Run) (added uint64) {
	if r.From >= r.To {
		return 0
	}
	i := s.search(r.From)
	j, held := i, uint64(0)
	from, to := r.From, r.To
	for j < len(*s) && (*s)[j].From <= r.To {
		from, to = min(from, (*s)[j].From), max(to, (*s)[j].To)
		held += (*s)[j].Len()
		j++
	}
	merged := Span(from, to)
	if i == j {
		*s = slices.Insert(*s, i, merged)
	} else {
		(*s)[i] = merged
		*s = slices.Delete(*s, i+1, j)
	}
	return merged.Len() - held
}

// AddAll adds all of t and tells how many offsets are new.
func (s *Runs) AddAll(t Runs) (added uint64) {
	for _, r := range t {
		added += s.Add(r)
	}
	return added
}

// Remove takes r out.
func (s *Runs) Remove(r Run) {
	if r.From >= r.To || len(*s) == 0 {
		return
	}
	var out Runs
	for _, x := range *s {
		if x.To <= r.From || x.From >= r.To {
			out = append(out, x)
			continue
		}
		if x.From < r.From {
			out = append(out, Span(x.From, r.From))
		}
		if x.To > r.To {
			out = append(out, Span(r.To, x.To))
		}
	}
	*s = out
}

// Contains tells whether o is in the set.
func (s Runs) Contains(o Offset) bool {
	i := s.search(o + 1)
	return i < len(s) && s[i].From <= o && o < s[i].To
}

// Covers tells whether all of r is in the set.
func (s Runs) Covers(r Run) bool {
	if r.From >= r.To {
		return true
	}
	i := s.search(r.From + 1)
	return i < len(s) && s[i].From <= r.From && r.To <= s[i].To
}

// Overlap is what of r is in the set.
func (s Runs) Overlap(r Run) Runs {
	var out Runs
	for i := s.search(r.From + 1); i < len(s) && s[i].From < r.To; i++ {
		if x := Span(max(r.From, s[i].From), min(r.To, s[i].To)); x.From < x.To {
			out = append(out, x)
		}
	}
	return out
}

// Missing is what of r is not in the set.
func (s Runs) Missing(r Run) Runs {
	var out Runs
	at := r.From
	for i := s.search(r.From + 1); i < len(s) && s[i].From < r.To && at < r.To; i++ {
		if at < s[i].From {
			out = append(out, Span(at, s[i].From))
		}
		at = max(at, s[i].To)
	}
	if at < r.To {
		out = append(out, Span(at, r.To))
	}
	return out
}

// Minus is the set of what is in s and not in t.
func (s Runs) Minus(t Runs) Runs {
	var out Runs
	for _, r := range s {
		out = append(out, t.Missing(r)...)
	}
	return out
}

// Intersect is the set of what is in both.
func (s Runs) Intersect(t Runs) Runs {
	var out Runs
	for _, r := range s {
		out = append(out, t.Overlap(r)...)
	}
	return out
}

// Next is the first offset at or after o that is in the set.
func (s Runs) Next(o Offset) (Offset, bool) {
	i := s.search(o + 1)
	if i == len(s) || o+1 == 0 { // a run cannot hold the last offset of all
		return 0, false
	}
	return max(o, s[i].From), true
}

// Gap is the first offset at or after o that is not in the set.
func (s Runs) Gap(o Offset) Offset {
	i := s.search(o + 1)
	if i < len(s) && s[i].From <= o {
		return s[i].To
	}
	return o
}

// Floor is the first offset that is not in the set, counted from 0.
func (s Runs) Floor() Offset { return s.Gap(0) }

// End is one past the highest offset of the set; 0 when it is empty.
func (s Runs) End() Offset {
	if len(s) == 0 {
		return 0
	}
	return s[len(s)-1].To
}

// Count is the number of offsets in the set.
func (s Runs) Count() (n uint64) {
	for _, r := range s {
		n += r.Len()
	}
	return n
}

// Clone is a copy that shares nothing with s.
func (s Runs) Clone() Runs { return slices.Clone(s) }

// Equal tells whether both sets hold the same offsets.
func (s Runs) Equal(t Runs) bool { return slices.Equal(s, t) }

// Validate tells what is wrong with runs that came from outside.
func (s Runs) Validate() error {
	for i, r := range s {
		if r.From >= r.To {
			return fmt.Errorf("run %d is empty: [%d,%d)", i, r.From, r.To)
		}
		if i > 0 && s[i-1].To >= r.From {
			return fmt.Errorf("run %d overlaps or touches the one before it", i)
		}
	}
	return nil
}

// String lists the runs: [0,5) [7,9).
func (s Runs) String() string {
	if len(s) == 0 {
		return "[)"
	}
	parts := make([]string, len(s))
	for i, r := range s {
		parts[i] = fmt.Sprintf("[%d,%d)", r.From, r.To)
	}
	return strings.Join(parts, " ")
}
