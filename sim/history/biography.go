package history

import (
	"fmt"
	"strings"
	"time"
)

// Biography is the life of one message as its clients tell it: for runs that nobody could
// look into, as those of real processes. Group "" is all groups.
func Biography(h *History, m Message, group string) []Line {
	var lines []Line
	for i := range h.Events {
		e := &h.Events[i]
		if e.Message != m || e.Message == (Message{}) || group != "" && e.Group != "" && e.Group != group {
			continue
		}
		if text := e.Words(); text != "" {
			lines = append(lines, Line{At: e.At, Where: e.Who, Text: text})
		}
	}
	return lines
}

// Words say in a few plain words what an event means to its message; "" when it has to
// do with no message.
func (e *Event) Words() string {
	via := ""
	if e.Node != "" {
		via = ", from " + e.Node
	}
	switch e.Kind {
	case Sent:
		return "sends it"
	case Confirmed:
		text := "is told that it is stored"
		if e.Copies > 0 {
			text += fmt.Sprintf(": on %d of %d", e.Copies, e.Want)
		}
		return text
	case Refused:
		return "is told that it is not stored" + because(e.Code)
	case Unknown:
		return "does not know whether it is stored" + because(e.Code)
	case Delivered:
		text := "has it in hand" + via
		var details []string
		if e.Term != (Term{}) {
			details = append(details, fmt.Sprintf("term %d.%s", e.Term.Counter, e.Term.Node))
		}
		if e.Attempt > 0 {
			details = append(details, fmt.Sprintf("attempt %d", e.Attempt))
		}
		if e.Cause != "" {
			details = append(details, "again: "+e.Cause)
		}
		if e.Lease > 0 {
			details = append(details, "lease "+Short(e.Lease))
		}
		if len(details) > 0 {
			text += ", " + strings.Join(details, ", ")
		}
		return text
	case Dropped:
		return "drops it: it knows a newer owner"
	case Acking:
		return "acks it"
	case Acked:
		return "is told that the ack is final"
	case AckFailed:
		return "is told that the ack is not kept" + because(e.Code)
	case Nacked:
		return "gives it back (nack)"
	case Released:
		return "gives it back without an attempt"
	case Extended:
		return "may keep it for " + Short(e.Lease) + " more"
	case LeaseOver:
		return "gives it up: its lease is over"
	case ClientDown:
		return "is killed with it in hand"
	}
	return ""
}

func because(code string) string {
	if code == "" {
		return ""
	}
	return ": " + code
}

// Short is a time in few digits: 412us, 3.4ms, 1.25s, 2m5s.
func Short(d time.Duration) string {
	switch {
	case d < 0:
		return "-" + Short(-d)
	case d < time.Millisecond:
		return d.Round(time.Microsecond).String()
	case d < 10*time.Millisecond:
		return d.Round(100 * time.Microsecond).String()
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < time.Minute:
		return d.Round(10 * time.Millisecond).String()
	default:
		text := d.Round(time.Second).String()
		if strings.HasSuffix(text, "m0s") {
			text = strings.TrimSuffix(text, "0s")
		}
		return text
	}
}
