//go:build !linux

package chaos

import "errors"

// There are no network namespaces: checkSwitched refuses, the rest is never called.
type network struct{ sw *netSwitch }

type nic struct{ port *port }

func checkSwitched() error {
	return &MissingError{What: "a switched network", Need: "Linux", Hint: "use --network loopback"}
}

func newNetwork(seed uint64, links Effect) *network { return &network{sw: newSwitch(seed, links)} }

func (n *network) attach(string, place) (*nic, error) { return nil, errors.ErrUnsupported }
func (c *nic) enter() error                           { return errors.ErrUnsupported }
func (c *nic) move() error                            { return errors.ErrUnsupported }
func (c *nic) close()                                 {}
