package report

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/meshq/meshq/sim/history"
)

// figure is a line of the table of figures.
type figure struct{ Name, Value string }

// figures are what the run measured, most interesting first; what there was none of is
// left out.
func (r *Run) figures() []figure {
	var out []figure
	add := func(name, value string) { out = append(out, figure{name, value}) }
	if r.Verdict != nil {
		f := &r.Verdict.Figures
		add("sent", fmt.Sprintf("%s: %s confirmed, %s refused, %s unknown", thousands(f.Sent), thousands(f.Confirmed), thousands(f.Refused), thousands(f.Unknown+f.Unanswered)))
		add("delivered", fmt.Sprintf("%s, %s acked", thousands(f.Delivered), thousands(f.Acked)))
		if len(f.Duplicates) > 0 {
			add("delivered again", byName(f.Duplicates))
		}
		if len(f.Codes) > 0 {
			add("not confirmed", byName(f.Codes))
		}
		if f.Confirm.Count > 0 {
			add("time to confirm", quantiles(f.Confirm))
		}
		if f.Deliver.Count > 0 {
			add("time to deliver", quantiles(f.Deliver))
		}
		causes := make([]string, 0, len(f.Redeliver))
		for c := range f.Redeliver {
			causes = append(causes, c)
		}
		slices.Sort(causes)
		for _, c := range causes {
			if l := f.Redeliver[c]; l.Count > 0 {
				add("again after "+c, quantiles(l))
			}
		}
		if f.Failover.Count > 0 {
			add("failover", quantiles(f.Failover))
		}
		if d := f.ConfirmGap.Length(); d > 0 {
			add("longest without a confirm", history.Short(d)+" from "+at(f.ConfirmGap.From))
		}
		if d := f.DeliveryGap.Length(); d > 0 {
			add("longest without a delivery", history.Short(d)+" from "+at(f.DeliveryGap.From))
		}
		if f.MaxUnseen > 0 {
			add("most waiting", count(f.MaxUnseen, "message"))
		}
		if f.Drain > 0 {
			add("healed to drained", history.Short(f.Drain))
		}
		if f.Converge > 0 {
			add("healed to equal replicas", history.Short(f.Converge))
		}
		if f.Memory > 0 {
			add("most memory of a node", size(f.Memory))
		}
		if f.Disk > 0 {
			add("most disk of a node", size(f.Disk))
		}
	}
	took := ""
	if r.Took > 0 {
		took = ", took " + history.Short(r.Took)
	}
	if r.Real {
		add("length", history.Short(r.length())+" of real processes")
	} else {
		add("length", history.Short(r.length())+" simulated"+took)
	}
	if r.Steps > 0 {
		add("steps", thousands(r.Steps))
	}
	if r.Hash != "" {
		add("trace hash", r.Hash)
	}
	if r.Commit != "" {
		add("commit", r.Commit)
	}
	return out
}

// byName is "12 nack, 3 takeover", the most frequent first.
func byName(m map[string]int) string {
	var parts []string
	for _, name := range frequent(m) {
		word := name
		if word == "" {
			word = "no cause"
		}
		parts = append(parts, thousands(m[name])+" "+word)
	}
	return strings.Join(parts, ", ")
}

// frequent are the names, the most frequent first.
func frequent[K ~string](m map[K]int) []K {
	names := make([]K, 0, len(m))
	for n := range m {
		names = append(names, n)
	}
	slices.SortFunc(names, func(a, b K) int {
		if m[a] != m[b] {
			return m[b] - m[a]
		}
		return strings.Compare(string(a), string(b))
	})
	return names
}

func quantiles(l history.Latency) string {
	if l.Count == 1 {
		return history.Short(l.P50)
	}
	return fmt.Sprintf("half in %s, 99 %% in %s, longest %s", history.Short(l.P50), history.Short(l.P99), history.Short(l.Max))
}

func size(n int64) string {
	for _, u := range []struct {
		name string
		of   int64
	}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}} {
		if n >= u.of {
			return fmt.Sprintf("%.1f %s", float64(n)/float64(u.of), u.name)
		}
	}
	return fmt.Sprintf("%d B", n)
}

// state says whether a promise was kept.
func state(p history.Promise) string {
	switch {
	case p.Broken > 0:
		return "broken"
	case p.Checked == 0:
		return "not seen"
	}
	return "kept"
}

// verdict is the promises as the run held them. A violation that no check of the history
// found (an invariant of the simulator) counts as one of its promise.
func (r *Run) verdict() []history.Promise {
	if r.Verdict == nil {
		return nil
	}
	out := slices.Clone(r.Verdict.Promises)
	for i := range out {
		if r.Violation != nil && out[i].Name == r.Violation.Promise && out[i].Broken == 0 {
			out[i].Broken = 1
		}
	}
	return out
}

// hours is a long time in hours, or minutes: "412", "hours".
func hours(d time.Duration) string {
	switch {
	case d >= 10*time.Hour:
		return thousands(int(d.Hours())) + " simulated hours"
	case d >= time.Hour:
		return fmt.Sprintf("%.1f simulated hours", d.Hours())
	case d >= time.Minute:
		return fmt.Sprintf("%.0f simulated minutes", d.Minutes())
	}
	return fmt.Sprintf("%.0f simulated seconds", d.Seconds())
}
