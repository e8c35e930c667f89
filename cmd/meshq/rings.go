package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/meshq/meshq/client"
	"github.com/meshq/meshq/ring"
)

// shareSample is how many partitions the shares of the nodes are computed from.
const shareSample = 10_000

func (a *app) ringCommand() *cobra.Command {
	return a.group("ring", "Show the ring, and where a queue is on it", a.ringShow(), a.ringLookup())
}

// memberJSON is a member of the ring.
type memberJSON struct {
	Ring    uint64  `json:"ring"`
	ID      string  `json:"id"`
	Name    string  `json:"name"`
	Alive   bool    `json:"alive"`
	Address string  `json:"address"`
	Zone    string  `json:"zone"`
	Weight  int     `json:"weight"`
	Share   float64 `json:"share"` // of the partitions, as first home replica
}

func (a *app) ringShow() *cobra.Command {
	var asJSON bool
	return a.meshCommand("show [flags]", "Show the members of the ring and their shares of the partitions", argCount(0, 0, ""), jsonFlag(&asJSON, "a JSON object for each member"),
		func(ctx context.Context, mesh *client.Mesh, _ []string) error {
			r, err := mesh.Ring(ctx)
			if err != nil {
				return bare(err, "ring")
			}
			shares, err := sharesOf(r)
			if err != nil {
				return err
			}
			if asJSON {
				for i, m := range r.Members {
					if err := a.printJSON(memberJSON{r.Number, m.ID, m.Name, m.Alive, m.Address, m.Zone, m.Weight, shares[i]}); err != nil {
						return err
					}
				}
				return nil
			}
			fmt.Fprintf(a.out, "mesh %s, ring %d, catalog %d, %s\n\n", r.Mesh, r.Number, r.Catalog, plural(len(r.Members), "member"))
			t := newTable(a.out, "NAME", "ALIVE", "MESH", "ZONE", "WEIGHT", "SHARE", "ID")
			for i, m := range r.Members {
				t.row(m.Name, map[bool]string{true: "yes", false: "no"}[m.Alive], m.Address, m.Zone, m.Weight, fmt.Sprintf("%.1f %%", shares[i]*100), m.ID)
			}
			return t.flush()
		})
}

// sharesOf computes which part of the partitions each member comes first for.
func sharesOf(r *client.RingInfo) ([]float64, error) {
	table := ring.Table{Number: r.Number}
	at := map[ring.NodeID]int{}
	for i, m := range r.Members {
		id, err := ring.ParseNodeID(m.ID)
		if err != nil {
			return nil, err
		}
		at[id] = i
		table.Members = append(table.Members, ring.Member{ID: id, Zone: m.Zone, Weight: uint16(m.Weight)})
	}
	placement := ring.New(table)
	shares := make([]float64, len(r.Members))
	var first []ring.NodeID
	for i := range uint32(shareSample) {
		if first = placement.Preference(first[:0], ring.PartitionKey("", 1, i), 1); len(first) > 0 {
			shares[at[first[0]]] += 1.0 / shareSample
		}
	}
	return shares, nil
}

// placementJSON is where a partition is.
type placementJSON struct {
	Queue     string   `json:"queue"`
	Partition int      `json:"partition"`
	ID        string   `json:"id"`
	Owner     string   `json:"owner"`
	Home      []string `json:"home"`
	Fallbacks []string `json:"fallbacks"`
}

func (a *app) ringLookup() *cobra.Command {
	var asJSON bool
	return a.meshCommand("lookup QUEUE [flags]", "Show which nodes keep the partitions of a queue", argCount(1, 1, "QUEUE"), jsonFlag(&asJSON, "a JSON object for each partition"),
		func(ctx context.Context, mesh *client.Mesh, args []string) error {
			placements, err := mesh.Lookup(ctx, args[0])
			if err != nil {
				return a.meant(ctx, mesh, args[0], bare(err, "look up "+args[0]))
			}
			if asJSON {
				for _, p := range placements {
					if err := a.printJSON(placementJSON{args[0], p.Partition, p.ID, p.Owner, p.Home, p.Fallbacks}); err != nil {
						return err
					}
				}
				return nil
			}
			t := newTable(a.out, "PARTITION", "OWNER", "HOME REPLICAS", "FALLBACKS")
			for _, p := range placements {
				t.row(p.Partition, p.Owner, strings.Join(p.Home, ", "), strings.Join(p.Fallbacks, ", "))
			}
			return t.flush()
		})
}
