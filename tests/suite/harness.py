"""Where tests find lmms-eval: in the environment of the tests, or in that of MMRLHF_HARNESS_PYTHON."""

from __future__ import annotations

import functools
import os
import subprocess
import sys

import pytest

from mmrlhf_jax.suite.harness import NAME, VERSION
from mmrlhf_jax.suite.harness.running import PYTHON


@functools.cache
def found() -> bool:
    """Whether the pinned version is there."""
    command = "import importlib.metadata as m; print(m.version('lmms-eval'))"
    run = subprocess.run([os.environ.get(PYTHON) or sys.executable, "-c", command], capture_output=True, text=True)
    return run.stdout.strip() == VERSION


needed = pytest.mark.skipif(
    not found(),
    reason=f"needs {NAME}: make eval-env, then {PYTHON}=.venv-eval/bin/python pytest tests/suite -m 'slow or not slow'",
)
