package node

import (
	"bufio"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/meshq/meshq/ring"
)

// membersFile has the mesh addresses of the other members, one a line, beside the store.
// A node whose store has lost the ring finds its mesh again by it. It is a hint and
// nothing else: who answers there says which mesh it is of.
const membersFile = "members"

// maxMembersFile bounds what is read of it, in lines.
const maxMembersFile = 1024

// memory keeps the members file.
type memory struct {
	path   string
	latest chan []ring.Member // capacity 1
	fail   func(error)        // says that it could not be written
}

func newMemory(dir string, fail func(error)) *memory {
	return &memory{path: filepath.Join(dir, membersFile), latest: make(chan []ring.Member, 1), fail: fail}
}

// addresses are those that were written last; none if there is no such file.
func (m *memory) addresses() []string {
	f, err := os.Open(m.path)
	if err != nil {
		return nil
	}
	defer func() { _ = f.Close() }()
	var out []string
	for lines := bufio.NewScanner(f); lines.Scan() && len(out) < maxMembersFile; {
		if address := strings.TrimSpace(lines.Text()); checkAddress(address) == nil {
			out = append(out, address)
		}
	}
	return out
}

// set takes the members to be written. It does not block.
func (m *memory) set(members []ring.Member) {
	select {
	case <-m.latest: // an older one that nobody has taken
	default:
	}
	m.latest <- slices.Clone(members)
}

// run writes what set was given.
func (m *memory) run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case members := <-m.latest:
			if err := m.write(members); err != nil {
				m.fail(err)
			}
		}
	}
}

func (m *memory) write(members []ring.Member) error {
	var b strings.Builder
	for _, x := range members {
		b.WriteString(x.Address + "\n")
	}
	next := m.path + ".new"
	if err := os.WriteFile(next, []byte(b.String()), 0o600); err != nil {
		return err
	}
	return os.Rename(next, m.path)
}
