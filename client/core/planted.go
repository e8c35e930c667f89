package core

// A planted bug is a rule of the client, weakened on purpose, so that the simulator can
// be scored: see node/core/planted.go. Without the tag mutants there is none.

// bug is the name of a planted bug.
type bug string

const (
	bugNewSequence    bug = "new-sequence-on-retry"
	bugNoPredecessor  bug = "predecessor-not-named"
	bugUnknownRefused bug = "unknown-as-refused"
	bugFailoverLoses  bug = "failover-loses-batch"
	bugNoTermFence    bug = "no-term-fence"
	bugAckGivesUp     bug = "ack-gives-up"
	bugResumeForgets  bug = "resume-forgets"
	bugBufferLate     bug = "buffer-after-lease"
)

// planted says whether a bug is in this core.
func (c *Core) planted(b bug) bool { return c.config.Planting.has(b) }
