# Two commands do everything on a fresh machine: `make demo` and `make test`. Both begin with `make env`.
PYTHON ?= python3
BIN := .venv/bin
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
STAMP := .venv/.made-from

# A machine with a GPU may have its Python without a .venv, and PyTorch in it.
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))

# Python 3.12 where there is one, as on GPU images with the oldest torch; the newest versions are tested under the usual Python.
OLDEST := .venv-oldest
OLDEST_PYTHON ?= $(or $(firstword $(wildcard $(HOME)/.pyenv/versions/3.12.*/bin/python3 /usr/bin/python3.12)),$(PYTHON))

# Without byte code, which pip leaves out, every process compiles what it imports: 20 s for all that a test's command uses.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: env env-dev env-oldest demo test test-quick test-oldest check golden docs dist bench bench-competitors gpu gpu-rehearsal clean

env: $(STAMP)
env-dev: $(STAMP)-dev
env-oldest: $(OLDEST)/.made-from

# Made once, and again whenever pyproject.toml or constraints.txt changes; an environment cut short leaves no stamp.
# Unpacking gigabytes is what takes the time, so two pips unpack the largest wheels side by side.
$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing ltcompile and what it needs into .venv (two minutes, some GB)"
	@if [ "$$(uname -sm)" = "Linux x86_64" ]; then $(PIP) --no-deps $$(grep -E '^(nvidia|cuda)-' constraints.txt) & \
	  $(PIP) --no-deps $$(grep -E '^(torch|triton|onnxruntime-gpu|scipy)==' constraints.txt); wait; fi
	@$(PIP) -c constraints.txt -e .
	@touch $@

$(STAMP)-dev: $(STAMP)
	@$(PIP) -c constraints.txt -e '.[dev]'
	@touch $@

$(OLDEST)/.made-from: pyproject.toml constraints-oldest.txt
	@test -x $(OLDEST)/bin/python || $(OLDEST_PYTHON) -m venv $(OLDEST)
	@$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints-oldest.txt \
	  -e '.[openvino,tensorboard,timm]' pytest pytest-xdist hypothesis torch-pruning
	@touch $@

# Real handwritten digits, a quarter-width VGG-16, four seeds: search, cut, export, timing, page. bench/demo_stability.py reads the
# recipe, and shows that its outcome does not depend on the seeds. DEMO_RESULTS=1 also writes
# bench/results/demo and the table in README.md.
demo: env
	@rm -rf runs/demo
	$(BIN)/ltcompile find --recipe recipes/demo.toml --name demo --jobs 2
	$(BIN)/ltcompile shrink runs/demo/ticket.pt -o runs/demo/small.onnx
	$(BIN)/ltcompile bench runs/demo/small.onnx --against dense --runtime onnxruntime --runtime eager --batch 1 --batch 64 --seconds 1
	$(BIN)/ltcompile report runs/demo -o runs/demo/report.html
	$(if $(DEMO_RESULTS),cp $(addprefix runs/demo/,search.json history.jsonl small.json bench.json bench.csv report.json) bench/results/demo && $(BIN)/python bench/demo_table.py)
	@echo "open runs/demo/report.html"

test: env-dev
	$(BIN)/python -m pytest

# The inner loop, in about three minutes on two idle cores: of every package the tests that take few seconds.
test-quick: env-dev
	$(BIN)/python -m pytest -m "not slow"

# The tests of what depends on versions most (tracing, lowering, runtimes, kernels), under the oldest versions that are supported.
OLDEST_TESTS := $(addprefix tests/,graph/test_surgeon.py lower/test_lower.py runtimes/test_runtimes.py $(addprefix kernels/test_,compiled.py fuse.py interpreted.py operators.py))
test-oldest: env-oldest
	$(OLDEST)/bin/python -m pytest -W default $(OLDEST_TESTS) -k "not cutting_equals_masking"

check: env-dev
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy --config-file bench/mypy.ini
	$(BIN)/lint-imports
	$(BIN)/python -m pytest

# The site, in site/; --strict makes a broken link or an unknown name an error.
docs: env-dev
	$(BIN)/python docs/reference.py
	$(BIN)/zensical build --clean --strict

# Wheel and sdist in dist/, and the demo's short form from the installed wheel, outside the checkout.
dist: env-dev
	@rm -rf dist build
	$(BIN)/python -m build --outdir dist
	.ci/try_wheel $(BIN)/python dist/*.whl dist/*.tar.gz

# In 100 seconds: what ltcompile computes and prints equals what tests/golden/outputs.json says, which `python tests/golden/freeze.py` writes.
golden: env-dev
	$(BIN)/python tests/golden/freeze.py --check

bench: env
	$(BIN)/python bench/masked.py
	$(BIN)/python bench/stages.py

# On a quiet CPU, in about half an hour: bench/results/competitors-cpu.json and .md.
bench-competitors: env
	$(BIN)/python bench/competitors.py

# On a machine with an NVIDIA GPU, in under eight minutes: the tests that need it, our convolution against cuDNN's, the engine against its
# competitors. Everything is written to OUT as it is found, and OUT/summary.md is one page. DATA=DIR: a folder with CIFAR-10. make gpu RESUME=OUT
# runs the stages that did not end, and of those what is missing.
# A copy without .git names its commit by COMMIT=$$(git rev-parse HEAD).
OUT ?= runs/gpu
gpu:
	@LTCOMPILE_COMMIT="$(COMMIT)" $(GPU_PYTHON) bench/gpu.py --out $(or $(RESUME),$(OUT)) $(if $(DATA),--data-root $(DATA))

# The same stages without a GPU, in about a minute on two idle cores, with a result other than 0 where a stage fails: a fake device, Triton's interpreter,
# tiny networks, a few of the tests, no times that mean anything. Stages run side by side there.
gpu-rehearsal: env-dev
	@rm -rf runs/gpu-rehearsal
	$(BIN)/python bench/gpu.py --out runs/gpu-rehearsal --rehearse

clean:
	rm -rf .venv .venv-oldest build dist site .cache *.egg-info
