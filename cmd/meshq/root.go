package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// stdio is where a command reads and writes.
type stdio struct {
	in       io.Reader
	out, err io.Writer
}

// app is what all commands of one process share.
type app struct {
	stdio
	env     func(string) (string, bool)
	started bool // the arguments were fine: what fails now is not usage
}

// run runs one command line and returns the exit code.
func run(ctx context.Context, args []string, std stdio, env func(string) (string, bool)) int {
	a := &app{stdio: std, env: env}
	root := a.root()
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	if err != nil && !a.started {
		err = usageOf(cmd, err)
	}
	return report(a.err, err)
}

// usageOf makes a usage failure of what cobra says about a command line.
func usageOf(cmd *cobra.Command, err error) error {
	if _, ok := err.(*failure); ok {
		return err
	}
	return usage(fmt.Sprintf("%q shows what is possible", cmd.CommandPath()+" --help"), "%s", err.Error())
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "meshq",
		Short: "A durable message queue that runs as a mesh of identical nodes",
		Long: `meshq is a durable message queue that runs as a mesh of identical nodes.

"meshq dev" starts a whole mesh on this machine to try it; "meshq serve" starts
one node. All other commands are clients: they talk to any node of a mesh.`,
		SilenceErrors:              true,
		SilenceUsage:               true,
		DisableSuggestions:         true, // ours, in group, are one line
		SuggestionsMinimumDistance: 2,
		PersistentPreRun:           func(*cobra.Command, []string) { a.started = true },
		Args:                       subcommandArgs,
		RunE:                       func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.err)
	root.SetFlagErrorFunc(flagError)
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetUsageTemplate(usageTemplate)
	root.SetHelpTemplate(helpTemplate)
	cobra.EnableCommandSorting = false

	for _, g := range []struct {
		id, title string
		cmds      []*cobra.Command
	}{
		{"run", "Run nodes:", []*cobra.Command{a.devCommand(), a.serveCommand()}},
		{"use", "Use a mesh:", []*cobra.Command{a.sendCommand(), a.receiveCommand(), a.queueCommand(), a.nodeCommand(), a.ringCommand()}},
		{"test", "Put it to the test:", []*cobra.Command{a.simCommand(), a.chaosCommand()}},
		{"about", "About:", []*cobra.Command{a.versionCommand()}},
	} {
		root.AddGroup(&cobra.Group{ID: g.id, Title: g.title})
		for _, cmd := range g.cmds {
			cmd.GroupID = g.id
			root.AddCommand(cmd)
		}
	}
	root.InitDefaultHelpCmd()
	for _, cmd := range root.Commands() {
		cmd.Hidden = cmd.Name() == "help" // it works, and --help is what people know
	}
	return root
}

// group is a command that only has commands.
func (a *app) group(use, short string, cmds ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Args: subcommandArgs, SuggestionsMinimumDistance: 2}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		var names []string
		for _, c := range cmd.Commands() {
			names = append(names, c.Name())
		}
		return usage(fmt.Sprintf("%q shows what each does", cmd.CommandPath()+" --help"),
			"%s: what? one of %s is missing", cmd.Name(), strings.Join(names, ", "))
	}
	cmd.AddCommand(cmds...)
	return cmd
}

// subcommandArgs refuses an unknown command and proposes one that reads like it.
func subcommandArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	hint := fmt.Sprintf("%q lists the commands", cmd.CommandPath()+" --help")
	if like := cmd.SuggestionsFor(args[0]); len(like) > 0 {
		hint = fmt.Sprintf("did you mean %q?", cmd.CommandPath()+" "+like[0])
	}
	return usage(hint, "unknown command %q", strings.TrimPrefix(cmd.CommandPath()+" "+args[0], "meshq "))
}

// flagError explains a flag that does not parse; an unknown one with one that
// reads like it.
func flagError(cmd *cobra.Command, err error) error {
	hint := fmt.Sprintf("%q explains the flags", cmd.CommandPath()+" --help")
	if name, ok := strings.CutPrefix(err.Error(), "unknown flag: --"); ok {
		best := ""
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if !f.Hidden && like(f.Name, name) && (best == "" || distance(f.Name, name) < distance(best, name)) {
				best = f.Name
			}
		})
		if best != "" {
			hint = fmt.Sprintf("did you mean --%s?", best)
		}
	}
	name := strings.TrimPrefix(strings.TrimPrefix(cmd.CommandPath(), "meshq"), " ")
	if name == "" {
		return usage(hint, "%s", err.Error())
	}
	return usage(hint, "%s: %s", name, err.Error())
}

// args are the checks of the arguments of a command: at least min, at most max
// (-1: any number); what names them.
func argCount(min, max int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		name := strings.TrimPrefix(cmd.CommandPath(), "meshq ")
		switch {
		case len(args) < min:
			return usage("the form is \""+cmd.UseLine()+"\"", "%s: %s is missing", name, what)
		case max >= 0 && len(args) > max:
			return usage("the form is \""+cmd.UseLine()+"\"", "%s: %q is one argument too many", name, args[max])
		}
		return nil
	}
}

// like tells whether a typed word may be meant for a known one.
func like(known, typed string) bool {
	return len(typed) > 2 && (distance(known, typed) <= 2 || strings.HasPrefix(known, typed))
}

// distance is the number of letters to change, add or take away to make a of b.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		left, diagonal := i+1, i
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost = min(diagonal, left, row[j+1]) + 1
			}
			diagonal, row[j], left = row[j+1], left, cost
		}
		row[len(b)] = left
	}
	return row[len(b)]
}

// self is how the user called this program, for commands to copy.
func self() string {
	if len(os.Args) > 0 && strings.Contains(os.Args[0], "/") && !strings.HasPrefix(os.Args[0], "/") {
		return os.Args[0]
	}
	return "meshq"
}

const helpTemplate = `{{with (or .Long .Short)}}{{. | trimTrailingWhitespaces}}

{{end}}{{.UsageString}}`

const usageTemplate = `Usage:{{if .HasAvailableSubCommands}}
  {{.CommandPath}} COMMAND{{else}}
  {{.UseLine}}{{end}}{{if .HasExample}}

Examples:
{{.Example}}{{end}}{{if .HasAvailableSubCommands}}{{$cmds := .Commands}}{{if eq (len .Groups) 0}}

Commands:{{range $cmds}}{{if .IsAvailableCommand}}
  {{rpad .Name .NamePadding }} {{.Short}}{{end}}{{end}}{{else}}{{range $group := .Groups}}

{{.Title}}{{range $cmds}}{{if (and (eq .GroupID $group.ID) .IsAvailableCommand)}}
  {{rpad .Name .NamePadding }} {{.Short}}{{end}}{{end}}{{end}}{{end}}{{end}}{{if .HasAvailableLocalFlags}}

Flags:
{{.LocalFlags.FlagUsagesWrapped 100 | trimTrailingWhitespaces}}{{end}}{{if .HasAvailableInheritedFlags}}

Which mesh:
{{.InheritedFlags.FlagUsagesWrapped 100 | trimTrailingWhitespaces}}{{end}}{{if .HasAvailableSubCommands}}

"{{.CommandPath}} COMMAND --help" explains a command.{{end}}
`
