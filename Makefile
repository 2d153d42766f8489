# Anyport: `make` lists what there is.

SHELL := /bin/bash
export PATH := $(HOME)/.cargo/bin:$(PATH)

# Namespaces need root; what is built does not. As another user, only the test
# and demo programs run under sudo.
ROOT := $(shell [ "$$(id -u)" = 0 ] || echo "sudo -E")
ifneq ($(ROOT),)
export CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER := $(ROOT)
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER := $(ROOT)
endif

PROGRAMS := $(or $(CARGO_TARGET_DIR),target)/release

.PHONY: help demo test lint bench failover swarm fuzz build bpf proto

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: ## the main job, end to end, in network namespaces of its own (a minute, once built)
	@scripts/setup build demo
	@echo "building (a few minutes the first time)"
	@cargo build --release --locked --quiet --bin anyport
	@$(ROOT) $(PROGRAMS)/anyport demo

test: ## every test: pure, real kernel, real etcd, real clients
	@scripts/setup build test
	cargo build --locked --workspace --bins
	cargo test --locked --workspace --no-fail-fast

lint: ## formatting and clippy, warnings are errors
	@scripts/setup build
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings

bench: ## beside HAProxy and nginx, and beside plain routing, as ratios (5 minutes, once built)
	@scripts/setup build bench
	@echo "building (a few minutes the first time)"
	@cargo build --release --locked --quiet --workspace --bins
	@$(ROOT) $(PROGRAMS)/anyport-bench

failover: ## an origin that refuses, is silent or becomes slow, beside HAProxy, as ratios (8 minutes, once built)
	@scripts/setup build bench failover
	@echo "building (a few minutes the first time)"
	@cargo build --release --locked --quiet --workspace --bins
	@$(ROOT) $(PROGRAMS)/anyport-failover

swarm: ## a fleet of up to 1,000 simulated edges and 100,000 apps on two replicas and etcd (20 minutes, once built)
	@scripts/setup build swarm
	@echo "building (a few minutes the first time)"
	@cargo build --release --locked --quiet --workspace --bins
	@$(ROOT) $(PROGRAMS)/anyport-swarm $(SWARM)

fuzz: ## every parser for FUZZ_SECONDS (600) each, from the committed corpus on
	@scripts/setup build fuzz
	@scripts/fuzz $(or $(FUZZ_SECONDS),600)

bpf: ## the BPF programs, after a change of their sources (building needs no clang)
	@scripts/setup bpf
	edge-agent/bpf/compile

proto: ## proto/accepted.txt, after an addition to the gRPC interface (what breaks programs of others is refused)
	@scripts/setup build
	ANYPORT_PROTO_ACCEPT=1 cargo test --locked --quiet --package anyport-proto --test contract

build: ## the four programs, in target/release
	@scripts/setup build
	cargo build --release --locked --bins
