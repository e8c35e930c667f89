package main

import (
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
)

func TestLineReader(t *testing.T) {
	long := strings.Repeat("x", 200<<10)
	for _, c := range []struct {
		in   string
		want []string
	}{
		{"", nil},
		{"a\nb\n", []string{"a", "b"}},
		{"a\nb", []string{"a", "b"}},
		{"\n\na\n\n", []string{"", "", "a", ""}},
		{"a\r\n", []string{"a\r"}},
		{"a\x00b\n", []string{"a\x00b"}},
		{long + "\n" + long, []string{long, long}},
		{strings.Repeat("y", maxLine) + "\nz", []string{strings.Repeat("y", maxLine), "z"}},
	} {
		for name, r := range map[string]io.Reader{
			"whole": strings.NewReader(c.in), "halves": iotest.HalfReader(strings.NewReader(c.in)), "data with EOF": iotest.DataErrReader(strings.NewReader(c.in)),
		} {
			l := newLineReader(r)
			var got []string
			var err error
			for {
				var line []byte
				if line, err = l.next(); err != nil {
					break
				}
				got = append(got, string(line))
			}
			if !errors.Is(err, io.EOF) {
				t.Errorf("%s: %v", name, err)
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("%s: %d lines, want %d", name, len(got), len(c.want))
			}
			if l.line != len(c.want) {
				t.Errorf("%s: counted %d lines, want %d", name, l.line, len(c.want))
			}
		}
	}
}

func TestLineReaderRefuses(t *testing.T) {
	l := newLineReader(strings.NewReader("a\n" + strings.Repeat("x", maxLine+1) + "\n"))
	if _, err := l.next(); err != nil {
		t.Fatal(err)
	}
	if _, err := l.next(); !errors.Is(err, errLineTooLong) || !strings.Contains(err.Error(), "line 2") {
		t.Errorf("%v", err)
	}
	broken := newLineReader(iotest.ErrReader(io.ErrClosedPipe))
	if _, err := broken.next(); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("%v", err)
	}
}
