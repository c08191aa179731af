# make test    install the project into .venv and run its tests
# make train   install, and train an encoder on the embedded benchmark with FANoise on (minutes on two cores)
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: install test lint train bench clean

install: $(VENV)/.installed

$(VENV)/.installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal

lint: install
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

train: install
	$(BIN)/fanoise fit --config examples/configs/emoji.yaml

bench: install
	$(BIN)/python benchmarks/noise.py
	$(BIN)/python benchmarks/import_time.py
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/encoders.py
	$(BIN)/python benchmarks/data.py
	$(BIN)/python benchmarks/large_batch.py
	$(BIN)/python benchmarks/tiled_loss.py
	$(BIN)/python benchmarks/kill.py

clean:
	rm -rf build dist *.egg-info runs
