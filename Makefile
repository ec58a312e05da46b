# What people do here: demo, test, lint, test-full, interop, bench, bench-smoke, bench-full, demo-model. Each creates what it needs, and can be repeated.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-full lint interop bench bench-smoke bench-full demo-model clean

demo: .venv/demo.done  ## draw demo.png with the model that ships inside
	$(BIN)/diffusette generate "red apple, flat style, blue background" --seed 7 -o demo.png

test: .venv/dev.done  ## run the tests
	$(BIN)/python -m pytest -m "not full"

test-full: .venv/dev.done  ## full-size models with random weights: minutes and gigabytes
	$(BIN)/python -m pytest -m full

interop: .venv/dev.done build/interop/env.done  ## with optimum-onnx, diffusers and OpenVINO of an environment of their own: minutes
	build/interop/env/bin/python tests/interop/theirs.py sources build/interop/work
	$(BIN)/python tests/interop/ours.py export build/interop/work
	build/interop/env/bin/python tests/interop/theirs.py draw build/interop/work
	$(BIN)/python tests/interop/ours.py compare build/interop/work

lint: .venv/dev.done  ## style, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: .venv/demo.done  ## what this machine does with the demo model; more: diffusette bench --help
	$(BIN)/diffusette bench

bench-smoke: .venv/demo.done  ## a few ratios of the demo model against the committed ones
	$(BIN)/python -m diffusette.benchmarks.smoke

bench-full: .venv/dev.done  ## the table of full size: hours and 20 GB the first time; stop and start it as you like
	$(BIN)/python -m tests.full_size build/full-size/source
	$(BIN)/python -m diffusette.benchmarks.full build/full-size
	$(BIN)/python -m diffusette.benchmarks.tables README.md benchmarks/README.md

demo-model: .venv/recipe.done  ## train the demo model again (hours), resuming where it stopped
	$(BIN)/python models/demo/build.py

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/demo.done: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet -e ".[cpu]"
	touch $@

.venv/dev.done: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $@ .venv/demo.done

.venv/recipe.done: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet -e ".[demo-model]"
	touch $@ .venv/dev.done .venv/demo.done

build/interop/env.done: pyproject.toml
	$(PYTHON) -m venv build/interop/env
	build/interop/env/bin/python -m pip install --quiet -e ".[interop]"
	touch $@

clean:
	rm -rf .venv build dist *.egg-info
