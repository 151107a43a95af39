"""The section of the study's page on its reward models: how right they are, and what their margins mean."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from mmrlhf_jax.data.margin_summary import summarise
from mmrlhf_jax.data.margin_text import ends
from mmrlhf_jax.dynamic_scaling import Scale
from mmrlhf_jax.pages.charts import binned
from mmrlhf_jax.pages.margins import reliability_chart
from mmrlhf_jax.pages.parts import element, join, number, percent, table
from tests.benchmarks.drs_study.analysis import agreement
from tests.benchmarks.drs_study.forest import level_name

if TYPE_CHECKING:
    from tests.benchmarks.drs_study.report import Findings

PAPER = Scale(beta=0.1, w=0.5, k=0.5)


def reward_models(found: Findings) -> Markup:
    charts, reliability = [], []
    for level in found.sizes.levels:
        learnt = [found.cells[level, seed]["reward_model"]["preference"]["margins"] for seed in found.seeds]
        prompts = zip(*learnt, strict=True)  # of each the margins of all seeds
        summary = summarise([np.concatenate(margins) for margins in prompts], PAPER)
        drawn = summary["histogram"]
        charts.append(binned(f"margins δ, {level_name(level)}", drawn["edges"], drawn["counts"], x_label="margin δ"))
        at = element("p", "All seeds together, at k = .5 and w = .5: ", ends(summary), ".")
        reliability += [element("h3", level_name(level)), at, reliability_chart(summary)]
    text = (
        "Of the pairs that the policies learn from. The reward models learnt from other prompts, ranked by the same annotators,"
        " for the same number of steps at every level: with more errors they have learnt less, and their margins say so."
    )
    return join(
        element("p", text),
        by_seed(found),
        element("p", "Held-out pairs that are ordered truly, by kind of question, all seeds together:"),
        by_kind(found),
        element("div", *charts, class_="charts"),
        element("p", "How often a margin agrees with the annotators:"),
        *reliability,
    )


def by_seed(found: Findings) -> Markup:
    """One row per reward model."""
    rows = []
    for level in found.sizes.levels:
        for seed in found.seeds:
            cell = found.cells[level, seed]
            learnt, held_out = cell["reward_model"]["preference"], cell["reward_model"]["held_out"]
            agreed, true = agreement(learnt["margins"], learnt["truly"])
            wrong = cell["data"]["preference"]["share_wrong"]
            quantiles = np.quantile(np.abs(np.concatenate(learnt["margins"])), [0.25, 0.5, 0.75])
            k = cell["median"]["k"] if "median" in cell else None
            rows.append(
                [
                    f"{level_name(level)}, seed {seed}",
                    *map(percent, (wrong, agreed, true, agreement(held_out["margins"], held_out["truly"])[1])),
                    *map(number, quantiles),
                    "" if k is None else number(k),
                ]
            )
    head = (
        "",
        "pairs annotated wrong",
        "ordered as annotated",
        "ordered truly",
        "ordered truly, held out",
        "|δ| at 25 %",
        "50 %",
        "75 %",
        "k by the median",
    )
    return table(head, rows, label="reward models", row_heads=True, class_="numbers")


def by_kind(found: Findings) -> Markup:
    kinds, rows = list(dict.fromkeys(found.kinds)), []
    for level in found.sizes.levels:
        row = [level_name(level)]
        for kind in kinds:
            here = [i for i, each in enumerate(found.kinds) if each == kind]
            judged = [found.cells[level, seed]["reward_model"]["held_out"] for seed in found.seeds]
            margins, truly = ([j[name][i] for j in judged for i in here] for name in ("margins", "truly"))
            row.append(percent(agreement(margins, truly)[1]))
        rows.append(row)
    return table(["", *kinds], rows, label="reward models by kind", row_heads=True, class_="numbers")
