# make quickstart   the main job on this machine, from nothing to a compared restore
# make test         everything: installs what is missing, then formatting, lints, tests
# make help         the rest
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
# One profile and one target directory for all of it: nothing is compiled twice.
export CARGO_TARGET_DIR ?= $(CURDIR)/target

.PHONY: help deps quickstart test fmt lint unit doc bench fleet-bench

help: ## what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 20

quickstart: ## from a fresh machine to a backup and a compared restore
	deploy/quickstart.sh

test: deps lint unit doc ## install what is missing, check formatting and lints, run every test

deps: ## install what the tests need (apt, PyPI, cargo-nextest); quick when nothing is missing
	tests/tools/install.sh

lint: ## formatting and lints
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings

unit: ## unit, property and end-to-end tests (needs `make deps` once)
	# The end-to-end tests run the programs themselves, so they are built first; all targets, because without the tests'
	# own dependencies crates would be built with fewer features, and then once more.
	cargo build --workspace --all-targets --locked
	cargo nextest run --workspace --locked

doc: ## examples in the documentation
	cargo test --workspace --doc --locked

bench: deps ## beside restic, rustic and the plain pipe, where installed; memory; a till during its backup
	cargo build --workspace --bins --release --locked
	cargo bench --package sealift-tests --locked --bench peers --bench memory --bench till

fleet-bench: deps ## the coordinator under 10,000 simulated hosts, and on a database of 1,000,000 backups
	cargo build --workspace --bins --release --locked
	cargo bench --package sealift-tests --locked --bench fleet
