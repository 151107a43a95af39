"""Figures of a suite as a table of text, with what is missing and why."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from mmrlhf_jax.suite.dimensions import Axis, TableRow
from mmrlhf_jax.suite.figures import Compared, FigureOrReason, Figures, OfAxis, OfRow
from mmrlhf_jax.suite.names import short_names
from mmrlhf_jax.suite.reasons import BEYOND_LIMIT

_WIDTH = 26  # of a column of figures
_NAMED = 12  # most rows that are named because they were not run


def as_lines(found: Figures) -> Iterator[str]:
    """The dimensions and rows of which there are results; the key figures that can be computed; what is missing, and why."""
    names = _names(found)
    yield from _dimensions(found, names)
    for headline in found.suite.headlines:
        figure = found.headlines.get(headline.name)
        if figure is not None and figure.value is not None:
            yield f"{headline.title}: {figure.value:+.1f} %{_interval(figure, '+.1f')} ({headline.about} {headline.published})"
    rows = found.suite.table.values()
    if without := [row.title for row in rows if not _has_results(found, row)]:
        yield f"not run: {'; '.join(without) if len(without) <= _NAMED else f'{len(without)} of {len(rows)} rows'}"
    for name, side in zip(names, ("model", "base"), strict=False):
        yield from _missing(name, _side(found.rows, side), _side(found.axes, side), found)
    if found.base is not None:
        yield from _in_common(found)
        yield from _refused(found)


def _names(found: Figures) -> list[str]:
    """The names of the model and of the base, if there is one."""
    runs = [run for run in (found.model, found.base) if run is not None]
    return short_names([run.name for run in runs], [run.directory for run in runs])


def _has_results(found: Figures, row: TableRow) -> bool:
    of = found.rows[row.name]
    return any(side is not None and side.coverage is not None for side in (of.model, of.base))


# Lines of the table ---------------------------------------------------------------------------------------------------


def _dimensions(found: Figures, names: Sequence[str]) -> Iterator[str]:
    suite = found.suite
    width = max(len(each.title) for each in (*suite.table.values(), *suite.axes)) + 4
    difference = [] if found.base is None else ["difference"]
    yield _line(width, ["", *_heads(names), *difference, "scored"])
    for dimension in suite.dimensions:
        for axis in (each for each in suite.axes if each.dimension == dimension):
            of = found.axes[axis.name]
            if of.model.rows or (of.base is not None and of.base.rows):
                yield _line(width, [f"{_title(axis)}", *_cells(of, 1), f"{of.model.rows} of {of.model.of} rows"])
        for row in (each for each in suite.table.values() if each.dimension == dimension and _has_results(found, each)):
            of = found.rows[row.name]
            digits = 2 if row.full is not None and row.full <= 10 else 1
            yield _line(width, [f"  {_title(row)}", *_cells(of, digits), _coverage(of.model)])


def _line(width: int, cells: list[str]) -> str:
    first, *others, last = cells
    return (f"{first:<{width}}" + "".join(f"{cell:<{_WIDTH}}" for cell in others) + last).rstrip()


def _heads(names: Sequence[str]) -> list[str]:
    """Names as wide as a column: their ends, which tell more than the beginning of a path does, unless these are equal."""
    kept = _WIDTH - 5
    ends = [name if len(name) < _WIDTH else f"...{name[-kept:]}" for name in names]
    return ends if len(set(ends)) == len(ends) else [name if len(name) < _WIDTH else f"{name[:kept]}..." for name in names]


def _title(of: Axis | TableRow) -> str:
    return of.title if of.higher_is_better else f"{of.title} ↓"


def _cells(of: Compared, digits: int) -> list[str]:
    cells = [_cell(of.model, f".{digits}f")]
    return cells if of.base is None else [*cells, _cell(of.base, f".{digits}f"), _cell(of.delta, f"+.{digits}f")]


def _cell(figure: FigureOrReason, form: str) -> str:
    return "-" if figure.value is None else f"{figure.value:{form}}{_interval(figure, form)}"


def _interval(figure: FigureOrReason, form: str) -> str:
    return "" if figure.interval is None else " [{:{form}}, {:{form}}]".format(*figure.interval, form=form)


def _coverage(figure: OfRow) -> str:
    """ "0 of ?" of documents that could not be had, so that nobody knows how many there are."""
    return "-" if figure.coverage is None else f"{figure.coverage.scored} of {figure.coverage.expected or '?'}"


# What is missing ------------------------------------------------------------------------------------------------------


def _side(figures: Mapping[str, Compared], side: str) -> dict[str, FigureOrReason]:
    return {name: getattr(of, side) for name, of in figures.items()}


def _missing(name: str, rows: Mapping[str, OfRow], axes: Mapping[str, OfAxis], found: Figures) -> Iterator[str]:
    """Why a run lacks figures of rows of which there are results, and scores of documents."""
    shown = [row for row in found.suite.table.values() if _has_results(found, row)]
    reasons = ((row.title, rows[row.name].missing) for row in shown)
    yield from _together(f"{name}: no figure of", ((title, reason) for title, reason in reasons if reason is not None))
    lost, limited = {}, False
    for row in shown:
        coverage = rows[row.name].coverage
        counts = {} if coverage is None else dict(coverage.missing)
        limited |= counts.pop(BEYOND_LIMIT, 0) > 0
        if counts and counts.keys() != {rows[row.name].missing}:  # of which the line above says why
            lost["; ".join(task.name for task in row.tasks)] = ", ".join(f"{n}: {reason}" for reason, n in counts.items())
    yield from _together(f"{name}: documents not scored of", lost.items())
    if limited:
        yield f"{name}: only the first documents of tasks were taken (--limit)"
    means = ((axis.title, axes[axis.name]) for axis in found.suite.axes)
    mixed = ((title, of.missing) for title, of in means if of.missing is not None and not of.lacking)
    yield from _together(f"{name}: no mean of", mixed)


def _refused(found: Figures) -> Iterator[str]:
    """Why figures that both runs have are not compared."""
    both = ((row.title, found.rows[row.name]) for row in found.suite.table.values())
    there = ((title, of.delta.missing) for title, of in both if None not in (of.model.value, of.base.value))
    yield from _together("not compared:", ((title, reason) for title, reason in there if reason is not None))


def _in_common(found: Figures) -> Iterator[str]:
    """How many documents a difference is of, where these are not all."""
    for row in found.suite.table.values():
        delta = found.rows[row.name].delta
        if delta.left_out:
            common = f"the {delta.documents} documents" if delta.documents != 1 else "the one document"
            others = "1 document is" if delta.left_out == 1 else f"{delta.left_out} documents are"
            yield f"difference of {row.title}: on {common} scored for both models; {others} scored for one of them alone"


def _together(what: str, reasons: Iterable[tuple[str, str]]) -> Iterator[str]:
    """One line per reason, with all that it is the reason of."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in reasons:
        by_reason.setdefault(reason, []).append(name)
    for reason, names in by_reason.items():
        yield f"{what} {'; '.join(names)}: {reason}"
