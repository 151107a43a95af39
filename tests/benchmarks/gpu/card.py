"""What the card is, and what it reaches: matrix products in bfloat16, and reading and writing its memory."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import subprocess
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mmrlhf_jax.training.work import peak_flops
from tests.benchmarks.gpu.timing import seconds_of

PACKAGES = ("jax", "jaxlib", "flax", "jax-cuda13-plugin", "jax-cuda13-pjrt", "jax-cuda12-plugin", "nvidia-cudnn-cu13", "torch")


def measure(small: bool, report: Callable[[dict[str, Any]], None]) -> None:
    device = jax.devices()[0]
    small = small or device.platform == "cpu"
    stats = device.memory_stats() or {}
    report(
        {
            "platform": device.platform,
            "kind": device.device_kind,
            "devices": jax.device_count(),
            "memory_bytes": stats.get("bytes_limit"),
            "published_peak_flops": peak_flops([device]),
            "driver": _driver(),
            "python": platform.python_version(),
            "versions": {name: version for name in PACKAGES if (version := _version(name))},
        }
    )
    size = 256 if small else 8192
    left, right = (jax.random.normal(key, (size, size), jnp.bfloat16) for key in jax.random.split(jax.random.key(0)))
    took = seconds_of(jax.jit(jnp.matmul), left, right, repeats=3 if small else 10, calls=1 if small else 10)
    report({"matmul_size": size, "matmul_flops_per_second": 2 * size**3 / took})
    count = 2**20 if small else 2**30
    took = seconds_of(jax.jit(lambda x: x + 1), jnp.zeros(count, jnp.float32), calls=1 if small else 5)
    report({"memory_bytes_per_second": 2 * 4 * count / took})


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _driver() -> str | None:
    """Driver and clock, as nvidia-smi has them; None without it."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version,power.limit,clocks.max.sm", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    return done.stdout.strip().splitlines()[0] if done.returncode == 0 and done.stdout.strip() else None
