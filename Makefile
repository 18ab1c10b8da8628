# Two commands do everything: `make demo` and `make test`.
PYTHON ?= python3
SEED ?= 0
VENV := .venv
# tests and tools load onnxruntime too, whose wheels send usage events unless told not to
export ORT_DISABLE_TELEMETRY := 1
BIN := $(VENV)/bin
STAMP := $(VENV)/.corte-setup

.PHONY: setup demo test test-runs test-foreign test-all lint bench bench-accuracy bench-serving bench-operations clean

setup: $(STAMP)

$(STAMP): constraints.txt requirements-dev.txt shared/pyproject.toml teacher_service/pyproject.toml student/pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt -e shared -e teacher_service -e student -r requirements-dev.txt
	touch $@

demo: setup
	PYTHONPATH=benchmarks:examples $(BIN)/python examples/demo.py --seed $(SEED) --out demo-out

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy shared teacher_service student examples benchmarks tests
	$(BIN)/lint-imports

# five workers on two cores, a thread each: most tests wait for sockets and processes
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 5 --dist loadfile --no-loadscope-reorder

test: lint
	$(PYTEST) -m "not run and not slow and not foreign"

# whole trainings that are killed, fail and go on; the commands of the README; the tables of the benchmarks in small
test-runs: setup
	$(PYTEST) -m "run and not slow"

# clients and servers that others wrote, each installed in an environment of its own below .foreign/
test-foreign: setup
	$(PYTEST) -m foreign tests/foreign

test-all: lint
	$(PYTEST)

# the tables of docs/experiments.md: a queue of hours, to be killed and started again at will
BENCH ?= --pairs street,camvid --work runs/bench
bench-accuracy: setup
	PYTHONPATH=benchmarks:examples $(BIN)/python -m accuracy.bench $(BENCH)

# this service beside LitServe, BentoML, Ray Serve and bare FastAPI, each in an environment of its own
bench-serving: setup
	PYTHONPATH=benchmarks:tests $(BIN)/python -m peers.compare
	PYTHONPATH=benchmarks:tests $(BIN)/python -m peers.slices

# overload, floods, endings and a soak of the service alone
bench-operations: setup
	PYTHONPATH=benchmarks:tests $(BIN)/python -m operations.overload
	PYTHONPATH=benchmarks:tests $(BIN)/python -m operations.ending
	PYTHONPATH=benchmarks:tests $(BIN)/python -m operations.soak

bench: bench-accuracy bench-serving bench-operations

clean:
	rm -rf $(VENV) demo-out build dist
