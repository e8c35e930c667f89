package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// state is whether the node takes traffic, and if not, why.
type state struct {
	ready  bool
	reason string
}

func (n *Node) state() state {
	switch {
	case n.failure() != nil:
		return state{reason: n.failure().Error()}
	case n.draining.Load():
		return state{reason: "draining"}
	case n.loop.facts.Load().mesh == 0:
		return state{reason: "not joined: waits for a member of the mesh"}
	case !n.loop.facts.Load().ready:
		return state{reason: "joining"}
	}
	return state{ready: true}
}

// health is the body of /readyz and /healthz.
type health struct {
	Ready   bool   `json:"ready"`
	Reason  string `json:"reason,omitempty"`
	Node    string `json:"node"`
	Name    string `json:"name"`
	Boot    uint64 `json:"boot"`
	Mesh    string `json:"mesh,omitempty"`
	Ring    uint64 `json:"ring"`
	Members int    `json:"members"`
	Alive   int    `json:"alive"`
	Catalog uint64 `json:"catalog"`
	Commit  uint64 `json:"commit"`
	Version string `json:"version"`
}

func (n *Node) health() health {
	f, s := n.loop.facts.Load(), n.state()
	alive, _ := n.memberCounts()
	h := health{
		Ready: s.ready, Reason: s.reason, Node: n.self.ID.String(), Name: n.self.Name, Boot: n.boot, Ring: f.table.Number,
		Members: len(f.table.Members), Alive: alive, Catalog: f.catalog, Commit: f.commit, Version: n.config.Version,
	}
	if f.mesh != 0 {
		h.Mesh = f.mesh.String()
	}
	return h
}

// handler serves health and metrics.
func (n *Node) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		if n.loop.stands() {
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = fmt.Fprintf(w, "the event loop stands for more than %v\n", standsAfter)
			return
		}
		_, _ = w.Write([]byte("ok\n"))
	})
	ready := func(w http.ResponseWriter, _ *http.Request) {
		h := n.health()
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		if !h.Ready {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		_ = json.NewEncoder(w).Encode(h)
	}
	mux.HandleFunc("GET /readyz", ready)
	mux.HandleFunc("GET /healthz", ready)
	mux.Handle("GET /metrics", promhttp.HandlerFor(n.config.Registry, promhttp.HandlerOpts{
		MaxRequestsInFlight: 4, Timeout: 5 * time.Second,
	}))
	return mux
}

// serveHTTP serves on l until ctx ends.
func (n *Node) serveHTTP(ctx context.Context, l net.Listener) error {
	server := &http.Server{
		Handler: n.handler(), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second,
		WriteTimeout: 20 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 64 << 10,
	}
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		grace, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if server.Shutdown(grace) != nil {
			_ = server.Close()
		}
	})
	err := server.Serve(l)
	if !stop() {
		<-stopped
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}
