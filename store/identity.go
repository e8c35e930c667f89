package store

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cespare/xxhash/v2"

	"github.com/meshq/meshq/transport/wire"
)

// identity is who the directory is. It is kept in two files, each 64 bytes, big
// endian, so that damage to one of them changes nothing:
//
//	 0 "meshqid1"
//	 8 node     u64
//	16 boot     u64   number of the last boot
//	24 machine  u64   xxhash64 of the name of the machine's boot
//	32 flags    u64   1: was closed; 2: last ran with SyncInterval
//	40 zero
//	56 checksum u64   xxhash64 of bytes 0..56
type identity struct {
	node    wire.NodeID
	boot    uint64
	machine uint64
	flags   uint64
}

const (
	identityBytes = 64
	identityMagic = "meshqid1"

	flagClosed   = 1
	flagInterval = 2
)

var identityFiles = [2]string{"identity", "identity.copy"}

// errDamaged means that a file of the store's own is not what its checksum says.
var errDamaged = errors.New("damaged")

func (id identity) encode() []byte {
	b := make([]byte, identityBytes)
	copy(b, identityMagic)
	binary.BigEndian.PutUint64(b[8:], uint64(id.node))
	binary.BigEndian.PutUint64(b[16:], id.boot)
	binary.BigEndian.PutUint64(b[24:], id.machine)
	binary.BigEndian.PutUint64(b[32:], id.flags)
	binary.BigEndian.PutUint64(b[56:], xxhash.Sum64(b[:56]))
	return b
}

func decodeIdentity(b []byte) (identity, error) {
	if len(b) != identityBytes || string(b[:8]) != identityMagic || binary.BigEndian.Uint64(b[56:]) != xxhash.Sum64(b[:56]) {
		return identity{}, fmt.Errorf("identity: %w", errDamaged)
	}
	id := identity{
		node: wire.NodeID(binary.BigEndian.Uint64(b[8:])), boot: binary.BigEndian.Uint64(b[16:]),
		machine: binary.BigEndian.Uint64(b[24:]), flags: binary.BigEndian.Uint64(b[32:]),
	}
	if id.node == 0 {
		return identity{}, fmt.Errorf("identity: no node: %w", errDamaged)
	}
	return id, nil
}

// loadIdentity reads the newest readable copy. fs.ErrNotExist: there is none;
// errDamaged: there is, but none can be read.
func loadIdentity(dir string) (newest identity, err error) {
	err = fs.ErrNotExist
	for _, name := range identityFiles {
		b, e := os.ReadFile(filepath.Join(dir, name))
		if errors.Is(e, fs.ErrNotExist) {
			continue
		}
		var id identity
		if e == nil {
			id, e = decodeIdentity(b)
		}
		switch {
		case e != nil && errors.Is(err, fs.ErrNotExist):
			err = fmt.Errorf("%s: %w: %w", name, errDamaged, e)
		case e == nil && id.boot >= newest.boot:
			newest, err = id, nil
		}
	}
	if newest.node != 0 {
		err = nil
	}
	return newest, err
}

// save writes both copies; they are durable when it returns.
func (id identity) save(dir string) error {
	for _, name := range identityFiles {
		if err := writeFile(filepath.Join(dir, name), id.encode()); err != nil {
			return fmt.Errorf("write identity: %w", err)
		}
	}
	return nil
}

// mint makes the identity of a new directory.
func mint() (identity, error) {
	for {
		var b [8]byte
		if _, err := rand.Read(b[:]); err != nil {
			return identity{}, err
		}
		if n := binary.BigEndian.Uint64(b[:]); n != 0 {
			return identity{node: wire.NodeID(n)}, nil
		}
	}
}
