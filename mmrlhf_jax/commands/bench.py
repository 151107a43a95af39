"""`mmrlhf bench`."""

from __future__ import annotations

from collections.abc import Sequence

from mmrlhf_jax import config, strict_json
from mmrlhf_jax.planning import bench_cases


def bench(
    experiment: str | None, launch: str | None, overrides: Sequence[str], shape: str, table: bool, repeats: int, as_json: bool
) -> None:
    """Without an `experiment`, synthetic groups are measured: `shape` is the model, `table` means all cases."""
    if experiment is not None:
        settings = config.load_experiment(experiment, overrides)
        found = [bench_cases.compare_experiment(settings, config.load_launch(launch), repeats=repeats)]
    else:
        found = list(bench_cases.compare_cases(shape, bench_cases.CASES if table else bench_cases.CASES[:1], repeats=repeats))
    if as_json:
        strict_json.print_figures(found[0] | ({"table": found} if len(found) > 1 else {}))
    else:
        print(bench_cases.as_table(found))
