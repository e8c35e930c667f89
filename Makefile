# meshq: `make` lists the targets.

GO      ?= go
SEEDS   ?= 200
FIRST   ?= 1
FRESH   ?= 8m
FUZZ    ?= 10s
CHAOS   ?= --scenario all
NODES   ?= 3
DATA    ?= ./data
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -X main.version=$(VERSION)

.DEFAULT_GOAL := help
.PHONY: help run build test race test-mesh check fmt vet staticcheck bench bench-go bench-test fuzz swarm swarm-fresh mutants mutants-quick chaos clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  Settings: NODES=$(NODES) DATA=$(DATA) (run), SEEDS=$(SEEDS) FIRST=$(FIRST) (swarm), FRESH=$(FRESH) (swarm-fresh), FUZZ=$(FUZZ) for each fuzzer (fuzz)"

run: build ## build bin/meshq and start a mesh of three nodes on this machine, data in ./data
	@exec bin/meshq dev --nodes $(NODES) --data $(DATA)

build: ## build bin/meshq
	$(GO) build -trimpath -buildvcs=false -ldflags '$(LDFLAGS)' -o bin/meshq ./cmd/meshq

test: ## all tests that are quick (a few minutes)
	$(GO) test -timeout 15m ./...

race: ## the same tests with the race detector
	$(GO) test -race -short -timeout 30m ./...

test-mesh: build ## long tests: real processes, real kills
	$(GO) test -tags mesh -count=1 -timeout 20m -run '^TestMesh' ./cmd/meshq
	MESHQ_BINARY=$(CURDIR)/bin/meshq $(GO) test -tags mesh -count=1 -timeout 10m ./sim/chaos

swarm: ## simulate the protocol under SEEDS random schedules of faults, from seed FIRST on
	$(GO) test -count=1 -timeout 20m -run '^TestSwarm$$' ./sim -swarm.first=$(FIRST) -swarm.seeds=$(SEEDS)

swarm-fresh: ## simulate for FRESH, with seeds that each commit has of its own
	$(GO) test -count=1 -timeout 60m -run '^TestSwarm$$' ./sim -swarm.time=$(FRESH) -swarm.first=$$((0x$$(git rev-parse --short=8 HEAD 2>/dev/null || echo 1)))

mutants: ## find each planted bug by simulation, about 15 minutes; TABLE=docs/planted-bugs.md writes the table there
	$(GO) test -tags mutants -count=1 -timeout 60m -v -run '^(TestMutants|TestPlantingIsFree)$$' ./sim $(if $(TABLE),-mutants.table=$(abspath $(TABLE)))

mutants-quick: ## the same for those that are found at once: seconds
	$(GO) test -tags mutants -count=1 -timeout 10m -v -run '^TestMutants$$' ./sim -mutants.ranges=1 -mutants.seeds=100 -mutants.shrink=0 \
		-mutants.only=confirm-before-sync,hit-confirmed-uncounted,no-producer-chain,no-duplicate-check,freed-after-one-group,no-anti-entropy,no-resume,ack-by-fallbacks

chaos: build ## hurt meshes of real processes, all scenarios that run here (30 minutes; best as root); CHAOS="--random --duration 10m"
	bin/meshq chaos $(CHAOS)

fuzz: ## run each fuzzer for FUZZ
	@set -e; grep -rl --include='*_test.go' '^func Fuzz' . | sort | while read -r file; do \
		for f in $$(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' "$$file"); do \
			echo "fuzz $$(dirname "$$file") $$f"; \
			$(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZ) "$$(dirname "$$file")"; \
		done; \
	done

bench: ## meshq next to the floor and NATS on this machine, about 2 minutes (see bench/README.md)
	$(MAKE) -C bench run

bench-go: ## the Go benchmarks of all packages
	$(GO) test -run '^$$' -bench . -benchmem -timeout 20m ./...

bench-test: ## vet and tests of the bench, a module of its own
	$(MAKE) -C bench vet test

fmt: ## fail if a file is not formatted by gofmt
	@files=$$(gofmt -l .); if [ -n "$$files" ]; then echo "not formatted, run gofmt -w:"; echo "$$files"; exit 1; fi

vet: ## go vet, long tests too
	$(GO) vet ./...
	$(GO) vet -tags mesh ./...
	$(GO) vet -tags mutants ./node/core ./client/core ./sim

staticcheck: ## staticcheck, in the version that go.mod pins
	$(GO) tool staticcheck -tags mesh ./...

check: build fmt vet staticcheck bench-test race mutants-quick swarm test-mesh chaos test ## what CI runs, and all of chaos: all but the benchmarks, fuzz and mutants

clean: ## remove what was built (not ./data)
	rm -rf bin
