//go:build unix && !linux

package store

import "os"

// advise has nothing to do here: only Linux rewrites whole folios.
func advise([]string, bool, map[string]struct{}) error { return nil }

// allocate makes f size bytes long with all blocks taken.
func allocate(f *os.File, size int64) error { return fill(f, size) }

// machineBoot is not known here: every unclean stop counts as one of the machine.
func machineBoot() string { return "" }
