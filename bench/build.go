package main

import (
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
)

// nodeProfiler is added to the program under -profile, and only then.
//
//go:embed profiler.go.txt
var nodeProfiler []byte

// profileVariable tells a node where to serve profiles; profiler.go.txt reads it.
const profileVariable = "MESHQ_BENCH_PROFILE"

// buildDir is where programs are built; main removes it at the end.
var buildDir string

// meshqProgram builds meshq once, or is the program of the -meshq flag.
var meshqProgram = sync.OnceValues(func() (string, error) {
	if conf.meshq != "" {
		return filepath.Abs(conf.meshq)
	}
	return buildMeshq(conf.source, conf.profile != "")
})

// buildMeshq builds cmd/meshq of the module at source. With profile the build has one
// file more, put in by an overlay: the source stays as it is.
func buildMeshq(source string, profile bool) (string, error) {
	source, err := filepath.Abs(source)
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(filepath.Join(source, "cmd", "meshq")); err != nil {
		return "", fmt.Errorf("no source of meshq at %s: name it with -source, or a program with -meshq", source)
	}
	if _, err := exec.LookPath("go"); err != nil {
		return "", fmt.Errorf("build meshq: %w", err)
	}
	if buildDir == "" {
		if buildDir, err = os.MkdirTemp("", "meshq-bench-"); err != nil {
			return "", err
		}
	}
	program := filepath.Join(buildDir, "meshq")
	args := []string{"build", "-trimpath", "-buildvcs=false", "-ldflags", "-X main.version=" + sourceVersion(source), "-o", program}
	if profile {
		overlay, err := profilerOverlay(source)
		if err != nil {
			return "", err
		}
		args = append(args, "-overlay", overlay)
	}
	cmd := exec.Command("go", append(args, "./cmd/meshq")...)
	cmd.Dir = source
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", errors.Join(fmt.Errorf("build meshq: %w", err), errors.New(strings.TrimSpace(string(out))))
	}
	return program, nil
}

// profilerOverlay writes what go build needs to see the profiler in cmd/meshq.
func profilerOverlay(source string) (string, error) {
	file := filepath.Join(buildDir, "profiler.go")
	if err := os.WriteFile(file, nodeProfiler, 0o644); err != nil {
		return "", err
	}
	text, err := json.Marshal(map[string]map[string]string{
		"Replace": {filepath.Join(source, "cmd", "meshq", "bench_profiler.go"): file},
	})
	if err != nil {
		return "", err
	}
	overlay := filepath.Join(buildDir, "overlay.json")
	return overlay, os.WriteFile(overlay, text, 0o644)
}

// sourceVersion is the commit of the source, if it has one.
func sourceVersion(source string) string {
	cmd := exec.Command("git", "describe", "--tags", "--always", "--dirty")
	cmd.Dir = source
	out, err := cmd.Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}
