# make test          install the tested set of requirements.txt into .venv; run lint, doctests and tests
# make train         install, and train an encoder on the embedded benchmark with FANoise on (minutes on two cores)
# make lint          ruff, mypy, and the import rules
# make docs          build the site into build/docs; every warning is an error
# make gpu           tests/gpu and the benchmarks on a GPU; writes benchmarks/gpu.md
# make wheel         build the wheel and the source distribution into dist/
# make bench         the benchmarks, as one table of figures and targets, also in build/bench.json
# make lock          renew requirements.txt: the newest versions that setup.cfg allows
# make test-lowest   the tests on the lowest versions that setup.cfg allows
# make test-newest   the tests on what pip installs today, without requirements.txt
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
UV := $(VENV)-lock/bin/uv
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal

.PHONY: install test test-lowest test-newest lock lint docs wheel train bench gpu clean

install: $(VENV)/.installed

$(VENV)/.installed: requirements.txt setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --require-hashes --requirement requirements.txt
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

test: lint
	$(PYTEST)

test-lowest test-newest: VENV = .venv-$(@:test-%=%)

test-lowest: $(UV)
	$(PYTHON) -m venv --clear $(VENV)
	$< pip install --python $(BIN)/python --resolution lowest-direct --editable ".[dev]"
	$(PYTEST)

test-newest:
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install --quiet --editable ".[dev]"
	$(PYTEST)

lock: $(UV)
	UV_CUSTOM_COMPILE_COMMAND="make lock" $< pip compile --quiet --upgrade --universal --generate-hashes \
		--python-version 3.11 --extra dev --extra docs --output-file requirements.txt setup.cfg

$(UV):
	$(PYTHON) -m venv $(@D)/..
	$(@D)/pip install --quiet uv

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: install
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -q -W --keep-going -E -d build/doctrees docs build/docs

wheel: install
	$(BIN)/python -m build --no-isolation

train: install
	$(BIN)/fanoise fit --config examples/configs/emoji.yaml

bench: install
	$(BIN)/python benchmarks/run.py

gpu: install
	$(BIN)/python benchmarks/gpu.py --device cuda

clean:
	rm -rf build dist *.egg-info runs
