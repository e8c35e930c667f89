package transport

import (
	"bytes"
	"encoding/hex"
	"io"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/meshq/meshq/transport/wire"
)

// goldenFrames are bytes that never change: other versions and other languages
// speak them.
var goldenFrames = []struct {
	msg     wire.Message
	flags   uint8
	request uint64
	frame   string
}{
	{&wire.Ping{}, flagRequest, 1, "000000154d5103010000000000000001000000012af514f190"},
	{&wire.Done{}, flagAnswer, 1, "000000154d510402000000000000000100000001da2c2eb090"},
	{&wire.Error{Code: wire.CodeBadRequest, Text: "no"}, 0, 0, "0000001c4d5102000000000000000000000000086c3474039508a26e6f000000"},
	{&wire.Enqueue{Count: 1, Records: []byte{2, 0, 0}, Checksum: wire.Checksum([]byte{2, 0, 0})}, flagRequest, 0x0102030405060708, "0000002e4d5120010102030405060708000000178ffe51c19c00a0000000920000000100cfb7678bfc592ba79200c2020000"},
}

func TestGoldenFrames(t *testing.T) {
	doc, err := os.ReadFile("../docs/protocol.md")
	if err != nil {
		t.Fatal(err)
	}
	var stream []byte
	for _, g := range goldenFrames {
		b := rawFrame(t, g.msg, g.flags, g.request)
		stream = append(stream, b...)
		if got := hex.EncodeToString(b); got != g.frame {
			t.Errorf("%T is framed as\n%s, golden is\n%s", g.msg, got, g.frame)
		}
		if !strings.Contains(string(doc), "\n"+g.frame+"\n") {
			t.Errorf("docs/protocol.md does not show the frame of %T", g.msg)
		}
	}
	r := &frameReader{r: bytes.NewReader(stream), limit: maxFrameBytes}
	for _, g := range goldenFrames {
		p, header, payload, err := r.next()
		if err != nil {
			t.Fatal(err)
		}
		msg, err := wire.DecodeMessage(p.typ, header, payload)
		if err != nil || !reflect.DeepEqual(msg, g.msg) || p.flags != g.flags || p.request != g.request {
			t.Errorf("%T came back as %+v under %d, %d: %v", g.msg, msg, p.flags, p.request, err)
		}
	}
	if _, _, _, err := r.next(); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
}

// TestLargeFramesGrow: the memory of a frame follows its bytes.
func TestLargeFramesGrow(t *testing.T) {
	for _, n := range []int{0, 1, stepBytes - 1, stepBytes, stepBytes + 1, 9*stepBytes + 7} {
		b := bytes.Repeat([]byte{7}, n)
		b = append(b, 8)
		got, err := readBody(bytes.NewReader(b), n)
		if err != nil || !bytes.Equal(got, b[:n]) {
			t.Errorf("%d bytes: %d came, %v", n, len(got), err)
		}
		if n == 0 {
			continue
		}
		if _, err := readBody(bytes.NewReader(b[:n-1]), n); err != io.ErrUnexpectedEOF && n > 1 || err == nil {
			t.Errorf("%d of %d bytes: %v", n-1, n, err)
		}
	}
	allocs := testing.AllocsPerRun(1, func() {
		if _, err := readBody(bytes.NewReader(nil), maxFrameBytes); err != io.EOF {
			t.Errorf("no bytes: %v", err)
		}
	})
	if allocs > 3 {
		t.Errorf("%v allocations for bytes that did not come", allocs)
	}
}
