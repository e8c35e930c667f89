package node

import (
	"errors"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/meshq/meshq/node/core"
	"github.com/meshq/meshq/store"
	"github.com/meshq/meshq/transport/wire"
)

// fullStore refuses commits as a test says. It is used by one goroutine only.
type fullStore struct {
	now   []error // answers of Commit, one each; then nil
	later []error // results given to done, one each; then nil
	done  []func()
	took  []byte // key of each commit's first op, in the order taken
	count uint64
}

func (s *fullStore) Commit(ops []wire.Op, done func(uint64, error)) error {
	if len(s.now) > 0 {
		err := s.now[0]
		if s.now = s.now[1:]; err != nil {
			return err
		}
	}
	var err error
	if len(s.later) > 0 {
		err, s.later = s.later[0], s.later[1:]
	}
	if err == nil {
		s.took = append(s.took, ops[0].Key[0])
		s.count++
	}
	number := s.count
	s.done = append(s.done, func() { done(number, err) })
	return nil
}

func (s *fullStore) Read(wire.PartitionID, wire.Lane, wire.Runs, int) ([]wire.Batch, wire.Runs, error) {
	return nil, nil, errors.New("unreadable")
}

func (s *fullStore) Scan(_, _ []byte, _ int) ([]wire.StoredRecord, bool, error) {
	return nil, false, nil
}

// Commits that the store has no room for are made later, and Persisted keeps the order
// of the Persists.
func TestCommitsWithoutRoom(t *testing.T) {
	for name, s := range map[string]*fullStore{
		"at once":  {now: []error{nil, store.ErrOverloaded, store.ErrFull}},
		"later":    {later: []error{nil, store.ErrFull, nil, store.ErrFull}},
		"both":     {now: []error{store.ErrFull, nil}, later: []error{store.ErrFull}},
		"has room": {},
	} {
		t.Run(name, func(t *testing.T) {
			in := newInbox(inboxItems, inboxBytes)
			d := newDisk(s, in, func(err error) { t.Errorf("failed: %v", err) }, slog.New(slog.DiscardHandler))
			const most = 5
			for i := range byte(most) {
				d.persist(core.Token(i+1), []wire.Op{{Kind: wire.OpPut, Key: []byte{i}}})
			}
			var got []core.Token
			limit := time.After(patience)
			for len(got) < most {
				for _, f := range s.done {
					f()
				}
				s.done = nil
				for _, it := range in.take(nil) {
					if it.ask != nil {
						it.ask(nil)
						continue
					}
					for _, ev := range d.finished(it.committed, it.id, it.err) {
						got = append(got, ev.Token)
					}
				}
				if len(got) < most && len(s.done) == 0 {
					select {
					case <-in.wake:
					case <-limit:
						t.Fatalf("only %v", got)
					}
				}
			}
			if !slices.Equal(got, []core.Token{1, 2, 3, 4, 5}) {
				t.Errorf("persisted %v", got)
			}
			slices.Sort(s.took)
			if !slices.Equal(s.took, []byte{0, 1, 2, 3, 4}) {
				t.Errorf("the store took %v", s.took)
			}
			if d.held != 0 || len(d.commits) != 0 {
				t.Errorf("%d held, %d commits left", d.held, len(d.commits))
			}
		})
	}
}

// A store that fails for another reason stops the node.
func TestCommitFails(t *testing.T) {
	for _, s := range []*fullStore{{now: []error{store.ErrClosed}}, {later: []error{store.ErrFailed}}} {
		in := newInbox(inboxItems, inboxBytes)
		var failed error
		d := newDisk(s, in, func(err error) { failed = err }, slog.New(slog.DiscardHandler))
		d.persist(1, []wire.Op{{Kind: wire.OpPut, Key: []byte{1}}})
		for _, f := range s.done {
			f()
		}
		for _, it := range in.take(nil) {
			if due := d.finished(it.committed, it.id, it.err); len(due) > 0 {
				t.Errorf("persisted: %v", due)
			}
		}
		if failed == nil {
			t.Error("the node goes on")
		}
	}
}
