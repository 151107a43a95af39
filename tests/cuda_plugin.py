"""The mark of tests that compile for GPUs by XLA's own compiler, which is in the CUDA plugin of jax."""

import pytest

from mmrlhf_jax.planning.plugin import plugin_packages

needs_cuda_plugin = pytest.mark.skipif(not plugin_packages(), reason="needs the CUDA plugin of jax (`make test-plans` has it)")
