package core

import (
	"slices"

	"github.com/meshq/meshq/ring"
	"github.com/meshq/meshq/transport/wire"
)

// A planted bug is a rule of the protocol, weakened on purpose, so that the simulator
// can be scored: what it does not find is a gap in what it tries or checks. Bugs exist
// only in a build with the tag mutants (planted_on.go, which says of each what rule it
// weakens and what must break); in any other, planted is false for the compiler and
// nothing of them is left (planted_off.go).

// bug is the name of a planted bug.
type bug string

const (
	bugConfirmBeforeSync   bug = "confirm-before-sync"
	bugHitUncounted        bug = "hit-confirmed-uncounted"
	bugQuorumRefused       bug = "quorum-error-as-refused"
	bugOverloadDrops       bug = "overload-drops"
	bugEpochReused         bug = "epoch-reused"
	bugConflictOverwrites  bug = "lane-conflict-overwrites"
	bugNoProducerChain     bug = "no-producer-chain"
	bugNoDuplicateCheck    bug = "no-duplicate-check"
	bugAckWithoutHeader    bug = "ack-without-header"
	bugFreedAfterOneGroup  bug = "freed-after-one-group"
	bugFloorDroppedEarly   bug = "floor-dropped-early"
	bugFallbackWithoutHint bug = "fallback-without-hint"
	bugHintDeletedEarly    bug = "hint-deleted-early"
	bugHintDeletedSent     bug = "hint-deleted-when-sent"
	bugDigestBeforeSync    bug = "digest-before-sync"
	bugNoAntiEntropy       bug = "no-anti-entropy"

	bugNoCatchUp       bug = "no-catch-up"
	bugGrantAfterBoot  bug = "grant-after-boot"
	bugMemoryGrants    bug = "grant-after-boot-no-terms"
	bugLeaseFromAnswer bug = "lease-from-answer"
	bugTermsInMemory   bug = "terms-not-on-disk"
	bugLiveMajority    bug = "live-majority"
	bugResetIsDeath    bug = "reset-is-death"
	bugClaimByGossip   bug = "claim-by-gossip"
	bugTermlessRelease bug = "release-without-term"
	bugTableAlways     bug = "handover-table-always"
	bugNoResume        bug = "no-resume"
	bugDeliveryLate    bug = "delivery-after-lease"
	bugNackByAttempt   bug = "nack-by-attempt"

	bugAckByAnyHome   bug = "ack-by-any-home"
	bugAckByFallbacks bug = "ack-by-fallbacks"
	bugAckOneRing     bug = "joint-ring-lease-only"
	bugAckOnOwnDisk   bug = "owner-acks-when-own-disk"

	bugNoJointRing      bug = "no-joint-ring"
	bugCountsBeforeCopy bug = "joiner-counts-before-copy"
	bugCopyNoPromise    bug = "copied-without-promise"
	bugStoredAtOnce     bug = "stored-at-once"
	bugExHomeDrops      bug = "ex-home-drops-data"
	bugRingByOneVote    bug = "ring-by-one-vote"

	bugDamagedGrants    bug = "damaged-grants"
	bugAmnesiaUnnoticed bug = "amnesia-unnoticed"
	bugRepairedByOne    bug = "repaired-by-one"
	bugRepairedNoTerm   bug = "repaired-forgets-term"
	bugDamageIgnored    bug = "damaged-batch-kept"
	bugDeliveryNoSum    bug = "delivery-without-checksum"

	bugPauseByFirst bug = "pause-ends-with-owner"
	bugChangeAlone  bug = "change-not-told"
)

// planted says whether a bug is in this core.
func (c *Core) planted(b bug) bool { return c.cfg.Planting.has(b) }

// What follows are bodies of planted bugs that are more than a condition.

// confirmAnywhere has a home replica confirm acks although it is not the owner.
func (p *partition) confirmAnywhere(m *wire.Settle, indices []int, set func(int, wire.Code), done func()) {
	var items []wire.AckItem
	for _, i := range indices {
		items = append(items, ackItems(&m.Items[i])...)
	}
	p.spreadAcks(items, wire.Term{}, func(ok bool, _ []ring.NodeID) {
		for _, i := range indices {
			if set(i, wire.CodeNotOwner); ok {
				set(i, 0)
			}
		}
		done()
	})
}

func onlyAcks(m *wire.Settle, indices []int) bool {
	return !slices.ContainsFunc(indices, func(i int) bool { return m.Items[i].Kind != wire.SettleAck })
}

// byAttempt finds the delivery that a receipt names by its attempt alone.
func (f *feed) byAttempt(x *wire.SettleItem) *delivery {
	for _, run := range x.Runs {
		for _, d := range deliveriesIn(f.lane(x.Receipt.Lane), run) {
			if d.receipt.Attempt == x.Receipt.Attempt {
				return d
			}
		}
	}
	return nil
}

// firstAlive says whether gossip calls no better placed home replica alive.
func (p *partition) firstAlive() bool {
	for _, id := range p.homes() {
		if slices.Contains(p.core.alive, id) || id == p.core.self {
			return id == p.core.self
		}
	}
	return false
}

// takeForDead forgets the grants of a holder whose connection is gone.
func (c *Core) takeForDead(holder ring.NodeID) {
	for _, id := range sortedKeys(c.parts) {
		if p := c.parts[id]; p.grant.holder == holder && p.grant.until != Never {
			p.grant = grant{}
			p.claimIn(0)
		}
	}
}

// dropFloors forgets closed lanes of which this replica knows all to be done.
func (p *partition) dropFloors() []wire.Op {
	var ops []wire.Op
	for _, id := range slices.Clone(p.order) {
		l := p.lanes[id]
		done := p.doneByAll(id)
		if len(l.held) > 0 || len(p.hints[id]) > 0 || len(done) != 1 || done.Floor() == 0 || id.Node == p.core.self && id.Epoch == p.core.epoch {
			continue
		}
		if p.core.peers[id.Node] == nil || p.core.peers[id.Node].boot == id.Epoch>>32 {
			continue // its writer may go on
		}
		for _, g := range sortedKeys(p.groups) {
			base := []uint64{uint64(p.id), uint64(g), uint64(id.Node), id.Epoch}
			ops = append(ops, remove(key(recordFloor, base...)), removeRange(key(recordPage, base...)))
			delete(p.groups[g].lanes, id)
		}
		delete(p.lanes, id)
		p.order = slices.DeleteFunc(p.order, func(x wire.Lane) bool { return x == id })
		p.sum = 0
	}
	return ops
}

// dropAll lets go of what this node holds.
func (p *partition) dropAll() {
	var ops []wire.Op
	for _, id := range p.order {
		l := p.lanes[id]
		for _, run := range l.held.Clone() {
			ops = append(ops, wire.Op{Kind: wire.OpFree, Partition: p.id, Lane: id, Run: run})
			l.held.Remove(run)
			p.core.cache.drop(p.id, id, run)
		}
	}
	p.sum = 0
	p.core.persistThen(ops, nil)
}

// enoughAnyway says whether acks are confirmed without a majority of each open ring.
func (p *partition) enoughAnyway(nodes []ring.NodeID) bool {
	switch {
	case p.core.planted(bugAckByFallbacks):
		return len(nodes) >= p.w
	case p.core.planted(bugAckOneRing):
		n := 0
		for _, id := range p.sets[0] {
			if slices.Contains(nodes, id) {
				n++
			}
		}
		return n > len(p.sets[0])/2
	}
	return false
}
