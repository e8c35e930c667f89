//go:build mutants

package core

// Planting names a bug to bring into a core; the zero value brings none.
type Planting struct{ Bug string }

func (p Planting) has(b bug) bool { return p.Bug == string(b) }

// PlantedBug describes a planted bug.
type PlantedBug struct {
	Name string
	Rule string // of the protocol, that it weakens
	// Breaks are the promises, or other invariants of the simulator, of which one must be
	// found broken: another one would be the wrong reason.
	Breaks []string
	Source string // where the rule is given
}

// Planted are all planted bugs of the node's core.
func Planted() []PlantedBug {
	return []PlantedBug{
		{"confirm-before-sync", "a batch is confirmed when W nodes have it synced, not when they have it", []string{"P1"}, "design 4.4"},
		{"hit-confirmed-uncounted", "a batch that is known already is confirmed after W copies of it were counted", []string{"P1"}, "design 4.5, review A12"},
		{"quorum-error-as-refused", "without W the answer is \"outcome unknown\", never \"not stored\"", []string{"P10"}, "design 1, review B16"},
		{"overload-drops", "past a bound the sender is told", []string{"P10"}, "design 4"},
		{"epoch-reused", "every boot opens new lanes", []string{"P1", "P2", "P3", "P5", "P7", "P9", "P11"}, "design 2, review B12"},
		{"lane-conflict-overwrites", "a replica refuses other bytes at a position that it knows (with lanes reused)", []string{"P1", "P2", "P5", "P9", "P11"}, "review B12"},
		{"no-producer-chain", "a batch goes when its predecessor is done or was handed out in this term", []string{"P5"}, "design 6, review A1"},
		{"no-duplicate-check", "two positions with one (producer, sequence) are one message", []string{"P3", "P4"}, "design 4, review A2"},
		{"ack-without-header", "acks and states carry where messages are whose batches are not here", []string{"P3", "P4"}, "review A2"},
		{"freed-after-one-group", "a body goes when all groups have done it", []string{"P1", "P2", "P5"}, "design 9"},
		{"floor-dropped-early", "the floor of a closed lane stays", []string{"P3", "P7", "P11"}, "review A10"},
		{"fallback-without-hint", "a fallback keeps a batch as a hint", []string{"P2", "P5", "P7"}, "design 4.4, review A8"},
		{"hint-deleted-early", "a hint goes when W home replicas have its batch, not when one has", []string{"P1", "P2"}, "design 7, review A8"},
		{"hint-deleted-when-sent", "a hint goes when the home replicas say that they have its batch", []string{"P1", "P2"}, "design 7"},
		{"digest-before-sync", "what a replica says it has is synced before the answer leaves", []string{"P1", "P2"}, "design 7"},
		{"no-anti-entropy", "home replicas compare when they connect and every 30 s", []string{"P2", "P7"}, "design 7"},

		{"no-catch-up", "an owner merges the states of a majority before it hands out (nor does it hear news)", []string{"P3"}, "design 5"},
		{"grant-after-boot", "after a boot a replica grants nothing new for one lease", []string{"two owners", "P3", "P4"}, "design 5"},
		{"grant-after-boot-no-terms", "the same, and promised terms are on disk", []string{"two owners", "P2", "P3", "P4"}, "design 5"},
		{"lease-from-answer", "the holder counts a grant from when it asked, less 5 %", []string{"two owners", "P3", "P4"}, "design 5"},
		{"terms-not-on-disk", "a promised term is on disk before it is told", []string{"two owners", "P2", "P3", "P4"}, "design 5"},
		{"live-majority", "a majority is one of all home replicas, not of those that look alive", []string{"two owners", "P2live", "P3"}, "design 5, review A9"},
		{"reset-is-death", "a reset connection is no proof of death and shortens no grant", []string{"two owners", "P3", "P4"}, "DESIGN 9"},
		{"claim-by-gossip", "any home replica claims when no grant runs; gossip decides nothing", []string{"P2live", "P2"}, "design 3 and 5, review A11"},
		{"release-without-term", "a release cancels the grant of its own term alone", []string{"two owners", "P3", "P4"}, "design 5, review B1"},
		{"handover-table-always", "a table that was handed over counts only if no term was promised in between", []string{"P4"}, "design 5, review B1"},
		{"no-resume", "a new owner takes what consumers say that they hold", []string{"P4"}, "design 5, review A4"},
		{"delivery-after-lease", "deliveries leave the node only before the ownership lease ends", []string{"P3", "P4", "P5"}, "design 6"},
		{"nack-by-attempt", "a nack counts for the delivery that its receipt names, by term and serial", []string{"P4"}, "design 6, review A5"},

		{"ack-by-any-home", "only the owner confirms an ack", []string{"P3"}, "design 6, review A3"},
		{"ack-by-fallbacks", "an ack needs a majority of the home replicas; fallbacks do not count", []string{"P3"}, "design 6"},
		{"joint-ring-lease-only", "acks need a majority in every open ring too", []string{"P3"}, "design 8, review A9"},
		{"owner-acks-when-own-disk", "an owner marks an ack in memory before it writes it", []string{"P3"}, "design 6, review B2"},

		{"no-joint-ring", "while a partition moves, both rings count", []string{"two owners", "P1", "P2", "P3", "P4", "P5"}, "design 8, review A9"},
		{"joiner-counts-before-copy", "a new home replica counts when it has copied", []string{"two owners", "P2", "P3", "P4", "P5"}, "design 8, review A9"},
		{"copied-without-promise", "a new home replica promises the highest term that it copied", []string{"two owners", "P2", "P3", "P4"}, "design 8 and 12"},
		{"stored-at-once", "a member says \"stored\" when no grant under an older ring can run", []string{"two owners", "P3", "P4"}, "design 8, review A9"},
		{"ex-home-drops-data", "an ex-home keeps what it holds until W home replicas have it", []string{"P1", "P2"}, "design 8"},
		{"ring-by-one-vote", "a ring step needs a majority of the members", []string{"two owners", "P2", "P2live", "P6", "P7", "founding"}, "design 3, review A9"},

		{"damaged-grants", "a replica that lost state grants and counts for nothing", []string{"two owners", "P1", "P2", "P3", "P4"}, "design 1 (P12), review A13"},
		{"amnesia-unnoticed", "a node that came back with less than it confirmed repairs all its partitions", []string{"two owners", "P1", "P2", "P3", "P4", "P7"}, "design 7, review A13"},
		{"repaired-by-one", "a repair needs N - majority + 1 other home replicas", []string{"two owners", "P1", "P2", "P3"}, "design 1 (P12)"},
		{"repaired-forgets-term", "a replica that is whole again promises the highest term that it heard of", []string{"two owners", "P3", "P4"}, "design 7"},
		{"damaged-batch-kept", "a batch that fails its checksum is not what the replica has", []string{"P2", "P9"}, "design 1 (P9)"},
		{"delivery-without-checksum", "a delivery has a checksum: that of its batch does not cover a part of it", []string{"P9"}, "design 1 (P9)"},

		{"pause-ends-with-owner", "an owner that took over goes by the pauses of the catalog as the one before did", []string{"pause"}, "design 3"},
		{"change-not-told", "who changes a setting without knowing of a later change is told, and changes it on top of that", []string{"catalog", "P2", "P7", "pause"}, "design 3"},
	}
}
