# What people and CI run. `make` alone lists it.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help run test tools check bench images e2e cluster own-target

# Everything that is downloaded or built lies in one cache outside the checkout, so a second clone is quick.
TOOLS_BIN := $(shell tests/tools/install --print-bin)
ifeq ($(TOOLS_BIN),)
$(error there is nowhere to keep what is built)
endif
export TWOFACTOR_CACHE := $(patsubst %/tools/bin,%,$(TOOLS_BIN))
export CARGO_TARGET_DIR := $(or $(CARGO_TARGET_DIR),$(TWOFACTOR_CACHE)/target)

# The address of `make run`.
LISTEN ?= 127.0.0.1:8004
# Passed on to what `run`, `test` and `bench` start.
ARGS ?=

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo '  LISTEN=ADDRESS:PORT   where `make run` listens (default: $(LISTEN))'
	@echo '  ARGS=...              more arguments for run (see: make run ARGS=--help), test and bench'
	@echo '  CARGO_TARGET_DIR=...  where cargo builds (default: $(CARGO_TARGET_DIR))'

run: own-target ## build the sidecar and start it with the users in examples/, without Kubernetes
	cargo run -p twofactor-sidecar -- dev examples/ --listen $(LISTEN) $(ARGS)

test: own-target ## run all tests, after getting the programs that they need
	tests/tools/install verifier cluster
	cargo build --workspace --bins
	cargo test --workspace $(ARGS)

tools: ## get the programs that tests and checks need, as far as they are missing
	tests/tools/install

check: own-target ## check format, lints, generated files, dependencies and scripts
	tests/tools/install check
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets --features twofactor-tests/e2e -- -D warnings
	@echo 'crds/ is what the types say'
	@folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; \
	cargo run --quiet --locked -p twofactor-api --bin twofactor-crds -- "$$folder"; \
	diff -ru crds "$$folder" || { echo 'crds/ is out of date; run: cargo run -q -p twofactor-api --bin twofactor-crds -- crds' >&2; exit 1; }
	PATH="$(TOOLS_BIN):$$PATH" cargo deny --locked --all-features check licenses bans sources
	@echo 'shell scripts can be parsed'
	@git ls-files -z --cached --others --exclude-standard | while IFS= read -r -d '' file; do \
	  if [[ -f $$file ]] && head -n 1 -- "$$file" | grep -aqE '^#!.*[/ ](ba)?sh$$'; then bash -n -- "$$file"; fi; \
	done

images: own-target ## build the container images with docker, podman or buildah
	images/build $(ARGS)

e2e: own-target ## the whole story on a one-node cluster, or on the one that KUBECONFIG names
	tests/cluster/e2e $(ARGS)

cluster: own-target ## leave a one-node cluster with the chart installed up, to play with
	tests/cluster/play

bench: own-target ## measure verify rate and latency, beside Redis alone
	tests/tools/install verifier
	cargo build --release -p twofactor-sidecar
	cargo run --release -p twofactor-tests --bin bench -- $(ARGS)

own-target:
	@tests/tools/own-target
