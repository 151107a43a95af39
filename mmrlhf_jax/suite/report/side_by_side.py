"""The figures of several runs, and published ones, as the lines of tables, one column each."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from mmrlhf_jax.pages.compared import Cell, Delta, Line
from mmrlhf_jax.suite.dimensions import Suite, TableRow
from mmrlhf_jax.suite.figures import NO_RESULTS, FigureOrReason, Figures, OfAxis, OfRow
from mmrlhf_jax.suite.resampling import Estimate
from mmrlhf_jax.suite.results import Coverage, Results
from mmrlhf_jax.suite.task import Row

# Name of a published model -> its figures, by the rows of the suite's table.
Published = Mapping[str, Mapping[str, float]]


@dataclasses.dataclass(frozen=True)
class SideBySide:
    """The figures of all columns, of what any of the runs has results of.

    Attributes:
        first: those of the model, and of the base if there is one.
        others: those of the other runs.
        published: further columns.
    """

    suite: Suite
    first: Figures
    others: Sequence[Figures]
    published: Published

    def axes(self) -> list[Line]:
        return [self._axis(axis.name) for axis in self.suite.axes if any(each.rows for each in self._of_axis(axis.name))]

    def groups(self) -> dict[str, list[Line]]:
        """Title of a dimension -> its rows; those that are means of parts are followed by these. There is one group without a
        title if every dimension is a single row of its name."""
        groups: dict[str, list[Line]] = {}
        for row in self.suite.table.values():
            if self.has(row):
                lines = groups.setdefault(self.suite.dimensions[row.dimension], [])
                lines.append(self._row(row))
                lines += [self._part(row, part) for part in row.parts if len(row.parts) > 1]
        if all([line.title for line in lines] == [title] for title, lines in groups.items()):
            return {"": [line for lines in groups.values() for line in lines]}
        return groups

    def has(self, row: TableRow) -> bool:
        return any(each.coverage is not None for each in self._of_row(row.name))

    def has_in(self, row: TableRow, number: int) -> bool:
        """Whether a run, by its number among the columns, has results of a row."""
        return self._of_row(row.name)[number].coverage is not None

    def lines(self) -> list[Line]:
        """The rows, without their parts."""
        return [self._row(row) for row in self.suite.table.values() if self.has(row)]

    def _of_row(self, name: str) -> list[OfRow]:
        one = self.first.rows[name]
        return [one.model, *([] if one.base is None else [one.base]), *[each.rows[name].model for each in self.others]]

    def _of_axis(self, name: str) -> list[OfAxis]:
        one = self.first.axes[name]
        return [one.model, *([] if one.base is None else [one.base]), *[each.axes[name].model for each in self.others]]

    def _axis(self, name: str) -> Line:
        axis = self.suite.axis(name)
        ours = [Cell(each.value, each.interval, each.missing, _rows(each)) for each in self._of_axis(name)]
        means = [self.suite.mean(axis, _estimates(rows)) for rows in self.published.values()]
        theirs = [Cell(None if each is None else each.value) for each in means]
        return Line(axis.title, "", (*ours, *theirs), _delta(self.first.axes[name].delta), axis.higher_is_better)

    def _row(self, row: TableRow) -> Line:
        ours = [Cell(each.value, each.interval, each.missing, _coverage(each)) for each in self._of_row(row.name)]
        theirs = [Cell(rows.get(row.name)) for rows in self.published.values()]
        remarks = [f"mean of {len(row.parts)} parts"] if len(row.parts) > 1 else []
        remarks += ["not in the dimension's mean"] if row.full is None else []
        delta = _delta(self.first.rows[row.name].delta)
        return Line(row.title, row.unit, (*ours, *theirs), delta, row.higher_is_better, "; ".join(remarks))

    def _part(self, row: TableRow, part: Row) -> Line:
        task = next(task for task in row.tasks if part in task.rows).name
        runs = [self.first.model, *([] if self.first.base is None else [self.first.base])]
        runs += [each.model for each in self.others]
        cells = [_part_cell(run.results.get(task), part.name) for run in runs]
        cells += [Cell(None)] * len(self.published)
        delta = _delta(self.first.parts.get(part.name))
        return Line(part.title, part.unit, cells, delta, part.higher_is_better, f"part of {row.title}")


def _part_cell(results: Results | None, name: str) -> Cell:
    figure = None if results is None else results.figures.get(name)
    if figure is None:
        return Cell(None, None, NO_RESULTS)
    draws = None if figure.draws is None else Estimate(figure.value, figure.draws).interval
    return Cell(figure.value, draws, figure.missing, _documents(results.coverage))


def _documents(coverage: Coverage) -> str:
    return f"{coverage.scored:,} of {coverage.expected:,} document{'' if coverage.expected == 1 else 's'}"


def _estimates(rows: Mapping[str, float]) -> dict[str, Estimate]:
    return {name: Estimate(value) for name, value in rows.items()}


def _rows(of: OfAxis) -> str | None:
    """Of how many rows a mean is; None where there is only one, or where the reason why there is no mean says it."""
    return f"{of.rows} of {of.of} rows" if of.missing is None and of.of > 1 else None


def _coverage(of: OfRow) -> str | None:
    return None if of.coverage is None else _documents(of.coverage)


def _delta(found: FigureOrReason | None) -> Delta | None:
    return None if found is None else Delta(found.value, found.interval, found.missing)
