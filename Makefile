# Everything sets itself up in .venv inside the checkout; nothing else is needed but Python >= 3.11, git and a compiler.
PYTHON ?= python3
BIN := .venv/bin
# In a process of its own: it forks a few thousand times, and a fork takes 60 ms where torch is loaded, 5 ms where not.
STORE_FAULTS := tests/faults/store
# Test files side by side, three on two cores, as a test waits for a fifth of its time. Each has a Prefect server and homes of its own.
# What takes longest comes first, so that the end is not one file's; before it three files that make the runs which others share.
LONGEST_FIRST := tests/deployments/test_wheel.py tests/faults/flow/test_server_faults.py tests/flows/test_cache.py tests/hub/test_push.py \
  tests/training tests/faults tests/flows tests/hub tests/imports tests
JOBS ?= 3
MINUTES ?= 8
POOL ?= spin-cpu
LIMIT ?= $(if $(filter spin-gpu,$(POOL)),1)

.PHONY: demo test test-all check format setup lock digests clean demo-seeds report-picture regimes bench-train bench-memory bench-generate vllm-env test-kills faults gpu-proof gpu-kit server worker test-server bench-dispatch bench-growth bench-tokens bench-iteration store-faults tests test-newest test-oldest docs release

demo: .venv/ready            ## run the demo: no network, no GPU, no server
	@# A server that .env names is not needed; one that the environment names is meant.
	PREFECT_API_URL="$${PREFECT_API_URL-}" $(BIN)/spinloop run demo

test: .venv/dev              ## what CI runs: lint, types, architecture, and every promise tested once (11 to 13 minutes on 2 cores)
	$(MAKE) -j 2 check tests

tests: store-faults          # beside `check`, which is over long before these are
	$(BIN)/pytest -m 'not full' -n $(JOBS) --dist loadfile --no-loadscope-reorder --ignore=$(STORE_FAULTS) --ignore=tests/architecture $(LONGEST_FIRST)

store-faults: .venv/dev
	$(BIN)/pytest -m 'not full' $(STORE_FAULTS)

test-all: check              ## everything but what needs Postgres or hours: pools, S3, repeated kills (half an hour)
	$(BIN)/pytest $(STORE_FAULTS)
	$(BIN)/pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder --ignore=$(STORE_FAULTS) --ignore=tests/architecture $(LONGEST_FIRST)

SUITE = -m 'not full' -n $(JOBS) --dist loadfile --no-loadscope-reorder $(or $(TESTS),$(LONGEST_FIRST))

test-newest: .venv-newest/ready  ## the suite on the newest of everything that pyproject.toml allows (TESTS="tests/stages": a part)
	.venv-newest/bin/pytest $(SUITE)

test-oldest: .venv-oldest/ready  ## the suite on the oldest that pyproject.toml allows (TESTS="tests/stages": a part)
	.venv-oldest/bin/pytest $(SUITE)

regimes: .venv/ready       ## the regime map: objectives × opponents × situations beside tuned SFT, into docs/regimes.md (an hour)
	$(BIN)/python -m tests.benchmarks.regimes $(REGIMES)

demo-seeds: .venv/ready      ## the demo on five seeds beside tuned SFT, and README's table (half an hour; DEMO=demo-tasks or demo-bland: that one)
	$(BIN)/python -m tests.benchmarks.demo_seeds $(DEMO)

report-picture: demo         ## README's picture: the first screen of the demo's report, into docs/report.svg
	$(BIN)/python -m tests.benchmarks.report_picture "$${SPINLOOP_STORE:-.spinloop}"/spinloop-store-v1/latest/report.html

bench-train: .venv/bench     ## training speed and memory: the reference's way, TRL, spinloop (BENCH="--model DIR --data DIR" without a hub)
	$(BIN)/python -m tests.benchmarks.bench_train $(BENCH)

bench-memory: .venv/dev      ## the memory model of `spinloop plan` against measured peaks: the cases that its table lacks (BENCH=--again: all)
	$(BIN)/python -m tests.benchmarks.bench_memory $(BENCH)

vllm-env: .venv-vllm/ready   ## vLLM in an environment of its own, for generate.engine and harness.backend vllm (VLLM=cpu or cuda; else what is found)

bench-generate: .venv/dev    ## sampling speed: the reference's loop, transformers engine, vLLM engine (BENCH="--model DIR --data FILE" without a hub)
	$(BIN)/python -m tests.benchmarks.bench_generate $(BENCH)

server: .venv/ready          ## Prefect's server and UI on loopback, behind the password in .env, which is made first (PORT=4200)
	@deployments/server-env.sh
	@DO_NOT_TRACK=1 exec $(BIN)/prefect server start

# Its own process by `exec`: a worker that a shell puts in the background takes no first Ctrl-C (Prefect forwards a signal that is ignored).
worker: .venv/ready          ## a worker of one pool: make worker POOL=spin-gpu (LIMIT runs at once: 1 on spin-gpu, else any number)
	@$(BIN)/python -m flows.server.login
	@DO_NOT_TRACK=1 exec $(BIN)/prefect worker start --pool $(POOL) $(if $(LIMIT),--limit $(LIMIT))

test-server: .venv/dev       ## a whole iteration on Postgres and two workers, and every other test of the server set-up and its UI
	SPINLOOP_TEST_SERVER=1 $(BIN)/pytest -v tests/flows/pools

bench-tokens: .venv/dev      ## speed of tokenize, and how soon score and finetune begin, with 50,000 rows (BENCH="--rows 2000" for less)
	$(BIN)/python -m tests.benchmarks.bench_tokens $(BENCH)

bench-iteration: .venv/dev   ## where a second iteration's wall time goes (BENCH="--model DIR --data FILE --against CHECKOUT"; an hour or more)
	$(BIN)/python -m tests.benchmarks.bench_iteration $(BENCH)

bench-dispatch: .venv/dev    ## what Prefect and the store add to a step, here and on a work pool
	$(BIN)/python -m tests.benchmarks.bench_dispatch

bench-growth: .venv/dev      ## time and memory against rows (to a million) and shards (to 5,000): an hour, 5 GB (BENCH="--rows 1000 --shards 500" for less)
	$(BIN)/python -m tests.benchmarks.bench_growth $(BENCH)

test-kills: .venv/dev        ## thirty random kill -9 moments with each engine (half an hour and more); a part of `faults`
	SPINLOOP_FAULTS=night $(BIN)/pytest -s tests/faults/flow/test_generation_killed.py

faults: .venv/dev            ## the fault and security battery with a night's counts, and its table (LEVEL=release: more)
	SPINLOOP_FAULTS=$(or $(LEVEL),night) $(BIN)/pytest --timeout=7200 $(STORE_FAULTS)
	SPINLOOP_FAULTS=$(or $(LEVEL),night) $(BIN)/pytest --timeout=7200 --ignore=$(STORE_FAULTS) tests/faults tests/security tests/hub/test_secrets.py \
	  tests/flows/pools/test_server_setup.py

# Nothing is set up for it: a bare machine has no registry. Its torch is the one with CUDA, where there is no .venv.
gpu-proof:                   ## proves CUDA: correct, fast, estimates, whole, within MINUTES=8 (GPU="--device cpu" rehearses; docs/gpu.md)
	@PYTHONUNBUFFERED=1 $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m tests.gpu --minutes $(MINUTES) $(GPU)

gpu-kit: .venv/ready         ## wheels and data for gpu-proof on a bare machine, in gpu-kit/, below 60 MiB (KIT="--python 3.12 --model DIR --data DIR")
	$(BIN)/python -m tests.gpu.kit gpu-kit $(KIT)

check: .venv/dev             ## lint, types, architecture: under a minute
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest tests/architecture

format: .venv/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv-docs/ready       ## the docs site in site/: no network, nothing that its pages fetch; a warning is an error
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict
	@echo "site/index.html"

lock:                        ## constraints.txt anew: the newest versions that pyproject.toml allows; then `make test-all`, and commit it
	PYTHON="$(PYTHON)" deployments/lock.sh

release: .venv/dev           ## cuts VERSION=0.2.0 here: changelog, versions, wheel and notes in dist/, a commit and a tag; nothing is pushed
	VERSION="$(VERSION)" PYTHON="$(BIN)/python" deployments/release.sh

digests:                     ## the digests that the images of others have today, into Dockerfile, compose.yaml and kubernetes/; then look, and commit
	deployments/digests.sh

setup: .venv/ready

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "spinloop needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv

.venv/ready: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/dev: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@ .venv/ready

.venv/bench: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[bench]'
	touch $@ .venv/ready

.venv-newest/ready: pyproject.toml
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/pip install --quiet --upgrade --editable '.[dev]'
	touch $@

.venv-oldest/ready: pyproject.toml tests/oldest.py
	$(PYTHON) -m venv .venv-oldest
	$(PYTHON) tests/oldest.py >.venv-oldest/oldest.txt
	.venv-oldest/bin/pip install --quiet --constraint .venv-oldest/oldest.txt --editable '.[dev]'
	touch $@

.venv-docs/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"], sep="\n")' >.venv-docs/docs.txt
	.venv-docs/bin/pip install --quiet --constraint constraints.txt --requirement .venv-docs/docs.txt
	touch $@

.venv-vllm/ready: deployments/vllm-env.sh
	PYTHON="$(PYTHON)" deployments/vllm-env.sh .venv-vllm
	touch $@

clean:
	rm -rf .venv .venv-vllm .venv-newest .venv-oldest .venv-docs .spinloop site
