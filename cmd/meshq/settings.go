package main

import (
	"errors"
	"fmt"
	"os"
	"sort"
	"strings"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"
)

// envPrefix begins the name of every environment variable that is a setting.
const envPrefix = "MESHQ_"

// envName is the environment variable of a flag: MESHQ_TLS_CERT for --tls-cert.
func envName(flag string) string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// yamlName is the key of a flag in a file: tls_cert for --tls-cert.
func yamlName(flag string) string { return strings.ReplaceAll(flag, "-", "_") }

// explainEnv adds the environment variable of each flag to its help.
func explainEnv(flags *pflag.FlagSet) {
	flags.VisitAll(func(f *pflag.Flag) { f.Usage += " [" + envName(f.Name) + "]" })
}

// loadSettings fills the flags that were not given from the environment, then
// from the YAML file that configFlag names (itself from flag or environment).
// What none of them sets keeps its default. The error lists all that is wrong.
func loadSettings(flags *pflag.FlagSet, configFlag string, env func(string) (string, bool)) error {
	given := map[string]bool{}
	flags.Visit(func(f *pflag.Flag) { given[f.Name] = true })
	var wrong []error
	flags.VisitAll(func(f *pflag.Flag) {
		if given[f.Name] {
			return
		}
		if value, ok := env(envName(f.Name)); ok {
			given[f.Name] = true
			if err := flags.Set(f.Name, value); err != nil {
				wrong = append(wrong, fmt.Errorf("environment %s=%q: %w", envName(f.Name), value, cause(err)))
			}
		}
	})
	config := flags.Lookup(configFlag).Value.String()
	if config != "" {
		wrong = append(wrong, loadFile(flags, configFlag, config, given))
	}
	return errors.Join(wrong...)
}

// loadFile sets the flags that are not yet given from a YAML mapping.
func loadFile(flags *pflag.FlagSet, configFlag, path string, given map[string]bool) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var doc yaml.Node
	switch err := yaml.Unmarshal(text, &doc); {
	case err != nil:
		return fmt.Errorf("%s: %w", path, err)
	case len(doc.Content) == 0: // empty, or comments alone
		return nil
	case doc.Content[0].Kind != yaml.MappingNode:
		return fmt.Errorf("%s: not a YAML mapping of settings", path)
	}
	keys := map[string]*pflag.Flag{}
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Name != configFlag && f.Name != "help" {
			keys[yamlName(f.Name)] = f
		}
	})
	var wrong []error
	seen := map[string]bool{}
	pairs := doc.Content[0].Content
	for i := 0; i < len(pairs); i += 2 {
		key, value := pairs[i], pairs[i+1]
		at := fmt.Sprintf("%s:%d", path, key.Line)
		f := keys[key.Value]
		if f == nil {
			wrong = append(wrong, fmt.Errorf("%s: unknown setting %q%s", at, key.Value, meantSetting(keys, key.Value)))
			continue
		}
		if seen[key.Value] {
			wrong = append(wrong, fmt.Errorf("%s: setting %q is there twice", at, key.Value))
			continue
		}
		seen[key.Value] = true
		text, err := scalar(value)
		if err != nil {
			wrong = append(wrong, fmt.Errorf("%s: setting %q: %w", at, key.Value, err))
			continue
		}
		if given[f.Name] {
			continue
		}
		if err := flags.Set(f.Name, text); err != nil {
			wrong = append(wrong, fmt.Errorf("%s: setting %q: %w", at, key.Value, cause(err)))
		}
	}
	return errors.Join(wrong...)
}

// scalar is the text of a YAML value: a scalar, or a list of them joined by commas.
func scalar(v *yaml.Node) (string, error) {
	switch v.Kind {
	case yaml.ScalarNode:
		return v.Value, nil
	case yaml.SequenceNode:
		var items []string
		for _, item := range v.Content {
			if item.Kind != yaml.ScalarNode {
				return "", errors.New("not a list of plain values")
			}
			items = append(items, item.Value)
		}
		return strings.Join(items, ","), nil
	}
	return "", errors.New("not a plain value or a list of them")
}

// meantSetting proposes the setting that reads like an unknown one.
func meantSetting(keys map[string]*pflag.Flag, typed string) string {
	var names []string
	for name := range keys {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		if like(name, yamlName(typed)) {
			return fmt.Sprintf(" (did you mean %q?)", name)
		}
	}
	return ""
}

// cause takes the words of pflag off an error: they name a flag that was not typed.
func cause(err error) error {
	var invalid *pflag.InvalidValueError
	if errors.As(err, &invalid) && errors.Unwrap(invalid) != nil {
		return errors.Unwrap(invalid)
	}
	return err
}

// byteSize is a number of bytes as a flag: 1048576, 64KiB, 1MiB, 2GiB.
type byteSize uint64

var byteUnits = []struct {
	suffix string
	bytes  uint64
}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"B", 1}}

func (b *byteSize) String() string {
	for _, u := range byteUnits[:3] {
		if v := uint64(*b); v >= u.bytes && v%u.bytes == 0 {
			return fmt.Sprintf("%d%s", v/u.bytes, u.suffix)
		}
	}
	return fmt.Sprint(uint64(*b))
}

func (b *byteSize) Set(s string) error {
	number, unit := strings.TrimSpace(s), uint64(1)
	for _, u := range byteUnits {
		if rest, ok := strings.CutSuffix(number, u.suffix); ok {
			number, unit = rest, u.bytes
			break
		}
	}
	var n uint64
	if _, err := fmt.Sscanf(number+"\n", "%d\n", &n); err != nil || strings.ContainsAny(number, "+-") || n > (1<<62)/unit {
		return fmt.Errorf("%q is not a size such as 65536, 64KiB or 1MiB", s)
	}
	*b = byteSize(n * unit)
	return nil
}

func (b *byteSize) Type() string { return "size" }

// choice is a flag that takes one of some words.
type choice struct {
	value string
	words []string
}

func (c *choice) String() string { return c.value }

func (c *choice) Set(s string) error {
	for _, w := range c.words {
		if s == w {
			c.value = s
			return nil
		}
	}
	return fmt.Errorf("%q is none of %s", s, strings.Join(c.words, ", "))
}

func (c *choice) Type() string { return strings.Join(c.words, "|") }

// isTerminal tells whether w (or a reader) is a terminal.
func isTerminal(w any) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0 && info.Name() != "null"
}
