"""Margins δ of ordered pairs, their reliability, and β(δ) over them: a section of several pages, and a page of its own.

All functions take a summary of `data.margin_summary.summarise`, or what was stored of it as JSON.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from mmrlhf_jax.data.margin_summary import NEAR
from mmrlhf_jax.data.margin_text import NO_PAIRS, agreement, ends, formula, gate, left_out
from mmrlhf_jax.dynamic_scaling import Scale
from mmrlhf_jax.pages.charts import Bars, Dot, Line, binned, line_chart
from mmrlhf_jax.pages.parts import element, join, page, percent, table, tiles
from mmrlhf_jax.progress import counted

CURVE_POINTS = 200


def margins_page(name: str, summary: Mapping[str, Any]) -> str:
    """The page of `mmrlhf data margins` about the data called `name`."""
    opening = element("p", agreement(summary), ". ", ends(summary), ".", class_="lead")
    sections = {
        "β and the margins": join(advice(summary), beta_charts(summary)),
        "Reliability": join(reliability_chart(summary), reliability_table(summary)),
        "Sizes": quantiles_table(summary),
    }
    return page(f"Margins: {name}", join(opening, margin_tiles(summary)), sections, "h1,p{overflow-wrap:anywhere}")


def margin_section(summary: Mapping[str, Any]) -> Markup:
    """The whole of it as one section of another page."""
    if not summary["pairs"]:
        return element("p", NO_PAIRS, class_="muted")
    return join(
        element("p", agreement(summary), ". ", ends(summary), "."),
        advice(summary),
        beta_charts(summary),
        reliability_chart(summary),
        element("details", element("summary", "the figures"), reliability_table(summary), quantiles_table(summary)),
    )


def margin_tiles(summary: Mapping[str, Any]) -> Markup:
    """The key figures side by side."""
    beta, scale = summary["beta"], summary["scale"]
    cells = [
        ("Pairs", f"{summary['pairs']:,}", f"strictly ordered; {summary['ties']:,} with δ = 0"),
        ("δ agrees with the rank", percent(summary["share_right"]), "of the pairs"),
        ("Median |δ|", f"{summary['quantiles']['50']:.3g}", f"largest {summary['quantiles']['max']:.3g}"),
    ]
    if beta is not None:
        within = f"of the pairs, within {100 * NEAR:g} % of the rise"
        cells.append(("At the floor", percent(beta["at_floor"]), f"β = {scale['lowest']:.3g}; {within}"))
        cells.append(("At the ceiling", percent(beta["at_ceiling"]), f"β = {scale['highest']:.3g}; {within}"))
    return tiles(cells)


def advice(summary: Mapping[str, Any]) -> Markup:
    """β(δ) with its numbers, what to do if β is a gate, and what was left out."""
    said = [element("p", element("code", formula(summary["scale"])))]
    if (warning := gate(summary)) is not None:
        said.append(element("p", element("b", "Warning: ", class_="bad"), warning, "."))
    if (rest := left_out(summary)) is not None:
        said.append(element("p", rest, class_="muted"))
    return join(*said)


def beta_charts(summary: Mapping[str, Any]) -> Markup:
    """β(δ) over the histogram of δ, and the histogram of β, of the pairs in the loss."""
    scale, histogram, beta = summary["scale"], summary["histogram"], summary["beta"]
    if histogram is None:
        return Markup("")
    curve = Scale(**{name: scale[name] for name in Scale._fields})
    low, high = histogram["edges"][0], histogram["edges"][-1]
    deltas = sorted(
        {low + i * (high - low) / CURVE_POINTS for i in range(CURVE_POINTS + 1)} | ({0.0} if low < 0 < high else set())
    )
    points = list(zip(deltas, curve.betas(deltas).tolist(), strict=True))
    room = 0.05 * (curve.highest - curve.lowest) or 0.05 * curve.beta
    over = line_chart(
        "β(δ) over the margins",
        [Line("β(δ)", points, smooth=False)],
        bars=Bars("pairs by δ", histogram["edges"], histogram["counts"]),
        x_label=f"δ = reward of the better-ranked − of the worse-ranked response{_rest(summary)}",
        y_range=(curve.lowest - room, curve.highest + room),
        size=(960, 260),
    )
    charts = [element("div", over, class_="scroll wide")]
    if beta is not None:
        drawn = binned(f"β of {beta['pairs']:,} pairs", beta["edges"], beta["counts"], x_label="β")
        charts.append(element("div", drawn, class_="charts"))
    return join(*charts)


def reliability_chart(summary: Mapping[str, Any]) -> Markup:
    """The share of pairs that δ orders as the ranks do, by |δ|, beside that of a calibrated Bradley–Terry model."""
    bins = summary["reliability"]
    high = max(row["mean"] for row in bins) * 1.05 or 1.0
    sizes = [high * i / CURVE_POINTS for i in range(CURVE_POINTS + 1)]
    dots = [
        Dot(row["mean"], row["share_right"], 4, "c1", f"{row['low']:.3g} to {row['high']:.3g}: {_counts(row)}", row["interval"])
        for row in bins
    ]
    chart = line_chart(
        "pairs right, by |δ|",
        [Line("σ(|δ|): a calibrated Bradley–Terry model", [(x, 1 / (1 + math.exp(-x))) for x in sizes], 2, smooth=False)],
        dots=dots,
        x_label="|δ|, in bins of about equally many pairs, equal |δ| together; lines: 95 % intervals",
        y_range=(min(0.4, *(row["interval"][0] for row in bins)), 1.0),
        size=(960, 260),
    )
    return element("div", chart, class_="scroll wide")


def reliability_table(summary: Mapping[str, Any]) -> Markup:
    head = ("|δ|", "pairs", "right", "ties", "share right", "95 % interval", "calibrated")
    rows = [
        (
            f"{row['low']:.3g} to {row['high']:.3g}",
            f"{row['pairs']:,}",
            f"{row['right']:,}",
            f"{row['ties']:,}",
            percent(row["share_right"]),
            " to ".join(map(percent, row["interval"])),
            percent(row["calibrated"]),
        )
        for row in summary["reliability"]
    ]
    text = (
        "A pair is right if δ is above 0; a tie, δ = 0, counts half. “Calibrated” is the share that a Bradley–Terry reward"
        " model would have right with these margins, the mean of σ(|δ|): if the share right is below it, margins promise too"
        " much. Intervals take records as trials, because the pairs of a record share responses."
    )
    return join(element("p", text, class_="muted"), table(head, rows, class_="numbers"))


def quantiles_table(summary: Mapping[str, Any]) -> Markup:
    """Quantiles of |δ|."""
    names = [name if name == "max" else f"{name} %" for name in summary["quantiles"]]
    return table(("", *names), [("|δ|", *(f"{value:.3g}" for value in summary["quantiles"].values()))], class_="numbers")


def _rest(summary: Mapping[str, Any]) -> str:
    """What the histogram of δ does not show as it is, for the label of its axis."""
    beyond = summary["histogram"]["beyond"]
    said = f"; the outermost bars hold {counted(beyond, 'pair')} beyond" if beyond else ""
    dropped = summary["pairs"] - sum(summary["histogram"]["counts"])
    return f"{said}; {counted(dropped, 'pair')} below 0 left out" if dropped else said


def _counts(row: Mapping[str, Any]) -> str:
    return f"{percent(row['share_right'])} of {row['pairs']:,} pairs right"
