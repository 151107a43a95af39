"""The mark of tests that compile for GPUs by XLA's own compiler, which is in the CUDA plugin of jax."""

import importlib.util

import pytest

needs_cuda_plugin = pytest.mark.skipif(
    importlib.util.find_spec("jax_plugins") is None or importlib.util.find_spec("jax_plugins.xla_cuda13") is None,
    reason="needs the CUDA plugin of jax (`pip install --no-deps jax-cuda13-plugin jax-cuda13-pjrt`)",
)
