"""An MM-DPO step: pairs per second, useful FLOPs, and the memory that it takes against what the compiler said."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax

from mmrlhf_jax.models.layers import matmul_precision
from mmrlhf_jax.planning.bench import peak_bytes
from mmrlhf_jax.sharding.feed import place
from mmrlhf_jax.sharding.mesh import make_mesh, use_mesh
from mmrlhf_jax.training.work import useful_flops
from tests.benchmarks.gpu.cases import make_case
from tests.benchmarks.gpu.state import make_step

TURNS = 5


def measure(small: bool, report: Callable[[dict[str, Any]], None], *, size: str, layout: str) -> None:
    case = make_case(size, small)
    experiment, chosen = case.experiment, case.layout(layout)
    device = jax.devices()[0]
    mesh = make_mesh({}, [device])
    step, _, make = make_step(case, chosen, mesh)
    work = chosen.work(case.sizes.geometry.features)
    report(
        {
            "size": size,
            "layout": layout,
            "lora": experiment.lora is not None,
            "slots": case.budget.slots,
            "groups": len(case.groups),
            "pairs": case.pairs,
            "tokens": int(work.tokens),
            "pieces": chosen.pieces,
            "flops": useful_flops(work, case.sizes, experiment),
        }
    )
    with use_mesh(mesh), matmul_precision(experiment.model.dtype):
        batch = place(chosen.batch, mesh)
        state = jax.block_until_ready(make())
        before = _peak(device)
        started = time.perf_counter()
        compiled = step.lower(state, batch).compile()
        report({"compile_seconds": time.perf_counter() - started, "compiler_peak_bytes": peak_bytes(compiled)})
        seconds = []
        for turn in range((2 if small else TURNS) + 1):  # the first one warms up
            started = time.perf_counter()
            state, figures = jax.block_until_ready(compiled(state, batch))
            seconds.append(time.perf_counter() - started)
            if turn == 0:
                peak = _peak(device)
                # If making the state took more than the step, the step's own peak is not known.
                report({"peak_bytes": peak if peak is None or peak > before else None, "first_peak_bytes": before})
                report({name: float(figures[name]) for name in ("loss", "grad_norm")})
            else:
                took = statistics.median(seconds[1:])
                report({"turns": turn, "seconds": took, "pairs_per_second": case.pairs / took})


def _peak(device: jax.Device) -> int | None:
    """Bytes that jax's allocator has given out at most so far; None where it does not say (CPUs)."""
    return (device.memory_stats() or {}).get("peak_bytes_in_use")
