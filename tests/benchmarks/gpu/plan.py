"""The peak memory that `mmrlhf plan` foretells for the measured step: XLA's compiler for GPUs, without the GPU."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from mmrlhf_jax import config
from mmrlhf_jax.accelerators import CHIPS
from mmrlhf_jax.models.layers import matmul_precision
from mmrlhf_jax.planning.lowering import model_sizes, step_arguments
from mmrlhf_jax.planning.plugin import check_plugin, plugin_packages
from mmrlhf_jax.planning.program import Target, optimise
from mmrlhf_jax.planning.topology import gpu_target
from mmrlhf_jax.sharding.mesh import make_mesh, use_mesh
from tests import tiny
from tests.benchmarks.gpu.cases import make_case
from tests.benchmarks.gpu.parts import Skipped

ANY = "NVIDIA H100"  # planned for where there is no card, to show that the part runs


def measure(small: bool, report: Callable[[dict[str, Any]], None], *, size: str, kind: str | None) -> None:
    if not plugin_packages():
        raise Skipped("the compiler for GPUs is not installed (jax's CUDA plugin)")
    check_plugin()
    kind = ANY if small else kind or ""
    chip = next((chip for chip in CHIPS.values() if chip.target is not None and kind.startswith(chip.kind)), None)
    if chip is None:
        raise Skipped(f"there is no description of the card {kind!r} in mmrlhf_jax/planning/targets")
    target = gpu_target(chip)
    experiment = make_case(size, small).experiment
    with tempfile.TemporaryDirectory() as folder:
        if small:
            Path(folder, "config.json").write_text(json.dumps(tiny.config()))
            experiment = experiment.model_copy(update={"model": experiment.model.model_copy(update={"path": folder})})
        report({"size": size, "card": chip.kind})
        for name, triton in (("by_cublas_bytes", False), ("by_triton_bytes", True)):
            report({name: optimise(lower, experiment, target, target=Target("gpu", "", target, triton)).needed})


def lower(experiment: config.Experiment, target: str) -> tuple[jax.stages.Lowered, Any, Mesh]:
    """Like `planning.lowering.lower_step`, for one card of this description."""
    described = topologies.get_topology_desc(platform="cuda", topology_name="", topology="1x1x1", target_config=target)
    mesh = make_mesh({}, list(described.devices))
    sizes, _ = model_sizes(experiment)
    with use_mesh(mesh), matmul_precision(experiment.model.dtype):
        step, *arguments = step_arguments(experiment, sizes, mesh)
        return step.lower(*arguments), tuple(arguments), mesh
