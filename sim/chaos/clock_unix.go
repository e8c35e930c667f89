//go:build unix

package chaos

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// monotonic is a clock that all processes of a machine share, in nanoseconds.
func monotonic() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(fmt.Sprintf("chaos: CLOCK_MONOTONIC: %v", err)) // every Unix has it
	}
	return ts.Nano()
}
