# make run and make test need only Python 3.11 to 3.14 and a C++ compiler. They create .venv themselves. PYTHON=3.13
# chooses a version.

# Tests start hundreds of processes. Without bytecode files each would compile the modules of the checkout again.
export PYTHONDONTWRITEBYTECODE =

PYTHON_OF_VENV := .venv/bin/python
STAMP := .venv/.setup-complete
THEANO := .venv/.theano-complete

.DEFAULT_GOAL := help
.PHONY: help setup gpu run reference check test golden soak bench against overheads scaling simulate card card-kit
.PHONY: report-check image-check sizes lint format clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) $(THEANO) ## create .venv with all dependencies

# FOR=12.4 is needed on a machine without a driver only.
gpu: setup ## install the libraries that a CUDA card needs into .venv; FOR=12.4 selects a version of CUDA
	$(PYTHON_OF_VENV) -m shardpress setup-gpu $(if $(FOR),--for $(FOR))

# Each set of sample shards has its own directory, so that --overwrite replaces only results of the same set.
run: setup ## extract features from sample data into sample/, and train a classifier on them
	$(PYTHON_OF_VENV) scripts/make_data.py
	@set=fashion-mnist; test -e data/$$set-train-0.h5 || set=digits; set -ex; \
	$(PYTHON_OF_VENV) scripts/extract.py --overwrite --input data/$$set-train-*.h5 --output sample/$$set/features; \
	$(PYTHON_OF_VENV) scripts/extract.py --overwrite --model sample/$$set/features --input data/$$set-test \
		--output sample/$$set/features-test; \
	$(PYTHON_OF_VENV) scripts/classify.py sample/$$set/features --test sample/$$set/features-test

reference: setup ## run the reference model on two donuts, and plot its features
	$(PYTHON_OF_VENV) scripts/make_data.py donuts
	$(PYTHON_OF_VENV) scripts/reference.py

check: lint ## run linters, type checks, and the quick tests (no compiler, no other processes)
	$(PYTHON_OF_VENV) -m pytest --numprocesses auto -m "not process and not compiler and not slow"

# Many tests wait for other processes, so two tests run at a time on each core.
test: setup .venv-readers/.complete ## run all tests; ISA=avx2 restricts the instruction set
	$(if $(ISA),TEST_ISA=$(ISA) )$(PYTHON_OF_VENV) -m pytest -rs --numprocesses $$((2 * $$(nproc)))

golden: setup ## compare results with those of HEAD bit for bit; COMMIT=main selects another commit
	$(PYTHON_OF_VENV) -m tests.golden $(if $(COMMIT),--against $(COMMIT))

# TEST_CASES=all selects all cases of the tests that otherwise run a sample of them.
soak: setup .venv-readers/.complete .nvrtc/.complete ## run all cases of all tests (about two hours): kills, failing calls, damaged files
	TEST_CASES=all $(PYTHON_OF_VENV) -m pytest -rs --numprocesses $$((2 * $$(nproc)))

bench: setup .venv-peers/.complete ## compare speed with JAX, PyTorch and scikit-learn
	$(PYTHON_OF_VENV) scripts/make_data.py
	$(PYTHON_OF_VENV) scripts/benchmarks/run.py compare

# CASES="networks targets" chooses other benchmarks.
against: setup ## measure this checkout and COMMIT=21e2429c in turns: steps, encoding, files
	$(PYTHON_OF_VENV) scripts/benchmarks/run.py compare --against $(COMMIT) $(CASES)

overheads: setup ## measure the cost of checks, digests and syncs
	$(PYTHON_OF_VENV) scripts/benchmarks/run.py overheads

scaling: setup ## measure runs with several processes (a quarter of an hour on an idle machine)
	$(PYTHON_OF_VENV) scripts/benchmarks/run.py scaling

simulate: setup ## simulate runs on 1 to 1,000 workers from measured costs
	$(PYTHON_OF_VENV) scripts/benchmarks/run.py simulate --plot docs/scaling.png

card: setup ## test a CUDA card in nine minutes: doctor, tests, a run and benchmarks; results in card/
	$(PYTHON_OF_VENV) scripts/make_data.py
	$(PYTHON_OF_VENV) scripts/card.py

# PEERS=no leaves out PyTorch, which is four fifths of the size. FROM=DIR takes the files for the GPU from a directory.
card-kit: setup ## pack `make card` for a machine without network and Python; needs root, debootstrap
	$(PYTHON_OF_VENV) scripts/make_data.py
	$(PYTHON_OF_VENV) -m scripts.images.cardkit $(if $(filter no,$(PEERS)),--without-peers) $(if $(FROM),--from $(FROM))

report-check: setup .report-check/.complete ## open reports in headless Chromium; needs chromium and npm
	$(PYTHON_OF_VENV) scripts/make_data.py digits
	$(PYTHON_OF_VENV) scripts/extract.py --quiet --overwrite --input data/digits --output .report-check/digits
	$(PYTHON_OF_VENV) -m tests.support.pages .report-check/largest/report.html
	$(PYTHON_OF_VENV) scripts/report_check.py .report-check/*/report.html --pictures .report-check/pictures

# FROM=DIR takes the files for the GPU from a directory.
image-check: setup ## run the steps of docs/Dockerfile in a chroot; needs root, debootstrap and a network
	$(PYTHON_OF_VENV) -m scripts.images.image $(FROM)

sizes: setup ## count lines, words of the docs, settings and commands; COMMIT=21e2429c prints those of a commit, too
	$(PYTHON_OF_VENV) scripts/sizes.py $(if $(COMMIT),--against $(COMMIT))

lint: setup ## run ruff and mypy, and check the style of prose
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy pipeline kernels tests/support/standin.py
	.venv/bin/python -m tests.support.prose

format: setup ## fix and format the code with ruff
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

clean: ## remove virtual environments, trees of other commits and caches; keep data/, sample/ and features/
	rm -rf .venv .venv-peers .venv-readers .report-check .nvrtc .trees .golden mutants src build pipeline/shardpress/base/*.so pipeline/shardpress/hdf5/filters/*.so *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

export PYTHON

C_SOURCES := pipeline/shardpress/hdf5/filters/lzf.c pipeline/shardpress/base/rowmath.c

$(STAMP): setup.py $(C_SOURCES) pyproject.toml constraints.txt scripts/setup.sh scripts/install_pygpu.sh
	scripts/setup.sh

# The files of Theano are changed again only if the changes differ.
CHANGES := kernels/shardpress_kernels/theanofiles.py

$(THEANO): $(STAMP) $(CHANGES)
	$(PYTHON_OF_VENV) -m shardpress setup-theano
	touch $@

# Current versions of the alternatives.
.venv-peers/.complete:
	.venv/bin/python -m venv --clear .venv-peers
	.venv-peers/bin/pip install --quiet h5py jax numpy scikit-learn torch
	touch $@

# One version of each kind that setup-gpu chooses, each in its own directory.
.nvrtc/.complete: | setup
	for cuda in 12.0 12.4 12.9; do \
		$(PYTHON_OF_VENV) -m pip install --quiet --no-deps --target .nvrtc/$$cuda nvidia-cuda-nvrtc-cu12==$$cuda.*; done
	$(PYTHON_OF_VENV) -m pip install --quiet --no-deps --target .nvrtc/13 nvidia-cuda-nvrtc==13.*
	touch $@

.report-check/.complete:
	npm install --silent --no-save --prefix .report-check axe-core@4
	touch $@

# Later Pythons with a wheel and its dependencies, and with Theano. The tests use the code of the checkout.
.venv-readers/.complete: scripts/readers.sh setup.py $(CHANGES) | setup
	scripts/readers.sh

# A virtual environment is unusable after a move of the checkout or the loss of its interpreter: create it again.
ifneq "$(shell test -x $(PYTHON_OF_VENV) && cat $(STAMP) 2>/dev/null)" "$(CURDIR)"
.PHONY: $(STAMP)
else ifdef PYTHON
# Create it again if it has another version of Python, too.
VERSION_OF_VENV := $(shell $(PYTHON_OF_VENV) -c 'import sys; print("%d.%d" % sys.version_info[:2], sys._base_executable)')
ifeq "$(filter $(PYTHON),$(VERSION_OF_VENV))" ""
.PHONY: $(STAMP)
endif
endif
