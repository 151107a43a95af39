"""The files of a study's results: `results.json`, `table.md` and `report.html`, from the cells that are complete."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmrlhf_jax import strict_json
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.files import write_atomically
from mmrlhf_jax.pages.parts import signed
from mmrlhf_jax.progress import say
from tests.benchmarks.drs_study.analysis import METRICS, Difference, differences
from tests.benchmarks.drs_study.cell import Cell
from tests.benchmarks.drs_study.page import study_page
from tests.benchmarks.drs_study.sizes import Sizes
from tests.benchmarks.drs_study.study import START
from tests.benchmarks.drs_study.variants import BASELINE, CEILING, VARIANTS


class Findings(NamedTuple):
    """Attributes:
    sizes: those of the study.
    seeds: the seeds of which every level is complete.
    start: the start's means, by metric.
    kinds: the kind of question of each held-out prompt, and `start_right`, whether the start answers it rightly.
    figures: metric -> level -> variant -> float64[seeds, prompts].
    differences: metric -> (level, variant) -> difference to BASELINE.
    to_ceiling: (level, variant) -> difference of the share right to CEILING.
    cells: (level, seed) -> part -> its result.
    """

    sizes: Sizes
    seeds: list[int]
    start: dict[str, float]
    kinds: list[str]
    start_right: np.ndarray
    figures: dict[str, dict[float, dict[str, np.ndarray]]]
    differences: dict[str, dict[tuple[float, str], Difference]]
    to_ceiling: dict[tuple[float, str], Difference]
    cells: dict[tuple[float, int], dict[str, Any]]

    def mean(self, metric: str, level: float, variant: str) -> float:
        return float(self.figures[metric][level][variant].mean())


def write_report(out: Path, sizes: Sizes) -> None:
    found = _findings(out, sizes)
    write_atomically(out / "results.json", strict_json.dumps(_json(found), indent=1).encode())
    write_atomically(out / "table.md", table(found).encode())
    write_atomically(out / "report.html", study_page(found).encode("utf-8", "replace"))
    say(table(found))


def _findings(out: Path, sizes: Sizes) -> Findings:
    parts = ("data", "reward_model", *sizes.variants)
    cells = {each: {part: Cell(out, *each, sizes).result(part) for part in parts} for each in sizes.cells()}
    complete = [each for each, found in cells.items() if None not in found.values()]
    seeds = sorted({seed for _, seed in complete if all((level, seed) in complete for level in sizes.levels)})
    if not seeds:
        raise UserError(f"{out}: no seed is complete at all levels; run the study on")
    figures = {
        metric: {
            level: {name: np.array([cells[level, seed][name][metric] for seed in seeds]) for name in sizes.variants}
            for level in sizes.levels
        }
        for metric in METRICS
    }
    start = strict_json.loads((out / START).read_bytes())
    return Findings(
        sizes,
        seeds,
        {metric: float(np.mean(values)) for metric, values in start.items() if metric in METRICS},
        start["kinds"],
        np.asarray(start["right"]),
        figures,
        {metric: differences(by_level, BASELINE) for metric, by_level in figures.items()},
        differences(figures["right"], CEILING),
        {each: cells[each] for each in complete if each[1] in seeds},
    )


def table(found: Findings, metric: str = "right") -> str:
    """The Markdown table of one metric: the baseline's figures, and differences with intervals."""
    factor, levels = METRICS[metric][1], found.sizes.levels
    lines = [
        "| objective | " + " | ".join(f"{100 * level:.0f} % wrong" for level in levels) + " |",
        "|---|" + "---|" * len(levels),
    ]
    for name in found.sizes.variants:
        cells = []
        for level in levels:
            if name == BASELINE:
                cells.append(f"{factor * found.mean(metric, level, name):.1f}")
                continue
            cells.append(shown(found.differences[metric][level, name], factor))
        lines.append(f"| {VARIANTS[name].title} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def shown(difference: Difference, factor: float) -> str:
    """A difference with its interval, bold where it holds."""
    value, low, high = (signed(factor * x, 1) for x in (difference.value, *difference.interval))
    return f"{f'**{value}**' if difference.holds else value} ({low} to {high})"


def _json(found: Findings) -> dict[str, Any]:
    return {
        "seeds": found.seeds,
        "prompts": found.sizes.scenes["held_out"],
        "start": found.start,
        "means": {
            metric: {str(level): {name: float(x.mean()) for name, x in by.items()} for level, by in by_level.items()}
            for metric, by_level in found.figures.items()
        },
        "differences": {
            metric: [
                {"level": level, "variant": name, "value": d.value, "interval": d.interval, "holds": d.holds}
                for (level, name), d in by.items()
            ]
            for metric, by in found.differences.items()
        },
    }
