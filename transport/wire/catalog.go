package wire

import (
	"fmt"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

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

// settingNames are the names of the fields of Settings, in their order.
var settingNames = [...]string{
	"partitions", "replicas", "write_quorum", "lease", "max_message_bytes", "backoff_min", "backoff_max",
}

// NumSettings is the number of fields of [Settings]; they are counted from 0.
const NumSettings = len(settingNames)

// SettingName is the name of a field: partitions, replicas, write_quorum, lease,
// max_message_bytes, backoff_min or backoff_max.
func SettingName(field int) string { return settingNames[field] }

// Get is the value of a field by its number.
func (s *Settings) Get(field int) uint64 { return reflect.ValueOf(s).Elem().Field(field).Uint() }

// Set sets a field by its number, and tells whether the value fits its type. It does not
// check the range: Validate does.
func (s *Settings) Set(field int, value uint64) bool {
	f := reflect.ValueOf(s).Elem().Field(field)
	if f.OverflowUint(value) {
		return false
	}
	f.SetUint(value)
	return true
}

// Setting is one field of Settings and its value.
type Setting struct {
	Name  string
	Value uint64
}

// Apply sets the fields that are named, and validates the whole. On an error, which is
// ErrBadRequest, s is as it was.
func (s *Settings) Apply(changes []Setting) error {
	out := *s
	for _, x := range changes {
		i := slices.Index(settingNames[:], x.Name)
		if i < 0 {
			return Errorf(ErrBadRequest, "no such setting: %q; there are %s", x.Name, strings.Join(settingNames[:], ", "))
		}
		if !out.Set(i, x.Value) {
			return Errorf(ErrBadRequest, "%s is %d, which is too large", x.Name, x.Value)
		}
	}
	if err := out.Validate(); err != nil {
		return err
	}
	*s = out
	return nil
}

// InForce are the settings that a mesh goes by. Changes of two fields at two nodes at once are
// each valid, and together they may not be: the write quorum is then that of all replicas, and
// the longest backoff is the first. The entry keeps what was asked for, so that entries merge
// to the same in any order.
func (s Settings) InForce() Settings {
	s.WriteQuorum = min(s.WriteQuorum, s.Replicas)
	s.BackoffMax = max(s.BackoffMin, s.BackoffMax)
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
	number := func(n uint64) string { return strconv.FormatUint(n, 10) }
	millis := func(n uint64) string { return (time.Duration(n) * time.Millisecond).String() }
	for _, c := range []struct {
		name          string
		value, lo, hi uint64
		show          func(uint64) string
	}{
		{"partitions", uint64(s.Partitions), 1, MaxPartitions, number},
		{"replicas", uint64(s.Replicas), 1, MaxReplicas, number},
		{"write_quorum", uint64(s.WriteQuorum), 1, uint64(s.Replicas), number},
		{"lease", uint64(s.Lease), 1_000, MaxLease, millis},
		{"max_message_bytes", uint64(s.MaxMessageBytes), 1, 4 << 20, number},
		{"backoff_min", uint64(s.BackoffMin), 1, 86_400_000, millis},
		{"backoff_max", uint64(s.BackoffMax), uint64(s.BackoffMin), 86_400_000, millis},
	} {
		if c.value < c.lo || c.value > c.hi {
			return Errorf(ErrBadRequest, "%s is %s, allowed are %s to %s", c.name, c.show(c.value), c.show(c.lo), c.show(c.hi))
		}
	}
	return nil
}

// Pause stops the deliveries of a queue or a group: what is in flight goes on, nothing new
// is handed out.
type Pause struct {
	Until uint64 // Unix milliseconds, by the owner's clock; 0: not paused; PauseForever
	At    Counter
}

// PauseForever is a Pause.Until that never comes.
const PauseForever = math.MaxUint64

// GroupEntry is one group of a queue in the catalog.
type GroupEntry struct {
	Name       string
	Generation uint64
	Pause      Pause
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
	// ChangedAt are the counters of the fields of Settings that were changed since the
	// creation, by their number; shorter or below SettingsAt: not changed.
	ChangedAt []Counter
	Pause     Pause
	// GrownRings are, by partition, the numbers of the ring when it was added to a queue that
	// was there; shorter or 0: it was created with the queue. The lowest wins.
	GrownRings []uint64
}

// RingOf is the number of the ring when a partition was created: no ring before it ever kept it.
func (q *QueueEntry) RingOf(partition uint32) uint64 {
	if int(partition) < len(q.GrownRings) && q.GrownRings[partition] != 0 {
		return q.GrownRings[partition]
	}
	return q.CreatedRing
}

// Seen is the highest counter of what can be changed of a queue that exists: its settings and
// pauses.
func (q *QueueEntry) Seen() uint64 {
	n := q.Pause.At.N
	for i := range NumSettings {
		n = max(n, q.SettingAt(i).N)
	}
	for i := range q.Groups {
		n = max(n, q.Groups[i].Pause.At.N)
	}
	return n
}

// SettingAt is the counter of a field of the settings.
func (q *QueueEntry) SettingAt(field int) Counter {
	if field < len(q.ChangedAt) && q.SettingsAt.Less(q.ChangedAt[field]) {
		return q.ChangedAt[field]
	}
	return q.SettingsAt
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
