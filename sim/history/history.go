package history

import "time"

// Kind is what an event tells.
type Kind string

// The kinds of events. A client's events are told by the client itself, so that real
// processes can tell them too; each concerns one message.
const (
	Sent      Kind = "sent"      // a producer gives a message to its client
	Confirmed Kind = "confirmed" // it is told that the message is synced: Copies of Want
	Refused   Kind = "refused"   // it is told that it is not stored: Code
	Unknown   Kind = "unknown"   // it is told that it may be stored: Code

	Delivered Kind = "delivered" // a consumer has it in hand: Term, Attempt, Cause, Lease
	Dropped   Kind = "dropped"   // the client dropped a delivery: it knows a newer owner
	Acking    Kind = "acking"    // a consumer acks it
	Acked     Kind = "acked"     // and is told that the ack is final
	AckFailed Kind = "ack-failed"
	Nacked    Kind = "nacked"   // it gives it back with an attempt; told when it asks, not when that is confirmed
	Released  Kind = "released" // and without one
	Extended  Kind = "extended" // it is told that it has it for Lease more
	LeaseOver Kind = "lease-over"

	ClientUp   Kind = "client-up"
	ClientDown Kind = "client-down" // it was killed, with all that it held
	NodeUp     Kind = "node-up"     // it serves
	NodeDown   Kind = "node-down"
	FaultBegin Kind = "fault-begin" // Code is its kind, On whom it touches; Number is its place in the plan
	FaultEnd   Kind = "fault-end"   // of the same Number; what is over at once ends when it begins
	Healed     Kind = "healed"      // all faults are over and all nodes started
	Drained    Kind = "drained"     // producers are through and nothing is left to deliver
	State      Kind = "state"       // what a node says of one partition at rest
	Sample     Kind = "sample"      // of a node's Memory and Disk
	Purged     Kind = "purged"      // what was sent to Queue before is gone: it was deleted
)

// Message names a message: the number-th that this producer sent, from 0. A producer
// that was killed and started again has another name.
type Message struct {
	Producer string `json:"producer"`
	Number   uint64 `json:"number"`
}

// Term is that of an owner.
type Term struct {
	Counter uint64 `json:"counter"`
	Node    string `json:"node"`
}

// Event is one line of a history.
type Event struct {
	At        time.Duration `json:"at"` // since the load began
	Kind      Kind          `json:"kind"`
	Who       string        `json:"who,omitempty"`  // the client or the node that tells
	Node      string        `json:"node,omitempty"` // the node it has to do with, if known; of a delivery that a node relayed: none
	Queue     string        `json:"queue,omitempty"`
	Group     string        `json:"group,omitempty"`
	Partition uint32        `json:"partition,omitempty"`
	Message   Message       `json:"message,omitzero"`
	Hash      uint64        `json:"hash,omitempty"` // of body, key and headers, as sent or as delivered
	ID        string        `json:"id,omitempty"`   // position, as confirmed or delivered
	Term      Term          `json:"term,omitzero"`
	Attempt   uint32        `json:"attempt,omitempty"`
	Cause     string        `json:"cause,omitempty"` // of a delivery that is not the first, as the node states it
	Lease     time.Duration `json:"lease,omitempty"`
	Copies    int           `json:"copies,omitempty"`
	Want      int           `json:"want,omitempty"`   // of State: home replicas that the partition should have
	Within    time.Duration `json:"within,omitempty"` // of Sent: in which it should be answered; 0: the producer never gives up
	Code      string        `json:"code,omitempty"`   // of an error, see CodeName
	On        []string      `json:"on,omitempty"`     // of FaultBegin: nodes and clients; none: all
	Delayed   bool          `json:"delayed,omitempty"`
	Text      string        `json:"text,omitempty"`
	Number    int           `json:"number,omitempty"`

	Replica *Replica `json:"replica,omitempty"` // of State
	Memory  int64    `json:"memory,omitempty"`  // bytes, of Sample
	Disk    int64    `json:"disk,omitempty"`
}

// Replica is what a node says of one partition that it is a home replica of, or keeps
// hints for.
type Replica struct {
	Home, Owns, Repairing bool
	Hints                 int
	Digest                string // of the whole state
	Messages              uint64
	Groups                []GroupState
}

// GroupState is what an owner says of a group in a partition.
type GroupState struct {
	Name                           string
	Done, Ready, InFlight, Delayed uint64
}

// History is what happened in a run, in order of time.
type History struct {
	Events []Event
}

// Violation is a promise that was broken.
type Violation struct {
	Promise string        `json:"promise"` // P1..P12, or the name of another invariant
	Text    string        `json:"text"`
	At      time.Duration `json:"at"`
	Message Message       `json:"message,omitzero"` // the guilty one, if it is about one
	Group   string        `json:"group,omitempty"`
}

func (v *Violation) Error() string { return v.Promise + ": " + v.Text }
