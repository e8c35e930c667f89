package plan

import (
	"embed"
	"fmt"
	"slices"
	"strings"
)

//go:embed scenarios
var scenarioFiles embed.FS

// Info describes a scenario. What its plan does is said by Plan.About.
type Info struct {
	Name   string
	Title  string
	Holds  string // promises that it is about, as in the design
	Where  int    // InSim, InReal
	Reason string // why it does not run in one of them; "" when it runs in both
}

// reasons why a scenario does not run among real processes.
const (
	noClock   = "the clock of one process cannot be set from outside: Go reads the vDSO"
	noAddress = "a node keeps its address in the harness"
	noKeys    = "a record cannot be put back into a store from outside"
)

var scenarios = []Info{
	{"S00", "calm: no fault, mixed load", "P4 P5 P9 strict, no duplicate", InSim | InReal, ""},
	{"S01", "each node is killed once under load", "all", InSim | InReal, ""},
	{"S02", "nodes are killed between sync and reply", "P1 P4", InSim | InReal, ""},
	{"S03", "all nodes are killed at once", "P1 P2", InSim | InReal, ""},
	{"S04", "rolling restart of every node", "P4 P6", InSim | InReal, ""},
	{"S05", "two halves, both sides used", "P1 P3 P4 P7", InSim | InReal, ""},
	{"S06", "nodes stand still past their lease, and go on", "P3 P4", InSim | InReal, ""},
	{"S07", "a ring of majorities: no two agree", "P3 P7", InSim | InReal, ""},
	{"S08", "one-way links, late and repeated packets", "P4", InSim | InReal, ""},
	{"S09", "a flapping link, 200 ms on and off", "P6, few changes of owner", InSim | InReal, ""},
	{"S10", "swizzle: cut off one by one, back in another order", "P6 P7", InSim | InReal, ""},
	{"S11", "gray node: slow link, slow steps, slow disk", "P6", InSim | InReal, ""},
	{"S12", "power cut of one machine after another", "P1", InSim | InReal, ""},
	{"S13", "power cut of all machines together", "P1", InSim | InReal, ""},
	{"S14", "torn last group of writes", "P1 P12", InSim | InReal, ""},
	{"S15", "W-1 disks lost, an empty node in place", "P1 P7", InSim | InReal, ""},
	{"S16", "W disks lose much: report, do not invent", "P9 P10 P12", InSim | InReal, ""},
	{"S17", "one flipped bit in a log", "P1 P9 P12", InSim | InReal, ""},
	{"S18", "a segment that does not open", "P9 P12", InSim | InReal, ""},
	{"S19", "records damaged on a minority", "P12, no deletes elsewhere", InSim | InReal, ""},
	{"S20", "a disk set back to an old copy", "P3 P12", InSim | InReal, ""},
	{"S21", "an fsync fails: the node stops itself", "P1 P12", InSim | InReal, ""},
	{"S22", "an fsync takes ten seconds", "P6", InSim | InReal, ""},
	{"S23", "producers time out and send again elsewhere", "P4", InSim | InReal, ""},
	{"S24", "acks are lost, or reach one copy alone", "P3 P4", InSim | InReal, ""},
	{"S25", "late acks of consumers that stood still", "P3 P4", InSim | InReal, ""},
	{"S26", "a consumer dies with 10,000 messages", "P2 P8", InSim | InReal, ""},
	{"S27", "poison kills each consumer", "P2", InSim | InReal, ""},
	{"S28", "owners change while they deliver", "P4 P5", InSim | InReal, ""},
	{"S29", "nack storm", "P8 P10", InSim | InReal, ""},
	{"S30", "slow consumers, growing backlog", "P8", InSim | InReal, ""},
	{"S31", "wall clocks jump by an hour, clocks drift", "P1 to P4 without a wall clock", InSim, noClock},
	{"S32", "isolation longer than memberlist remembers", "P7: one mesh again", InSim | InReal, ""},
	{"S33", "restart faster than detection", "P2 P3", InSim | InReal, ""},
	{"S34", "a node is back and gossip does not say so", "P6 P7", InSim, noAddress},
	{"S35", "two processes with one identity", "P1 P4, one is fenced", InSim | InReal, ""},
	{"S36", "both sides of a split write and ack", "P1 P3 P7", InSim | InReal, ""},
	{"S37", "holders of hints die before they hand over", "P1", InSim | InReal, ""},
	{"S38", "the node that hints are for is replaced", "P1 P7", InSim | InReal, ""},
	{"S39", "hints come back after all is acked", "P3", InSim | InReal, ""},
	{"S40", "ring changes, split and kills together", "P1 P7", InSim | InReal, ""},
	{"S41", "the founder is back with an empty disk", "P1 P12", InSim | InReal, ""},
	{"S42", "a queue is deleted and made again while copies are away", "P11, nothing old returns", InSim | InReal, ""},
	{"S43", "disk full, then freed", "P10", InSim | InReal, ""},
	{"S44", "deleted records are back", "P3", InSim, noKeys},
	{"S45", "memory pressure and kills", "P1 P8", InSim | InReal, ""},
	{"S46", "join storm, 3 to 9 nodes", "P3 P7", InSim | InReal, ""},
	{"S47", "halves that cannot gossip, as in a change of keys", "P6 P7", InSim | InReal, ""},
	{"S48", "rolling restart and back, as in an upgrade", "all", InSim | InReal, ""},
	{"S49", "heal after everything: nothing is stuck", "P2 P7", InSim | InReal, ""},
	{"S50", "overload, ten times the load", "P8 P10", InSim | InReal, ""},
	{"S51", "asymmetric views: one thinks another is dead", "P3 P4", InSim, "a false death is made in the simulator alone; S52 is its counterpart"},
	{"S52", "gossip blocked, connections open", "P4 P6", InSim | InReal, ""},
	{"S53", "false death of a node that stood still", "P4, no data moved", InSim | InReal, ""},
	{"S54", "damaged packets", "P9", InSim | InReal, ""},
	{"S55", "mass restart in random order", "P7", InSim | InReal, ""},
	{"S56", "long run of everything", "all", InSim | InReal, ""},
}

// Scenarios lists the scenarios S00..S56.
func Scenarios() []Info { return slices.Clone(scenarios) }

// Scenario is the plan of a scenario, by its name: S05, or s5.
func Scenario(name string) (*Plan, error) {
	full := strings.ToUpper(strings.TrimSpace(name))
	if n := strings.TrimPrefix(full, "S"); len(n) == 1 {
		full = "S0" + n
	} else {
		full = "S" + n
	}
	i := slices.IndexFunc(scenarios, func(s Info) bool { return s.Name == full })
	if i < 0 {
		return nil, fmt.Errorf("no scenario %q; %sthere are S00 to S%02d", name, near(name), len(scenarios)-1)
	}
	f, err := scenarioFiles.Open("scenarios/" + full + ".json")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	p, err := Read(f)
	if err != nil {
		return nil, fmt.Errorf("scenario %s: %w", full, err)
	}
	return p, nil
}

// near names the scenarios whose title has words of what was asked for, or that share
// digits with it.
func near(name string) string {
	name = strings.ToLower(strings.TrimSpace(name))
	if name == "" {
		return ""
	}
	var like []string
	for _, s := range scenarios {
		digits := strings.ToLower(s.Name[1:])
		if strings.Contains(strings.ToLower(s.Title), name) || strings.Contains(name, digits) {
			like = append(like, fmt.Sprintf("%s (%s)", s.Name, s.Title))
		}
	}
	if len(like) == 0 || len(like) > 5 {
		return ""
	}
	return "did you mean " + strings.Join(like, ", ") + "? "
}
