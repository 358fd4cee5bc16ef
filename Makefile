# Every target sets up what is missing first; the set-up is cached (python3 -m appliance.setup --check).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=
LOCK_FLAGS := -q --generate-hashes --no-emit-index-url --no-annotate --no-header --python-platform linux --python-version 3.11
export FABSTIR_VENV := $(abspath $(VENV))

.PHONY: setup setup-dev demo test check lint types arch lengths fix options slow slow-appliance fuzz bench bench-demo bench-inference bench-chain campaign-chain campaign-p2p bench-p2p proto lock oci clean help
.DEFAULT_GOAL := help

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
setup: ## what running needs: environment, llama.cpp, model, anvil, proof profile
	@$(PYTHON) -m appliance.setup
setup-dev: ## the same and what the tests need
	@$(PYTHON) -m appliance.setup --development
demo: setup ## the main job end to end; ARGS="--json PATH" writes the facts
	@$(BIN)/fabstir-node demo $(ARGS)
test: setup-dev ## the test suite; ARGS goes to pytest
	@$(BIN)/python -m pytest $(ARGS)
check: setup-dev lint types arch ## lint, types, architecture
lint: setup-dev
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .
types: setup-dev
	@$(BIN)/mypy
arch: setup-dev
	@$(BIN)/python -m pytest -q tests/setup/test_architecture.py
lengths: setup-dev ## files and functions longer than the style guide aims at
	@$(BIN)/python -m tests.setup.lengths
fix: setup-dev ## let ruff repair and format
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .
slow: setup-dev ## the tests that need minutes
	@$(BIN)/python -m pytest -m "slow" --timeout=1800 $(ARGS)
slow-appliance: setup-dev ## the appliance booted: container and machine (root) into build/reports/appliance.json; ARGS="--stages container"
	@$(BIN)/python -m tests.benchmarks.appliance --out build/reports/appliance.json $(ARGS)
fuzz: setup-dev ## long property runs
	@HYPOTHESIS_PROFILE=fuzz $(BIN)/python -m pytest -m "not slow and not gpu and not network and not vm" -k "property or fuzz or machine" --timeout=1800 $(ARGS)
bench: bench-demo bench-chain bench-inference bench-p2p ## every benchmark
bench-demo: setup-dev ## figures of the demo into build/reports/demo.json
	@$(BIN)/python -m tests.benchmarks.demo --out build/reports/demo.json $(ARGS)
bench-inference: setup-dev ## beside llama.cpp's servers into build/reports/inference.json and .png
	@$(BIN)/python -m tests.benchmarks.inference --out build/reports/inference.json $(ARGS)
bench-chain: setup-dev ## sync, authorise, idle into build/reports/chain-speed.json
	@$(BIN)/python -m tests.benchmarks.chain_speed --out build/reports/chain-speed.json $(ARGS)
campaign-chain: setup-dev ## kills, reorgs, lying endpoints into build/reports/chain.json
	@$(BIN)/python -m tests.benchmarks.chain_campaign --out build/reports/chain.json $(ARGS)
campaign-p2p: setup-dev ## 27 processes behind latency and loss, churn, hostile peers (root) into build/reports/p2p-campaign.json
	@$(BIN)/python -m tests.benchmarks.p2p_campaign --out build/reports/p2p-campaign.json $(ARGS)
bench-p2p: setup-dev ## what the p2p process costs, into build/reports/p2p.json
	@$(BIN)/python -m tests.benchmarks.p2p --out build/reports/p2p.json $(ARGS)
proto: setup-dev ## generate the wire's messages from fabstir.proto
	@$(BIN)/python -m grpc_tools.protoc -Inodeapp/wire --python_out=nodeapp/wire --pyi_out=nodeapp/wire nodeapp/wire/fabstir.proto
options: setup-dev ## settings and options for the NixOS module, and docs/options.md (needs Nix)
	@$(BIN)/python -m appliance.nixos_settings > nixos-modules/settings.json.new && mv nixos-modules/settings.json.new nixos-modules/settings.json
	@$(BIN)/python -m tests.nix.options_doc > docs/options.md
lock: ## resolve the pins again (needs uv on the path)
	@uv pip compile pyproject.toml --extra dev $(LOCK_FLAGS) -o requirements-dev.lock
	@uv pip compile pyproject.toml -c requirements-dev.lock $(LOCK_FLAGS) -o requirements.lock
	@python3 -m appliance.nix_pins
oci: ## the OCI image into build/oci (root; docs/install.md)
	@$(PYTHON) -m appliance.oci --out build/oci $(ARGS)
clean: ## remove what was built here; the shared cache stays
	@rm -rf build .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis
