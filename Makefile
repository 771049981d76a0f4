# Each target sets up what it needs, in .venv; a second call starts at once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
NEWER_TORCH ?= 2.13.0
CARRY_PYTHON ?= 3.12
CARRIED := typer rich pytest-timeout
SOURCES := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

.PHONY: help demo test test-versions test-reference bench carry gpu docs-tables lint format clean

help:
	@echo "make demo    train on 8x8 digits, probe every layer, show the learning phases (runs/demo)"
	@echo "make test    run the tests"
	@echo "make bench   benchmark ops, cells and sweeps against plain ATen, scikit-learn, himalaya and Adam; BENCH='--size full' for docs/performance.md"
	@echo "make carry   fetch wheels for a GPU machine without a network (.carry)"
	@echo "make gpu     build, test and benchmark on this machine's GPU with the Python at hand; no network needed"
	@echo "make docs-tables  write docs/*.md anew from docs/results/*.json and benchmarks/results/*.json"
	@echo "make lint    check style and types;  make format  mend style"
	@echo "make test-versions  run tests of this build under torch $(NEWER_TORCH) and the oldest other packages;  make test-reference  without compiled ops"

$(VENV)/created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

# torch first: the extension is compiled against the installed one, not against one of a build environment.
$(VENV)/torch: $(VENV)/created constraints.txt
	@echo "installing torch (the download takes a minute or two) ..."
	$(PIP) 'torch>=2.11' 'setuptools>=77' wheel 'pybind11>=2.13' ninja numpy
	@touch $@

$(VENV)/demo: $(VENV)/torch pyproject.toml setup.py $(SOURCES)
	$(PIP) --no-build-isolation --editable '.[demo]'
	@touch $@

$(VENV)/dev: $(VENV)/demo
	$(PIP) --no-build-isolation --editable '.[dev]'
	@touch $@

demo: $(VENV)/demo
	$(BIN)/phasefast demo

test: $(VENV)/dev
	$(BIN)/python -m pytest --durations=10

# On a GPU some calls go to the reference, which CPUs never need: here on tensors that are to be on one.
test-reference: $(VENV)/dev
	PHASEFAST_REFERENCE=1 $(BIN)/python -m pytest tests/test_pretended_gpu.py

bench: $(VENV)/dev
	$(PIP) --no-build-isolation --editable '.[bench]'
	$(BIN)/python -m pytest benchmarks --benchmark-only -k 'not cuda'
	$(BIN)/python benchmarks/compare.py $(BENCH)

# One build serves every torch from 2.11 on: the binary that .venv has built, under another torch; and the lowest
# versions of everything else that pyproject.toml allows.
$(VENV)-versions/$(NEWER_TORCH): $(VENV)/created pyproject.toml
	$(PYTHON) -m venv $(VENV)-versions
	$(VENV)-versions/bin/python -m pip install --quiet --disable-pip-version-check torch==$(NEWER_TORCH) \
	    $$($(PYTHON) tests/floors.py) pytest pytest-benchmark pytest-timeout
	@touch $@

test-versions: $(VENV)/dev $(VENV)-versions/$(NEWER_TORCH)
	PYTHONPATH=. $(VENV)-versions/bin/python -m pytest tests/ops tests/stages/test_decode.py
	PYTHONPATH=. $(VENV)-versions/bin/python -m pytest tests/checkpoints tests/results tests/report tests/test_cli*.py

# What a GPU machine without a network may lack: wheels for its Python, fetched beforehand where there is a network.
carry:
	$(PYTHON) -m pip download --quiet --disable-pip-version-check --dest .carry \
	    --only-binary :all: --python-version $(CARRY_PYTHON) $(CARRIED)
	$(PYTHON) -m pip download --quiet --disable-pip-version-check --dest .carry --no-deps himalaya

gpu:
	if [ -d .carry ]; then $(PYTHON) -m pip install --quiet --no-index --find-links .carry $(CARRIED); fi
	if [ -d .carry ]; then $(PYTHON) -m pip install --quiet --no-index --find-links .carry --no-deps himalaya; fi
	PHASEFAST_CUDA=1 PHASEFAST_REQUIRE_EXTENSION=1 $(PYTHON) setup.py --quiet build_ext --inplace
	PYTHONPATH=. $(PYTHON) -m pytest -m cuda
	PYTHONPATH=. PHASEFAST_CUDA_KERNELS=1 $(PYTHON) -m pytest -m cuda
	if command -v compute-sanitizer; then PYTHONPATH=. compute-sanitizer --error-exitcode 1 \
	    $(PYTHON) -m pytest -m cuda \
	    -k '(kernel and (700 or even or capture or sizes or 130)) or (large_windows and shape3)'; fi
	mkdir -p benchmarks/results
	PYTHONPATH=. $(PYTHON) -m pytest benchmarks --benchmark-only -k cuda --benchmark-json="$$($(PYTHON) -c \
	    'import datetime, torch; name = torch.cuda.get_device_name().lower().replace(" ", "-"); \
	    print(f"benchmarks/results/{name}-{datetime.date.today()}.json")')"

# Documents from docs/*.md.jinja, docs/results/*.json and the newest complete benchmarks/results/cpu-*.json.
docs-tables: $(VENV)/dev
	$(BIN)/python docs/render.py

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(SOURCES)

format: $(VENV)/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(SOURCES)

clean:
	rm -rf $(VENV) $(VENV)-versions build *.egg-info phasefast/*.so
