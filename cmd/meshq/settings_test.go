package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
)

// environment is a fixed one.
func environment(vars map[string]string) func(string) (string, bool) {
	return func(name string) (string, bool) {
		v, ok := vars[name]
		return v, ok
	}
}

// loadServe parses args and loads the other sources; file "" is none.
func loadServe(t *testing.T, args []string, env map[string]string, file string) (*serveSettings, error) {
	t.Helper()
	if file != "" {
		path := filepath.Join(t.TempDir(), "meshq.yaml")
		if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, "--config", path)
	}
	var s serveSettings
	f := pflag.NewFlagSet("serve", pflag.ContinueOnError)
	s.flags(f)
	if err := f.Parse(args); err != nil {
		t.Fatal(err)
	}
	return &s, loadSettings(f, "config", environment(env))
}

func TestSettingsPrecedence(t *testing.T) {
	file := "zone: file\ndrain_timeout: 3s\njoin: [a:1, b:2]\nsegment_bytes: 64MiB\n"
	for _, c := range []struct {
		name string
		args []string
		env  map[string]string
		file string
		zone string
	}{
		{name: "default", zone: ""},
		{name: "file", file: file, zone: "file"},
		{name: "environment over file", env: map[string]string{"MESHQ_ZONE": "env"}, file: file, zone: "env"},
		{name: "flag over all", args: []string{"--zone", "flag"}, env: map[string]string{"MESHQ_ZONE": "env"}, file: file, zone: "flag"},
		{name: "empty flag over all", args: []string{"--zone="}, env: map[string]string{"MESHQ_ZONE": "env"}, file: file, zone: ""},
		{name: "empty environment over file", env: map[string]string{"MESHQ_ZONE": ""}, file: file, zone: ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, err := loadServe(t, c.args, c.env, c.file)
			if err != nil {
				t.Fatal(err)
			}
			if s.zone != c.zone {
				t.Errorf("zone is %q, want %q", s.zone, c.zone)
			}
			if c.file == "" {
				return
			}
			if s.drainTimeout != 3*time.Second || strings.Join(s.join, " ") != "a:1 b:2" || s.segmentBytes != 64<<20 {
				t.Errorf("from the file: %v %v %v", s.drainTimeout, s.join, s.segmentBytes)
			}
		})
	}
}

func TestSettingsConfigFromEnvironment(t *testing.T) {
	path := filepath.Join(t.TempDir(), "meshq.yaml")
	if err := os.WriteFile(path, []byte("zone: file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := loadServe(t, nil, map[string]string{"MESHQ_CONFIG": path, "MESHQ_JOIN": "a:1,b:2"}, "")
	if err != nil {
		t.Fatal(err)
	}
	if s.zone != "file" || len(s.join) != 2 {
		t.Errorf("zone %q join %q", s.zone, s.join)
	}
}

func TestSettingsRefused(t *testing.T) {
	for _, c := range []struct {
		name string
		env  map[string]string
		file string
		want []string
	}{
		{"unknown key", nil, "zone: a\nzonee: b\n", []string{`meshq.yaml:2: unknown setting "zonee" (did you mean "zone"?)`}},
		{"dash for underscore", nil, "tls-cert: x\n", []string{`unknown setting "tls-cert" (did you mean "tls_cert"?)`}},
		{"all that is wrong", nil, "a_b_c: 1\ndrain_timeout: soon\n", []string{`:1: unknown setting "a_b_c"`, `:2: setting "drain_timeout"`}},
		{"twice", nil, "zone: a\nzone: b\n", []string{`zone`}},
		{"mapping as value", nil, "zone: {a: b}\n", []string{`setting "zone": not a plain value`}},
		{"not a mapping", nil, "- a\n", []string{"not a YAML mapping"}},
		{"not YAML", nil, "a: b: c\n", []string{"meshq.yaml"}},
		{"config in the file", nil, "config: x\n", []string{`unknown setting "config"`}},
		{"bad environment", map[string]string{"MESHQ_SYNC": "often"}, "", []string{`environment MESHQ_SYNC="often": "often" is none of always, interval`}},
		{"bad size", nil, "segment_bytes: 1.5GiB\n", []string{`"1.5GiB" is not a size`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := loadServe(t, nil, c.env, c.file)
			if err == nil {
				t.Fatal("no error")
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q does not say %q", err, want)
				}
			}
		})
	}
	if _, err := loadServe(t, nil, map[string]string{"MESHQ_CONFIG": "/does/not/exist"}, ""); err == nil {
		t.Error("a config file that is not there is no error")
	}
}

func TestByteSize(t *testing.T) {
	for text, want := range map[string]byteSize{"0": 0, "512": 512, "512B": 512, "64KiB": 64 << 10, "1MiB": 1 << 20, "2GiB": 2 << 30} {
		var b byteSize
		if err := b.Set(text); err != nil || b != want {
			t.Errorf("%q: %d, %v", text, b, err)
		}
		var again byteSize
		if err := again.Set(b.String()); err != nil || again != b {
			t.Errorf("%q: prints as %q, read as %d, %v", text, b.String(), again, err)
		}
	}
	for _, text := range []string{"", "MiB", "-1", "+1", "1.5MiB", "1 2", "1mib", "99999999999GiB", "1MiBx"} {
		var b byteSize
		if err := b.Set(text); err == nil {
			t.Errorf("%q is taken as %d", text, b)
		}
	}
}

func TestDistance(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"send", "send", 0}, {"send", "sned", 2}, {"queue", "queu", 1}, {"", "abc", 3}, {"abc", "", 3}, {"kitten", "sitting", 3}} {
		if got := distance(c.a, c.b); got != c.want {
			t.Errorf("%q to %q: %d, want %d", c.a, c.b, got, c.want)
		}
	}
}
