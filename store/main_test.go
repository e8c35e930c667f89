package store

import (
	"context"
	"flag"
	"log/slog"
	"os"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if os.Getenv("MESHQ_STORE_CHILD") != "" {
		child()
		return
	}
	flag.Parse()
	if flag.Lookup("test.fuzz").Value.String() != "" {
		os.Exit(m.Run()) // the fuzzer has goroutines of its own
	}
	goleak.VerifyTestMain(m,
		// Badger leaves these behind when its Open returns an error, which is what
		// tests of damage provoke.
		goleak.IgnoreAnyFunction("github.com/dgraph-io/badger/v4.(*DB).monitorCache"),
		goleak.IgnoreAnyFunction("github.com/dgraph-io/ristretto/v2/z.(*AllocatorPool).freeupAllocators"),
		goleak.IgnoreAnyFunction("github.com/dgraph-io/badger/v4.(*vlogThreshold).listenForValueThresholdUpdate"),
	)
}

// testLogger logs to the test, while it runs.
func testLogger(t testing.TB) *slog.Logger {
	w := &testWriter{t: t, ctx: t.Context()}
	return slog.New(slog.NewTextHandler(w, nil))
}

type testWriter struct {
	t   testing.TB
	ctx context.Context
}

func (w *testWriter) Write(p []byte) (int, error) {
	if w.ctx.Err() == nil {
		w.t.Logf("%s", p)
	}
	return len(p), nil
}
