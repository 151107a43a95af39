"""The page of an evaluation: figures, published tables beside them, and every case with its media."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.evaluation.benchmarks.benchmark import Benchmark
from mmrlhf_jax.evaluation.evaluated import Evaluated
from mmrlhf_jax.evaluation.report import as_json, group_rows
from mmrlhf_jax.evaluation.reward_bench import Figures, beside, figures, is_scored, outcome
from mmrlhf_jax.pages import Beside, Case, reward_bench_page
from mmrlhf_jax.pages.reward_bench import Verdict
from mmrlhf_jax.pages.small_pictures import pictures
from mmrlhf_jax.progress import say, track
from mmrlhf_jax.records import Pair, RankedRecord

# (most cases, longest side of their pictures in pixels), so that a page of thousands of cases still opens.
SIDES = ((400, 480), (2000, 320))
SMALLEST_SIDE, MOST_FRAMES, QUALITY = 200, 4, 75


def page_of(found: Evaluated, computed: Figures, benchmark: Benchmark, run: dict[str, Any], model: str) -> str:
    """The document. `run` says how the rewards were made, `model` is what the page calls the model."""
    tables = []
    for each in benchmark.published:
        ours = beside(each, figures(found.records, benchmark, each.grouping))
        tables.append(Beside(each.title, each.source, each.note, each.columns, ours, tuple(each.rows.items())))
    shown = as_json(computed, run)
    rows = {"groups": group_rows(computed), **{name: shown[name] for name in ("overall", "macro", "run")}}
    _, grouping = benchmark.grouping(run["grouping"])
    return reward_bench_page(benchmark.title, model, rows, tables, _cases(found, grouping.groups))


def _cases(found: Evaluated, groups) -> Iterator[Case]:
    count, lacking = len(found.scored), 0
    side = next((side for most, side in SIDES if count <= most), SMALLEST_SIDE)
    for scored, place in track(zip(found.scored, found.places, strict=True), "drawing cases", count):
        record, shown = scored.record, ()
        try:
            shown = () if place is None else pictures(found.examples[place], side=side, frames=MOST_FRAMES, quality=QUALITY)
        except UserError:  # the media need not be there if the rewards are
            lacking += 1
        verdicts = {pair: _verdict(record, pair) for pair in record.pairs()}
        yield Case(record, verdicts, groups(record)[0], shown, scored.reason, scored.truncated, scored.samples)
    if lacking:
        say(f"the media of {lacking} of {count} records cannot be read, and are not on the page")


def _verdict(record: RankedRecord, pair: Pair) -> Verdict:
    if not is_scored(record, pair):
        return "not scored"
    found = outcome(record, pair)
    return "tie" if found is None else "right" if found else "wrong"
