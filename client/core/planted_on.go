//go:build mutants

package core

// Planting names a bug to bring into a core; the zero value brings none.
type Planting struct{ Bug string }

func (p Planting) has(b bug) bool { return p.Bug == string(b) }

// PlantedBug describes a planted bug.
type PlantedBug struct {
	Name string
	Rule string // of the client, that it weakens
	// Breaks are the promises of which one must be found broken: another one would be the
	// wrong reason.
	Breaks []string
	Source string // where the rule is given
}

// Planted are all planted bugs of the client's core.
func Planted() []PlantedBug {
	return []PlantedBug{
		// P5: the first try is delivered as well, after what was sent since. P1: the answer to one try
		// confirms the batch, and what it is called since is on fewer disks.
		{"new-sequence-on-retry", "a batch that is tried again has the same sequence", []string{"P1", "P3", "P4", "P5", "P11"}, "design 4.5"},
		{"predecessor-not-named", "a batch names the last one that its producer got confirmed", []string{"P5"}, "design 4.1"},
		{"unknown-as-refused", "what some node may have stored is \"outcome unknown\"", []string{"P10"}, "design 1 (P10)"},
		{"failover-loses-batch", "a batch whose connection is lost is sent elsewhere, or the program is told", []string{"P10"}, "DESIGN 17"},
		{"no-term-fence", "a delivery of a lower term than was seen is dropped", []string{"P3", "P4"}, "DESIGN 7, review B3"},
		{"ack-gives-up", "\"kept, not confirmed\" is no end of an ack: the client asks until an owner confirms", []string{"P3"}, "design 6"},
		{"resume-forgets", "a new owner, and the other home replicas, are told what is held", []string{"P4"}, "design 5"},
		{"buffer-after-lease", "a message that waited in the client for longer than its lease is not handed to the program", []string{"P4"}, "design 1 (P4)"},
	}
}
