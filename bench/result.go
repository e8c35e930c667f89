package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"sort"
	"strings"
	"text/tabwriter"
)

// Metrics are the figures of one run, by name.
type Metrics map[string]float64

// Result is one run of one workload on one system.
type Result struct {
	Time     string   `json:"time"`
	Peer     string   `json:"peer"`
	Version  string   `json:"version"`
	Workload string   `json:"workload"`
	Round    int      `json:"round"`
	Metrics  Metrics  `json:"metrics,omitempty"`
	Notes    []string `json:"notes,omitempty"`
	Error    string   `json:"error,omitempty"`
}

// AppendResult adds a result to a file of JSON lines.
func AppendResult(path string, r Result) error {
	if path == "" {
		return nil
	}
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	if _, err := f.Write(append(b, '\n')); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

// ReadResults reads files of JSON lines.
func ReadResults(paths []string) (all []Result, err error) {
	for _, path := range paths {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in := bufio.NewScanner(f)
		in.Buffer(nil, 1<<20)
		for in.Scan() {
			var r Result
			if err := json.Unmarshal(in.Bytes(), &r); err != nil {
				return nil, fmt.Errorf("%s: %w", path, err)
			}
			all = append(all, r)
		}
		if err := in.Err(); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// PrintTables prints a table for each workload, a line for each system, with
// the median of its runs in each column.
func PrintTables(out io.Writer, results []Result) {
	for _, name := range workloadOrder {
		runs := map[string][]Result{}
		var peers []string
		for _, r := range results {
			if r.Workload != name {
				continue
			}
			if runs[r.Peer] == nil {
				peers = append(peers, r.Peer)
			}
			runs[r.Peer] = append(runs[r.Peer], r)
		}
		if len(peers) == 0 {
			continue
		}
		sort.SliceStable(peers, func(i, j int) bool { return driverRank[peers[i]] < driverRank[peers[j]] })
		w := workloads[name]
		fmt.Fprintf(out, "\n%s: %s\n", name, w.About)
		tw := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
		fmt.Fprintf(tw, "peer\truns\t%s\t\n", strings.Join(headers(w.Columns), "\t"))
		for _, p := range peers {
			good := slices.DeleteFunc(slices.Clone(runs[p]), func(r Result) bool { return r.Error != "" })
			failed := len(runs[p]) - len(good)
			sort.SliceStable(good, func(i, j int) bool {
				return good[i].Metrics["other_cores"] < good[j].Metrics["other_cores"]
			})
			if conf.calmest > 0 {
				good = good[:min(len(good), conf.calmest)]
			}
			count := fmt.Sprint(len(good))
			if failed > 0 {
				count += fmt.Sprintf(" (%d failed)", failed)
			}
			fmt.Fprintf(tw, "%s\t%s\t", p, count)
			for _, c := range w.Columns {
				fmt.Fprintf(tw, "%s\t", formatMetric(median(good, c)))
			}
			fmt.Fprintln(tw)
		}
		tw.Flush()
	}
}

// PrintSummary prints one table over the workloads: a line for each system, with the
// medians of the metrics that matter most.
func PrintSummary(out io.Writer, results []Result) {
	type column struct{ workload, metric string }
	var columns []column
	runs := map[string]map[string][]Result{} // by peer and workload
	for _, r := range results {
		if runs[r.Peer] == nil {
			runs[r.Peer] = map[string][]Result{}
		}
		if r.Error == "" {
			runs[r.Peer][r.Workload] = append(runs[r.Peer][r.Workload], r)
		}
	}
	var names, metrics []string
	for _, name := range workloadOrder {
		if !slices.ContainsFunc(results, func(r Result) bool { return r.Workload == name }) {
			continue
		}
		for i, metric := range workloads[name].Summary {
			columns = append(columns, column{name, metric})
			title := ""
			if i == 0 {
				title = name
			}
			names = append(names, title)
		}
		metrics = append(metrics, headers(workloads[name].Summary)...)
	}
	if len(columns) == 0 {
		return
	}
	fmt.Fprintln(out, "\nin short:")
	tw := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(tw, "\t%s\t\npeer\t%s\t\n", strings.Join(names, "\t"), strings.Join(metrics, "\t"))
	for _, peer := range driverOrder {
		if runs[peer] == nil {
			continue
		}
		fmt.Fprintf(tw, "%s\t", peer)
		for _, c := range columns {
			fmt.Fprintf(tw, "%s\t", formatMetric(median(runs[peer][c.workload], c.metric)))
		}
		fmt.Fprintln(tw)
	}
	tw.Flush()
}

func headers(columns []string) []string {
	short := strings.NewReplacer("server_cpu_s_per_million", "cpu_s/M", "disk_bytes_per_payload_byte", "disk/payload",
		"_per_s", "/s", "_pct", "%", "publish_errors", "errors", "_", " ")
	var h []string
	for _, c := range columns {
		h = append(h, short.Replace(c))
	}
	return h
}

// median returns the median of a metric over some runs; ok is false when no
// run has it.
func median(runs []Result, metric string) (value float64, ok bool) {
	var all []float64
	for _, r := range runs {
		if v, has := r.Metrics[metric]; has {
			all = append(all, v)
		}
	}
	return medianOf(all)
}

func medianOf(all []float64) (float64, bool) {
	n := len(all)
	if n == 0 {
		return 0, false
	}
	sort.Float64s(all)
	return (all[(n-1)/2] + all[n/2]) / 2, true
}

func formatMetric(v float64, ok bool) string {
	switch {
	case !ok:
		return "-"
	case v == float64(int64(v)):
		return fmt.Sprintf("%.0f", v)
	case v >= 1000:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.2f", v)
	}
}
