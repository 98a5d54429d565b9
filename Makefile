# Two commands for a fresh machine: `make demo` and `make test`. Both make .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The oldest ONNX Runtime that we support; it has wheels for Python 3.10 to 3.13.
OLDEST_ORT := onnxruntime==1.20.1

MODEL := models/kjv-bytes
OUT := out/kjv-bytes

# What the compiled libraries are made of: a change builds them again.
NATIVE := CMakeLists.txt $(shell find plugins -name '*.cpp' -o -name '*.h' -o -name 'CMakeLists.txt')

.PHONY: demo test lint clean

demo: $(VENV)/.installed
	$(BIN)/python tools/export_engine.py $(MODEL) -o $(OUT) --force
	$(BIN)/mamba-export run $(OUT) --prompt "Ps151:1 " --max-new-tokens 400 --temperature 0.7 --seed 7

test: lint .ort-oldest/.installed
	# One thread a worker: two workers of two threads each would wait for one another.
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/.installed: pyproject.toml constraints.txt $(NATIVE)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt -e '.[test,train]'
	touch $@

.ort-oldest/.installed: $(VENV)/.installed
	rm -rf .ort-oldest
	$(BIN)/pip install -q --no-deps --target .ort-oldest $(OLDEST_ORT)
	touch $@

clean:
	rm -rf $(VENV) .ort-oldest out build dist
