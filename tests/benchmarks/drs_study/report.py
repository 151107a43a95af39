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
from tests.benchmarks.drs_study.analysis import FEWEST_SEEDS, METRICS, Difference, Key, differences
from tests.benchmarks.drs_study.cell import Cell
from tests.benchmarks.drs_study.conclusion import conclusion
from tests.benchmarks.drs_study.page import study_page
from tests.benchmarks.drs_study.sizes import Sizes
from tests.benchmarks.drs_study.study import START
from tests.benchmarks.drs_study.variants import BASELINE, VARIANTS


class Findings(NamedTuple):
    """Attributes:
    sizes: those of the study.
    seeds: the seeds of which every level is complete.
    decides: whether all seeds are there, and enough of them to say what holds.
    start: the start's means, by metric.
    kinds: the kind of question of each held-out prompt, and `start_right`, whether the start answers it rightly.
    figures: metric -> level -> variant -> float64[seeds, prompts], and `without_kl`, how many prompts those of "kl" lack; if
        all, "kl" is not there.
    differences: metric -> (level, variant) -> difference to BASELINE.
    to_largest: (level, variant) -> difference of the share right to DPO with the variant's largest β (`Variant.largest`).
    cells: (level, seed) -> part -> its result.
    """

    sizes: Sizes
    seeds: list[int]
    decides: bool
    start: dict[str, float]
    kinds: list[str]
    start_right: np.ndarray
    figures: dict[str, dict[float, dict[str, np.ndarray]]]
    without_kl: int
    differences: dict[str, dict[Key, Difference]]
    to_largest: dict[Key, Difference]
    cells: dict[tuple[float, int], dict[str, Any]]

    @property
    def seconds(self) -> float:
        """What all parts took, one after the other."""
        return sum(part["seconds"] for cell in self.cells.values() for part in cell.values())

    def mean(self, metric: str, level: float, variant: str) -> float:
        return float(self.figures[metric][level][variant].mean())

    def mean_beta(self, level: float, variant: str) -> float:
        return float(np.mean([self.cells[level, seed][variant]["mean_beta"] for seed in self.seeds]))


def write_report(out: Path, sizes: Sizes) -> None:
    found = _findings(out, sizes)
    shown = f"{table(found)}\n{legend(found)}\n"
    write_atomically(out / "results.json", strict_json.dumps(_json(found), indent=1).encode())
    write_atomically(out / "table.md", shown.encode())
    write_atomically(out / "report.html", study_page(found).encode("utf-8", "replace"))
    say("\n".join((shown, *conclusion(found))))


def _findings(out: Path, sizes: Sizes) -> Findings:
    made = [Cell(out, *each, sizes) for each in sizes.cells()]
    cells = {(cell.level, cell.seed): {part: cell.result(part) for part in cell.parts} for cell in made if cell.is_complete}
    seeds = [
        seed for seed in dict.fromkeys(cell.seed for cell in made) if all((level, seed) in cells for level in sizes.levels)
    ]
    if not seeds:
        raise UserError(f"{out}: no seed is complete at all levels; run the study on")
    figures = {
        metric: {
            level: {name: np.array([cells[level, seed][name][metric] for seed in seeds], float) for name in sizes.variants}
            for level in sizes.levels
        }
        for metric in METRICS
    }
    lacking = np.logical_or.reduce([np.isnan(values).any(0) for by in figures["kl"].values() for values in by.values()])
    figures["kl"] = {level: {name: x[:, ~lacking] for name, x in by.items()} for level, by in figures["kl"].items()}
    if lacking.all():
        del figures["kl"]
    start = strict_json.loads((out / START).read_bytes())
    decides = FEWEST_SEEDS <= len(seeds) == sizes.seeds
    return Findings(
        sizes,
        seeds,
        decides,
        {metric: float(np.mean(values)) for metric, values in start.items() if metric in METRICS},
        start["kinds"],
        np.asarray(start["right"]),
        figures,
        int(lacking.sum()),
        {metric: differences(by_level, _to_baseline, decides=decides) for metric, by_level in figures.items()},
        differences(
            figures["right"],
            lambda name: VARIANTS[name].largest if VARIANTS[name].largest in sizes.variants else None,
            decides=decides,
        ),
        {each: cells[each] for each in cells if each[1] in seeds},
    )


def _to_baseline(name: str) -> str | None:
    return None if name == BASELINE else BASELINE


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


def legend(found: Findings) -> str:
    """What the table's figures are."""
    seeds, prompts, compared = len(found.seeds), found.sizes.scenes["held_out"], len(found.differences["right"])
    bold = f" Bold: differs from 0 among all {compared}." if found.decides else ""
    return (
        f"Share of right answers to {prompts} held-out prompts after {VARIANTS[BASELINE].title}, in %, over {seeds} of"
        f" {found.sizes.seeds} seeds (the start: {100 * found.start['right']:.1f}), and differences to it in points with"
        f" bootstrap intervals of about 95 % for each alone.{bold}"
    )


def _json(found: Findings) -> dict[str, Any]:
    def listed(by: dict[Key, Difference]) -> list[dict[str, Any]]:
        # `needed` is infinite where nothing can be told, which JSON cannot say.
        return [
            {"level": level, "variant": name} | d._asdict() | {"needed": d.needed if np.isfinite(d.needed) else None}
            for (level, name), d in by.items()
        ]

    return {
        "sizes": found.sizes._asdict(),
        "seeds": found.seeds,
        "complete": len(found.seeds) == found.sizes.seeds,
        "decides": found.decides,
        "seconds": found.seconds,
        "start": found.start,
        "conclusion": conclusion(found),
        "prompts_without_kl": found.without_kl,
        "means": {
            metric: {str(level): {name: float(x.mean()) for name, x in by.items()} for level, by in by_level.items()}
            for metric, by_level in found.figures.items()
        },
        "mean_beta": {
            str(level): {name: found.mean_beta(level, name) for name in found.sizes.variants} for level in found.sizes.levels
        },
        "k": {
            name: {f"{level:g}, seed {seed}": cell[name]["k"] for (level, seed), cell in found.cells.items()}
            for name in found.sizes.variants
        },
        "differences": {metric: listed(by) for metric, by in found.differences.items()},
        "to_largest_beta": listed(found.to_largest),
    }
