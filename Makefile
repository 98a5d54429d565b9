# Commands for a fresh machine: `make demo`, `make demo-mamba2`, `make report` and `make test`. Each makes .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BIN_PATH := $(CURDIR)/$(BIN)
# The oldest ONNX Runtime that we support; it has wheels for Python 3.10 to 3.13.
OLDEST_ORT := onnxruntime==1.20.1

# TensorRT's runtime without a builder, for the plugin library to load into: the oldest that PyPI holds itself
# (older ones are fetched from NVIDIA's index), both sides of TensorRT 11, the newest. 44 MB each.
TENSORRT_LEAN := $(if $(filter Linux-x86_64,$(shell uname -sm | tr ' ' -)),10.15.1.29 10.16.1.11 11.0.0.114 11.4.0.106)

# What `make demo` exports, verifies and runs, and what `make demo-mamba2` does.
MODEL := models/kjv-bytes
demo-mamba2: MODEL := models/kjv-bytes-mamba2
OUT = $(MODEL:models/%=out/%)

# What the compiled libraries are made of: a change builds them again.
NATIVE := CMakeLists.txt $(shell find plugins tests/tensorrt_harness -type f -not -name '*.pyc')
CODE := $(filter %.cpp %.h %.cu %.cuh,$(NATIVE)) $(wildcard tests/cpp/*.cpp tests/cpp/*.h)
# TensorRT's headers, from a wheel that carries NVIDIA's: the plugins are compiled against them where the
# machine has none. No code of that wheel is used.
TENSORRT_HEADERS := $(CURDIR)/build/tensorrt-headers
HEADERS_WHEEL := kernel-lens==2.0.1
# ONNX Runtime's headers, for the test of the README's C++ lines: no wheel has them. An npm package carries
# Microsoft's with its binaries for phones (150 MB, of which 1 MB is kept). Without npm that test is skipped.
ONNXRUNTIME_HEADERS := build/onnxruntime-headers
ONNXRUNTIME_HEADERS_PACKAGE := com.github.asus4.onnxruntime@0.4.9
# ONNX Runtime for browsers, which `make web` puts beside the page (14 MB of the package's 138 are kept), and what
# drives Chromium in the page's tests. Without npm those are skipped.
ONNXRUNTIME_WEB := build/onnxruntime-web
ONNXRUNTIME_WEB_PACKAGE := onnxruntime-web@1.30.0
PLAYWRIGHT := build/playwright-core
PLAYWRIGHT_PACKAGE := playwright-core@1.64.1
# Where nvcc is, GPU code is built for this machine's GPUs alone, or for the H100 where there is none.
# `make test CUDA_ARCHITECTURES=all` builds what a wheel holds, and takes ten times as long.
CUDA_ARCHITECTURES ?= $(or $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null \
	| sed -n 's/^\([0-9]*\)\.\([0-9]\)$$/\1\2/p' | sort -u | paste -sd,),90)

# The end of `make demo`: a Mamba that watches a simulated plant's sensors, live in a terminal.
define WATCH
$(BIN)/python tools/plant.py export models/plant-forecast -o out/plant-forecast --force
	$(BIN)/python tools/plant.py watch out/plant-forecast --fault stuck --rate 300
endef

.PHONY: demo demo-mamba2 web report test lint clean

demo demo-mamba2: $(VENV)/.installed
	$(BIN)/python tools/export_engine.py $(MODEL) -o $(OUT) --force
	$(BIN)/mamba-export run $(OUT) --prompt "Ps151:1 " --max-new-tokens 400 --temperature 0.7 --seed 7
	$(if $(filter demo,$@),$(WATCH))

web: $(VENV)/.installed $(ONNXRUNTIME_WEB)/.unpacked
	$(BIN)/python tools/build_web.py models/kjv-bytes models/kjv-bytes-mamba2 -o build/web

# docs/report/index.html from the records in tools/records; `make report QUICK=1` makes build/report/index.html of
# short runs on this machine's CPU.
report: $(VENV)/.installed
	$(BIN)/python tools/make_report.py $(if $(QUICK),--quick)

FROM_NPM := $(ONNXRUNTIME_HEADERS) $(ONNXRUNTIME_WEB) $(PLAYWRIGHT)
test: lint .ort-oldest/.installed .tensorrt-lean $(if $(shell command -v npm),$(FROM_NPM:%=%/.unpacked))
	# One thread a worker: two workers of two threads each would wait for one another.
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CODE)

$(VENV)/.installed: pyproject.toml constraints.txt $(NATIVE) $(TENSORRT_HEADERS)/.unpacked
	SKBUILD_CMAKE_DEFINE='MAMBA_CUDA_ARCHITECTURES=$(CUDA_ARCHITECTURES);TENSORRT_INCLUDE_DIR=$(TENSORRT_HEADERS);MAMBA_TEST_PROGRAMS=ON' \
		$(BIN)/pip install -c constraints.txt -e '.[export,onnxruntime,tensorrt,test,train]'
	touch $@

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(TENSORRT_HEADERS)/.unpacked: | $(BIN)/python
	rm -rf $(TENSORRT_HEADERS)
	mkdir -p $(TENSORRT_HEADERS)
	$(BIN)/pip download -q --no-deps -d $(TENSORRT_HEADERS) $(HEADERS_WHEEL)
	cd $(TENSORRT_HEADERS) && $(BIN_PATH)/python -c "import pathlib, zipfile; \
		wheel = zipfile.ZipFile(next(pathlib.Path().glob('*.whl'))); \
		[pathlib.Path(n.split('/')[-1]).write_bytes(wheel.read(n)) for n in wheel.namelist() \
		 if n.startswith('kernel_lens/include/tensorrt/')]"
	touch $@

$(ONNXRUNTIME_HEADERS)/.unpacked:
	rm -rf $(@D)
	mkdir -p $(@D)
	cd $(@D) && npm pack --silent $(ONNXRUNTIME_HEADERS_PACKAGE)
	tar -xzf $(@D)/*.tgz -C $(@D) --wildcards --strip-components=7 '*/ios-arm64/onnxruntime.framework/Headers/*.h'
	rm $(@D)/*.tgz
	touch $@

$(ONNXRUNTIME_WEB)/.unpacked:
	rm -rf $(@D)
	mkdir -p $(@D)
	cd $(@D) && npm pack --silent $(ONNXRUNTIME_WEB_PACKAGE)
	tar -xzf $(@D)/*.tgz -C $(@D) --wildcards --strip-components=2 \
		'*/dist/ort.wasm.min.mjs' '*/dist/ort-wasm-simd-threaded.mjs' '*/dist/ort-wasm-simd-threaded.wasm'
	rm $(@D)/*.tgz
	touch $@

$(PLAYWRIGHT)/.unpacked:
	rm -rf $(@D)
	mkdir -p $(@D)
	cd $(@D) && npm pack --silent $(PLAYWRIGHT_PACKAGE)
	tar -xzf $(@D)/*.tgz -C $(@D) --strip-components=1
	rm $(@D)/*.tgz
	touch $@

.ort-oldest/.installed: $(VENV)/.installed
	rm -rf .ort-oldest
	$(BIN)/pip install -q --no-deps --target .ort-oldest $(OLDEST_ORT)
	touch $@

.PHONY: .tensorrt-lean
.tensorrt-lean: $(TENSORRT_LEAN:%=.tensorrt-lean/%/.installed)

.tensorrt-lean/%/.installed: | $(BIN)/python
	rm -rf $(@D)
	$(BIN)/pip install -q --no-deps --only-binary :all: --target $(@D) \
		tensorrt-lean-cu13-libs==$* tensorrt-lean-cu13-bindings==$*
	touch $@

clean:
	rm -rf $(VENV) .ort-oldest .tensorrt-lean out build dist
