package main

import (
	"fmt"
	"io"
	"time"
)

// progressEvery is how often a line of progress is drawn anew.
const progressEvery = 250 * time.Millisecond

// progress is a line on a terminal that says how far long work is. On anything but
// a terminal it says nothing.
type progress struct {
	w      io.Writer
	ticker *time.Ticker // nil: says nothing
	drawn  bool
}

func newProgress(w io.Writer, wanted bool) *progress {
	p := &progress{w: w}
	if wanted && isTerminal(w) {
		p.ticker = time.NewTicker(progressEvery)
	}
	return p
}

// tick says when it is time to show; nil never.
func (p *progress) tick() <-chan time.Time {
	if p.ticker == nil {
		return nil
	}
	return p.ticker.C
}

func (p *progress) show(format string, args ...any) {
	if p.ticker != nil {
		fmt.Fprintf(p.w, "\r\x1b[Kmeshq: "+format, args...)
		p.drawn = true
	}
}

// clear takes the line away and ends.
func (p *progress) clear() {
	if p.ticker == nil {
		return
	}
	p.ticker.Stop()
	if p.drawn {
		fmt.Fprint(p.w, "\r\x1b[K")
		p.drawn = false
	}
}
