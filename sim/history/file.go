package history

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// maxLine bounds a line of a file, and with it the memory that reading takes.
const maxLine = 1 << 20

// maxTime bounds the times of a file.
const maxTime = 366 * 24 * time.Hour

// Write writes a history: a line of JSON for each event.
func (h *History) Write(w io.Writer) error {
	b := bufio.NewWriterSize(w, 1<<16)
	e := json.NewEncoder(b)
	e.SetEscapeHTML(false)
	for i := range h.Events {
		if err := e.Encode(&h.Events[i]); err != nil {
			return fmt.Errorf("event %d: %w", i, err)
		}
	}
	return b.Flush()
}

// Read reads what Write writes. A last line that is cut off is left out: its process
// died while it wrote.
func Read(r io.Reader) (*History, error) {
	h := &History{}
	b := bufio.NewReaderSize(r, 1<<16)
	var line []byte
	for n := 1; ; n++ {
		line = line[:0]
		for {
			part, err := b.ReadSlice('\n')
			line = append(line, part...)
			if len(line) > maxLine {
				return nil, fmt.Errorf("line %d is longer than %d bytes: not a history", n, maxLine)
			}
			if errors.Is(err, bufio.ErrBufferFull) {
				continue
			}
			if errors.Is(err, io.EOF) {
				return h, nil // what came after the last end of a line was cut off
			}
			if err != nil {
				return nil, fmt.Errorf("line %d: %w", n, err)
			}
			break
		}
		if len(bytes.TrimSpace(line)) == 0 {
			continue
		}
		var e Event
		if err := json.Unmarshal(line, &e); err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		if e.At < -maxTime || e.At > maxTime {
			return nil, fmt.Errorf("line %d: at is %v, more than %v from the begin of the load", n, e.At, maxTime)
		}
		h.Events = append(h.Events, e)
	}
}
