package client_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/meshq/meshq/client"
	"github.com/meshq/meshq/transport/wire"
)

func TestUpdateQueue(t *testing.T) {
	f := newFakeMesh(t, 3)
	mesh := dial(t, f)
	ctx := t.Context()
	f.create("photos", 2)
	u, err := mesh.UpdateQueue(ctx, "photos", client.Settings{Lease: time.Minute, BackoffMin: 2 * time.Second, Partitions: 4})
	if err != nil {
		t.Fatal(err)
	}
	if u.Settings.Lease != time.Minute || u.Settings.BackoffMin != 2*time.Second || u.Settings.Partitions != 4 || u.Settings.BackoffMax != 5*time.Minute {
		t.Errorf("after: %+v", u.Settings)
	}
	if u.Before.Lease != 30*time.Second || u.Before.BackoffMin != time.Second || u.Before.Partitions != 2 || u.Before.BackoffMax != 5*time.Minute {
		t.Errorf("before: %+v", u.Before)
	}
	if again, err := mesh.UpdateQueue(ctx, "photos", client.Settings{Lease: time.Minute}); err != nil || again.Before != again.Settings {
		t.Errorf("again: %+v, %v", again, err)
	}
	if _, err := mesh.UpdateQueue(ctx, "fotos", client.Settings{Lease: time.Minute}); !errors.Is(err, client.ErrNoQueue) {
		t.Errorf("another queue: %v", err)
	}
}

// What is out of range is refused with its name, its value and the range, and nothing is changed.
func TestUpdateQueueRefused(t *testing.T) {
	f := newFakeMesh(t, 3)
	mesh := dial(t, f)
	f.create("photos", 2)
	before, err := mesh.Queues(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		set  client.Settings
		want string
	}{
		{client.Settings{}, "no setting is named"},
		{client.Settings{Partitions: -1}, "partitions is -1, allowed are 1 to 1024"},
		{client.Settings{Partitions: 1025}, "partitions is 1025, allowed are 1 to 1024"},
		{client.Settings{Partitions: 1 << 33}, "partitions is 8589934592, allowed are 1 to 1024"},
		{client.Settings{Replicas: 8}, "replicas is 8, allowed are 1 to 7"},
		{client.Settings{Replicas: 256}, "replicas is 256, allowed are 1 to 7"},
		{client.Settings{WriteQuorum: -2}, "write_quorum is -2, allowed are 1 to 7"},
		{client.Settings{WriteQuorum: 4}, "write_quorum is 4, allowed are 1 to 3"},
		{client.Settings{Lease: 500 * time.Microsecond}, "lease is 500µs, allowed are 1s to 12h0m0s"},
		{client.Settings{Lease: -time.Second}, "lease is -1s, allowed are 1s to 12h0m0s"},
		{client.Settings{Lease: 13 * time.Hour}, "lease is 13h0m0s, allowed are 1s to 12h0m0s"},
		{client.Settings{MaxMessageBytes: -1}, "max_message_bytes is -1, allowed are 1 to 4194304"},
		{client.Settings{MaxMessageBytes: 5 << 20}, "max_message_bytes is 5242880, allowed are 1 to 4194304"},
		{client.Settings{BackoffMin: time.Microsecond}, "backoff_min is 1µs, allowed are 1ms to 24h0m0s"},
		{client.Settings{BackoffMin: 25 * time.Hour}, "backoff_min is 25h0m0s, allowed are 1ms to 24h0m0s"},
		{client.Settings{BackoffMax: 60 * 24 * time.Hour}, "backoff_max is 1440h0m0s, allowed are 1ms to 24h0m0s"},
		{client.Settings{BackoffMax: 10 * time.Millisecond}, "backoff_max is 10ms, allowed are 1s to 24h0m0s"},
		{client.Settings{Lease: time.Minute, BackoffMax: 10 * time.Millisecond}, "backoff_max is 10ms, allowed are 1s to 24h0m0s"}, // all or nothing
	} {
		_, err := mesh.UpdateQueue(t.Context(), "photos", c.set)
		if !errors.Is(err, client.ErrBadRequest) || !strings.Contains(err.Error(), "update queue photos: ") || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.set, err, c.want)
		}
	}
	after, err := mesh.Queues(t.Context())
	if err != nil || after[0].Settings != before[0].Settings {
		t.Errorf("changed to %+v, %v", after[0].Settings, err)
	}
}

func TestPauseQueue(t *testing.T) {
	f := newFakeMesh(t, 3)
	mesh := dial(t, f)
	ctx := t.Context()
	f.create("photos", 1)
	info, err := mesh.PauseQueue(ctx, "photos", "", client.Forever)
	if err != nil || !info.PausedUntil.Equal(client.Forever) || info.PausedGroups != nil {
		t.Errorf("queue: %+v, %v", info, err)
	}
	until := time.Now().Add(time.Hour).Truncate(time.Millisecond)
	info, err = mesh.PauseQueue(ctx, "photos", "default", until)
	if err != nil || !info.PausedUntil.Equal(client.Forever) || !info.PausedGroups["default"].Equal(until) {
		t.Errorf("group: %+v, %v", info, err)
	}
	if state, err := mesh.DescribeQueue(ctx, "photos"); err != nil || !state.PausedUntil.Equal(client.Forever) || !state.PausedGroups["default"].Equal(until) {
		t.Errorf("described: %+v, %v", state, err)
	}
	info, err = mesh.ResumeQueue(ctx, "photos", "")
	if err != nil || !info.PausedUntil.IsZero() || len(info.PausedGroups) != 1 {
		t.Errorf("resumed: %+v, %v", info, err)
	}
	info, err = mesh.ResumeQueue(ctx, "photos", "default")
	if err != nil || !info.PausedUntil.IsZero() || info.PausedGroups != nil {
		t.Errorf("resumed: %+v, %v", info, err)
	}

	if _, err := mesh.PauseQueue(ctx, "photos", "", time.Now().Add(-time.Second)); !errors.Is(err, client.ErrBadRequest) || !strings.Contains(err.Error(), "is over") {
		t.Errorf("a time that is over: %v", err)
	}
	if _, err := mesh.PauseQueue(ctx, "photos", "faces", client.Forever); !errors.Is(err, client.ErrNoGroup) {
		t.Errorf("another group: %v", err)
	}
	if _, err := mesh.ResumeQueue(ctx, "fotos", ""); !errors.Is(err, client.ErrNoQueue) {
		t.Errorf("another queue: %v", err)
	}
}

// Where something was changed meanwhile, the client looks again, and gives up at some time.
func TestChangedMeanwhile(t *testing.T) {
	f := newFakeMesh(t, 3)
	mesh := dial(t, f)
	f.create("photos", 1)
	set := func(m func(n int) *wire.Error) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.changes, f.meanwhile = 0, m
	}
	set(func(n int) *wire.Error {
		if n < 3 {
			return wire.ErrExists
		}
		return nil
	})
	if u, err := mesh.UpdateQueue(t.Context(), "photos", client.Settings{Lease: time.Minute}); err != nil || u.Settings.Lease != time.Minute {
		t.Errorf("%+v, %v", u, err)
	}
	set(func(int) *wire.Error { return wire.ErrExists })
	if _, err := mesh.PauseQueue(t.Context(), "photos", "", client.Forever); !errors.Is(err, client.ErrExists) {
		t.Errorf("again and again: %v", err)
	}
}
