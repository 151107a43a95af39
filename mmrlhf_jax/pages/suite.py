"""The page of a model on a suite of benchmarks: its dimensions against the base and published figures, every row, the cases."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from mmrlhf_jax import config
from mmrlhf_jax.pages import axes, compared, differences, run, series
from mmrlhf_jax.pages.compared import Column, Line
from mmrlhf_jax.pages.differences import Differences
from mmrlhf_jax.pages.parts import element, join, page, table, tiles


@dataclasses.dataclass(frozen=True)
class Missing:
    """How many documents of a task are missing from the figures of each run, for one reason. `counts` are by run."""

    benchmark: str
    reason: str
    counts: Sequence[int]


@dataclasses.dataclass(frozen=True)
class Made:
    """How figures were made: of a run, or of the tasks that have these settings."""

    title: str
    settings: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Training:
    """A run of training: its metrics and configuration. `method` describes what it trains, in words."""

    name: str
    experiment: config.Experiment
    metrics: Sequence[Mapping]
    method: str
    time: run.TimeSpent | None = None


@dataclasses.dataclass(frozen=True)
class Report:
    """All that is on the page.

    Attributes:
        title: the suite's name.
        columns: whose figures there are; the first one is the model.
        summary: a paragraph about what was compared.
        headlines: key figures: (name, value, what it means, and more about it).
        dimensions: a line per axis; figures are of 100.
        groups: heading -> the lines of the rows.
        missing: documents that are missing, by benchmark and reason.
        differences: the cases; None if there is no base to compare with.
        made: how the figures were made.
        trainings: runs of training.
        remarks: what a reader must know before the figures are compared with others.
        notes: what the figures mean, for a reader who does not know the suite.
    """

    title: str
    columns: Sequence[Column]
    summary: str
    headlines: Sequence[tuple[str, ...]]
    dimensions: Sequence[Line]
    groups: Mapping[str, Sequence[Line]]
    missing: Sequence[Missing] = ()
    differences: Differences | None = None
    made: Sequence[Made] = ()
    trainings: Sequence[Training] = ()
    remarks: Sequence[str] = ()
    notes: Sequence[str] = ()


def suite_page(report: Report) -> str:
    """The whole page, as one HTML document."""
    sections = {"Dimensions": _dimensions(report), "Benchmarks": _benchmarks(report), "Coverage": _coverage(report)}
    style = "".join(each.STYLE for each in (series, axes, compared)) + run.STYLE
    if report.differences is not None:
        names = (report.columns[0].name, report.columns[1].name)
        sections["Where the models differ most"], of_cases = differences.differences(report.differences, names)
        style += of_cases
    if report.trainings:
        sections["Training"] = join(*[_training(each) for each in report.trainings])
    sections["How the figures were made"] = join(*[_made(each) for each in report.made])
    return page(f"{report.title}: {report.columns[0].name}", _opening(report), sections, style + STYLE)


def _opening(report: Report) -> Markup:
    parts = [element("p", report.summary, class_="lead")]
    if report.headlines:
        parts.append(tiles(report.headlines))
    if report.remarks:
        items = [element("li", remark) for remark in report.remarks]
        parts.append(element("div", element("p", element("b", "Before these figures are compared:")), element("ul", *items)))
    return join(*parts)


# Figures --------------------------------------------------------------------------------------------------------------


def _dimensions(report: Report) -> Markup:
    drawn = report.columns[: series.MOST_SERIES]
    names = [column.name for column in drawn]
    low, high = _scale(report)
    lines = [_axis(line, len(drawn), low, high) for line in report.dimensions]
    radar = len(lines) >= _LEAST_AXES
    text = f"All axes go from {low:g} to {high:g}."
    if any(not line.higher_is_better for line in report.dimensions):
        text += " On axes marked ↓ a lower figure is better."
        if radar:
            text += (
                f" The radar draws them reversed ({low:g} at the rim, {high:g} in the centre), so that further out is always"
            )
            text += " better."
        text += " The bars are not reversed: there a shorter bar is better."
    if len(drawn) < len(report.columns):
        text += f" The charts show the first {len(drawn)} columns of the table."
    charts = [axes.radar("All dimensions", names, lines)] if radar else []
    charts.append(axes.bars("One by one", names, lines))
    figures = compared.compared("Dimensions", report.columns, {"": report.dimensions})
    return join(
        element("p", text),
        element("p", _INTERVALS),
        *charts,
        element("h3", "The same figures as a table"),
        figures,
        *_notes(report),
    )


_LEAST_AXES = 3  # of a radar
_INTERVALS = (
    "Thin lines on the bars and the ranges in the tables are 95 % confidence intervals from a bootstrap over documents."
    " Intervals of differences use the same resampled documents for both models (paired bootstrap)."
)


def _notes(report: Report) -> list[Markup]:
    return [element("p", element("small", note)) for note in report.notes]


def _scale(report: Report) -> tuple[float, float]:
    """From 0 to 100, or in tens as far as the figures go: a judge may give more than the reference answer has."""
    values = [cell.value for line in report.dimensions for cell in line.cells if cell.value is not None]
    low, high = min([0.0, *values]), max([100.0, *values])
    return 10.0 * math.floor(low / 10), 10.0 * math.ceil(high / 10)


def _axis(line: Line, count: int, low: float, high: float) -> axes.Axis:
    figures = [axes.Figure(cell.value, cell.interval) for cell in line.cells[:count]]
    return axes.Axis(line.title, figures, line.higher_is_better, low, high)


def _benchmarks(report: Report) -> Markup:
    text = "Each row is in its own unit. If a row has no figure, its cell says why, and its dimension has no mean."
    return join(element("p", text), compared.compared("Benchmarks", report.columns, report.groups))


def _coverage(report: Report) -> Markup:
    if not report.missing:
        return element("p", "Every document of every task that was run is in the figures.")
    text = "These documents have no score. They do not count as wrong: the figures are computed from the others."
    runs = [column.name for column in report.columns if column.kind != "published"]
    reasons = {each.reason: [0] * len(runs) for each in report.missing}
    for each in report.missing:
        reasons[each.reason] = [total + count for total, count in zip(reasons[each.reason], each.counts, strict=True)]
    totals = [(reason, *_counts(counts)) for reason, counts in reasons.items()]
    rows = [(each.benchmark, *_counts(each.counts), each.reason) for each in report.missing]
    by_benchmark = table(
        ("benchmark", *runs, "why they are missing"), rows, label="By benchmark", row_heads=True, class_="missing"
    )
    return join(
        element("p", text),
        table(("why they are missing", *runs), totals, label="By reason", row_heads=True, class_="numbers missing"),
        element("details", element("summary", "by benchmark"), by_benchmark),
    )


def _counts(counts: Sequence[int]) -> list[Markup]:
    return [element("span", f"{count:,}", class_="count") for count in counts]


# How ------------------------------------------------------------------------------------------------------------------


def _made(made: Made) -> Markup:
    return join(
        element("h3", made.title), table((), list(flat(made.settings)), label=made.title, row_heads=True, class_="made")
    )


def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as (name, value) in words; those inside another one have its name before theirs."""
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{name}: ")
        else:
            yield f"{prefix}{name}".replace("_", " "), _shown(value)


def _shown(value: Any) -> str:
    if value is None or value in ("", [], (), {}):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(_shown, value)) if isinstance(value, list | tuple) else str(value)


def _training(training: Training) -> Markup:
    curves = [join(element("h4", title), charts) for title, charts in run.charts(training.metrics).items() if charts]
    parts = [element("h3", training.name), element("p", training.method)]
    parts += curves or [element("p", "It has logged no metrics.", class_="muted")]
    if training.time is not None:
        parts += [element("h4", "Time"), run.time_spent(training.time)]
    return join(*parts, element("h4", "Configuration"), run.configuration(training.experiment))


STYLE = """
p,li,h1,h2,h3,h4,.tile{overflow-wrap:anywhere}:focus-visible{outline:2px solid var(--c1);outline-offset:2px}
h4{font-size:.9rem;margin:1rem 0 .3rem}
section>figure{margin:14px 0}.missing td,.made td{overflow-wrap:anywhere}.made th,.missing th{color:var(--ink)}
.count{white-space:nowrap}
.made{max-width:46rem}.made th{width:14rem;padding-right:14px}tbody th{font-size:.88rem}
nav a{padding:4px 0}ul{max-width:46rem;padding-left:1.3rem}
@media (max-width:640px){main{padding:20px 12px 40px}.made th{width:38%}h1{font-size:1.6rem}}
@page{margin:14mm}
@media print{details::details-content{content-visibility:visible;block-size:auto}summary{list-style:none}
:root{--bg:#fff}.radar{max-width:400px}nav{display:none}main{max-width:none;padding:0}h2{margin-top:1.6rem}
.scroll{overflow:visible}
figure,.tile{break-inside:avoid}h2,h3,h4{break-after:avoid}}
"""
