# Two commands on a fresh machine: `make demo` and `make test`. Both create .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export HF_HUB_OFFLINE ?= 1
# threads that wait give way soon: where another process works, spinning ones would make it all many times slower
export OMP_WAIT_POLICY ?= PASSIVE
export GOMP_SPINCOUNT ?= 1000

.PHONY: demo reproduce test test-fast lint notebooks benchmarks clean

demo: $(VENV)/ready
	@$(BIN)/python -m dmdd_lite.reproduce.demo $(ARGS)

# the paper's table: make reproduce DATA=data/mvtec_ad ARGS="--textures data/dtd/dtd/images --seeds 0 1 2"
reproduce: export HF_HUB_OFFLINE = 0
reproduce: $(VENV)/ready
	@$(BIN)/python -m dmdd_lite.reproduce $(DATA) $(ARGS)

# two test files at a time: many tests wait for processes of their own
test: $(VENV)/ready
	@$(BIN)/python -m pytest -n 2 --dist loadfile

test-fast: $(VENV)/ready
	@$(BIN)/python -m pytest -n 2 --dist loadfile tests -m "not slow" --ignore tests/robustness

lint: $(VENV)/ready
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

# the course run in place, with light outputs and its pictures in figures/
notebooks: $(VENV)/ready
	@DMDD_PROGRESS=none $(BIN)/python tools/run_course.py

# speed, memory and floors of this machine, on a GPU if there is one, into results/benchmarks
benchmarks: $(VENV)/ready
	@$(BIN)/python benchmarks/run_all.py $(ARGS)

# built anew whenever the dependencies change
$(VENV)/ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "Python 3.10 or newer is needed: make PYTHON=/path/to/python3"; exit 1; }
	@echo "setting up $(VENV): about 3 GB to download, a few minutes, once"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache results
