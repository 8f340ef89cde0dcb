# `make demo` and `make test` do all the set-up on a fresh machine.
PYTHON ?= python3
PROCESSES ?= 2
VENV ?= .venv
RUN ?= runs/demo

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
# Once, on all cores, also where Python is told to write no bytecode: else every process compiles torch anew (20 s each).
COMPILE := $(BIN)/python -m compileall -q -j 0 $(VENV)/lib > /dev/null || true
# A process that dies is replaced, and fails the one test that it ran, by name.
PYTEST = $(BIN)/python -m pytest -n $(PROCESSES) --dist loadscope --no-loadscope-reorder
# Named by their content: the environment is completed when the requirements change, and only then.
RUN_STAMP := $(VENV)/run-$(shell cksum < requirements.txt | tr ' ' '-').stamp
TEST_STAMP := $(VENV)/test-$(shell cat requirements.txt tests/requirements.txt | cksum | tr ' ' '-').stamp
PURELIB := "import sysconfig; print(sysconfig.get_path('purelib'))"

.PHONY: demo test test-all test-lowest lint clean

demo: $(RUN_STAMP)
	$(BIN)/python workflows/pretrain.py --config demo --run_folder $(RUN)

# Enough to trust an installation: everything that needs no Ray, and each verb once on a real Ray cluster.
test: $(TEST_STAMP)
	$(PYTEST) -m "not thorough and not gpu"

# The rest: kills, hazards, interruptions, buckets, clusters of several nodes. What is marked ray comes one after the other.
test-all: $(TEST_STAMP)
	$(PYTEST) -m "thorough and not gpu"

# The lower ends of the ranges in pyproject.toml, by the plain tests of whatever calls other libraries than torch. torch is not
# installed twice: the pinned environment lies below.
MEET_LIBRARIES := $(addprefix tests/csat/,storage slides tiles labels runs sweeps model prediction evaluation export) tests/teachers tests/workflows
test-lowest: $(TEST_STAMP)
	$(PYTHON) -m venv $(VENV)/lowest
	$(BIN)/python -c $(PURELIB) > $$($(VENV)/lowest/bin/python -c $(PURELIB))/pinned.pth
	$(BIN)/python tests/lowest_versions.py | grep -Ev '^torch(vision)?==' > $(VENV)/lowest/lowest.txt
	$(VENV)/lowest/bin/python -m pip install --quiet --disable-pip-version-check -r $(VENV)/lowest/lowest.txt
	$(subst $(BIN),$(VENV)/lowest/bin,$(PYTEST)) -m "not thorough and not gpu and not ray and not slow" $(MEET_LIBRARIES)

lint: $(TEST_STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The project itself is not installed: it runs from the checkout.
$(RUN_STAMP):
	$(PYTHON) -m venv $(VENV)
	$(PIP) -r requirements.txt
	$(COMPILE)
	touch $@

$(TEST_STAMP): $(RUN_STAMP)
	$(PIP) -r requirements.txt -r tests/requirements.txt
	$(COMPILE)
	touch $@

clean:
	rm -rf $(VENV) runs build *.egg-info
