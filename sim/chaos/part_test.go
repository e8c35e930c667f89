package chaos

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

func TestRunClientRefuses(t *testing.T) {
	for name, in := range map[string]string{
		"nothing":         "",
		"half a line":     `{"name":"p1"`,
		"no JSON":         "run\n",
		"neither role":    `{"name":"p1"}` + "\n",
		"both roles":      `{"name":"p1","producer":{"name":"p1"},"consumer":{"name":"p1"}}` + "\n",
		"a wrong address": `{"name":"p1","servers":"nowhere","producer":{"name":"p1"}}` + "\n" + `{"stop":true}`,
	} {
		if err := RunClient(context.Background(), strings.NewReader(in), io.Discard); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// A client whose run has gone does not stay: its input ends without an order to stop.
func TestRunClientEndsWithItsRun(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	_ = l.Close() // nobody answers there
	in, run := io.Pipe()
	ended := make(chan error, 1)
	go func() { ended <- RunClient(context.Background(), in, io.Discard) }()
	if _, err := io.WriteString(run, `{"name":"p1","servers":"`+addr+`","producer":{"name":"p1","queue":"q"}}`+"\n"); err != nil {
		t.Fatal(err)
	}
	_ = run.Close()
	select {
	case err := <-ended:
		if !errors.Is(err, errLeft) {
			t.Errorf("it ended with %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Error("it stays")
	}
}
