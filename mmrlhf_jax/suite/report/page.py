"""The page of runs: their figures side by side, and the documents on which the first two differ most."""

from __future__ import annotations

import dataclasses
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from etils import epath

from mmrlhf_jax.pages import suite as shown
from mmrlhf_jax.pages.compared import VERDICTS, Column, Line, signed_text
from mmrlhf_jax.pages.differences import Differences
from mmrlhf_jax.suite.comparing import obstacle
from mmrlhf_jax.suite.dimensions import Suite, TableRow
from mmrlhf_jax.suite.figures import Figures, OfAxis, OfHeadline, Run, figures
from mmrlhf_jax.suite.names import short_names
from mmrlhf_jax.suite.report.cases import Both
from mmrlhf_jax.suite.report.shown_cases import differences_of
from mmrlhf_jax.suite.report.side_by_side import Published, SideBySide
from mmrlhf_jax.suite.results import Results
from mmrlhf_jax.suite.task import Benchmark

_NAMED = 5  # most benchmarks that are named, and not counted, because a run has no results of them
_MANY_INTERVALS = 20  # from so many on, about one excludes 0 by chance


@dataclasses.dataclass(frozen=True)
class Shown:
    """A run, and its directory."""

    directory: epath.Path
    run: Run


def page_of(
    suite: Suite,
    runs: Sequence[Shown],
    trainings: Sequence[shown.Training] = (),
    published: Published | None = None,
    notes: Sequence[str] = (),
) -> str:
    """The page. The first run is the model; a second one is the base that it is compared with; others are further columns.

    `published` are shown beside; `notes` say what there is to know of the figures.
    """
    names = names_of(runs)
    found = figures(suite, runs[0].run, runs[1].run if len(runs) > 1 else None)
    table = SideBySide(suite, found, [figures(suite, each.run) for each in runs[2:]], published or {})
    report = shown.Report(
        title=suite.title,
        columns=_columns(names, published or {}),
        summary=_summary(suite, found, names, table),
        headlines=_headlines(suite, found, table),
        dimensions=table.axes(),
        groups=table.groups(),
        missing=list(_missing(suite, runs)),
        differences=_differences(suite, runs, names) if len(runs) > 1 else None,
        made=_made(suite, runs, names),
        trainings=trainings,
        remarks=list(_remarks(suite, found, runs, names, table)),
        notes=notes,
    )
    return shown.suite_page(report)


def names_of(runs: Sequence[Shown]) -> list[str]:
    """The names of runs on their page."""
    return short_names([each.run.name for each in runs], [os.fspath(each.directory) for each in runs])


def _columns(names: Sequence[str], published: Published) -> list[Column]:
    kinds = ["model", "base", *["other"] * len(names)]
    ours = [Column(name, kind) for name, kind in zip(names, kinds, strict=False)]
    return [*ours, *[Column(name, "published") for name in published]]


# Opening --------------------------------------------------------------------------------------------------------------


def _summary(suite: Suite, found: Figures, names: Sequence[str], table: SideBySide) -> str:
    there = [each for each in suite.benchmarks if any(task.name in found.model.results for task in each.tasks)]
    axes = [each.model for each in found.axes.values()]
    text = f"{names[0]} on {len(there)} of {len(suite.benchmarks)} benchmarks; {_whole_means(suite, axes)}."
    if found.base is None:
        return text
    verdicts = Counter(line.verdict for line in table.lines() if line.verdict is not None)
    if not verdicts:
        return f"{text} No row has an interval of its difference from {names[1]}."
    counts = {verdict: verdicts[verdict] for verdict in ("better", "worse", "unclear") if verdicts[verdict]}
    counted = ", ".join(f"{count} {_is(count)} {verdict}" for verdict, count in counts.items())
    return f"{text} Of {_rows(verdicts.total())} that can be compared with {names[1]}, {counted}. {VERDICTS}"


def _whole_means(suite: Suite, axes: Sequence[OfAxis]) -> str:
    """How many axes have a mean, and why there are more axes than dimensions."""
    whole = sum(each.estimate is not None for each in axes)
    count = Counter(axis.dimension for axis in suite.axes)
    double = [suite.dimensions[name].lower() for name in count if count[name] == 2]
    why = f" ({' and '.join(double)} {'has' if len(double) == 1 else 'have'} two{' each' if len(double) > 1 else ''})"
    return f"{whole} of {len(axes)} means {'is' if len(axes) == 1 else 'are'} complete{why if double else ''}"


def _is(count: int) -> str:
    return "is" if count == 1 else "are"


def _rows(count: int) -> str:
    return f"{count} row{'' if count == 1 else 's'}"


def _headlines(suite: Suite, found: Figures, table: SideBySide) -> list[tuple[str, ...]]:
    tiles = []
    for each in suite.headlines if found.base is not None else ():
        figure = found.headlines[each.name]
        if figure.value is not None:
            tiles.append((each.title, f"{signed_text(figure.value, 1)} %", _likely(figure), each.about, each.published))
    for line in sorted(table.axes(), key=_gain, reverse=True)[:2] if not tiles else ():
        if _gain(line) > 0:
            tiles.append((line.title, signed_text(line.delta.value), "of 100: one of the dimensions that improved most"))
    covered = [results.coverage for results in found.model.results.values()]
    scored, expected = sum(each.scored for each in covered), sum(each.expected for each in covered)
    return [*tiles, ("Documents", f"{scored:,} of {expected:,}", "documents of the tasks that were run have a score")]


def _likely(figure: OfHeadline) -> str:
    """The interval of a key figure, or why it has none."""
    if figure.interval is None:
        return f"No interval: {figure.without_interval}."
    low, high = (signed_text(end, 1) for end in figure.interval)
    return f"95 % interval {low} to {high} %."


def _gain(line: Line) -> float:
    """By how much an axis got better."""
    value = None if line.delta is None else line.delta.value
    return float("-inf") if value is None else value if line.higher_is_better else -value


def _remarks(suite: Suite, found: Figures, runs: Sequence[Shown], names: Sequence[str], table: SideBySide) -> Iterator[str]:
    """What a reader must know before the figures are compared."""
    if left := list(_not_run(suite, table)):
        yield f"Not run, and not on this page: {'; '.join(left)}."
    for name, titles in _empty(suite, table, names):
        count = f"{len(titles)} benchmarks" if len(titles) > _NAMED else "; ".join(titles)
        yield f"{name} has no results of {count}; its column is empty there."
    for reason, titles in _not_compared(suite, runs).items():
        yield f"Not compared with the base: {'; '.join(titles)} ({reason})."
    if table.published and (corrected := _corrected(suite, runs)):
        yield (
            f"The metrics of these are corrected, and those of the published figures are not: {'; '.join(corrected)}."
            " --metrics paper computes the paper's own."
        )
    if (count := sum(line.verdict is not None for line in table.lines())) >= _MANY_INTERVALS:
        yield (
            f"Of {count} differences, {_about(count / 20)} would count as better or worse by chance if the two models were"
            " equally good: a single row that is better or worse says little."
        )
    every = [found.rows[name] for name in found.rows if found.rows[name].model.coverage is not None]
    if partial := sum(each.model.coverage.scored < each.model.coverage.expected for each in every):
        yield (
            f"{partial} of {_rows(len(every))} {'was' if partial == 1 else 'were'} computed from a part of their documents."
            " Each row says how many, and “Coverage” says why."
        )
    if left_out := sum(each.delta.left_out for each in every if each.delta is not None):
        what = "score of one model alone is" if left_out == 1 else "scores of one model alone are"
        yield (
            f"Differences are on the documents that are scored for both models; {left_out:,} {what} left out, so that a"
            " difference need not be that of the two figures beside it."
        )


def _about(number: float) -> str:
    low, high = math.floor(number), math.ceil(number)
    return f"{low}" if low == high else f"{low} or {high}"


def _not_run(suite: Suite, table: SideBySide) -> Iterator[str]:
    """The titles of benchmarks without results of any run, and of rows without results of the others."""
    return _titles_of(suite, list(suite.table.values()), lambda row: not table.has(row))


def _empty(suite: Suite, table: SideBySide, names: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """(name of a run, the titles of what it has no results of, of what is on the page)."""
    shown = [row for row in suite.table.values() if table.has(row)]
    for number, name in enumerate(names):
        if titles := list(_titles_of(suite, shown, lambda row, number=number: not table.has_in(row, number))):
            yield name, titles


def _titles_of(suite: Suite, rows: Sequence[TableRow], left: Callable[[TableRow], bool]) -> Iterator[str]:
    """The titles of the benchmarks of which all rows are `left`, and of the rows that are of the others."""
    for each in suite.benchmarks:
        of = [row for row in rows if set(row.parts) <= set(each.rows)]
        found = [row.title for row in of if left(row)]
        yield from [each.title] if len(found) == len(of) > 1 else found


def _corrected(suite: Suite, runs: Sequence[Shown]) -> list[str]:
    """The titles of the tasks that a run has by corrected metrics."""
    return [
        _title(suite, name)
        for name in suite.tasks
        if any(name in each.run.results and each.run.results[name].settings.get("mode") == "corrected" for each in runs)
    ]


def _not_compared(suite: Suite, runs: Sequence[Shown]) -> dict[str, list[str]]:
    """Why results of both cannot be compared -> the titles of their tasks."""
    found: dict[str, list[str]] = {}
    for name, *both in _both(suite, runs):
        if (reason := obstacle(*both)) is not None:
            found.setdefault(reason, []).append(_title(suite, name))
    return found


def _both(suite: Suite, runs: Sequence[Shown]) -> Iterator[tuple[str, Results, Results]]:
    """The tasks that the first two runs have results of, in the order of the suite."""
    for name in suite.tasks if len(runs) > 1 else ():
        if all(name in each.run.results for each in runs[:2]):
            yield name, runs[0].run.results[name], runs[1].run.results[name]


def _title(suite: Suite, task: str) -> str:
    """The title of a task: that of its row, or that of its benchmark where it has several rows."""
    (first, *others), benchmark = suite.tasks[task].rows, _benchmark(suite, task)
    if not others:
        return first.title
    return benchmark.title if len(benchmark.tasks) == 1 else f"{benchmark.title} ({task})"


def _benchmark(suite: Suite, task: str) -> Benchmark:
    return next(each for each in suite.benchmarks if suite.tasks[task] in each.tasks)


def _differences(suite: Suite, runs: Sequence[Shown], names: Sequence[str]) -> Differences:
    pairs = [
        Both(_benchmark(suite, name).title, suite.tasks[name].rows, *both)
        for name, *both in _both(suite, runs)
        if obstacle(*both) is None
    ]
    return differences_of(pairs, names, [each.directory for each in runs[:2]])


# Coverage, and how figures were made -----------------------------------------------------------------------------------


def _missing(suite: Suite, runs: Sequence[Shown]) -> Iterator[shown.Missing]:
    for task in suite.tasks:
        found = [each.run.results[task].coverage.missing if task in each.run.results else {} for each in runs]
        for reason in dict.fromkeys(reason for each in found for reason in each):
            yield shown.Missing(_title(suite, task), reason, [each.get(reason, 0) for each in found])


def _made(suite: Suite, runs: Sequence[Shown], names: Sequence[str]) -> list[shown.Made]:
    """What run.json says of each run, and the harness and settings of its tasks; once, if they are those of all runs."""
    made = [
        shown.Made(name, {"results": os.fspath(each.directory), **each.run.about})
        for each, name in zip(runs, names, strict=True)
    ]
    settings = [
        {_title(suite, task): _how(each.run.results[task]) for task in suite.tasks if task in each.run.results} for each in runs
    ]
    if all(each == settings[0] for each in settings):
        return [*made, shown.Made("Settings of the tasks" + (", of all runs" if len(runs) > 1 else ""), settings[0])]
    return [*made, *[shown.Made(f"Settings of the tasks of {name}", each) for name, each in zip(names, settings, strict=True)]]


def _how(results: Results) -> str:
    return "; ".join([results.harness, *[f"{name} {value}" for name, value in shown.flat(results.settings)]])
