package chaos

import (
	"testing"
	"time"

	"github.com/meshq/meshq/sim/history"
)

func TestBody(t *testing.T) {
	for _, size := range []int{0, 1, 30, 64, 5000} {
		m := history.Message{Producer: "p1.2", Number: 7}
		b := makeBody(m, size)
		if got, ok := readBody(b); !ok || got != m {
			t.Errorf("a body of %d bytes is read as %v, %v", size, got, ok)
		}
		if len(b) != max(size, len("p1.2 7\n")+bodyChecksum) {
			t.Errorf("a body of %d bytes has %d", size, len(b))
		}
		for i := range b {
			b[i] ^= 4
			if got, ok := readBody(b); ok {
				t.Fatalf("with byte %d of %d changed it is read as %v", i, len(b), got)
			}
			b[i] ^= 4
		}
	}
	if _, ok := readBody(nil); ok {
		t.Error("nothing is read as a body")
	}
}

// What luck says is spread as it should be.
func TestLuck(t *testing.T) {
	low, sum := 0, time.Duration(0)
	const n = 20_000
	for i := range uint64(n) {
		luck := luckOf(3, "a", history.Message{Producer: "p", Number: i})
		if luck == luckOf(3, "b", history.Message{Producer: "p", Number: i}) {
			t.Fatal("two purposes have one luck")
		}
		if share(luck) < 0.1 {
			low++
		}
		sum += exponential(luck, time.Second)
	}
	if low < n/10*9/10 || low > n/10*11/10 {
		t.Errorf("a tenth of %d is %d", n, low)
	}
	if mean := sum / n; mean < 900*time.Millisecond || mean > 1100*time.Millisecond {
		t.Errorf("the mean of what should be 1s is %v", mean)
	}
}
