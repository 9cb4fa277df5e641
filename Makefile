# Yett: one command for each thing one does with it. `make` alone prints this list.

SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON := .venv/bin/python
STAMP := .venv/.yett-setup
APT := python3-bpfcc bpftool linux-libc-dev libbpf1 python3-venv \
       knot unbound knot-dnsutils bind9-dnsutils nftables iproute2 iputils-ping curl procps prometheus openssl
APT_BENCH := iperf3 gcc dnsperf dnsdist

.PHONY: help setup packages demo test test-fast test-kernels soak test-kube kube-assets image image-assets check \
	bench story detach clean requirements

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: packages $(STAMP) ## Install what is missing with apt and pip, make .venv

# Debian starts a daemon that it installs; ours are started by the demo on addresses of its own, so none starts here.
packages:
	@missing=$$(for p in $(APT); do \
		dpkg-query -W -f='$${db:Status-Status}' $$p 2>/dev/null | grep -qx installed || echo $$p; done); \
	if [ -n "$$missing" ] && [ "$$(id -u)" != 0 ]; then \
		echo "setup: not root, so these packages stay missing, and with them the rings that need them:" $$missing; \
	elif [ -n "$$missing" ]; then \
		echo "setup: apt-get install" $$missing; \
		policy=/usr/sbin/policy-rc.d; \
		if [ ! -e $$policy ]; then \
			trap 'rm -f /usr/sbin/policy-rc.d' EXIT; printf '#!/bin/sh\nexit 101\n' >$$policy; chmod 755 $$policy; fi; \
		export DEBIAN_FRONTEND=noninteractive; \
		apt-get -qq update && apt-get -qq install --yes --no-install-recommends $$missing >/dev/null; \
	fi
	@if [ "$$(id -u)" = 0 ] && ! grep -qs ' /sys/fs/bpf bpf ' /proc/mounts; then \
		echo "setup: mounting bpffs at /sys/fs/bpf"; \
		mount -t bpf bpf /sys/fs/bpf || echo "setup: no bpffs here; the kernel and e2e rings cannot run"; fi

# The interpreter is Debian's own, because python3-bpfcc belongs to it.
$(STAMP): pyproject.toml requirements.txt
	@test -x $(PYTHON) || { echo "setup: making .venv"; /usr/bin/python3 -m venv --system-site-packages .venv; }
	@echo "setup: pip install, pinned by hash"
	@.venv/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt
	@.venv/bin/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: setup ## Two nodes, real packets, the ten steps (root)
	@.venv/bin/yett demo $(ARGS)

test: setup kube-assets image-assets ## Every ring: pure, kernel, nats, e2e, kube; prints seconds per ring
	@$(PYTHON) tests/run_rings.py pure kernel nats e2e kube

test-kernels: setup ## The kernel ring on Debian's 6.1 and 6.12 in qemu (root); ONLY=6.1
	@$(PYTHON) tests/run_kernels.py $(ONLY)

test-fast: setup check ## check, then the pure and kernel rings; at most 3 minutes
	@YETT_TWIN_CLUSTERS=200 $(PYTHON) tests/run_rings.py pure kernel

test-kube: setup kube-assets ## The ring against a real API server, which is built once (about 5 minutes)
	@$(PYTHON) tests/run_rings.py kube

# The ring says what is missing, and fails where YETT_REQUIRE asks for it.
kube-assets:
	@tests/kube/assets.sh >/dev/null || true

image: setup ## The images of controller, nodeagent and dnsrecorder, without a daemon (root); ARCHIVE=folder
	@deploy/build-image.sh $(if $(ARCHIVE),--archive $(ARCHIVE))

# The tests of the images say what went wrong, where they are asked for.
image-assets:
	@deploy/build-image.sh >/dev/null || true

soak: setup ## The proofs of make test ten times over, for hours (root); ONLY=twins|learner|ports|kernels SEED=n
	@$(PYTHON) tests/run_soak.py $(ONLY) $(if $(SEED),--seed $(SEED))

check: setup ## ruff, mypy --strict, import contracts
	@failed=; for each in "ruff check" "ruff format --check" mypy lint-imports; do \
		.venv/bin/$$each || failed="$$failed, $$each"; done; \
	[ -z "$$failed" ] || { echo "check: failed: $${failed#, }"; exit 1; }

bench: setup ## The figures, as ratios in one run (root); ONLY=core|scenarios|pipeline|bus|datapath|traffic|dns|verdicts|spans|kube
	@$(MAKE) --no-print-directory packages APT="$(APT_BENCH)"
	@$(PYTHON) -m bench $(ONLY)

story: setup ## Record the story of a verdict again and draw docs/story.svg from it (root)
	@$(PYTHON) -m services.story record

detach: setup ## Remove what a demo left behind: processes, namespaces, pinned maps
	@.venv/bin/yett demo --stop

clean: ## Remove .venv and caches
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

requirements: ## Pin the dependencies of pyproject.toml again, with hashes
	@test -x .venv/bin/pip-compile || .venv/bin/pip install --quiet pip-tools
	CUSTOM_COMPILE_COMMAND="make requirements" .venv/bin/pip-compile --quiet --all-extras --all-build-deps \
		--allow-unsafe --generate-hashes --strip-extras --no-annotate \
		--no-emit-index-url --no-emit-trusted-host --no-emit-find-links -o requirements.txt pyproject.toml
