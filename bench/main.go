// Bench runs the same workloads against meshq, the least that a replicated durable
// queue must do, and NATS JetStream, on one machine, and prints their figures side by
// side. README.md says what is measured; driver.go how to add a system.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"math"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

// config is what the flags say.
type config struct {
	peers, workloads string
	duration         time.Duration
	rounds           int
	pair             string
	data             string
	bin              string
	source, meshq    string
	profile          string
	out              string
	basePort         int
	maxBacklog       int
	retries, calmest int
	keep             bool
}

var conf config

func main() {
	log.SetFlags(log.Ltime)
	os.Exit(mainCode())
}

// mainCode runs the harness and returns the exit code of its process.
func mainCode() int {
	if len(os.Args) > 1 && os.Args[1] == floorCommand {
		floorMain(os.Args[2:])
		return 0
	}
	defer func() {
		if buildDir != "" {
			os.RemoveAll(buildDir)
		}
	}()
	list := flag.Bool("list", false, "list the peers and workloads, and end")
	report := flag.Bool("report", false, "print the tables of the result files named after the flags, and end")
	flag.StringVar(&conf.peers, "peers", "floor,nats,nats-sync,meshq", "peers to run, by comma; one that is not installed is left out")
	flag.StringVar(&conf.workloads, "workloads", "enqueue-1k,e2e-1k,latency-1k", "workloads to run, by comma")
	flag.DurationVar(&conf.duration, "duration", 4*time.Second, "measured time of a run, where the workload doesn't fix it")
	flag.IntVar(&conf.rounds, "rounds", 1, "rounds; each runs every peer once, the tables have the medians")
	flag.StringVar(&conf.pair, "pair", "", "compare two peers A,B by interleaved runs A B A B ..., a pair each round")
	flag.StringVar(&conf.data, "data", filepath.Join(os.TempDir(), "meshq-bench"), "directory for the servers' data; emptied after each run")
	flag.StringVar(&conf.bin, "bin", "", "directories with server programs, by colon; looked in before PATH")
	flag.StringVar(&conf.source, "source", "..", "directory of the meshq module that is built and measured")
	flag.StringVar(&conf.meshq, "meshq", "", "a meshq program to measure in place of one built from -source")
	flag.StringVar(&conf.profile, "profile", "", "write CPU profiles of meshq's nodes and clients to this directory; needs -source")
	flag.StringVar(&conf.out, "out", "", "append the results to this file as JSON lines")
	flag.IntVar(&conf.basePort, "base-port", 17000, "first port; the 1500 from here are used")
	flag.IntVar(&conf.maxBacklog, "max-backlog", 2<<30, "most payload bytes that a run without consumers enqueues")
	flag.IntVar(&conf.retries, "retries", 0, "repeat a run up to so many times while other programs use the machine")
	flag.IntVar(&conf.calmest, "calmest", 0, "count only so many runs of each peer and workload: those in which other programs used the least CPU")
	priority := flag.Bool("priority", false, "run the harness and the servers before other sessions (Linux autogroup; needs root)")
	flag.BoolVar(&conf.keep, "keep", false, "leave the servers' data and logs after each run")
	flag.Parse()

	switch {
	case *list:
		printList(os.Stdout)
	case *report:
		results, err := ReadResults(flag.Args())
		if err != nil {
			log.Print(err)
			return 1
		}
		PrintTables(os.Stdout, results)
		PrintSummary(os.Stdout, results)
	default:
		if *priority {
			if err := os.WriteFile("/proc/self/autogroup", []byte("-20"), 0); err != nil {
				log.Print("-priority: ", err)
				return 1
			}
		}
		if err := runAll(); err != nil {
			log.Print(err)
			return 1
		}
	}
	return 0
}

func runAll() error {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()

	var err error
	if conf.data, err = filepath.Abs(conf.data); err != nil {
		return err
	}
	works, err := choose(conf.workloads, workloadOrder)
	if err != nil {
		return err
	}
	if conf.pair != "" {
		ab, err := choose(conf.pair, driverOrder)
		if err != nil {
			return err
		}
		if len(ab) != 2 {
			return fmt.Errorf("-pair wants two peers")
		}
		return runPairs(ctx, ab[0], ab[1], works)
	}
	names, err := choose(conf.peers, driverOrder)
	if err != nil {
		return err
	}
	names = slices.DeleteFunc(names, func(name string) bool {
		why := missing(name)
		if why != "" {
			log.Printf("%s is left out: %s", name, why)
		}
		return why != ""
	})
	var results []Result
	for round := 1; round <= conf.rounds; round++ {
		for _, w := range works {
			for _, p := range names {
				if ctx.Err() == nil && !slices.Contains(drivers[p]().Info().Without, w) {
					r, err := runOne(ctx, p, w, round)
					if err != nil {
						return err
					}
					results = append(results, r)
				}
			}
		}
	}
	PrintTables(os.Stdout, results)
	PrintSummary(os.Stdout, results)
	return failures(results)
}

// failures is an error when some runs failed, so that the exit code tells.
func failures(results []Result) error {
	failed := 0
	for _, r := range results {
		if r.Error != "" {
			failed++
		}
	}
	if failed == 0 {
		return nil
	}
	return fmt.Errorf("%d of %d runs failed", failed, len(results))
}

// runPairs compares two peers by runs that alternate, so that a slow change
// of the machine touches both alike.
func runPairs(ctx context.Context, a, b string, works []string) error {
	for _, w := range works {
		metric := workloads[w].Primary
		var ratios []float64
		var results []Result
		for round := 1; round <= conf.rounds && ctx.Err() == nil; round++ {
			ra, errA := runOne(ctx, a, w, round)
			rb, errB := runOne(ctx, b, w, round)
			if err := errors.Join(errA, errB); err != nil {
				return err
			}
			results = append(results, ra, rb)
			va, vb := ra.Metrics[metric], rb.Metrics[metric]
			if va > 0 && vb > 0 {
				ratios = append(ratios, va/vb)
			}
		}
		PrintTables(os.Stdout, results)
		if mid, ok := medianOf(ratios); ok {
			fmt.Printf("\n%s: %s of %s / %s: median ratio %.3f over %d pairs (%.3f to %.3f)\n",
				w, metric, a, b, mid, len(ratios), slices.Min(ratios), slices.Max(ratios))
		}
	}
	return nil
}

// disturbedAt is how many cores other programs may use in a run. The count is
// by clock ticks, and some error is normal.
const disturbedAt = 0.1

// runOne does one run on a fresh cluster, again if other programs disturb it
// and retries are left, and keeps its result.
func runOne(ctx context.Context, peer, work string, round int) (Result, error) {
	var r Result
	for try := 0; ; try++ {
		s, err := open(ctx, peer)
		r = s.run(ctx, work, round, err)
		s.close()
		disturbed := r.Metrics["other_cores"] > disturbedAt
		if !disturbed || try >= conf.retries || ctx.Err() != nil {
			break
		}
		log.Printf("other programs used %.2f cores: the run is repeated", r.Metrics["other_cores"])
	}
	return r, AppendResult(conf.out, r)
}

// A session is the life of one cluster.
type session struct {
	peer    string
	driver  Driver
	version string
	dir     string
	opened  time.Time
}

const (
	portsPerRun = 30
	portBlocks  = 50
)

var nextBlock int

// freePorts returns the first of portsPerRun ports that nobody uses. A port of another
// program would pass for a server that is ready. Each run takes other ports than the
// last, whose connections may linger.
func freePorts(base int) (int, error) {
	for range portBlocks {
		first := base + nextBlock%portBlocks*portsPerRun
		nextBlock++
		free := true
		for port := first; port < first+portsPerRun && free; port++ {
			l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
			if err == nil {
				err = l.Close()
			}
			free = err == nil
		}
		if free {
			return first, nil
		}
	}
	return 0, fmt.Errorf("no %d ports in a row are free from %d on", portsPerRun, base)
}

// open starts a cluster. The session must be closed even
// after an error.
func open(ctx context.Context, peer string) (*session, error) {
	s := &session{peer: peer, driver: drivers[peer]()}
	s.opened = time.Now()
	if err := os.MkdirAll(conf.data, 0o755); err != nil {
		return s, err
	}
	var err error
	if s.dir, err = os.MkdirTemp(conf.data, peer+"-"); err != nil {
		return s, err
	}
	env := newEnv(s.dir)
	if env.BasePort, err = freePorts(conf.basePort); err != nil {
		return s, err
	}
	s.version = version(s.driver, env)
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := s.driver.Start(ctx, env); err != nil {
		return s, fmt.Errorf("start: %w", err)
	}
	return s, nil
}

func (s *session) close() {
	s.driver.Cluster().Stop()
	if s.dir != "" && !conf.keep {
		os.RemoveAll(s.dir)
	}
}

// run does one run; its error, or that of the start, is part of the result.
func (s *session) run(ctx context.Context, work string, round int, err error) Result {
	b := &Bench{Name: s.peer + "-" + work, Driver: s.driver, Duration: conf.duration, Metrics: Metrics{}}
	r := Result{Time: time.Now().UTC().Format(time.RFC3339), Peer: s.peer, Version: s.version, Workload: work, Round: round}
	if err == nil {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
		defer cancel()
		runtime.GC()
		err = workloads[work].Run(ctx, b)
	}
	r.Metrics, r.Notes = b.Metrics, b.Notes
	for name, v := range r.Metrics {
		if math.IsNaN(v) || math.IsInf(v, 0) {
			delete(r.Metrics, name) // JSON has no such numbers
		}
	}
	if err != nil {
		r.Error = err.Error()
	}
	logResult(r, time.Since(s.opened))
	return r
}

func newEnv(dir string) *Env {
	return &Env{Dir: dir, BinDirs: filepath.SplitList(conf.bin)}
}

func logResult(r Result, took time.Duration) {
	w := workloads[r.Workload]
	line := fmt.Sprintf("%s on %s, round %d (%.0f s): ", r.Workload, r.Peer, r.Round, took.Seconds())
	names := headers(w.Columns)
	for i, c := range w.Columns {
		if v, ok := r.Metrics[c]; ok {
			line += fmt.Sprintf("%s %s, ", names[i], formatMetric(v, true))
		}
	}
	line = strings.TrimSuffix(line, ", ")
	if r.Error != "" {
		line += " FAILED: " + r.Error
	}
	if other := r.Metrics["other_cores"]; other > disturbedAt {
		line += fmt.Sprintf(" DISTURBED: %.2f cores used by others", other)
	}
	if len(r.Notes) > 0 {
		line += " [" + strings.Join(r.Notes, "; ") + "]"
	}
	log.Print(line)
}

// choose splits a list by commas; "all" and a trailing * are understood.
func choose(list string, known []string) (chosen []string, err error) {
	for _, want := range strings.Split(list, ",") {
		want = strings.TrimSpace(want)
		found := false
		for _, k := range known {
			prefix, wild := strings.CutSuffix(want, "*")
			if k == want || want == "all" || wild && strings.HasPrefix(k, prefix) {
				chosen, found = append(chosen, k), true
			}
		}
		if !found {
			return nil, fmt.Errorf("%q is unknown; -list shows the names", want)
		}
	}
	return chosen, nil
}

// missing says why a peer cannot run here; it is empty when it can.
func missing(name string) string {
	d, env := drivers[name](), newEnv("")
	if m, ok := d.(interface{ Missing(*Env) string }); ok {
		return m.Missing(env)
	}
	if program := d.Info().Program; program != "" {
		if _, err := env.Binary(program); err != nil {
			return fmt.Sprintf("%s is neither in -bin nor in PATH (make peers installs it)", program)
		}
	}
	return ""
}

func printList(out io.Writer) {
	fmt.Fprintln(out, "peers:")
	for _, name := range driverOrder {
		i := drivers[name]().Info()
		state := ""
		if why := missing(name); why != "" {
			state = " (LEFT OUT: " + why + ")"
		}
		fmt.Fprintf(out, "  %-16s %s%s\n%-18s nodes %d, copies %d; acknowledged means: %s\n",
			name, i.About, state, "", i.Nodes, i.Copies, i.AckMeans)
	}
	fmt.Fprintln(out, "workloads:")
	for _, name := range workloadOrder {
		fmt.Fprintf(out, "  %-16s %s\n", name, workloads[name].About)
	}
}
