package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/meshq/meshq/transport/wire"
)

// version is set by the linker (make build).
var version = "unknown"

func (a *app) versionCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "version [flags]",
		Short: "Say which meshq this is",
		Args:  argCount(0, 0, ""),
		RunE: func(*cobra.Command, []string) error {
			v := struct {
				Version  string `json:"version"`
				Protocol int    `json:"protocol"`
				Go       string `json:"go"`
				Platform string `json:"platform"`
			}{buildVersion(), wire.Version, runtime.Version(), runtime.GOOS + "/" + runtime.GOARCH}
			if asJSON {
				return a.printJSON(v)
			}
			fmt.Fprintf(a.out, "meshq %s, protocol %d, %s, %s\n", v.Version, v.Protocol, v.Go, v.Platform)
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON object")
	return cmd
}

// buildVersion is the linker's version, or that of the module if it was installed
// with "go install".
func buildVersion() string {
	if version != "unknown" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return version
}
