package sim

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/meshq/meshq/store"
	"github.com/meshq/meshq/transport/wire"
)

// killedCommits is how many commits the process would do that is killed.
const killedCommits = 2000

// killedOps are the ops of commit i of a seed. The record "n" says which it is.
func killedOps(seed, i int) []wire.Op {
	ops := rapid.Custom(drawOps).Example(seed*killedCommits + i)
	return append(ops, wire.Op{Kind: wire.OpPut, Key: []byte("n"), Value: strconv.AppendInt(nil, int64(i), 10)})
}

// TestStoreProcess is the process that TestKillAgrees kills: one commit after the other.
func TestStoreProcess(t *testing.T) {
	dir, seedText, ok := strings.Cut(os.Getenv("MESHQ_SIM_STORE"), "|")
	if !ok {
		t.Skip("is started by TestKillAgrees")
	}
	seed, err := strconv.Atoi(seedText)
	if err != nil {
		t.Fatal(err)
	}
	s, _, err := store.Open(realOptions(dir))
	if err != nil {
		t.Fatal(err)
	}
	for i := range killedCommits {
		ops := killedOps(seed, i)
		fmt.Printf("asked %d 0\n", i+1)
		number, err := commitReal(s, ops)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Printf("done %d %d\n", i+1, number)
	}
}

// TestKillAgrees: what a killed process leaves is one of the states that the model may leave.
func TestKillAgrees(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes: not with -short")
	}
	for seed := range 6 {
		t.Run(strconv.Itoa(seed), func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "data")
			asked, done, number := endStore(t, dir, seed, 20+37*seed, (*os.Process).Kill)
			s, rec, err := store.Open(realOptions(dir))
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			reached := 0
			for _, r := range rec.Records {
				if string(r.Key) == "n" {
					if reached, err = strconv.Atoi(string(r.Value)); err != nil {
						t.Fatal(err)
					}
					reached++
				}
			}
			var log []diskGroup
			for i := range asked {
				log = append(log, diskGroup{commit: uint64(i + 1), segment: 1, ops: killedOps(seed, i)})
			}
			states := survivors(killed, ended{synced: done, confirmed: done, written: asked}, log, 0)
			if !slices.Contains(states, survivor{reached, reached, false}) || rec.DamagedAll || len(rec.Damaged) > 0 {
				t.Fatalf("%d commits are there, damaged: %t %v; %d were asked for, %d confirmed: the model allows %v", reached, rec.DamagedAll, rec.Damaged, asked, done, states)
			}
			if rec.Commit < number {
				t.Errorf("commit %d came back, %d was confirmed", rec.Commit, number)
			}
			base := newContents()
			want := replay(&base, log, reached, reached)
			found := offsetsOf(rec.Refs)
			want.reopen(func(k diskLane, b *diskBatch) bool {
				_, ok := found[offsetKey{k.partition, k.lane, b.Base}]
				return ok
			})
			if records := want.loaded(); !slices.EqualFunc(rec.Records, records, sameRecord) {
				t.Errorf("records %s, the model has %s", recordsText(rec.Records), recordsText(records))
			}
			if offsets := offsetsOf(want.refs(func(*diskBatch) bool { return true })); !equalMaps(found, offsets) {
				t.Errorf("batches %v, the model has %v", found, offsets)
			}
			t.Logf("%d asked for, %d confirmed, %d there", asked, done, reached)
		})
	}
}

// endStore runs the process and ends it when so many commits were confirmed.
func endStore(t *testing.T, dir string, seed, after int, end func(*os.Process) error) (asked, done int, number uint64) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestStoreProcess$")
	cmd.Env = append(os.Environ(), fmt.Sprintf("MESHQ_SIM_STORE=%s|%d", dir, seed))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	killed := false
	for sc := bufio.NewScanner(out); sc.Scan(); { // also what was written before the kill
		var what string
		var n int
		var commit uint64
		if _, err := fmt.Sscanf(sc.Text(), "%s %d %d", &what, &n, &commit); err != nil {
			continue
		}
		switch what {
		case "asked":
			asked = n
		case "done":
			done, number = n, commit
		}
		// Somewhere within a commit, or between two.
		if !killed && (seed%2 == 0 && asked > after || seed%2 == 1 && done > after) {
			killed = true
			if err := end(cmd.Process); err != nil {
				t.Error(err)
			}
		}
	}
	err = cmd.Wait()
	if !killed {
		t.Fatalf("the process ended by itself after %d commits: %v", done, err)
	}
	return asked, done, number
}
