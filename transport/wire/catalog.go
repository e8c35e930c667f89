package wire

import "fmt"

// Counter orders the values of one field of a catalog entry: highest wins,
// Node breaks ties. It is one more than the highest that its writer had seen;
// no clock is involved.
type Counter struct {
	N    uint64
	Node uint64 // ring.NodeID of the writer
}

// Less tells whether c is below d.
func (c Counter) Less(d Counter) bool { return c.N < d.N || c.N == d.N && c.Node < d.Node }

// Settings of a queue. All durations are milliseconds.
type Settings struct {
	Partitions      uint32 // 1..1024; default 1
	Replicas        uint8  // 1..7; default 3
	WriteQuorum     uint8  // 1..Replicas; default majority of Replicas
	Lease           uint32 // delivery lease (visibility timeout); 1,000..43,200,000; default 30,000
	MaxMessageBytes uint32 // 1..4 MiB; default 1 MiB
	BackoffMin      uint32 // first retry after a nack; default 1,000
	BackoffMax      uint32 // longest wait between retries; default 300,000
}

// DefaultSettings are those of a queue that was created without any.
func DefaultSettings() Settings {
	return Settings{
		Partitions: 1, Replicas: 3, WriteQuorum: 2, Lease: 30_000, MaxMessageBytes: MaxMessageBytes,
		BackoffMin: 1_000, BackoffMax: 300_000,
	}
}

// WithDefaults returns s with the default for each field that is 0. The default of
// WriteQuorum is the majority of Replicas.
func (s Settings) WithDefaults() Settings {
	d := DefaultSettings()
	if s.Partitions == 0 {
		s.Partitions = d.Partitions
	}
	if s.Replicas == 0 {
		s.Replicas = d.Replicas
	}
	if s.WriteQuorum == 0 {
		s.WriteQuorum = s.Replicas/2 + 1
	}
	if s.Lease == 0 {
		s.Lease = d.Lease
	}
	if s.MaxMessageBytes == 0 {
		s.MaxMessageBytes = d.MaxMessageBytes
	}
	if s.BackoffMin == 0 {
		s.BackoffMin = d.BackoffMin
	}
	if s.BackoffMax == 0 {
		s.BackoffMax = max(d.BackoffMax, s.BackoffMin)
	}
	return s
}

// Limits of settings.
const (
	MaxPartitions = 1024
	MaxReplicas   = 7
	MaxNameBytes  = 128
	MaxGroups     = 64
	MaxLease      = 12 * 3600 * 1000
)

// Validate names the first setting that is out of range, its value and the range.
func (s Settings) Validate() error {
	for _, c := range []struct {
		name          string
		value, lo, hi uint64
	}{
		{"partitions", uint64(s.Partitions), 1, MaxPartitions},
		{"replicas", uint64(s.Replicas), 1, MaxReplicas},
		{"write_quorum", uint64(s.WriteQuorum), 1, uint64(s.Replicas)},
		{"lease", uint64(s.Lease), 1_000, MaxLease},
		{"max_message_bytes", uint64(s.MaxMessageBytes), 1, 4 << 20},
		{"backoff_min", uint64(s.BackoffMin), 1, 86_400_000},
		{"backoff_max", uint64(s.BackoffMax), uint64(s.BackoffMin), 86_400_000},
	} {
		if c.value < c.lo || c.value > c.hi {
			return Errorf(ErrBadRequest, "%s is %d, allowed are %d to %d", c.name, c.value, c.lo, c.hi)
		}
	}
	return nil
}

// GroupEntry is one group of a queue in the catalog.
type GroupEntry struct {
	Name       string
	Generation uint64
}

// QueueEntry is one queue in the catalog: a CRDT that merges per field. The
// queue's identity is (Name, Generation); Generation is the highest deleted
// generation + 1, so two creates at once make one queue.
type QueueEntry struct {
	Name        string
	Generation  uint64 // 0: never created
	Deleted     uint64 // all generations up to this one are deleted
	CreatedRing uint64 // number of the ring at creation; the lowest wins
	Settings    Settings
	SettingsAt  Counter
	Groups      []GroupEntry // sorted by name
	Version     uint64       // the catalog version that last changed the entry
}

// Live tells whether the queue exists now.
func (q *QueueEntry) Live() bool { return q.Generation > q.Deleted }

// Partition is the ID of the queue's partition with that index.
func (q *QueueEntry) Partition(index uint32) PartitionID {
	return Partition(q.Name, q.Generation, index)
}

// CheckName tells what is wrong with the name of a queue or group: 1 to 128
// bytes of letters, digits and . _ - that do not start with a dot or a dash.
func CheckName(what, name string) error {
	if name == "" || len(name) > MaxNameBytes {
		return Errorf(ErrBadRequest, "%s name has %d bytes, allowed are 1 to %d", what, len(name), MaxNameBytes)
	}
	for i := range len(name) {
		c := name[i]
		ok := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || i > 0 && (c == '.' || c == '-')
		if !ok {
			return Errorf(ErrBadRequest, "%s name %s: letters, digits, '_', and after the first '.' and '-' are allowed", what, fmt.Sprintf("%q", name))
		}
	}
	return nil
}
