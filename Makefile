# The commands for people and CI. `make` alone lists them.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help run test tools check advisories bench images e2e cluster release-dry-run own-target

# Downloads and builds go to one cache outside of the checkout, so that a second clone builds fast.
TOOLS_BIN := $(shell tests/tools/install --print-bin)
ifeq ($(TOOLS_BIN),)
$(error there is no folder to build in)
endif
export TWOFACTOR_CACHE := $(patsubst %/tools/bin,%,$(TOOLS_BIN))
export CARGO_TARGET_DIR := $(or $(CARGO_TARGET_DIR),$(TWOFACTOR_CACHE)/target)

# Address of `make run`.
LISTEN ?= 127.0.0.1:8004
# More arguments for the program that a target starts.
ARGS ?=

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo '  LISTEN=ADDRESS:PORT   address of `make run` (default: $(LISTEN))'
	@echo '  ARGS=...              more arguments for run (see: make run ARGS=--help), test, images,'
	@echo '                        e2e and bench'
	@echo '  CARGO_TARGET_DIR=...  where cargo builds (default: $(CARGO_TARGET_DIR))'

run: own-target ## build the sidecar and start it with the users in examples/, without Kubernetes
	cargo run -p twofactor-sidecar -- dev examples/ --listen $(LISTEN) $(ARGS)

test: own-target ## install what the tests need, build the programs and run all tests (13 minutes)
	@echo 'make test: installs the programs that the tests need, builds the project, and runs all'
	@echo 'tests against real Redis, mail and Kubernetes API servers. It usually takes 13 minutes on'
	@echo 'two cores; the first run also compiles the dependencies and the API server (some 30 more).'
	tests/tools/install verifier clients cluster previous
	cargo build --workspace --bins
	@# --tests leaves out the example that generates a page, and doc tests, of which there are none.
	cargo test --workspace --tests $(ARGS)

tools: ## install the programs that tests and checks need
	tests/tools/install

check: own-target ## check format, lints, generated files, dependencies, scripts and documentation
	tests/tools/install check
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets --features twofactor-tests/e2e -- -D warnings
	@echo 'checking that crds/ is up to date'
	@folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; \
	cargo run --quiet --locked -p twofactor-api --bin twofactor-crds -- "$$folder"; \
	diff -ru crds "$$folder" || { \
	  echo 'crds/ is out of date; run: cargo run -q -p twofactor-api --bin twofactor-crds -- crds' >&2; \
	  exit 1; \
	}
	@echo 'checking that docs/reference/configuration.md is up to date'
	@cargo run --quiet --locked -p twofactor-tests --example configuration | \
	diff -u docs/reference/configuration.md - || { \
	  echo 'docs/reference/configuration.md is out of date; its first lines say how to update it' >&2; \
	  exit 1; \
	}
	PATH="$(TOOLS_BIN):$$PATH" cargo deny --locked --all-features check licenses bans sources
	@echo 'checking shell scripts with shellcheck'
	@git ls-files -z --cached --others --exclude-standard | while IFS= read -r -d '' file; do \
	  if [[ -f $$file ]] && head -n 1 -- "$$file" | grep -aqE '^#!.*[/ ](ba)?sh$$'; then \
	    printf '%s\0' "$$file"; \
	  fi; \
	done | xargs -0 shellcheck --external-sources --check-sourced
	@echo 'checking links, anchors, widths and words'
	@tests/tools/check-docs --self-test
	@tests/tools/check-docs

advisories: ## check the dependencies for known vulnerabilities; needs the RustSec database
	tests/tools/install check
	PATH="$(TOOLS_BIN):$$PATH" cargo deny --locked --all-features check advisories

images: own-target ## build the container images with docker, podman or buildah
	images/build $(ARGS)

e2e: own-target ## run the end-to-end tests on a one-node cluster, or on the one of KUBECONFIG
	@echo 'make e2e: starts a one-node cluster on this machine (as root), builds the images, and runs'
	@echo 'the end-to-end tests; with KUBECONFIG, uses that cluster. It usually takes 20 minutes on two'
	@echo 'cores; the first run also compiles the Kubernetes programs and builds the test images (some'
	@echo '20 more).'
	tests/cluster/e2e $(ARGS)

cluster: own-target ## start a one-node cluster with the chart installed, and leave it up
	tests/cluster/play

release-dry-run: own-target ## do what a release does, as far as it needs no registry
	images/release dry-run

bench: own-target ## measure verify rate and latency, compared with Redis alone
	tests/tools/install verifier
	cargo build --release -p twofactor-sidecar -p twofactor-operator
	GOGC=100 cargo run --release -p twofactor-tests --bin bench -- $(ARGS)

own-target:
	@tests/tools/own-target
