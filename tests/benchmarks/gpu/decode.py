"""Decoding: tokens per second of the step that writes a token of every answer, behind full trunks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmrlhf_jax import config
from mmrlhf_jax.inference.lanes import make_lane
from mmrlhf_jax.inference.programs import Programs
from mmrlhf_jax.inference.unstacked import TwoForms
from mmrlhf_jax.planning.abstract import abstract_model
from mmrlhf_jax.planning.generation import BRANCH, SLOTS, TRUNK, WIDTH
from mmrlhf_jax.planning.lowering import NOTHING
from mmrlhf_jax.sharding.mesh import make_mesh, use_mesh
from tests.benchmarks.gpu.cases import make_case
from tests.benchmarks.gpu.state import filled
from tests.benchmarks.gpu.timing import seconds_of

STEPS = 50


def measure(small: bool, report: Callable[[dict[str, Any]], None], *, size: str) -> None:
    """The lane is that of `mmrlhf plan`: 32 answers of up to 1,024 tokens behind trunks of up to 4,096, four of each."""
    case = make_case(size, small)
    inference = config.Model(path=case.experiment.model.path, dtype="bfloat16", frozen_dtype="bfloat16")
    bare = case.experiment.model_copy(update={"model": inference, "lora": None, "trains": NOTHING})
    mesh = make_mesh({}, jax.devices()[:1])
    slots, trunk, branch = (4, 256, 64) if small else (SLOTS, TRUNK, BRANCH)
    lane = make_lane(slots, slots, trunk=trunk, branch=branch, width=WIDTH, widest=WIDTH)
    report({"size": size, "sequences": lane.slots, "trunk": lane.trunk, "branch": lane.branch})
    with use_mesh(mesh):
        programs = Programs(TwoForms(abstract_model(case.sizes, bare, mesh)), lane, mesh)
        weights = filled(programs.model.apart(), 0)
        cache = jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype, device=x.sharding),
            lane.abstract_cache(case.sizes.text, programs.model.dtype, mesh),
        )
        step, draws = programs.empty_step()
        branches = np.arange(lane.slots)
        # Every branch is half written and has a trunk that is full.
        step = step._replace(
            position=np.full_like(step.position, trunk + branch // 2),
            length=np.full_like(step.length, branch // 2),
            row=np.broadcast_to(branches // lane.places, step.row.shape).astype(np.int32),
            place=np.broadcast_to(branches % lane.places, step.place.shape).astype(np.int32),
            trunk=np.full_like(step.trunk, trunk),
        )
        last = jnp.zeros(step.forced.shape, jnp.int32)

        def write(_) -> jax.Array:
            """A few steps, each of which waits for the last one's tokens, as when texts are written."""
            nonlocal cache, last
            for _ in range(2 if small else STEPS):
                cache, chosen = programs.decode(weights, cache, last, step, draws)
                last = chosen.tokens
            return last

        took = seconds_of(write, None, repeats=2 if small else 3) / (2 if small else STEPS)
    report({"seconds": took, "tokens_per_second": lane.slots / took})
