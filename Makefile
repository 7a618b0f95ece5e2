# minedit: `make edit` shows an edit, `make test` runs the tests, `make help` lists the rest.
# Linux and macOS, Python 3.10 or newer. Everything is installed into .venv, nothing outside this folder.

PYTHON ?= python3
TORCH ?= -r requirements.txt
VENV := .venv
BIN := $(VENV)/bin
SOURCE ?= a boy in the park
TARGET ?= a sitting boy in the park
SEED ?= 16
OUT ?= out
# Further options of the commands: make edit SEED="1 2" ARGS="--method p2p"
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help edit test lint browser kernels parity bench bench-cuda cuda cuda-train bench-load notebooks notebook-outputs \
  lesson gallery methods inspect tensors clean distclean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' Makefile

edit: $(VENV)/installed ## edit one picture with the embedded checkpoint; pictures and settings go to out/
	$(BIN)/minedit edit "$(SOURCE)" "$(TARGET)" --seed $(SEED) --out "$(OUT)" $(ARGS)

test: $(VENV)/installed ## run the tests in two processes, about six minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile $(ARGS)

lint: $(VENV)/installed ## ruff, its formatter, the import direction, the notebooks' state
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -q tests/test_imports.py tests/test_notebooks.py

browser: $(VENV)/installed ## the page of `minedit xray` in a Chromium that is here (BROWSER_BIN=...), without a window
	$(BIN)/python -m pytest -q tests/test_browser.py $(ARGS)

kernels: $(VENV)/installed ## compile the fused kernel for GPUs, here or not: registers, shared memory, spills
	$(BIN)/minedit kernels compiled --target sm_80,sm_90 --dtype float16,bfloat16,float32 $(ARGS)

parity: $(VENV)-parity/installed ## compare with diffusers' own classes, in an environment of its own
	COMPVIS="$(COMPVIS)" P2P="$(P2P)" FLOWEDIT="$(FLOWEDIT)" HEDIT="$(HEDIT)" MASACTRL="$(MASACTRL)" FREEPROMPT="$(FREEPROMPT)" \
	  PNP="$(PNP)" PNPINVERSION="$(PNPINVERSION)" DINO="$(DINO)" DDPM_INVERSION="$(DDPM_INVERSION)" EDICT="$(EDICT)" \
	  $(VENV)-parity/bin/python -m pytest -q -s tests/parity $(ARGS)

bench: $(VENV)/installed $(VENV)-parity/installed ## time kernels, edits, a full-size UNet beside diffusers'; rows go to benchmarks/*.csv
	$(BIN)/minedit kernels bench --csv benchmarks/kernels.csv
	$(BIN)/python benchmarks/edit.py
	$(VENV)-parity/bin/python benchmarks/unet.py $(ARGS)

bench-cuda: $(VENV)/installed ## the same on a CUDA GPU, kernels and pictures; says so where there is none
	$(BIN)/python benchmarks/gpu.py $(ARGS)

cuda: ## all that only a CUDA GPU can show, with what is installed (PYTHON=...): checks, timings, pictures; to out/cuda/
	PYTHONPATH=. $(PYTHON) benchmarks/on_cuda.py $(ARGS)

bench-load: $(VENV)-parity/installed ## time and memory of loading full-size files, diffusers beside; makes 15 GB of files for it
	$(VENV)-parity/bin/python benchmarks/load.py $(ARGS)

notebooks: $(VENV)/notebooks ## execute the notebooks; pages go to out/notebooks/
	$(BIN)/python notebooks/execute.py --pages out/notebooks $(ARGS)

notebook-outputs: $(VENV)/notebooks ## execute the notebooks and keep their outputs in them, small; says how long each took
	$(BIN)/python notebooks/execute.py $(ARGS)

lesson: $(VENV)/installed ## the first lesson, executed here, as a page in out/notebooks/; without jupyter, where to read it
	@if $(BIN)/python -c "import nbconvert, ipykernel" 2>/dev/null; then \
	  $(BIN)/python notebooks/execute.py --pages out/notebooks notebooks/01-first-edit.ipynb \
	  && echo "open out/notebooks/01-first-edit.html; then notebooks/02-the-stack.ipynb"; \
	else echo "read notebooks/01-first-edit.ipynb, pictures and all; to run it: make notebooks, which installs jupyter's tools"; fi

gallery: $(VENV)/installed ## draw the README's picture of edits anew, and those of the methods
	$(BIN)/python docs/make_gallery.py docs/gallery.png docs/methods.jpg docs/methods

methods: $(VENV)/installed ## make docs/methods.md anew, from the settings
	$(BIN)/python docs/make_methods.py

inspect: $(VENV)/installed ## draw docs/inspect.webp anew: the page of an edit, its parts numbered; by a Chromium that is here
	$(BIN)/python docs/make_inspect.py

tensors: $(VENV)/installed ## make docs/tensors.md anew: every tensor by name, with its shape
	$(BIN)/python docs/make_tensors.py

# With PYTHON=... said, that Python trains, as it is: it needs this project's requirements, and nothing is installed.
TRAINER := $(if $(filter command environment,$(origin PYTHON)),$(PYTHON),$(BIN)/python)
cuda-train: $(if $(filter command environment,$(origin PYTHON)),,$(VENV)/installed) ## train the embedded model further on a CUDA GPU, six minutes; pieces go to out/
	PYTHONPATH="$(CURDIR)" $(TRAINER) -m minedit.picturebook.cuda.train --out "$(OUT)" $(ARGS)

clean: ## remove what the tools leave behind
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache
	find minedit tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

distclean: clean ## remove the environments and out/ as well
	rm -rf $(VENV) $(VENV)-parity out

# The environments: made anew only when what they hold is declared differently.
define python_check
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || \
	  { echo "minedit: error: needs Python 3.10 or newer; say which with: make PYTHON=/path/to/python3"; exit 1; }
endef

$(VENV)/installed: setup.cfg pyproject.toml requirements.txt
	$(python_check)
	@echo "installing into $(VENV): a minute or two, once"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(TORCH) -e '.[dev]'
	@touch $@

$(VENV)/notebooks: $(VENV)/installed
	$(BIN)/python -m pip install --quiet -e '.[notebooks]'
	@touch $@

$(VENV)-parity/installed: tests/parity/requirements.txt tests/parity/apart.txt setup.cfg pyproject.toml requirements.txt
	$(python_check)
	@echo "installing into $(VENV)-parity: a minute or two, once"
	$(PYTHON) -m venv $(VENV)-parity
	$(VENV)-parity/bin/python -m pip install --quiet $(TORCH) -r tests/parity/requirements.txt -e '.[dev]'
	$(VENV)-parity/bin/python -m pip install --quiet --upgrade --no-deps --target $(VENV)-parity/apart \
	  -r tests/parity/apart.txt
	@touch $@
