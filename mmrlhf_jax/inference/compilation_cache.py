"""Compiled programs are kept on disk, so that a server, or a job that goes on after a kill, does not compile them again.

A 7B model's programs take minutes to compile on a TPU, and seconds to read.
"""

from __future__ import annotations

import jax

from mmrlhf_jax.files import user_cache


def use() -> None:
    """Keep this process's programs where `JAX_COMPILATION_CACHE_DIR` says, else in the user's cache directory."""
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(user_cache() / "inference"))
