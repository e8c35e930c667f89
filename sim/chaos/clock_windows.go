package chaos

import "time"

// monotonic is a clock that all processes of a machine share, in nanoseconds. That of
// Windows is the wall clock here: it must not be set while a run is on.
func monotonic() int64 { return time.Now().UnixNano() }
