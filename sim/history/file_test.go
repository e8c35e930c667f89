package history

import (
	"bytes"
	"reflect"
	"strings"
	"testing"
)

func TestFile(t *testing.T) {
	h := script(t, oneMessage+atEnd+`
		103s sample n1 memory=5 disk=6
		104s fault-begin 3 cut on=n1,c`)
	var b bytes.Buffer
	if err := h.Write(&b); err != nil {
		t.Fatal(err)
	}
	text := b.String()
	got, err := Read(&b)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, h) {
		t.Errorf("got %v, want %v", got, h)
	}
	// A process that dies leaves a line that is cut off.
	got, err = Read(strings.NewReader(text[:len(text)-9]))
	if err != nil || len(got.Events) != len(h.Events)-1 {
		t.Errorf("%d events of %d, %v", len(got.Events), len(h.Events), err)
	}
}

func TestFileErrors(t *testing.T) {
	for _, test := range []struct{ text, want string }{
		{"{\"at\":1,\"kind\":\"sent\"}\nhello\n", "line 2: invalid character"},
		{"{\"at\":-9000000000000000000,\"kind\":\"sent\"}\n", "line 1: at is -2500000h0m0s, more than"},
		{strings.Repeat("x", maxLine+2) + "\n", "line 1 is longer than 1048576 bytes"},
		{"[1]\n", "line 1: json: cannot unmarshal array"},
	} {
		if _, err := Read(strings.NewReader(test.text)); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%.40q: got %v, want %q", test.text, err, test.want)
		}
	}
	if h, err := Read(strings.NewReader("\n\n")); err != nil || len(h.Events) != 0 {
		t.Errorf("got %v, %v", h, err)
	}
}

// Whatever can be read can be written, read again, and checked.
func FuzzRead(f *testing.F) {
	for _, test := range checkTests {
		h := script(&testing.T{}, test.text)
		var b bytes.Buffer
		if err := h.Write(&b); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
	}
	f.Add([]byte(`{"at":31622400000000000,"kind":"sent","who":"p","message":{"producer":"p","number":18446744073709551615},"within":9223372036854775807}` + "\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		h, err := Read(bytes.NewReader(data))
		if err != nil {
			return
		}
		var b bytes.Buffer
		if err := h.Write(&b); err != nil {
			t.Fatal(err)
		}
		again, err := Read(&b)
		if err != nil {
			t.Fatal(err)
		}
		if len(again.Events) != len(h.Events) {
			t.Fatalf("%d events, then %d", len(h.Events), len(again.Events))
		}
		if v := Check(h, Rules{}); v.String() != Check(again, Rules{}).String() {
			t.Error("another verdict")
		}
	})
}
