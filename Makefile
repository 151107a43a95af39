# Two commands: `make quickstart` shows the whole pipeline, `make test` proves its parts. Both make their own environment.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# Torch is only the oracle of the parity tests; without a CPU build at hand they are skipped.
TORCH ?= $(shell $(PYTHON) -c "import sys; print('torch==2.13.0' if sys.version_info[:2] == (3, 11) else '')")

# The compilers of TPUs and GPUs, which need no such device. With the CUDA plugin but without CUDA, jax says at every start that it
# finds no GPU, so that they have an environment of their own.
PLAN_ENV ?= .venv-plan

# The harness of `mmrlhf eval benchmarks`. It pins much that the rest does not need, so that it has an environment of its own.
EVAL_ENV ?= .venv-eval
HARNESS := lmms-eval==0.7.3

.PHONY: quickstart test test-long test-plans lint eval-env test-eval clean

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(if $(TORCH),-$(BIN)/pip install --quiet "$(TORCH)")
	$(BIN)/pip install --quiet --editable ".[test]"
	touch $@

quickstart: $(VENV)/installed
	$(BIN)/mmrlhf quickstart runs/quickstart

test: $(VENV)/installed
	@$(BIN)/python -c "import torch" 2>/dev/null || echo "torch is not installed: comparisons with transformers are skipped (make TORCH=torch)"
	$(BIN)/python -m pytest

# Those that take some seconds each, which CI runs as well. The slow ones are behind `pytest -m slow`.
test-long: $(VENV)/installed
	$(BIN)/python -m pytest -m "long and not slow"

# Those of the compiled programs for TPUs and GPUs, which `make test` and `make test-long` skip without their compilers.
test-plans: $(PLAN_ENV)/installed
	JAX_PLATFORMS=cpu $(PLAN_ENV)/bin/python -m pytest -m "long and not slow" tests/planning tests/models/test_attention_tpu.py \
	  tests/models/test_attention_gpu.py tests/launch/test_meshes.py

$(PLAN_ENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(PLAN_ENV)
	$(PLAN_ENV)/bin/pip install --quiet --editable ".[test,plan,plan-gpu]"
	touch $@

lint: $(VENV)/installed
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

eval-env: $(EVAL_ENV)/installed

$(EVAL_ENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(EVAL_ENV)
	$(EVAL_ENV)/bin/pip install --quiet --editable ".[eval,serve]"
	$(EVAL_ENV)/bin/pip install --quiet --no-deps "$(HARNESS)"
	touch $@

# The tests of the benchmarks, also those that need the harness, which `make test` skips.
test-eval: $(VENV)/installed $(EVAL_ENV)/installed
	MMRLHF_HARNESS_PYTHON="$(abspath $(EVAL_ENV))/bin/python" $(BIN)/python -m pytest tests/suite -m "slow or not slow"

clean:
	rm -rf $(VENV) $(PLAN_ENV) $(EVAL_ENV) runs
