package main

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"path/filepath"
	"runtime/pprof"
	"sync"
	"time"
)

// A profiled driver has servers that serve CPU profiles.
type profiled interface{ Profilers() []string }

// Profilers are the addresses at which the nodes serve profiles.
func (d *meshqDriver) Profilers() []string { return d.profiles }

// startProfiles takes CPU profiles of the servers and of the harness, which has the
// clients in it, for d from now. They are complete when wait returns.
func startProfiles(driver Driver, name string, d time.Duration) (wait func()) {
	p, ok := driver.(profiled)
	if !ok || conf.profile == "" {
		return func() {}
	}
	if err := os.MkdirAll(conf.profile, 0o755); err != nil {
		log.Print("profile: ", err)
		return func() {}
	}
	var all sync.WaitGroup
	note := func(err error) {
		if err != nil {
			log.Print("profile: ", err)
		}
	}
	all.Go(func() { note(profileSelf(filepath.Join(conf.profile, name+"-clients.pprof"), d)) })
	for i, addr := range p.Profilers() {
		all.Go(func() {
			base := filepath.Join(conf.profile, fmt.Sprintf("%s-node%d", name, i))
			note(fetch(fmt.Sprintf("http://%s/debug/pprof/profile?seconds=%d", addr, max(1, int(d.Seconds()))), base+".pprof"))
			note(fetch(fmt.Sprintf("http://%s/debug/pprof/allocs", addr), base+"-allocs.pprof"))
		})
	}
	return all.Wait
}

func profileSelf(path string, d time.Duration) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		f.Close()
		return err
	}
	time.Sleep(d)
	pprof.StopCPUProfile()
	return f.Close()
}

func fetch(url, path string) error {
	r, err := http.Get(url)
	if err != nil {
		return err
	}
	defer r.Body.Close()
	if r.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, r.Status)
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	if _, err := io.Copy(f, r.Body); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}
