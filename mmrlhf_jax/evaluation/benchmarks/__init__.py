"""The reward benchmarks that are known, one module each: how their pairs are grouped, and what is published about them.

To add one, write a module with a `BENCHMARK` and list it below. `recognise` finds which one the records are of.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.evaluation.benchmarks import mm_rlhf, mmrb2, multimodal, ranked, video, vl
from mmrlhf_jax.evaluation.benchmarks.benchmark import Benchmark
from mmrlhf_jax.records import RankedRecord

# In the order in which they are recognised; the last one takes whatever is left.
BENCHMARKS: tuple[Benchmark, ...] = (
    vl.BENCHMARK,
    multimodal.BENCHMARK,
    mmrb2.BENCHMARK,
    video.BENCHMARK,
    mm_rlhf.BENCHMARK,
    ranked.BENCHMARK,
)


def find(name: str) -> Benchmark:
    """The benchmark of this name. UserError for an unknown one."""
    for benchmark in BENCHMARKS:
        if benchmark.name == name:
            return benchmark
    raise UserError(f"--benchmark {name!r}: choose from {', '.join(each.name for each in BENCHMARKS)}")


def recognise(records: Sequence[RankedRecord]) -> Benchmark:
    """The benchmark that the records are of, by their content."""
    return next(benchmark for benchmark in BENCHMARKS if benchmark.matches(records))
