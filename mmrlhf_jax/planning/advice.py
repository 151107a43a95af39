"""One line for a plan that does not fit: by how much, and what would make it fit."""

from __future__ import annotations

import math

from jax.sharding import Mesh

from mmrlhf_jax import config
from mmrlhf_jax.accelerators import Chip, GiB
from mmrlhf_jax.sharding.mesh import rows_divisor


def advice(peak: int, chip: Chip, experiment: config.Experiment, launch: config.Launch, mesh: Mesh) -> str:
    """The settings that leave less on a device, the cheapest first."""
    over = peak - chip.hbm_bytes
    rows = experiment.batch.rows // experiment.batch.accumulation // rows_divisor(mesh)
    ways = []
    if experiment.model.remat != "full":
        ways.append("model.remat: full")
    if rows > 1 and not config.looks_at_batch(experiment.objective):
        ways.append(f"batch.accumulation: {experiment.batch.accumulation * rows} (1 row per shard at a time instead of {rows})")
    if experiment.model.frozen_dtype == "float32" and (experiment.lora or not experiment.trains.language_model):
        ways.append("model.frozen_dtype: bfloat16")
    if experiment.optimizer.mu_dtype == "float32" and experiment.optimizer.beta1 <= config.SLOWEST_IN_BFLOAT16:
        ways.append("optimizer.mu_dtype: bfloat16")
    if mesh.shape["context"] == 1 and experiment.batch.slots > 4096:
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
