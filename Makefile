# All that a developer runs. CI runs no other commands than these.

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
FUZZTIME ?= 20s
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2

# The version is set above; asking git again fails in a checkout of another user.
export GOFLAGS := -buildvcs=false $(GOFLAGS)

# Runs a command with a Docker Engine: one that answers, or a private one.
ENGINE := ./e2e/engine.sh run

.DEFAULT_GOAL := help

.PHONY: help
help: ## Show the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## Build bin/updaterd, static
	CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X main.version=$(VERSION)" -o bin/updaterd ./cmd/updaterd

# make dist ARCHES=amd64 makes one of amd64, arm64 and armv7 only.
.PHONY: dist
dist: ## Make all that is released into bin/dist: binaries, deb, rpm, image, SBOM, checksums
	ARCHES="$(ARCHES)" ./packaging/dist.sh bin/dist $(VERSION)

# make demo KEEP=1 then shows the page, and keeps all of it up until Ctrl-C.
.PHONY: demo
demo: build ## See an update and a roll-back, on a real Docker Engine, in under 2 minutes
	@go build -C e2e -o ../bin/demo ./cmd/demo
	@cd e2e && UPDATERD_BIN=$(CURDIR)/bin/updaterd ./engine.sh run ../bin/demo $(if $(KEEP),-keep)

.PHONY: demo-cluster
demo-cluster: build kubernetes ## See the same in a real Kubernetes, with kubectl (the first time it is built, some minutes)
	@go build -C e2e/cluster -o ../../bin/demo-cluster ./cmd/demo
	@cd e2e/cluster && UPDATERD_BIN=$(CURDIR)/bin/updaterd ../cluster.sh run ../../bin/demo-cluster

.PHONY: test
test: build race compose ## Run all tests, with a real Docker Engine
	UPDATERD_BIN=$(CURDIR)/bin/updaterd $(ENGINE) sh -ec '\
		go test -race -timeout=40m ./...; \
		cd e2e && go test -race -count=1 -p=1 -timeout=40m ./...'

# Beforehand: it takes minutes the first time, which no test's patience counts on.
.PHONY: compose
compose:
	go run -C e2e ./cmd/compose version

.PHONY: test-cluster
test-cluster: build kubernetes ## Run the tests in a cluster: a real control plane, with played nodes
	cd e2e/cluster && UPDATERD_BIN=$(CURDIR)/bin/updaterd go test -count=1 -timeout=20m ./...

# Beforehand, as with compose.
.PHONY: kubernetes
kubernetes:
	@./e2e/cluster.sh get >/dev/null

# What each engine's run said is kept in bin/engines; the page is made of the last
# whole run on each. To try one thing: make test-engines ENGINES=podman RUN=Probe
ENGINES ?= 20.10 29 podman proxy
.PHONY: test-engines
test-engines: build compose ## Run the tests that touch an engine on all of ENGINES, and write docs/engines.md
	@mkdir -p bin/engines
	@go build -C e2e -o ../bin/matrix ./cmd/matrix
	@failed=; for engine in $(ENGINES); do \
		echo "== engine $$engine"; \
		{ CI=true UPDATERD_BIN=$(CURDIR)/bin/updaterd $(ENGINE) --engine=$$engine sh -c '\
			go test -json -count=1 -timeout=2h $(if $(RUN),-run "$(RUN)") ./internal/docker; \
			cd e2e && go test -json -count=1 -p=1 -timeout=2h $(if $(RUN),-run "$(RUN)") .'; } \
			| bin/matrix record bin/engines/$$engine.json || failed="$$failed $$engine"; \
	done; \
	$(if $(RUN),,if ls $(patsubst %,bin/engines/%.json,20.10 29 podman proxy) >/dev/null; \
		then bin/matrix write docs/engines.md $(patsubst %,bin/engines/%.json,20.10 29 podman proxy); \
		else echo "docs/engines.md is written when all four engines have been run"; fi;) \
	test -z "$$failed" || { echo "failed on:$$failed" >&2; exit 1; }

# The race detector is C.
.PHONY: race
race:
	@test "$$(go env CGO_ENABLED)" = 1 && command -v "$$(go env CC)" >/dev/null || { \
		echo "make test needs a C compiler for the race detector: apt-get install gcc libc6-dev, and no CGO_ENABLED=0" >&2; exit 1; }

.PHONY: lint
lint: ## Check the format, and what go vet and staticcheck find
	@out=$$(gofmt -l .); test -z "$$out" || { echo "not as gofmt would have it:" >&2; echo "$$out" >&2; exit 1; }
	go vet ./...
	go run $(STATICCHECK) ./...
	go vet -tags man ./cmd/updaterd
	cd e2e && go vet ./... && go vet -tags systemd ./systemd && go run $(STATICCHECK) ./...
	cd e2e/cluster && go vet ./... && go vet -tags node ./kubelet && go run $(STATICCHECK) ./... && go run $(STATICCHECK) -tags node ./kubelet
	cd e2e/image && go vet ./... && go run $(STATICCHECK) ./...

# As root. The system is Debian's, made by debootstrap once and kept in
# $UPDATERD_CACHE or the user's cache; the packages are made for this machine only.
.PHONY: test-systemd
test-systemd: ## Install, run, break, upgrade and remove the deb and the rpm under a real systemd
	ARCHES=$$(go env GOARCH) ./packaging/dist.sh bin/dist-old v0.0.1
	ARCHES=$$(go env GOARCH) ./packaging/dist.sh bin/dist-new v0.0.2
	cd e2e && UPDATERD_DISTS=$(CURDIR)/bin go test -tags systemd -count=1 -timeout=20m $(if $(RUN),-run "$(RUN)") -v ./systemd

# As root, in namespaces of its own, whose only network is loopback: what is built
# inside must have been downloaded before.
.PHONY: test-node
test-node: build kubernetes ## Update real pods, with a real kubelet and containerd
	@go build -C e2e -o /dev/null ./app
	cd e2e/cluster && UPDATERD_BIN=$(CURDIR)/bin/updaterd go test -tags node -count=1 -timeout=40m $(if $(RUN),-run "$(RUN)") -v ./kubelet

.PHONY: fuzz
fuzz: ## Run each fuzz target for FUZZTIME (20s)
	@set -e; for pkg in $$(go list ./...); do \
		for target in $$(go test -list '^Fuzz' $$pkg | sed -n '/^Fuzz/p'); do \
			echo "$$pkg $$target"; \
			go test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) $$pkg; \
		done; \
	done

.PHONY: bench
bench: build kubernetes ## Measure speed, memory and the gap in service
	go test -run '^$$' -bench . -benchmem ./...
	UPDATERD_BIN=$(CURDIR)/bin/updaterd $(ENGINE) sh -ec 'cd e2e && go test -run "^$$" -bench . -timeout=20m ./...'
	cd e2e/cluster && UPDATERD_BIN=$(CURDIR)/bin/updaterd go test -run '^$$' -bench . -timeout=30m .

.PHONY: clean
clean: ## Remove what was built
	rm -rf bin
