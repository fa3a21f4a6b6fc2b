# Everything that a fresh Debian needs is installed here; both main commands are in README.md.
PACKAGES = python3 python3-venv python3-bpfcc libbpf1 linux-libc-dev iproute2 nftables
LAB = unbound bind9-dnsutils curl wget procps util-linux
TESTS = $(LAB) musl-tools gcc libc6-dev iperf3 systemd python3-seccomp openssl golang-github-containers-common cloud-init

RIVALS = dnsmasq-base squid-openssl# what the bench of gateways measures beside

# virtiofsd has a package of its own from Debian 13 on; before, it comes with QEMU.
MATRIX = $(TESTS) qemu-system-x86 busybox-static kmod \
  $(shell apt-cache show virtiofsd >/dev/null 2>&1 && echo virtiofsd)

NODE = $(MATRIX) containerd runc containernetworking-plugins iptables buildah debootstrap

PYTHON = /usr/bin/python3# bcc is Debian's, for Debian's Python
VENV = .venv
BIN = $(VENV)/bin
PREFIX = /opt/skouter
WORKERS = 3# processes that pass tests
TERRAFORM = $(shell command -v terraform || command -v tofu)
TOOLS = envtest oldest helm $(if $(TERRAFORM),,opentofu)# sets of tests/tools that make test needs
UNITS = /usr/local/lib/systemd/system
SERVICES = skouter.service skouter-gateway.service skouter-resolver.service skouter-route.service \
  skouter-secrets.service skouter-take-over.service
IF_SYSTEMD = [ ! -d /run/systemd/system ] ||

.PHONY: demo demo-gateway test test-terraform lint format crds tools envtest test-node manifests image bench bench-node bench-gateway matrix install uninstall packages-% clean

demo: packages-lab $(VENV)/ready
	$(BIN)/python -m tests.demo

demo-gateway: packages-lab $(VENV)/ready
	$(BIN)/python -m tests.demo_gateway

# Tests wait more than they compute, so there are more workers than processors, and each may take its time. A file's
# tests stay together, for what they share; the order is that of the folders, since the longest come first there.
# Those that measure time come after all others, alone.
# Every start of the program would compile the checkout anew where Python may not keep what it compiled.
test: export SKOUTER_TEST_PATIENCE ?= 3
test: export PYTHONDONTWRITEBYTECODE =
test: packages-tests $(VENV)/ready-dev lint tools
	$(BIN)/python -m pytest -m 'not quiet' -n $(WORKERS) --dist loadfile --no-loadscope-reorder
	$(BIN)/python -m pytest -m quiet

# With a Terraform or OpenTofu of the PATH, else with an OpenTofu that is built once: minutes. The providers' schemas
# are fetched once, too, into /var/cache/skouter/schemas.
test-terraform: packages-tests $(VENV)/ready-dev
	$(if $(TERRAFORM),,$(BIN)/python -m tests.tools opentofu)
	$(BIN)/python -m tests.terraform.prepare
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile tests/terraform tests/cloud

lint: $(VENV)/ready-dev
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

format: $(VENV)/ready-dev
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

# The definitions for the API server, after a change of gateway/policies/schema.py or gateway/policies/cel.py.
crds: $(VENV)/ready
	$(BIN)/python -m deploy.crds

# An API server and kubectl, found on this machine or built from pinned Go modules: minutes, once.
tools: $(VENV)/ready-dev
	$(BIN)/python -m tests.tools $(TOOLS)
	$(BIN)/python -m tests.terraform.prepare

envtest: packages-tests tools
	$(BIN)/python -m pytest tests/cluster

# A node with kubelet and containerd is booted in QEMU, without KVM, and the chart installed there: the first time
# with images and programs that take minutes to build.
test-node: packages-node $(VENV)/ready-dev
	$(BIN)/python -m tests.cluster.node.prepare
	SKOUTER_TEST_NODE=1 unshare --net $(BIN)/python -m pytest -x -s tests/cluster/node

bench: packages-tests $(VENV)/ready-dev
	$(BIN)/python -m tests.bench

bench-node: packages-tests tools
	$(BIN)/python -m tests.bench.node

bench-gateway: packages-rivals $(VENV)/ready-dev
	$(BIN)/python -m tests.bench.gateway

# Each of Debian's kernels is booted in QEMU, without KVM: minutes for each.
matrix: packages-matrix $(VENV)/ready-dev
	$(BIN)/python -m tests.matrix

# What is made of the Helm chart; a test compares.
manifests: $(VENV)/ready-dev
	HELM=$$($(BIN)/python -m tests.tools helm | tail -1)/helm PYTHON=$(CURDIR)/$(BIN)/python deploy/render

# BASE=debootstrap where no registry is in reach; IMAGE_OPTIONS are buildah's.
image: packages-image $(VENV)/ready-dev
	deploy/build-image $(IMAGE_OPTIONS)
	$(BIN)/python -m pytest -q tests/cluster/test_image.py

install: packages-run
	$(PYTHON) -m venv --system-site-packages $(PREFIX)
	$(PREFIX)/bin/pip install --quiet .
	cd / && $(PREFIX)/bin/python -m bpf.load $(PREFIX)/share/skouter
	ln -sf $(PREFIX)/bin/skouter /usr/local/bin/skouter
	install -m 644 -t $(PREFIX)/share/skouter deploy/systemd/10-skouter.conf deploy/systemd/*.yaml
	install -D -m 644 -t $(UNITS) $(SERVICES:%=deploy/systemd/%)
	sed -i 's,/opt/skouter,$(PREFIX),' $(SERVICES:%=$(UNITS)/%) $(PREFIX)/share/skouter/10-skouter.conf
	install -d /etc/skouter/policies
	[ -e /etc/skouter/agent.yaml ] || install -m 644 deploy/systemd/agent.yaml /etc/skouter
	$(IF_SYSTEMD) systemctl daemon-reload

# What somebody wrote under /etc/skouter stays.
uninstall:
	-$(IF_SYSTEMD) systemctl disable --quiet --now $(SERVICES)
	-$(PREFIX)/bin/skouter uninstall
	rm -rf $(PREFIX) /usr/local/bin/skouter $(SERVICES:%=$(UNITS)/%)
	! cmp -s deploy/systemd/agent.yaml /etc/skouter/agent.yaml || rm /etc/skouter/agent.yaml
	-rmdir --ignore-fail-on-non-empty /etc/skouter/policies /etc/skouter
	$(IF_SYSTEMD) systemctl daemon-reload

$(VENV)/ready: pyproject.toml
	$(PYTHON) -m venv --system-site-packages $(VENV)
	$(BIN)/pip install --quiet --editable .
	touch $@

$(VENV)/ready-dev: $(VENV)/ready
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

# apt-get runs only where something is missing, so that a machine that has it all needs no network. The lab
# starts its own servers: those that Debian would start are kept from it, and cloud-init from what it would do at boot.
packages-run: NEEDED = $(PACKAGES)
packages-lab: NEEDED = $(PACKAGES) $(LAB)
packages-tests: NEEDED = $(PACKAGES) $(TESTS)
packages-rivals: NEEDED = $(PACKAGES) $(TESTS) $(RIVALS)
packages-matrix: NEEDED = $(PACKAGES) $(MATRIX)
packages-node: NEEDED = $(PACKAGES) $(NODE)
packages-image: NEEDED = buildah debootstrap
packages-run packages-lab packages-tests packages-rivals packages-matrix packages-node packages-image:
	@missing=; for p in $(NEEDED); do \
	  dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$p"; done; \
	[ -z "$$missing" ] && exit; echo "installing$$missing"; \
	if [ ! -e /usr/sbin/policy-rc.d ]; then trap 'rm -f /usr/sbin/policy-rc.d' EXIT; \
	  printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d; chmod +x /usr/sbin/policy-rc.d; fi; \
	apt-get update -q >/dev/null && \
	DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $$missing >/dev/null && \
	for s in unbound squid; do case "$$missing" in *$$s*) systemctl disable -q $$s 2>/dev/null || true;; esac; done; \
	case "$$missing" in *cloud-init*) touch /etc/cloud/cloud-init.disabled;; esac

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
