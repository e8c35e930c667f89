package chaos

import (
	"bytes"
	"fmt"
	"math"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/meshq/meshq/sim/history"
)

// A body says which message it is, so that who gets it knows without having been told:
//
//	+--------------------------+---------+---------------+
//	| "producer number\n"      | filling | checksum (8)  |
//	+--------------------------+---------+---------------+
//
// The filling is pseudo-random bytes. The checksum is xxhash64 of all before it,
// big endian.
const bodyChecksum = 8

// makeBody makes the body of a message, of size bytes or as many as it needs.
func makeBody(m history.Message, size int) []byte {
	b := fmt.Appendf(make([]byte, 0, max(size, 64)), "%s %d\n", m.Producer, m.Number)
	for x := xxhash.Sum64(b); len(b) < size-bodyChecksum; {
		x = scramble(x)
		b = append(b, byte(x))
	}
	return checksum(b).Sum(b)
}

func checksum(b []byte) *xxhash.Digest {
	d := xxhash.New()
	_, _ = d.Write(b) // never fails
	return d
}

// readBody says which message a body is of. false: nobody of this run wrote it, or it is
// not as it was written.
func readBody(b []byte) (history.Message, bool) {
	text := len(b) - bodyChecksum
	if text < 0 || !bytes.Equal(b[text:], checksum(b[:text]).Sum(nil)) {
		return history.Message{}, false
	}
	var m history.Message
	_, err := fmt.Sscanf(string(b[:text]), "%s %d\n", &m.Producer, &m.Number)
	return m, err == nil
}

// hashOf is the hash of all that a consumer sees of a message.
func hashOf(body []byte, key string) uint64 {
	d := xxhash.New()
	_, _ = d.WriteString(key) // never fails
	_, _ = d.Write([]byte{0})
	_, _ = d.Write(body)
	return d.Sum64()
}

// luckOf is a number that is always the same for the same message and purpose.
func luckOf(seed uint64, purpose string, m history.Message) uint64 {
	return scramble(seed ^ xxhash.Sum64String(purpose+"\x00"+m.Producer) ^ scramble(m.Number))
}

// share makes a number in [0, 1) of a luck.
func share(luck uint64) float64 { return float64(luck>>11) / (1 << 53) }

// exponential makes a time of a luck, with that mean and at most five times as long.
func exponential(luck uint64, mean time.Duration) time.Duration {
	return min(time.Duration(-math.Log(1-share(luck))*float64(mean)), 5*mean)
}
