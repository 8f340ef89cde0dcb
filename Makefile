# `make demo` and `make test` do all the set-up on a fresh machine.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN ?= runs/demo

.PHONY: demo test lint clean

demo: $(VENV)/run.stamp
	$(BIN)/python workflows/pretrain.py --config demo --run_folder $(RUN)

test: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -m "not gpu"

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The environment is made anew when the requirements change.
$(VENV)/run.stamp: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -r requirements.txt
	touch $@

$(VENV)/dev.stamp: $(VENV)/run.stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) runs build *.egg-info
