//go:build !linux

package chaos

import (
	"errors"
	"os"
	"os/exec"
)

// A thread other than the main one is of no matter where nothing is tied to it.
func isMainThread() bool { return false }

func bind(*exec.Cmd) {}

// startedAt is not known: strays are left alone rather than mistaken.
func startedAt(int) string { return "" }

func waitStopped(int) error { return nil }

func anonymousBytes(int) (int64, error) {
	return 0, errors.New("the memory of other processes is not known on this system")
}

func isolateMounts() error        { return missingDisks() }
func unmountBelow(string) error   { return nil }
func freeLoopsBelow(string) error { return nil }

// nextData knows no holes.
func nextData(_ *os.File, at int64) (int64, error) { return at, nil }
