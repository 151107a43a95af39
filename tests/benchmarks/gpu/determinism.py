"""The same step from the same state, twice: is the result the same, bit for bit?"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mmrlhf_jax.models.layers import matmul_precision
from mmrlhf_jax.sharding.feed import place
from mmrlhf_jax.sharding.mesh import make_mesh, use_mesh
from tests.benchmarks.gpu.cases import make_case
from tests.benchmarks.gpu.state import make_step


def measure(small: bool, report: Callable[[dict[str, Any]], None], *, size: str) -> None:
    case = make_case(size, small)
    mesh = make_mesh({}, jax.devices()[:1])
    layout = case.layout("group")
    step, _, make = make_step(case, layout, mesh)
    flags = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if "determin" in flag]
    report({"size": size, "flags": " ".join(flags), "states_alike": _different(make(), make()) == 0})
    results, seconds = [], []
    with use_mesh(mesh), matmul_precision(case.experiment.model.dtype):
        batch = place(layout.batch, mesh)
        compiled = step.lower(make(), batch).compile()
        for _ in range(2):
            state = jax.block_until_ready(make())
            started = time.perf_counter()
            results.append(jax.block_until_ready(compiled(state, batch)))
            seconds.append(time.perf_counter() - started)
    states, figures = zip(*results, strict=True)
    report(
        {
            "seconds": seconds[-1],
            "parameters_that_differ": _different(states[0].params, states[1].params),
            "moments_that_differ": _different(states[0].opt_state, states[1].opt_state),
            "figures_that_differ": sorted(name for name in figures[0] if _different(figures[0][name], figures[1][name])),
        }
    )
    report({"bit_exact": _different(*results) == 0})


def _different(one: Any, other: Any) -> int:
    """How many entries of two trees of arrays differ in a bit."""
    leaves = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return sum(int(_bits_that_differ(x, y)) for x, y in leaves)


@jax.jit
def _bits_that_differ(x: jax.Array, y: jax.Array) -> jax.Array:
    if jnp.issubdtype(x.dtype, jnp.floating):
        x, y = (jax.lax.bitcast_convert_type(each, f"uint{8 * each.dtype.itemsize}") for each in (x, y))
    return (x != y).sum(dtype=jnp.uint32)
