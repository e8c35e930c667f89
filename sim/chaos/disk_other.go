//go:build !linux

package chaos

import "os"

// There are no disks: checkDisks refuses, the rest is never called.
type disk struct {
	dir    string
	cut    bool
	frozen *os.File
}

func missingDisks() error {
	return &MissingError{What: "a file system for each node", Need: "Linux", Hint: "run with --disks plain"}
}

func checkDisks() error                      { return missingDisks() }
func (m *Mesh) newDisk(*host) (*disk, error) { return nil, missingDisks() }
func (d *disk) cutPower() error              { return missingDisks() }
func (d *disk) repower() error               { return missingDisks() }
func (d *disk) freeze(*run) error            { return missingDisks() }
func (d *disk) thaw() error                  { return nil }
func (d *disk) fill(int64) error             { return missingDisks() }
func (d *disk) empty() error                 { return missingDisks() }
func (d *disk) remove() error                { return nil }

func thawStray(string) error { return nil }
