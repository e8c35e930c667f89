package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
)

// maxLine is the longest line that is one message, in bytes: no queue may allow more.
const maxLine = 4 << 20

// errLineTooLong means that a line is no message of any queue.
var errLineTooLong = errors.New("line is too long")

// lineReader reads messages from lines, one at a time, so that a file of any size
// needs the memory of its longest line.
type lineReader struct {
	r    *bufio.Reader
	line int // number of the last line read, from 1
}

func newLineReader(r io.Reader) *lineReader { return &lineReader{r: bufio.NewReaderSize(r, 64<<10)} }

// next is the next line without its newline; nothing else is taken off. A last
// line without a newline is a line. The caller owns the bytes. The errors are
// io.EOF, errLineTooLong and those of the reader.
func (l *lineReader) next() ([]byte, error) {
	var line []byte
	for {
		part, err := l.r.ReadSlice('\n')
		if len(line)+len(part) > maxLine+1 {
			return nil, fmt.Errorf("line %d: %w: over %d bytes", l.line+1, errLineTooLong, maxLine)
		}
		line = append(line, part...)
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case errors.Is(err, io.EOF) && len(line) > 0:
			l.line++
			return line, nil
		case err != nil:
			return nil, err
		}
		l.line++
		return line[: len(line)-1 : len(line)-1], nil
	}
}
