package chaos

import (
	"slices"

	"github.com/meshq/meshq/sim/plan"
)

// What kinds of faults need, beyond processes and their files.
var (
	needSwitch = []plan.Kind{
		plan.Cut, plan.CutOneWay, plan.Split, plan.RingCut, plan.Bridge, plan.Flap, plan.Swizzle, plan.SlowLink, plan.Late,
		plan.Loss, plan.Duplicate, plan.Bandwidth, plan.Reset, plan.HalfOpen, plan.Corrupt, plan.GossipCut, plan.AnswerLost,
	}
	needDisks   = []plan.Kind{plan.PowerCut, plan.DiskSlow, plan.DiskStall, plan.DiskFull, plan.DiskError}
	needSignals = []plan.Kind{plan.Pause, plan.SlowNode, plan.Twin, plan.Rollback, plan.Amnesia}
)

// CanSwitch is nil when this user of this machine can have a network of the kind Switched,
// else a *MissingError.
func CanSwitch() error { return checkSwitched() }

// CanMount says the same of Config.Disks.
func CanMount() error { return checkDisks() }

// Can is nil when a kind of fault can be brought about in this mesh, else a *CannotError.
func (m *Mesh) Can(kind plan.Kind) error { return m.config.Can(kind) }

// Can says the same before there is a mesh.
func (c *Config) Can(kind plan.Kind) error {
	at := slices.IndexFunc(plan.Kinds, func(k plan.KindInfo) bool { return k.Kind == kind })
	switch {
	case at < 0:
		return &CannotError{Kind: kind, Reason: "there is no such kind of fault"}
	case plan.Kinds[at].Where&plan.InReal == 0:
		return &CannotError{Kind: kind, Reason: "only the simulator can do it"}
	case slices.Contains(needSwitch, kind) && c.Network != Switched:
		return &CannotError{Kind: kind, Reason: "on loopback nothing happens to packets", Hint: "run as root on Linux with --network switched"}
	case slices.Contains(needDisks, kind) && !c.Disks:
		return &CannotError{Kind: kind, Reason: "the nodes have no file systems of their own", Hint: "run as root on Linux with --disks own"}
	case slices.Contains(needSignals, kind) && !signals:
		return &CannotError{Kind: kind, Reason: "this system cannot make a process stand still"}
	}
	return nil
}
