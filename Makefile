# make run and make test need nothing beforehand but Python 3.11 and a C++ compiler: they set up .venv themselves.

# Tests start hundreds of processes, each of which would compile the modules of the checkout again.
export PYTHONDONTWRITEBYTECODE =

PYTHON_OF_VENV := .venv/bin/python
STAMP := .venv/.setup-complete

.DEFAULT_GOAL := help
.PHONY: help setup gpu run reference check test soak bench overheads scaling simulate card card-kit report-check image-check
.PHONY: lint format clean

help: ## print the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## make .venv with everything in it

# FOR=12.4 on a machine without the driver.
gpu: setup ## also what a CUDA card needs beside its driver, into .venv
	$(PYTHON_OF_VENV) -m shardpress setup-gpu $(if $(FOR),--for $(FOR))

# In a folder of its own for each set of sample shards: nothing else is ever replaced, whatever the name of its output.
run: setup ## sample data to features to a classifier's accuracy, in sample/
	$(PYTHON_OF_VENV) scripts/make_data.py
	@set=fashion-mnist; test -e data/$$set-train-0.h5 || set=digits; set -ex; \
	$(PYTHON_OF_VENV) scripts/extract.py --overwrite --input data/$$set-train-*.h5 --output sample/$$set/features; \
	$(PYTHON_OF_VENV) scripts/extract.py --quiet --overwrite --model sample/$$set/features --input data/$$set-test \
		--output sample/$$set/features-test; \
	$(PYTHON_OF_VENV) scripts/classify.py --features sample/$$set/features --test sample/$$set/features-test

reference: setup ## the model's reference run on two donuts, with its plot
	$(PYTHON_OF_VENV) scripts/make_data.py donuts
	$(PYTHON_OF_VENV) scripts/reference.py

check: lint ## linters, types, and the quick tests that need no compiler and no other process
	$(PYTHON_OF_VENV) -m pytest --numprocesses auto -m "not process and not compiler and not slow"

test: setup .venv-readers/.complete ## every property, with samples of repetitions; ISA=avx2 keeps to that instruction set
	$(if $(ISA),TEST_ISA=$(ISA) )$(PYTHON_OF_VENV) -m pytest --numprocesses auto

SOAK_TARGETS := soak-tests soak-failing-calls soak-protocol soak-killing soak-watched soak-chaos soak-aborted \
	soak-mutants soak-orphans soak-fuzzing soak-structures soak-ulimits soak-architectures
.PHONY: $(SOAK_TARGETS)

# Two at a time, the longest first. A failure stops no other one.
soak: setup .venv-readers/.complete .nvrtc/.complete ## hours: all cases of the tests, kills, failing calls, mutated files and code
	$(MAKE) --keep-going --jobs=2 $(SOAK_TARGETS)

soak-tests:
	TEST_CASES=all $(PYTHON_OF_VENV) -m pytest --numprocesses auto

soak-failing-calls:
	$(PYTHON_OF_VENV) -m tests.support.failing_calls 7

soak-protocol:
	$(PYTHON_OF_VENV) -m tests.support.soak_protocol

soak-killing:
	$(PYTHON_OF_VENV) -m tests.support.killing 200

soak-watched:
	$(PYTHON_OF_VENV) -m tests.support.thread_sanitizer

soak-chaos:
	$(PYTHON_OF_VENV) -m tests.support.chaos 10

soak-aborted:
	$(PYTHON_OF_VENV) -m tests.support.readonly_disk

soak-mutants:
	$(PYTHON_OF_VENV) -m tests.support.mutants all

soak-orphans:
	$(PYTHON_OF_VENV) -m tests.support.orphans 40

soak-fuzzing:
	$(PYTHON_OF_VENV) -m tests.support.fuzzing 10000

soak-structures:
	$(PYTHON_OF_VENV) -m tests.support.fuzzing 10000 0 structures

soak-ulimits:
	$(PYTHON_OF_VENV) -m tests.support.ulimits

soak-architectures:
	$(PYTHON_OF_VENV) -m tests.support.architectures .nvrtc/*

bench: setup .venv-peers/.complete ## race against JAX, PyTorch and scikit-learn
	$(PYTHON_OF_VENV) scripts/make_data.py
	$(PYTHON_OF_VENV) scripts/benchmarks/run.py races

overheads: setup ## what safety costs
	$(PYTHON_OF_VENV) scripts/benchmarks/run.py overheads

scaling: setup ## what more than one process costs and brings: a quarter of an hour with nothing else at work
	$(PYTHON_OF_VENV) scripts/benchmarks/run.py scaling

simulate: setup ## what a run would take on 1 to 1,000 workers, out of measured costs
	$(PYTHON_OF_VENV) scripts/benchmarks/run.py simulate --plot docs/scaling.png

card: setup ## on a machine with a CUDA card, in nine minutes: doctor, tests, a run and races on it, into card/
	$(PYTHON_OF_VENV) scripts/make_data.py
	$(PYTHON_OF_VENV) scripts/card.py

# PEERS=no: without PyTorch, a fifth of the size.
card-kit: setup ## what does that where there is neither network nor Python 3.11: pieces of 60 MiB; needs root, debootstrap
	$(PYTHON_OF_VENV) scripts/make_data.py
	$(PYTHON_OF_VENV) -m tests.support.cardkit $(if $(filter no,$(PEERS)),--without-peers)

report-check: setup .report-check/.complete ## open reports in a headless Chromium (Debian: chromium); needs npm, too
	$(PYTHON_OF_VENV) scripts/make_data.py digits
	$(PYTHON_OF_VENV) scripts/extract.py --quiet --overwrite --input data/digits --output .report-check/digits
	$(PYTHON_OF_VENV) -m tests.support.pages .report-check/largest/report.html
	$(PYTHON_OF_VENV) scripts/report_check.py .report-check/*/report.html --pictures .report-check/pictures

image-check: setup ## do the steps of docs/Dockerfile in a chroot; needs root, debootstrap and a network
	$(PYTHON_OF_VENV) -m tests.support.image

lint: setup ## ruff and mypy
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy pipeline kernels

format: setup ## let ruff repair and lay out the code
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

clean: ## remove .venv and caches; data/, sample/ and features/ stay
	rm -rf .venv .venv-peers .venv-readers .report-check .nvrtc build pipeline/hdf5/filters/*.so *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): setup.py pipeline/hdf5/filters/lzf.c pyproject.toml constraints.txt scripts/setup.sh scripts/install_pygpu.sh
	scripts/setup.sh

# What users would take instead, as it is today.
.venv-peers/.complete:
	.venv/bin/python -m venv --clear .venv-peers
	.venv-peers/bin/pip install --quiet h5py jax numpy scikit-learn torch
	touch $@

# One of each kind that set-up may choose; a wheel a folder.
.nvrtc/.complete: | setup
	for cuda in 12.0 12.4 12.9; do \
		$(PYTHON_OF_VENV) -m pip install --quiet --no-deps --target .nvrtc/$$cuda nvidia-cuda-nvrtc-cu12==$$cuda.*; done
	$(PYTHON_OF_VENV) -m pip install --quiet --no-deps --target .nvrtc/13 nvidia-cuda-nvrtc==13.*
	touch $@

.report-check/.complete:
	npm install --silent --no-save --prefix .report-check axe-core@4
	touch $@

# Later Pythons, with a wheel and what it needs there; the tests take the code itself as it is today.
.venv-readers/.complete: scripts/readers.sh setup.py | setup
	scripts/readers.sh

# A virtual environment does not survive a move of the checkout, nor the loss of its interpreter: then set up again.
ifneq "$(shell test -x $(PYTHON_OF_VENV) && cat $(STAMP) 2>/dev/null)" "$(CURDIR)"
.PHONY: $(STAMP)
endif
