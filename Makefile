# `make demo` and `make test` set up all that they need; `make down` leaves the machine as it was.
# Everything that is expensive is kept in $(CACHE), by the hash of what it is made from.

CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/headrace
UV_VERSION := 0.13.9
UV := $(CACHE)/uv-$(UV_VERSION)/bin/uv
export UV
export PATH := $(dir $(UV)):$(PATH):/usr/sbin:/sbin
RUN := $(UV) run --frozen --no-sync
PYTEST := $(RUN) python -m pytest
# For tests that mostly wait; each process has control planes of its own.
PARALLEL := --numprocesses=2 --dist=loadfile

.DEFAULT_GOAL := help
.PHONY: help setup system cluster images demo test checks lint generate unit api image e2e bench bench-serving bench-features down

help: ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

setup: system $(UV) ## system packages (on Debian as root), uv and the Python environment
	@$(UV) sync --frozen --quiet

system:
	@./cluster/system-packages.sh

$(UV):
	@echo "uv $(UV_VERSION) from PyPI…"
	@rm -rf $(CACHE)/uv-$(UV_VERSION).part && mkdir -p $(CACHE)
	@python3 -m venv $(CACHE)/uv-$(UV_VERSION).part
	@$(CACHE)/uv-$(UV_VERSION).part/bin/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@mv $(CACHE)/uv-$(UV_VERSION).part $(CACHE)/uv-$(UV_VERSION)

cluster: setup ## the local cluster: one control plane, workers in zones a, b, c
	@$(RUN) headrace cluster up

images: setup ## the cluster with this checkout's images in its nodes
	@$(RUN) headrace cluster up --load

demo: setup ## train on three zones, serve, kill the primary, see the fallback answer
	@$(RUN) headrace cluster up --load operator s3 valkey serving trainer
	@$(RUN) python -m cluster.demo

# Linters and unit tests need no cluster: they run while it comes up.
test: setup ## everything
	@$(MAKE) --no-print-directory --jobs=2 checks images
	@$(MAKE) --no-print-directory api
	@$(MAKE) --no-print-directory image
	$(PYTEST) --timeout=600 tests/e2e

checks: lint
	@$(MAKE) --no-print-directory unit

lint: setup ## ruff, mypy, import-linter
	$(RUN) ruff check
	$(RUN) ruff format --check
	$(RUN) mypy --cache-dir $(CACHE)/mypy headrace controllers operator cluster tests benchmarks
	$(RUN) lint-imports

generate: setup ## what follows from the models and the controllers: CRDs, their page, the chart's RBAC
	@$(RUN) headrace crds --out crds --docs docs/crds.md
	@$(RUN) headrace crds --out charts/headrace/files/crds
	@$(RUN) python -m controllers.rbac

unit: setup ## no cluster; helm renders the chart
	@$(RUN) python -m cluster.tools helm > /dev/null
	$(PYTEST) tests/unit

api: setup ## against a real API server without nodes
	@$(RUN) python -m cluster.tools kube-apiserver etcd kubectl helm versitygw > /dev/null
	$(PYTEST) $(PARALLEL) tests/api

image: setup ## the trainer with PyTorch, inside its image
	$(RUN) python -m tests.image.run

e2e: images ## against the cluster
	$(PYTEST) --timeout=600 tests/e2e

bench: setup ## benchmarks of the operator on simulated nodes, one JSON line each
	@$(RUN) python -m benchmarks.operator_scale

bench-serving: setup ## serving beside MLServer, BentoML, Ray Serve, KServe and the limit, one JSON line each
	@$(RUN) python -m benchmarks.serving
	@$(RUN) python -m benchmarks.serving_router

bench-features: setup ## reads of features beside Feast and bare Redis, one JSON line
	@$(RUN) headrace cluster load valkey
	@$(RUN) python -m benchmarks.features

down: ## the cluster, and what was started and set on this machine for it
	@if [ -x .venv/bin/python ]; then .venv/bin/python -m headrace.cli cluster down --all; \
	 else echo "Nothing is set up here."; fi
