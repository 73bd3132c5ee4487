# Stint's build. `make help` lists the targets. Tools are pinned in nested modules under tools/.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
MAKEFLAGS += --warn-undefined-variables --no-builtin-rules

BIN := .bin
GO ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
LDFLAGS := -s -w -X main.version=$(VERSION)
TEST_TIMEOUT ?= 25m
FUZZTIME ?= 20s
SOAK ?= 10m
SEED ?=
PKG ?= ./...

# Real servers for the tests. Name ones that you already have and nothing is built.
VAULT_BIN ?= $(CURDIR)/$(BIN)/vault
STEP_CA_BIN ?= $(CURDIR)/$(BIN)/step-ca
SPIRE_BIN ?= $(CURDIR)/$(BIN)
POSTGRES_BIN ?=
MARIADB_BIN ?=
# VAULT=1 gives the demo a Vault too.
VAULT ?=

GOLANGCI := $(BIN)/golangci-lint
BUF := $(GO) tool -modfile=tools/buf/go.mod buf
MODULES := . tools/buf tools/gen tools/lint tools/stepca tools/vault

##@ Every day

.PHONY: help
help: ## Show this list.
	@awk 'BEGIN {FS = ":.*## "} /^##@ / {printf "\n%s\n", substr($$0, 5)} \
	  /^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: all
all: build lint test ## Build, lint and test.

.PHONY: build
build: ## Build stintd and stint into .bin.
	@mkdir -p $(BIN)
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/stintd ./cmd/stintd
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/stint ./cmd/stint

.PHONY: demo
demo: build $(if $(VAULT),$(VAULT_BIN)) ## Run the whole story; VAULT=1 builds Vault first and adds it.
	$(if $(VAULT),VAULT_BIN='$(VAULT_BIN)' )$(BIN)/stintd demo$(if $(VAULT), --vault)

.PHONY: run
run: build ## Run a development broker with everything in one process.
	$(BIN)/stintd dev

.PHONY: clean
clean: ## Remove what was built. The real servers stay: rm -r .bin removes them too.
	rm -f $(BIN)/stintd $(BIN)/stint $(BIN)/*.new coverage.out

##@ Tests

.PHONY: test
test: servers ## Test with the race detector against a real Vault, step-ca, PostgreSQL and MariaDB.
	STINT_REAL_SERVERS=1 VAULT_BIN='$(VAULT_BIN)' STEP_CA_BIN='$(STEP_CA_BIN)' POSTGRES_BIN='$(POSTGRES_BIN)' \
	  MARIADB_BIN='$(MARIADB_BIN)' $(GO) test -race -p 2 -timeout $(TEST_TIMEOUT) $(PKG)
	# Without the race detector the model takes 10,000 steps, and exposures are held against what was stated, not ten times that.
	STINT_REAL_SERVERS=1 VAULT_BIN='$(VAULT_BIN)' STEP_CA_BIN='$(STEP_CA_BIN)' POSTGRES_BIN='$(POSTGRES_BIN)' \
	  $(GO) test -run '^(TestModel|TestExposure)$$' -timeout $(TEST_TIMEOUT) ./broker ./cmd/stintd

.PHONY: test-spire
test-spire: $(SPIRE_BIN)/spire-server $(SPIRE_BIN)/spire-agent ## Test what setup spire prints at a real SPIRE, which takes minutes to build.
	STINT_REAL_SERVERS=1 SPIRE_BIN='$(SPIRE_BIN)' $(GO) test -race -v -count 1 -tags spire -run '^TestSetupSPIREPassesCheck$$' ./cmd/stintd

.PHONY: soak
soak: servers ## Soak for SOAK (10m) in every fault at random; SEED repeats one.
	STINT_REAL_SERVERS=1 VAULT_BIN='$(VAULT_BIN)' STEP_CA_BIN='$(STEP_CA_BIN)' POSTGRES_BIN='$(POSTGRES_BIN)' \
	  STINT_SOAK_TIME='$(SOAK)' STINT_SOAK_SEED='$(SEED)' $(GO) test -v -count 1 -run '^TestSoak$$' -timeout 2h ./cmd/stintd

.PHONY: race
race: ## Test with the race detector; what needs a server that is not there is skipped.
	$(GO) test -race -p 2 -timeout $(TEST_TIMEOUT) $(PKG)

.PHONY: cover
cover: ## Test with coverage into coverage.out; servers as for race.
	$(GO) test -p 2 -timeout $(TEST_TIMEOUT) -coverprofile=coverage.out -coverpkg=./... $(PKG)
	$(GO) tool cover -func=coverage.out | tail -n 1

.PHONY: fuzz
fuzz: ## Fuzz every parser for FUZZTIME (20s) each.
	@grep -rl --include='*_test.go' '^func Fuzz' . | xargs -r -n 1 dirname | sort -u | while read -r dir; do \
	  for target in $$(grep -ho '^func Fuzz[A-Za-z0-9_]*' "$$dir"/*_test.go | cut -c6-); do \
	    echo "$$dir $$target"; \
	    $(GO) test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) "$$dir"; \
	  done; \
	done

.PHONY: bench
bench: ## Run the benchmarks.
	$(GO) test -run '^$$' -bench . -benchmem -timeout $(TEST_TIMEOUT) $(PKG)

.PHONY: servers
servers: $(VAULT_BIN) $(STEP_CA_BIN) ## Build or install what the tests start: Vault, step-ca, PostgreSQL, MariaDB, Python's gRPC.
	@POSTGRES_BIN='$(POSTGRES_BIN)' MARIADB_BIN='$(MARIADB_BIN)' tools/need.sh

##@ Code

.PHONY: lint
lint: $(GOLANGCI) ## Run golangci-lint and buf lint.
	$(GOLANGCI) run ./...
	$(GOLANGCI) run --build-tags failpoints,spire ./broker ./broker/failpoint ./cmd/stintd
	$(BUF) lint

.PHONY: fmt
fmt: $(GOLANGCI) ## Format Go and proto files.
	$(GOLANGCI) fmt ./...
	$(BUF) format -w proto

.PHONY: generate
generate: ## Generate Go from the proto files.
	$(BUF) generate

.PHONY: generate-check
generate-check: ## Fail when the generated Go is stale.
	@tmp=$$(mktemp -d); trap 'rm -rf "$$tmp"' EXIT; \
	cp -R proto "$$tmp/proto"; \
	find "$$tmp/proto" -name '*.pb.go' -delete; \
	$(BUF) generate -o "$$tmp"; \
	diff -r proto "$$tmp/proto" || { echo 'generated code is stale: run make generate' >&2; exit 1; }

.PHONY: tidy-check
tidy-check: ## Fail when a go.mod is not tidy.
	@for dir in $(MODULES); do echo "$$dir"; $(GO) -C "$$dir" mod tidy -diff; done

.PHONY: tools
tools: $(GOLANGCI) $(VAULT_BIN) $(STEP_CA_BIN) ## Build the linter and the real servers.

$(GOLANGCI): tools/lint/go.mod
	@tools/build.sh lint github.com/golangci/golangci-lint/v2/cmd/golangci-lint $@ 'golangci-lint 2.15.0, about 2 minutes'

$(CURDIR)/$(BIN)/vault: tools/vault/go.mod
	@tools/build.sh vault github.com/hashicorp/vault $(BIN)/vault 'Vault 1.21.1, about 8 minutes on two cores'

$(CURDIR)/$(BIN)/step-ca: tools/stepca/go.mod
	@tools/build.sh stepca github.com/smallstep/certificates/cmd/step-ca $(BIN)/step-ca 'step-ca 0.30.2, about 2 minutes'

# SPIRE's SQLite wants a C compiler.
$(CURDIR)/$(BIN)/spire-server: tools/spire/go.mod
	@tools/need.sh
	@tools/build.sh spire github.com/spiffe/spire/cmd/spire-server $(BIN)/spire-server 'SPIRE 1.13.3, about 6 minutes on two cores' 1

$(CURDIR)/$(BIN)/spire-agent: tools/spire/go.mod $(CURDIR)/$(BIN)/spire-server
	@tools/build.sh spire github.com/spiffe/spire/cmd/spire-agent $(BIN)/spire-agent "SPIRE's agent, a minute after its server" 1
