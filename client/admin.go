package client

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/meshq/meshq/ring"
	"github.com/meshq/meshq/transport/wire"
)

const (
	adminTimeout   = 10 * time.Second
	inspectTimeout = 2 * time.Second // for each node: one that is away must not hold up the rest
	maxAsking      = 16              // nodes asked at once
)

// Settings of a queue. Zero fields take their default.
type Settings struct {
	Partitions      int           // 1 to 1,024; default 1
	Replicas        int           // 1 to 7; default 3
	WriteQuorum     int           // 1 to Replicas; default the majority of Replicas
	Lease           time.Duration // delivery lease, 1 s to 12 h; default 30 s
	MaxMessageBytes int           // 1 to 4 MiB: key, headers and body; default 1 MiB
	BackoffMin      time.Duration // first retry after a nack, 1 ms to 24 h; default 1 s
	BackoffMax      time.Duration // longest wait between retries, to 24 h; default 5 min
}

// wire is what travels: there partitions 0 means that all fields are defaults.
func (s Settings) wire() (wire.Settings, error) {
	if s == (Settings{}) {
		return wire.Settings{}, nil
	}
	out, err := s.given()
	if err != nil {
		return out, err
	}
	d := wire.DefaultSettings()
	orDefault(&out.Partitions, d.Partitions)
	orDefault(&out.Replicas, d.Replicas)
	orDefault(&out.WriteQuorum, out.Replicas/2+1)
	orDefault(&out.Lease, d.Lease)
	orDefault(&out.MaxMessageBytes, d.MaxMessageBytes)
	orDefault(&out.BackoffMin, d.BackoffMin)
	orDefault(&out.BackoffMax, max(d.BackoffMax, out.BackoffMin))
	return out, out.Validate()
}

// given are the fields that are not 0. The error names the first that is out of the range
// that it has in any queue.
func (s Settings) given() (wire.Settings, error) {
	const ms, hour = int64(time.Millisecond), int64(time.Hour)
	duration := func(n int64) string { return time.Duration(n).String() }
	number := func(n int64) string { return strconv.FormatInt(n, 10) }
	for _, c := range []struct {
		name          string
		value, lo, hi int64
		show          func(int64) string
	}{
		{"partitions", int64(s.Partitions), 1, wire.MaxPartitions, number},
		{"replicas", int64(s.Replicas), 1, wire.MaxReplicas, number},
		{"write_quorum", int64(s.WriteQuorum), 1, wire.MaxReplicas, number},
		{"lease", int64(s.Lease), 1000 * ms, wire.MaxLease * ms, duration},
		{"max_message_bytes", int64(s.MaxMessageBytes), 1, 4 << 20, number},
		{"backoff_min", int64(s.BackoffMin), ms, 24 * hour, duration},
		{"backoff_max", int64(s.BackoffMax), ms, 24 * hour, duration},
	} {
		if c.value != 0 && (c.value < c.lo || c.value > c.hi) {
			return wire.Settings{}, wire.Errorf(wire.ErrBadRequest, "%s is %s, allowed are %s to %s", c.name, c.show(c.value), c.show(c.lo), c.show(c.hi))
		}
	}
	return wire.Settings{
		Partitions: uint32(s.Partitions), Replicas: uint8(s.Replicas), WriteQuorum: uint8(s.WriteQuorum),
		Lease: uint32(s.Lease.Milliseconds()), MaxMessageBytes: uint32(s.MaxMessageBytes),
		BackoffMin: uint32(s.BackoffMin.Milliseconds()), BackoffMax: uint32(s.BackoffMax.Milliseconds()),
	}, nil
}

func orDefault[T cmp.Ordered](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

func settingsOf(w wire.Settings) Settings {
	w = w.InForce()
	return Settings{
		Partitions: int(w.Partitions), Replicas: int(w.Replicas), WriteQuorum: int(w.WriteQuorum),
		Lease: time.Duration(w.Lease) * time.Millisecond, MaxMessageBytes: int(w.MaxMessageBytes),
		BackoffMin: time.Duration(w.BackoffMin) * time.Millisecond, BackoffMax: time.Duration(w.BackoffMax) * time.Millisecond,
	}
}

// QueueInfo is a queue as the catalog has it.
type QueueInfo struct {
	Name       string
	Generation uint64 // grows when a queue is deleted and created again
	Settings   Settings
	Groups     []string // sorted
	Warning    string   // said at create: for example a write quorum too small for the replicas
	// PausedUntil is when the deliveries go on; zero: they are not paused; Forever: when
	// they are resumed. PausedGroups are the groups that are paused by themselves.
	PausedUntil  time.Time
	PausedGroups map[string]time.Time
}

// Forever is the time until which a queue is paused that goes on only when it is told to.
var Forever = time.UnixMilli(math.MaxInt64)

// pausedUntil is zero for a pause that is over by this machine's clock.
func pausedUntil(p wire.Pause) time.Time {
	switch until := time.UnixMilli(int64(min(p.Until, math.MaxInt64))); {
	case p.Until >= math.MaxInt64:
		return Forever
	case until.After(time.Now()):
		return until
	}
	return time.Time{}
}

func infoOf(e *wire.QueueEntry, warning string) *QueueInfo {
	info := &QueueInfo{Name: e.Name, Generation: e.Generation, Settings: settingsOf(e.Settings), Warning: warning}
	info.PausedUntil = pausedUntil(e.Pause)
	for _, g := range e.Groups {
		info.Groups = append(info.Groups, g.Name)
		if until := pausedUntil(g.Pause); !until.IsZero() {
			if info.PausedGroups == nil {
				info.PausedGroups = map[string]time.Time{}
			}
			info.PausedGroups[g.Name] = until
		}
	}
	return info
}

// CreateQueue creates a queue with these groups ("default" if none are named), or
// confirms that it exists with these settings. When it returns, any node knows the
// queue. The errors are ErrExists, ErrBadRequest, ErrQuorum (it may exist now; create
// it again) and ErrUnreachable.
func (m *Mesh) CreateQueue(ctx context.Context, name string, s Settings, groups ...string) (*QueueInfo, error) {
	info, err := m.createQueue(ctx, name, s, groups)
	if err != nil {
		return nil, fmt.Errorf("create queue %s: %w", name, err)
	}
	return info, nil
}

func (m *Mesh) createQueue(ctx context.Context, name string, s Settings, groups []string) (*QueueInfo, error) {
	if err := wire.CheckName("queue", name); err != nil {
		return nil, err
	}
	for _, g := range groups {
		if err := wire.CheckName("group", g); err != nil {
			return nil, err
		}
	}
	settings, err := s.wire()
	if err != nil {
		return nil, err
	}
	answer, err := request[*wire.QueueInfo](ctx, m, 0, adminTimeout, &wire.CreateQueue{Name: name, Settings: settings, Groups: groups})
	if err != nil {
		return nil, err
	}
	return infoOf(&answer.Entry, answer.Warning), nil
}

// QueueUpdate is what UpdateQueue did.
type QueueUpdate struct {
	QueueInfo
	Before Settings // what the settings were
}

// UpdateQueue changes settings of a queue while it is used: those fields of s that are not
// 0, all or none of them. A new lease counts from the next delivery, a new backoff from the
// next nack. Partitions can only grow; from then on messages of one key may be in another
// partition than those before, and overtake them. Replicas cannot be changed. The errors are
// ErrNoQueue, ErrBadRequest, ErrExists (others change the same again and again),
// ErrQuorum (it may be changed now) and ErrUnreachable.
func (m *Mesh) UpdateQueue(ctx context.Context, name string, s Settings) (*QueueUpdate, error) {
	out, err := m.updateQueue(ctx, name, s)
	if err != nil {
		return nil, fmt.Errorf("update queue %s: %w", name, err)
	}
	return out, nil
}

func (m *Mesh) updateQueue(ctx context.Context, name string, s Settings) (*QueueUpdate, error) {
	set, err := s.given()
	if err != nil {
		return nil, err
	}
	msg := &wire.UpdateQueue{Name: name}
	for i := range wire.NumSettings {
		if value := set.Get(i); value != 0 {
			msg.Set = append(msg.Set, wire.Setting{Name: wire.SettingName(i), Value: value})
		}
	}
	if len(msg.Set) == 0 {
		return nil, wire.Errorf(wire.ErrBadRequest, "no setting is named")
	}
	answer, err := change[*wire.QueueUpdated](ctx, m, name, func(generation, seen uint64) wire.Message {
		msg.Generation, msg.Seen = generation, seen
		return msg
	})
	if err != nil {
		return nil, err
	}
	before := answer.Entry.Settings
	for _, x := range answer.Before {
		for i := range wire.NumSettings {
			if wire.SettingName(i) == x.Name {
				before.Set(i, x.Value)
			}
		}
	}
	return &QueueUpdate{QueueInfo: *infoOf(&answer.Entry, ""), Before: settingsOf(before)}, nil
}

// change asks for a change of a queue. The request is repeated where no answer comes, and may
// arrive late: it says what it is based on, so that it never undoes what came after. A node
// that is asked what there is may be behind; then a change of before looks like one that came
// meanwhile, and it looks again.
func change[T wire.Message](ctx context.Context, m *Mesh, name string, msg func(generation, seen uint64) wire.Message) (T, error) {
	for try := 1; ; try++ {
		var answer T
		known, err := request[*wire.QueueInfo](ctx, m, 0, adminTimeout, &wire.DescribeQueue{Name: name})
		if err == nil {
			answer, err = request[T](ctx, m, 0, adminTimeout, msg(known.Entry.Generation, known.Entry.Seen()))
		}
		if try == changeTries || !errors.Is(err, ErrExists) {
			return answer, err
		}
		select {
		case <-time.After(time.Duration(try) * changeWait):
		case <-ctx.Done():
			return answer, err
		}
	}
}

const (
	changeTries = 5
	changeWait  = 100 * time.Millisecond // before the second try; then it grows
)

// PauseQueue stops the deliveries of a queue, or of one of its groups, until a time (by the
// clocks of the nodes, to the millisecond) or Forever. What consumers hold they may settle,
// and messages are taken as before; nothing is handed out. An owner that cannot be reached
// now learns of it when it can. The errors are ErrNoQueue, ErrNoGroup, ErrBadRequest (a time
// that is over), ErrExists (others pause or resume it again and again), ErrQuorum
// (it may be paused now) and ErrUnreachable.
func (m *Mesh) PauseQueue(ctx context.Context, name, group string, until time.Time) (*QueueInfo, error) {
	ms := uint64(wire.PauseForever)
	if until.Before(Forever) {
		if !until.After(time.Now()) {
			return nil, fmt.Errorf("pause queue %s: %w", name, wire.Errorf(wire.ErrBadRequest, "%s is over", until.Format(time.RFC3339)))
		}
		ms = uint64(until.UnixMilli())
	}
	return m.pause(ctx, "pause", name, group, ms)
}

// ResumeQueue ends a pause of a queue, or of one of its groups. A group that was paused by
// itself stays paused when its queue is resumed. The errors are those of PauseQueue.
func (m *Mesh) ResumeQueue(ctx context.Context, name, group string) (*QueueInfo, error) {
	return m.pause(ctx, "resume", name, group, 0)
}

func (m *Mesh) pause(ctx context.Context, what, name, group string, until uint64) (*QueueInfo, error) {
	answer, err := change[*wire.QueueInfo](ctx, m, name, func(generation, seen uint64) wire.Message {
		return &wire.PauseQueue{Name: name, Group: group, Until: until, Generation: generation, Seen: seen}
	})
	if err != nil {
		return nil, fmt.Errorf("%s queue %s: %w", what, name, err)
	}
	return infoOf(&answer.Entry, ""), nil
}

// DeleteQueue deletes a queue and its messages. The errors are ErrNoQueue, ErrQuorum
// and ErrUnreachable.
func (m *Mesh) DeleteQueue(ctx context.Context, name string) error {
	// The request is repeated where no answer comes, and may arrive late: it names the
	// generation, so that it never deletes a queue that was created since.
	info, err := request[*wire.QueueInfo](ctx, m, 0, adminTimeout, &wire.DescribeQueue{Name: name})
	if err == nil {
		_, err = request[*wire.Done](ctx, m, 0, adminTimeout, &wire.DeleteQueue{Name: name, Generation: info.Entry.Generation})
	}
	if err != nil {
		return fmt.Errorf("delete queue %s: %w", name, err)
	}
	return nil
}

// Queues lists all queues, sorted by name.
func (m *Mesh) Queues(ctx context.Context) ([]QueueInfo, error) {
	answer, err := request[*wire.Queues](ctx, m, 0, adminTimeout, &wire.ListQueues{})
	if err != nil {
		return nil, fmt.Errorf("list queues: %w", err)
	}
	out := make([]QueueInfo, 0, len(answer.Entries))
	for i := range answer.Entries {
		if answer.Entries[i].Live() {
			out = append(out, *infoOf(&answer.Entries[i], ""))
		}
	}
	return out, nil
}

// request asks and checks the kind of the answer.
func request[T wire.Message](ctx context.Context, m *Mesh, node ring.NodeID, timeout time.Duration, msg wire.Message) (T, error) {
	var none T
	answer, err := m.ask(ctx, node, timeout, msg)
	if err != nil {
		return none, err
	}
	t, ok := answer.(T)
	if !ok {
		return none, wire.Errorf(wire.ErrInternal, "answer is a %T", answer)
	}
	return t, nil
}

// QueueState is a queue and what is in it now. Owners are asked one after the other,
// so the sums are of no single moment.
type QueueState struct {
	QueueInfo
	// Sums over the partitions that have an owner, of all groups: a message that waits
	// for two groups counts twice. Unowned says how many partitions are left out.
	Ready      uint64
	InFlight   uint64
	Delayed    uint64
	Unowned    int
	Partitions []PartitionState
}

// PartitionState is what the nodes know of a partition.
type PartitionState struct {
	Partition int
	ID        string // in hexadecimal
	Owner     string // name; empty when nobody owns it now
	Term      string
	Home      []string // names of the home replicas, in order of preference
	Fallbacks []string // names of the nodes after them
	// Of the owner; 0 when there is none.
	Ready    uint64 // may be handed out now
	InFlight uint64
	Delayed  uint64 // waits for its time: delay or retry
	Groups   []GroupState
	Messages uint64 // held or done, on the home replica that knows the most
	Replicas []ReplicaState
}

// GroupState is a group in one partition, as the owner sees it.
type GroupState struct {
	Name     string // empty for a group that the catalog does not have
	Ready    uint64
	InFlight uint64
	Delayed  uint64
	Done     uint64
}

// ReplicaState is what one home replica says of a partition.
type ReplicaState struct {
	Node      string
	Err       error // it did not answer; the other fields are 0 then
	Owns      bool
	Messages  uint64 // offsets held or done
	Digest    uint64 // equal on two replicas when their state is equal (P7)
	Hints     uint64 // batches kept for the home replicas
	Repairing bool   // counts for nothing until repaired (P12)
}

// DescribeQueue asks the home replicas of all partitions. A node that does not answer
// is named in Replicas. The errors are ErrNoQueue and ErrUnreachable.
func (m *Mesh) DescribeQueue(ctx context.Context, name string) (*QueueState, error) {
	state, err := m.describe(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("describe queue %s: %w", name, err)
	}
	return state, nil
}

func (m *Mesh) describe(ctx context.Context, name string) (*QueueState, error) {
	mesh, err := request[*wire.Mesh](ctx, m, 0, adminTimeout, &wire.GetMesh{})
	if err != nil {
		return nil, err
	}
	info, err := request[*wire.QueueInfo](ctx, m, 0, adminTimeout, &wire.DescribeQueue{Name: name, Catalog: mesh.Catalog})
	if err != nil {
		return nil, err
	}
	entry := &info.Entry
	r := ring.New(mesh.Table)
	out := &QueueState{QueueInfo: *infoOf(entry, info.Warning)}

	// Which node is asked for what: all home replicas for their partitions.
	type question struct {
		node    ring.NodeID
		indices []int
		answer  *wire.Inspected
		err     error
	}
	var questions []*question
	byNode := map[ring.NodeID]*question{}
	homes := make([][]ring.NodeID, entry.Settings.Partitions)
	for i := range homes {
		id := entry.Partition(uint32(i))
		list := r.Preference(nil, uint64(id), 0)
		homes[i] = list[:min(len(list), int(entry.Settings.Replicas))]
		out.Partitions = append(out.Partitions, PartitionState{
			Partition: i, ID: id.String(), Home: namesIn(mesh, homes[i]), Fallbacks: namesIn(mesh, list[len(homes[i]):]),
		})
		for _, node := range homes[i] {
			q := byNode[node]
			if q == nil {
				q = &question{node: node}
				byNode[node] = q
				questions = append(questions, q)
			}
			q.indices = append(q.indices, i)
		}
	}
	var g errgroup.Group
	g.SetLimit(maxAsking)
	for _, q := range questions {
		g.Go(func() error {
			ids := make([]wire.PartitionID, len(q.indices))
			for k, i := range q.indices {
				ids[k] = entry.Partition(uint32(i))
			}
			q.answer, q.err = request[*wire.Inspected](ctx, m, q.node, inspectTimeout, &wire.Inspect{Partitions: ids})
			if q.err == nil && len(q.answer.States) != len(ids) {
				q.err = wire.Errorf(wire.ErrInternal, "%d states for %d partitions", len(q.answer.States), len(ids))
			}
			return nil
		})
	}
	_ = g.Wait() // errors are kept in the questions

	for i := range out.Partitions {
		p := &out.Partitions[i]
		var term wire.Term
		var owner *wire.PartitionState
		for _, node := range homes[i] {
			q := byNode[node]
			replica := ReplicaState{Node: nameIn(mesh, node), Err: q.err}
			if q.err == nil {
				s := &q.answer.States[slices.Index(q.indices, i)]
				replica.Owns, replica.Messages, replica.Digest = s.Owns, s.Messages, s.Digest
				replica.Hints, replica.Repairing = s.Hints, s.Repairing
				p.Messages = max(p.Messages, s.Messages)
				if s.Owns && (owner == nil || term.Less(s.Term)) {
					owner, term, p.Owner = s, s.Term, replica.Node
				}
			}
			p.Replicas = append(p.Replicas, replica)
		}
		if owner == nil {
			out.Unowned++
			continue
		}
		p.Term = term.String()
		for _, g := range owner.Groups {
			p.Groups = append(p.Groups, GroupState{Name: groupName(entry, g.Group), Ready: g.Ready, InFlight: g.InFlight, Delayed: g.Delayed, Done: g.Done})
			p.Ready += g.Ready
			p.InFlight += g.InFlight
			p.Delayed += g.Delayed
		}
		out.Ready += p.Ready
		out.InFlight += p.InFlight
		out.Delayed += p.Delayed
	}
	return out, nil
}

func groupName(entry *wire.QueueEntry, id wire.GroupID) string {
	for _, g := range entry.Groups {
		if wire.Group(g.Name, g.Generation) == id {
			return g.Name
		}
	}
	return ""
}

func namesIn(mesh *wire.Mesh, ids []ring.NodeID) []string {
	names := make([]string, len(ids))
	for i, id := range ids {
		names[i] = nameIn(mesh, id)
	}
	return names
}

// Placement says where a partition is.
type Placement struct {
	Partition int
	ID        string   // in hexadecimal
	Owner     string   // name; empty when nobody owns it now
	Home      []string // names of the home replicas, in order of preference
	Fallbacks []string // names of the nodes after them
}

// Lookup says where the partitions of a queue are and who owns them. The errors are
// ErrNoQueue and ErrUnreachable.
func (m *Mesh) Lookup(ctx context.Context, queue string) ([]Placement, error) {
	state, err := m.describe(ctx, queue)
	if err != nil {
		return nil, fmt.Errorf("look up %s: %w", queue, err)
	}
	out := make([]Placement, len(state.Partitions))
	for i, p := range state.Partitions {
		out[i] = Placement{Partition: p.Partition, ID: p.ID, Owner: p.Owner, Home: p.Home, Fallbacks: p.Fallbacks}
	}
	return out, nil
}

// RingInfo is the ring as one node sees it.
type RingInfo struct {
	Mesh    string // ID of the mesh, in hexadecimal
	Number  uint64
	Catalog uint64 // version of the catalog
	Members []Member
}

// Member is a node of the ring.
type Member struct {
	ID      string // in hexadecimal
	Name    string
	Address string
	HTTP    string
	Zone    string
	Weight  int
	Alive   bool // as the node that answered sees it
}

// Ring asks a node for the ring.
func (m *Mesh) Ring(ctx context.Context) (*RingInfo, error) {
	mesh, err := request[*wire.Mesh](ctx, m, 0, adminTimeout, &wire.GetMesh{})
	if err != nil {
		return nil, fmt.Errorf("ring: %w", err)
	}
	return ringOf(mesh), nil
}

func ringOf(mesh *wire.Mesh) *RingInfo {
	out := &RingInfo{Mesh: mesh.ID.String(), Number: mesh.Table.Number, Catalog: mesh.Catalog}
	for _, n := range mesh.Table.Members {
		_, alive := slices.BinarySearch(mesh.Alive, n.ID)
		out.Members = append(out.Members, Member{
			ID: n.ID.String(), Name: n.Name, Address: n.Address, HTTP: n.HTTP, Zone: n.Zone, Weight: int(n.Weight), Alive: alive,
		})
	}
	return out
}

// Node is a member of the ring and its account of itself.
type Node struct {
	Member
	Err error // it did not answer; the fields below are 0 then
	// State is joining, active, repairing or draining; "down" when the others do not
	// see it, "unreachable" when it did not answer but the others see it.
	State      string
	Boot       uint64
	Ring       uint64
	Catalog    uint64
	Commits    uint64 // number of the last synced group
	Partitions uint64 // of which the node holds state
	Owned      uint64
	Hints      uint64 // batches kept for others
	InFlight   uint64
	Repairing  uint64 // partitions under repair
	Version    string
}

// Nodes lists the members of the ring, sorted by name, and asks each about itself. One
// that does not answer is listed with Err.
func (m *Mesh) Nodes(ctx context.Context) ([]Node, error) {
	mesh, err := request[*wire.Mesh](ctx, m, 0, adminTimeout, &wire.GetMesh{})
	if err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	members := ringOf(mesh).Members
	out := make([]Node, len(members))
	var g errgroup.Group
	g.SetLimit(maxAsking)
	for i := range members {
		out[i].Member = members[i]
		g.Go(func() error {
			n := &out[i]
			s, err := request[*wire.NodeInfo](ctx, m, mesh.Table.Members[i].ID, inspectTimeout, &wire.GetNode{})
			switch {
			case err == nil:
				n.State, n.Boot, n.Ring, n.Catalog, n.Commits = s.State, s.Boot, s.Ring, s.Catalog, s.Commits
				n.Partitions, n.Owned, n.Hints, n.InFlight = s.Partitions, s.Owned, s.Hints, s.InFlight
				n.Repairing, n.Version = s.Repairing, s.Version
			case n.Alive:
				n.State, n.Err = "unreachable", err
			default:
				n.State, n.Err = "down", err
			}
			return nil
		})
	}
	_ = g.Wait() // errors are kept in the nodes
	slices.SortFunc(out, func(a, b Node) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID)) })
	return out, nil
}
