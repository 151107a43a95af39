"""Advice for a plan that does not fit, in one line: how much memory is missing, and which settings would reduce it."""

from __future__ import annotations

import math

from jax.sharding import Mesh

from mmrlhf_jax import config
from mmrlhf_jax.accelerators import Chip, GiB
from mmrlhf_jax.planning.topology import memory_share
from mmrlhf_jax.sharding.mesh import rows_divisor
from mmrlhf_jax.training.layout import with_accumulation

GPU_SHARE = 0.92  # of a GPU's memory, which leaves room for CUDA and its libraries


def advice(peak: int, chip: Chip, experiment: config.Experiment, launch: config.Launch, mesh: Mesh) -> str:
    """Settings that reduce the memory per device, the cheapest first. `peak` is in bytes per device. `experiment` is the one
    that the user gave, before `with_accumulation`: if it sets `batch.accumulation`, that setting is named, else the launch
    file's."""
    over = peak - chip.hbm_bytes
    accumulation = with_accumulation(experiment, launch, mesh.shape).batch.accumulation
    rows = experiment.batch.rows // accumulation // rows_divisor(mesh)
    ways = []
    if experiment.model.remat != "full":
        ways.append("model.remat: full")
    if rows > 1 and not experiment.objective.looks_at_batch:
        overruled = experiment.batch.accumulation is not None
        key = f"batch.accumulation: {accumulation * rows}" if overruled else "rows_per_device: 1 in the launch file"
        ways.append(f"{key} (1 row per batch shard at a time instead of {rows})")
    if experiment.model.frozen_dtype == "float32" and (experiment.lora or not experiment.trains.language_model):
        ways.append("model.frozen_dtype: bfloat16")
    if experiment.optimizer.mu_dtype == "float32" and experiment.optimizer.beta1 <= config.SLOWEST_IN_BFLOAT16:
        ways.append("optimizer.mu_dtype: bfloat16")
    share = memory_share(launch)
    if chip.target is not None and share < GPU_SHARE and peak <= chip.hbm_bytes / share * GPU_SHARE:
        ways.append(f"XLA_CLIENT_MEM_FRACTION: {GPU_SHARE} in the launch file's environment (instead of {share})")
    if mesh.size > 1 and mesh.shape["context"] == 1 and experiment.batch.slots > 4096:
        ways.append("mesh.context: 2 in the launch file (each device then has half of a row's slots)")
    if experiment.lora is None:
        ways.append("lora")
    factor = 2 ** math.ceil(math.log2(max(peak / chip.hbm_bytes, 1.01)))
    where = launch.accelerator or "these devices"
    ways.append(f"{factor} times the devices of {where}")
    return (
        f"does not fit: {peak / GiB:.2f} GiB per device of {chip.hbm_bytes / GiB:.2f} GiB, {over / GiB:.2f} GiB too much;"
        f" try {', or '.join(ways)}; --fit searches"
    )
