package store

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
)

// The labelled steps at which a process is killed.
var labels = []string{
	"before data commit", "after data commit", "before meta commit", "after meta commit", "before callbacks",
	"sealing", "before summary", "after summary", "after summary record",
	"after drop intent", "after rename", "before remove", "after remove", "before copy", "after copy",
}

// child is the process that is killed. It works off a script and writes to a journal what it
// has asked for and what was confirmed; then it kills itself at a label, or waits
// to be killed.
func child() {
	args := strings.Split(os.Getenv("MESHQ_STORE_CHILD"), "|")
	dir, journal, label := args[0], args[1], args[2]
	nth, _ := strconv.Atoi(args[3])
	seed, _ := strconv.ParseUint(args[4], 10, 64)
	j, err := os.OpenFile(journal, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		panic(err)
	}
	note := func(format string, a ...any) { // one write: it survives the process
		if _, err := j.Write(fmt.Appendf(nil, format+"\n", a...)); err != nil {
			panic(err)
		}
	}
	var count atomic.Int64
	o := Options{
		Dir: dir, SegmentBytes: 1 << 20, MinFree: 2 << 20, Reserve: 1 << 20, MaxUsed: 1, BallastBytes: -1, sparseAge: 1,
		cut: func(l string) {
			if l == label && count.Add(1) == int64(nth) {
				note("killed")
				_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
				select {}
			}
		},
	}
	s, rec, err := Open(o)
	if err != nil {
		panic(err)
	}
	note("boot %d %d", rec.Boot, rec.Commit)
	sc := newScript(seed, 30_000)
	window := make(chan struct{}, 16)
	for range 2000 {
		ops := sc.next()
		n := sc.n
		window <- struct{}{}
		note("asked %d", n)
		err := s.Commit(ops, func(commit uint64, err error) {
			if err != nil {
				panic(err)
			}
			note("done %d %d", n, commit)
			<-window
		})
		if err != nil {
			panic(err)
		}
	}
	note("end of script")
}

// journal is what the child noted.
type journal struct {
	asked, done int
	commit      uint64
	killed, end bool
}

func readJournal(t testing.TB, path string) (j journal) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	sc := bufio.NewScanner(bytes.NewReader(b))
	for sc.Scan() {
		f := strings.Fields(sc.Text())
		switch f[0] {
		case "asked":
			j.asked, _ = strconv.Atoi(f[1])
		case "done":
			j.done, _ = strconv.Atoi(f[1])
			j.commit, _ = strconv.ParseUint(f[2], 10, 64)
		case "killed":
			j.killed = true
		case "end":
			j.end = true
		}
	}
	return j
}

func runChild(t testing.TB, dir, journal, label string, nth int, seed uint64) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), fmt.Sprintf("MESHQ_STORE_CHILD=%s|%s|%s|%d|%d", dir, journal, label, nth, seed))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	var exit *exec.ExitError
	if err == nil {
		return
	}
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("child: %v\n%s", err, out.String())
	}
}

// checkAfterKill opens what a killed child left: it holds a prefix of the script that has all that
// was confirmed, each commit as a whole, and no damage.
func checkAfterKill(t testing.TB, dir string, j journal, seed uint64, o Options) {
	t.Helper()
	o.Dir, o.sparseAge = dir, 1
	s, rec := mustOpen(t, o)
	defer func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	}()
	if rec.DamagedAll || len(rec.Damaged) > 0 {
		t.Fatalf("damage reported: %v %v", rec.DamagedAll, rec.Damaged)
	}
	if rec.Commit < j.commit {
		t.Fatalf("commit %d, but %d was confirmed", rec.Commit, j.commit)
	}
	reached := 0
	for _, r := range rec.Records {
		if string(r.Key) == "n" {
			reached, _ = strconv.Atoi(string(r.Value))
		}
	}
	if reached < j.done || reached > j.asked {
		t.Fatalf("has commit %d of the script; %d was asked for, %d confirmed", reached, j.asked, j.done)
	}
	m, sc := newModel(), newScript(seed, 30_000)
	for range reached {
		mustCommit(t, m, sc.next()...)
	}
	same(t, s, m, sc.ends, true)
	sameRefs(t, rec.Refs, m)
	// It goes on, above every number that was confirmed.
	if n := mustCommit(t, s, putOp("again", nil), batchOp(testBatch(99, laneA, 0, 1, 10))); n <= j.commit {
		t.Fatalf("commit %d after %d", n, j.commit)
	}
	wantBatches(t, s, 99, laneA, all, 1<<20, testBatch(99, laneA, 0, 1, 10))
}

// TestKilledAt kills a process at each labelled step.
func TestKilledAt(t *testing.T) {
	for i, label := range labels {
		nths := []int{1, 2}
		switch {
		case i < 5:
			nths = []int{1, 60}
		case strings.Contains(label, "copy"), strings.Contains(label, "summary"):
			nths = nths[:1]
		}
		if testing.Short() {
			nths = nths[len(nths)-1:]
		}
		for _, nth := range nths {
			t.Run(fmt.Sprintf("%s/%d", strings.ReplaceAll(label, " ", "_"), nth), func(t *testing.T) {
				dir := t.TempDir()
				data, notes := filepath.Join(dir, "data"), filepath.Join(dir, "journal")
				seed := uint64(1000*i + nth)
				runChild(t, data, notes, label, nth, seed)
				j := readJournal(t, notes)
				if !j.killed {
					t.Fatalf("the script ended before %q came %d times", label, nth)
				}
				checkAfterKill(t, data, j, seed, Options{})
			})
		}
	}
}
