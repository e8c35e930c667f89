package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/meshq/meshq/client"
)

func (a *app) nodeCommand() *cobra.Command {
	return a.group("node", "List and show the nodes of the mesh", a.nodeList(), a.nodeShow())
}

// nodeJSON is a member of the ring.
type nodeJSON struct {
	ID      string `json:"id"`
	Name    string `json:"name"`
	State   string `json:"state"`
	Alive   bool   `json:"alive"`
	Address string `json:"address"`
	HTTP    string `json:"http"`
	Zone    string `json:"zone"`
	Weight  int    `json:"weight"`
	Error   string `json:"error,omitempty"`
}

// nodeStateJSON is a member and its account of itself.
type nodeStateJSON struct {
	nodeJSON
	Boot       uint64 `json:"boot"`
	Ring       uint64 `json:"ring"`
	Catalog    uint64 `json:"catalog"`
	Commits    uint64 `json:"commits"`
	Partitions uint64 `json:"partitions"`
	Owned      uint64 `json:"owned"`
	Hints      uint64 `json:"hints"`
	InFlight   uint64 `json:"in_flight"`
	Repairing  uint64 `json:"repairing"`
	Version    string `json:"version"`
}

func nodeAsJSON(n *client.Node) nodeJSON {
	j := nodeJSON{ID: n.ID, Name: n.Name, State: n.State, Alive: n.Alive, Address: n.Address, HTTP: n.HTTP, Zone: n.Zone, Weight: n.Weight}
	if n.Err != nil {
		j.Error = n.Err.Error()
	}
	return j
}

func (a *app) nodeList() *cobra.Command {
	var asJSON bool
	return a.meshCommand("list [flags]", "List the nodes of the ring and whether they are alive", argCount(0, 0, ""), jsonFlag(&asJSON, "a JSON object for each node"),
		func(ctx context.Context, mesh *client.Mesh, _ []string) error {
			nodes, err := mesh.Nodes(ctx)
			if err != nil {
				return bare(err, "list nodes")
			}
			if asJSON {
				for i := range nodes {
					if err := a.printJSON(nodeAsJSON(&nodes[i])); err != nil {
						return err
					}
				}
				return nil
			}
			t := newTable(a.out, "NAME", "STATE", "MESH", "HTTP", "ZONE", "ID")
			for _, n := range nodes {
				t.row(n.Name, n.State, n.Address, n.HTTP, n.Zone, n.ID)
			}
			return t.flush()
		})
}

func (a *app) nodeShow() *cobra.Command {
	var asJSON bool
	return a.meshCommand("show NODE [flags]", "Show what a node, by name or ID, says of itself", argCount(1, 1, "NODE"), jsonFlag(&asJSON, "a JSON object"),
		func(ctx context.Context, mesh *client.Mesh, args []string) error {
			nodes, err := mesh.Nodes(ctx)
			if err != nil {
				return bare(err, "list nodes")
			}
			n, err := chooseNode(nodes, args[0])
			if err != nil {
				return err
			}
			if asJSON {
				return a.printJSON(nodeStateJSON{
					nodeJSON: nodeAsJSON(n), Boot: n.Boot, Ring: n.Ring, Catalog: n.Catalog, Commits: n.Commits, Partitions: n.Partitions,
					Owned: n.Owned, Hints: n.Hints, InFlight: n.InFlight, Repairing: n.Repairing, Version: n.Version,
				})
			}
			return a.printNode(n)
		})
}

// chooseNode finds a node by its ID, or by its name if only one has it.
func chooseNode(nodes []client.Node, typed string) (*client.Node, error) {
	var named []*client.Node
	var names, ids []string
	like1 := ""
	for i := range nodes {
		n := &nodes[i]
		if n.ID == typed {
			return n, nil
		}
		if n.Name == typed {
			named, ids = append(named, n), append(ids, n.ID)
		}
		names = append(names, n.Name)
		if like(n.Name, typed) {
			like1 = n.Name
		}
	}
	switch {
	case len(named) == 1:
		return named[0], nil
	case len(named) > 1:
		return nil, failed(fmt.Errorf("%d nodes have that name", len(named)), "name it by its ID: "+strings.Join(ids, " or "))
	case like1 != "":
		return nil, failed(fmt.Errorf("no such node"), fmt.Sprintf("did you mean %q?", like1))
	}
	return nil, failed(fmt.Errorf("no such node"), "the nodes are "+strings.Join(names, ", "))
}

func (a *app) printNode(n *client.Node) error {
	t := newTable(a.out)
	t.row("name", n.Name)
	t.row("id", n.ID)
	t.row("state", n.State)
	t.row("mesh", n.Address)
	t.row("http", n.HTTP)
	t.row("zone", n.Zone)
	if n.Err != nil {
		t.row("error", oneLine(n.Err.Error()))
		return t.flush()
	}
	t.row("version", n.Version)
	t.row("boot", n.Boot)
	t.row("ring", n.Ring)
	t.row("catalog", n.Catalog)
	t.row("synced commits", n.Commits)
	t.row("partitions", fmt.Sprintf("%d, of which it owns %d and repairs %d", n.Partitions, n.Owned, n.Repairing))
	t.row("in flight", plural(n.InFlight, "message"))
	t.row("hints", fmt.Sprintf("%s kept for other nodes", plural(n.Hints, "hint")))
	return t.flush()
}
