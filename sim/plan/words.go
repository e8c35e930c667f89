package plan

import (
	"fmt"
	"strings"
)

// String says the fault in plain words, without its time: "crash b for 1s".
func (f Fault) String() string {
	on, to := list(f.On), list(f.To)
	by := f.By.String()
	share := fmt.Sprintf("%g %%", 100*f.Share)
	text := ""
	lasts := true // it goes on for For
	back := ""    // what ends after For, where that is not the fault itself
	switch f.Kind {
	case Crash:
		text, back = "crash "+on, "back after"
		if f.Count > 0 {
			text += fmt.Sprintf(" between two effects, the %s from then", ordinal(f.Count))
		}
	case PowerCut:
		text, back = "power cut at "+on, "back after"
	case Restart:
		text, back = "restart "+on, "back after"
	case Pause:
		text = "pause " + on
	case Freeze:
		text = "freeze " + on + ", clock and all,"
	case SlowNode:
		text = "each step of " + on + " takes " + by + " longer"
	case Twin:
		text = "a second process on a copy of the disk of " + on
	case Join:
		text, lasts = plural(max(f.Count, 1), "new node")+" joins", false
		if f.Count > 1 {
			text = plural(f.Count, "new node") + " join"
		}
	case Cut:
		text = "cut " + on + " off from " + to
	case CutOneWay:
		text = "cut the way from " + on + " to " + to
	case Split:
		text = "split " + on + " from all others"
	case RingCut:
		text = "each of " + on + " sees another majority"
	case Bridge:
		text = "two halves of " + on + " that only the first can reach"
	case Flap:
		text = "the link " + on + " - " + to + " comes and goes every " + by
	case Swizzle:
		text, lasts = "cut off "+on+" one by one, "+by+" apart, heal them in another order", false
	case SlowLink:
		text = "frames from " + on + " to " + to + " take " + by + " longer"
	case Late:
		text = fmt.Sprintf("one frame in %d is late by up to %s", f.Count, by)
	case Loss:
		text = "lose " + share + " of the packets from " + on + " to " + to
	case Duplicate:
		text = "duplicate " + share + " of the packets from " + on + " to " + to
	case Bandwidth:
		text = fmt.Sprintf("only %d bytes a second from %s to %s", f.Count, on, to)
	case Reset:
		text, lasts = "reset the connections between "+on+" and "+to, false
	case HalfOpen:
		text, lasts = "the connections between "+on+" and "+to+" are gone, and only "+on+" knows", false
	case Corrupt:
		text = "damage " + share + " of the packets from " + on + " to " + to
	case DiskSlow:
		text = "each fsync of " + on + " takes " + by + " longer"
	case DiskStall:
		text, lasts = "one fsync of "+on+" takes "+by, false
	case DiskFull:
		text = "the disk of " + on + " is full"
	case DiskError:
		text, back = "an fsync of "+on+" fails", "back after"
	case Torn:
		text, back = "kill "+on+" in the middle of a write: its last group is torn", "back after"
	case Amnesia:
		text, back = fmt.Sprintf("kill %s: its disk loses the last %s without a word", on, plural(f.Count, "synced group")), "back after"
	case Damage:
		text, lasts = "a bit of a stored batch of "+on+" flips", false
		if f.Count == 1 {
			text += ", the scrubber finds it"
		}
	case DamageRecord:
		text, back = "kill "+on+": a bit of a record on its disk flips", "back after"
	case OpenError:
		text, back = "kill "+on+": a segment does not open any more", "back after"
	case Rollback:
		text, back = "kill "+on+": its disk is set back by "+by, "back after"
	case Wipe:
		text, back = on+" loses its disk for ever", "a new node in its place after"
	case KeyReturns:
		text, back = "kill "+on+": deleted records are on its disk again", "back after"
	case SlowRead:
		text = "each read of " + on + " takes " + by + " longer"
	case WallJump:
		text, lasts = "the wall clock of "+on+" jumps by "+by, false
	case ClockRate:
		text = fmt.Sprintf("the clock of %s runs %d ppm fast", on, f.Count)
		if f.Count < 0 {
			text = fmt.Sprintf("the clock of %s runs %d ppm slow", on, -f.Count)
		}
	case FalseDeath:
		text = "gossip tells " + on + " that " + to + " is dead"
	case GossipCut:
		text = "no gossip between " + on + " and " + to
	case GossipSilent:
		text = "gossip tells " + on + " nothing new"
	case StaleRevive:
		text = "gossip tells " + on + " that " + to + " lives"
	case ConsumerCrash:
		text, back = "kill the consumer "+on, "back after"
	case ConsumerPause:
		text = "pause the consumer " + on
	case ConsumerSlow:
		text = "the consumer " + on + " takes " + by + " longer for each message"
	case ProducerCrash:
		text, back = "kill the producer "+on, "a new one after"
	case NackStorm:
		text = "the consumer " + on + " nacks all it gets"
	case Poison:
		text = fmt.Sprintf("one message in %d kills the consumer %s", f.Count, on)
	case Burst:
		text = fmt.Sprintf("the producer %s sends %d times as fast", on, f.Count)
	case AnswerLost:
		text = "what " + to + " answers to " + on + " is lost"
	case DeleteQueue:
		text = "queues are created, filled, deleted and created again"
	case UpdateQueue:
		text = "settings of the queue of " + on + " change every " + by
	case PauseQueue:
		text, back = "pause the group of "+on, "resumed after"
		if f.Count == 1 {
			text = "pause the queue of " + on
		}
		if f.By > 0 {
			text, back = text+" until "+by+" from then", ""
			lasts = false
		}
	default:
		text = strings.TrimSpace(string(f.Kind) + " " + on + " " + to)
	}
	switch {
	case f.For == 0:
	case back != "":
		text += ", " + back + " " + f.For.String()
	case lasts:
		text += " for " + f.For.String()
	}
	return text
}

// list is "a", "a and b", "a, b and c".
func list(names []string) string {
	switch n := len(names); n {
	case 0:
		return "all"
	case 1:
		return names[0]
	default:
		return strings.Join(names[:n-1], ", ") + " and " + names[n-1]
	}
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func ordinal(n int) string {
	suffix := "th"
	if n%100 < 11 || n%100 > 13 {
		switch n % 10 {
		case 1:
			suffix = "st"
		case 2:
			suffix = "nd"
		case 3:
			suffix = "rd"
		}
	}
	return fmt.Sprint(n) + suffix
}
