# Everything sets itself up: `make demo` and `make test` need Python 3.11 or newer, make and git.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
LOWEST := 1.8.0
NEWEST_ENV := .venv/ready
LOWEST_ENV := .venv-lowest/ready
VOICE_ENV := .venv/voice
# Newer Pythons to test on, where this machine has them.
NEWER := 3.12 3.13 3.14

.PHONY: demo demo-distributed voice test test-newest test-routed test-redis test-redis-pubsub test-lowest test-pythons lint bench speech picture clean

demo: $(NEWEST_ENV)
	@.venv/bin/python -m examples.debate

# The same in four processes; Ctrl-K kills one in mid-sentence.
demo-distributed: $(NEWEST_ENV)
	@.venv/bin/python -m examples.distributed

# ARGS="--port 8000", say: whatever Pipecat's runner takes.
voice: $(VOICE_ENV)
	@.venv/bin/python -m examples.debate.bot $(ARGS)

# Three at a time, the longest first: much of a test is waiting.
test: lint $(VOICE_ENV) $(LOWEST_ENV) speech
	@$(MAKE) --jobs=3 --output-sync=target --no-print-directory \
		test-newest test-lowest test-routed test-redis test-redis-pubsub
	.venv/bin/python -m examples.debate --plain </dev/null
	.venv/bin/python -m examples.distributed --plain </dev/null

test-newest: $(VOICE_ENV) speech
	.venv/bin/pytest

# The same tests on our bus in place of Pipecat's, without those that bring a bus of their own or
# need none.
test-routed: $(VOICE_ENV) speech
	PIPECAT_JOBS_BUS=routed .venv/bin/pytest --ignore-glob 'tests/project/test_benchmark*' \
		$(foreach no,bus/redis bus/distributed testing bus/test_wire.py bus/test_envelope.py \
		worker/test_bad_input.py worker/test_random_jobs.py project/test_docs.py \
		project/test_evals.py project/test_public_api.py,--ignore tests/$(no))

# And across a Redis server of each test's own, through which every message goes. How far a stream
# runs ahead is another matter there: tests/bus/redis/test_streams.py.
test-redis: $(VOICE_ENV) speech
	PIPECAT_JOBS_BUS=redis .venv/bin/pytest --tb=native --ignore-glob 'tests/project/test_example*' \
		--ignore-glob 'tests/project/test_benchmark*' --ignore-glob 'tests/bus/test_routed*' \
		$(foreach no,bus/redis bus/distributed bus/test_wire.py bus/test_envelope.py \
		protocol/test_flow.py worker/test_random_jobs.py project/test_docs.py \
		project/test_evals.py project/test_options.py project/test_public_api.py \
		project/test_real_sound.py project/test_voice_bot.py,--ignore tests/$(no))

# Over Pipecat's own RedisBus: the tests of the contract. The others, PUBSUB='tests/llm tests/tools',
# take a minute more and are about LLMs and tools, for which the bus matters little.
PUBSUB ?= $(foreach part,worker/test_bad_input worker/test_hooks worker/test_nothing_left \
	requester/test_cancellation requester/test_dispatch requester/test_requester \
	executor/test_executor pipecat/test_events pipecat/test_gaps_* \
	pipecat/test_parity_* pipecat/test_peers_plain_* pipecat/test_seed_*,tests/$(part).py)
test-redis-pubsub: $(NEWEST_ENV)
	PIPECAT_JOBS_BUS=redis-pubsub .venv/bin/pytest --tb=native $(PUBSUB)

# The lowest supported Pipecat, and the wheel that people install rather than this tree. Without
# what takes a while and is between us and the Redis server alone.
test-lowest: $(LOWEST_ENV) speech
	.venv-lowest/bin/pytest --ignore-glob 'tests/project/test_benchmark*' \
		--ignore-glob 'tests/bus/redis/test_script*' \
		$(foreach no,bus/redis/test_random_processes bus/redis/test_inbox bus/redis/test_link \
		bus/redis/test_tls bus/distributed/test_outbox,--ignore tests/$(no).py)

# Every newer Python that runs here: on the PATH, or one that pyenv has installed.
test-pythons: $(NEWEST_ENV) speech
	@for version in $(NEWER); do \
		found=; \
		for python in "python$$version" "$$(pyenv prefix $$version 2>/dev/null)/bin/python"; do \
			if "$$python" -c "" 2>/dev/null; then found=$$(command -v "$$python"); break; fi; \
		done; \
		if [ -z "$$found" ]; then echo "Python $$version: not found"; continue; fi; \
		echo "Python $$version: $$found"; \
		$(MAKE) --no-print-directory ".venv-$$version/ready" FOUND="$$found" && \
			".venv-$$version/bin/pytest" $(ARGS) || exit 1; \
	done

# The user of the tests with real sound; where it cannot be had, they are skipped and say so.
speech:
	@command -v espeak-ng >/dev/null || \
		{ apt-get update -qq && apt-get install -qq -y espeak-ng; } >/dev/null 2>&1 || \
		echo "espeak-ng is missing and cannot be installed here: no tests with real sound"

lint: $(NEWEST_ENV)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/pyright --pythonpath .venv/bin/python
	.venv/bin/lint-imports --no-cache

bench: $(NEWEST_ENV)
	.venv/bin/python -m benchmarks --json docs/cost.json --plot docs/cost.svg

picture: $(NEWEST_ENV)
	.venv/bin/python -m examples.debate.picture

$(NEWEST_ENV): pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet uv
	.venv/bin/uv pip install --quiet --python .venv/bin/python --editable ".[testing,examples]" --group dev
	@touch $@

$(VOICE_ENV): $(NEWEST_ENV)
	.venv/bin/uv pip install --quiet --python .venv/bin/python --editable ".[voice]"
	@touch $@

$(LOWEST_ENV): pyproject.toml $(NEWEST_ENV) $(shell find pipecat_jobs -name '*.py')
	test -d .venv-lowest || $(PYTHON) -m venv .venv-lowest
	rm -rf dist
	.venv/bin/uv build --quiet --wheel --out-dir dist
	.venv/bin/uv pip install --quiet --python .venv-lowest/bin/python --reinstall-package pipecat-jobs \
		"pipecat-ai==$(LOWEST)" "$$(echo dist/*.whl)[testing,examples,voice]" --group dev
	@touch $@

$(NEWER:%=.venv-%/ready): pyproject.toml
	"$(FOUND)" -m venv $(@D)
	.venv/bin/uv pip install --quiet --python $(@D)/bin/python \
		--editable ".[testing,examples,voice]" --group dev
	@touch $@

clean:
	rm -rf .venv .venv-lowest $(NEWER:%=.venv-%) dist .pytest_cache .ruff_cache .hypothesis
