package plan

import "time"

// Version is that of the file format.
const Version = 1

// Plan is one schedule: a mesh, its load and its faults. In a file it is JSON; fields
// that are missing take the default that their comment names.
type Plan struct {
	Version int    `json:"version"`
	Name    string `json:"name,omitempty"`  // S05, or the promise and a hash for a plan that was found
	About   string `json:"about,omitempty"` // one sentence for people
	Seed    uint64 `json:"seed"`            // of the luck: latencies, sizes, what a crash keeps

	Mesh      Mesh       `json:"mesh"`
	Queues    []Queue    `json:"queues"`
	Producers []Producer `json:"producers"`
	Consumers []Consumer `json:"consumers"`
	Faults    []Fault    `json:"faults"`

	Length Duration `json:"length"` // of the phase with load and faults; then all is healed and drained
	// Beyond says that the faults are more than the promises cover (two disks of three
	// lost, a clock that stopped): only honest reporting is checked then.
	Beyond bool `json:"beyond,omitempty"`
	// Must names situations that the run has to reach; a run that does not is no proof.
	Must []string `json:"must,omitempty"`
}

// Mesh is what the queues run on.
type Mesh struct {
	Nodes   []Node  `json:"nodes"`
	Network Network `json:"network,omitzero"`
	Disk    Disk    `json:"disk,omitzero"`
	// Sync is when a commit is confirmed: "always", after its fsync (the default), or
	// "interval", once it is written, with an fsync each 100 ms.
	Sync   string `json:"sync,omitempty"`
	Limits Limits `json:"limits,omitzero"`
}

// Node is one node. The first founds the mesh.
type Node struct {
	Name  string   `json:"name"`
	Zone  string   `json:"zone,omitempty"`
	Drift int      `json:"drift,omitempty"` // of its monotonic clock, parts per million, at most 500,000
	Wall  Duration `json:"wall,omitempty"`  // how far its wall clock is off
	// Joins is when it is started, after the load began; 0: before, with the founder.
	Joins Duration `json:"joins,omitempty"`
}

// Network is how the network behaves without faults.
type Network struct {
	Latency Duration `json:"latency,omitempty"` // shortest, one way; default 200us
	Jitter  Duration `json:"jitter,omitempty"`  // mean of the exponential part; default 300us
}

// Disk is how a disk behaves without faults.
type Disk struct {
	Sync   Duration `json:"sync,omitempty"`   // shortest fsync; default 500us
	Jitter Duration `json:"jitter,omitempty"` // mean of the exponential part; default 1ms
}

// Limits are the bounds of each node's memory (core.Limits); 0: the default there.
type Limits struct {
	PendingBytes int `json:"pending_bytes,omitempty"`
	CacheBytes   int `json:"cache_bytes,omitempty"`
	Retries      int `json:"retries,omitempty"`
	InFlight     int `json:"in_flight,omitempty"`
	HintBytes    int `json:"hint_bytes,omitempty"`
	Segments     int `json:"segments,omitempty"`
}

// Queue is created before the load begins.
type Queue struct {
	Name        string   `json:"name"`
	Partitions  int      `json:"partitions,omitempty"`   // default 1
	Replicas    int      `json:"replicas,omitempty"`     // default 3
	WriteQuorum int      `json:"write_quorum,omitempty"` // default: majority of the replicas
	Groups      []string `json:"groups,omitempty"`       // default: default
	Lease       Duration `json:"lease,omitempty"`        // default 30s
	BackoffMin  Duration `json:"backoff_min,omitempty"`  // default 1s
	BackoffMax  Duration `json:"backoff_max,omitempty"`  // default 5m
}

// Producer sends to one queue until the end of the phase with faults.
type Producer struct {
	Name  string `json:"name"`
	Queue string `json:"queue"`
	// Raw is a client that others wrote: it knows the wire protocol alone, sends one
	// batch at a time to one partition, and never gives up. Otherwise it is the client
	// library. Real processes always run the library.
	Raw       bool     `json:"raw,omitempty"`
	Partition int      `json:"partition,omitempty"` // of a raw producer
	Think     Duration `json:"think,omitempty"`     // mean time between sends; default 20ms
	Batch     int      `json:"batch,omitempty"`     // messages that are sent at once, at most; default 4
	Bytes     int      `json:"bytes,omitempty"`     // of a body, at most; default 64
	Keys      int      `json:"keys,omitempty"`      // how many different keys; 0: no key
	Count     int      `json:"count,omitempty"`     // messages in all; 0: as many as fit in the time
	Timeout   Duration `json:"timeout,omitempty"`   // for one send; default 2s
}

// Consumer takes messages of one group.
type Consumer struct {
	Name   string   `json:"name"`
	Queue  string   `json:"queue"`
	Group  string   `json:"group,omitempty"`  // default: default
	Raw    bool     `json:"raw,omitempty"`    // as for Producer
	Relay  string   `json:"relay,omitempty"`  // a raw consumer: takes all through this node
	Window int      `json:"window,omitempty"` // messages that it holds, at most; default 16
	Hold   Duration `json:"hold,omitempty"`   // mean time that it works on one; default 50ms
	Nack   float64  `json:"nack,omitempty"`   // share that it nacks
	Forget float64  `json:"forget,omitempty"` // share that it neither acks nor nacks the first time
}

// Fault is one thing that goes wrong. What On, To, By, Share and Count mean is said by
// its kind ([Kinds]).
type Fault struct {
	Kind  Kind     `json:"kind"`
	At    Duration `json:"at"`              // after the load began
	For   Duration `json:"for,omitempty"`   // 0: until everything is healed, or it is over at once
	On    []string `json:"on,omitempty"`    // nodes or clients
	To    []string `json:"to,omitempty"`    // the other side
	By    Duration `json:"by,omitempty"`    // how much
	Share float64  `json:"share,omitempty"` // 0..1
	Count int      `json:"count,omitempty"`
}

// Duration is a time.Duration that is text ("1.5s") in a file.
type Duration time.Duration

// MarshalText gives it as time.Duration prints it.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText takes what time.ParseDuration takes.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	*d = Duration(v)
	return err
}

func (d Duration) String() string { return time.Duration(d).String() }

// QueueOf is the queue that a client of the plan uses; "": there is no such client.
func (p *Plan) QueueOf(client string) string {
	for i := range p.Producers {
		if p.Producers[i].Name == client {
			return p.Producers[i].Queue
		}
	}
	for i := range p.Consumers {
		if p.Consumers[i].Name == client {
			return p.Consumers[i].Queue
		}
	}
	return ""
}
