"""Programs are kept on disk, where the user says."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

COMPILE = """
import jax
from mmrlhf_jax.inference import compilation_cache
compilation_cache.use()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.jit(lambda x: x @ x + 1)(jax.numpy.ones((3, 3)))
"""


@pytest.mark.parametrize("stated", [False, True])
def test_programs_are_kept_in_the_users_cache_or_where_jax_is_told(tmp_path, stated):
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    del environment["JAX_COMPILATION_CACHE_DIR"]
    if stated:
        environment["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path / "stated")
    subprocess.run([sys.executable, "-c", COMPILE], env=environment, check=True)
    kept = {path for path in tmp_path.rglob("*") if path.is_file()}
    place = tmp_path / "stated" if stated else tmp_path / "cache" / "mmrlhf_jax" / "inference"
    assert kept and all(place in path.parents for path in kept)
