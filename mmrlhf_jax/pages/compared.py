"""Figures of several models side by side, as a table: values with intervals and coverage, differences with verdicts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

from markupsafe import Markup

from mmrlhf_jax.intervals import Interval
from mmrlhf_jax.pages.parts import chip, element, join, scrolled

Kind = Literal["model", "base", "other", "published"]
Verdict = Literal["better", "worse", "unclear"]


@dataclasses.dataclass(frozen=True)
class Column:
    """Whose figures these are: the model's, those of the base that it is compared with, another run's, or published ones."""

    name: str
    kind: Kind


@dataclasses.dataclass(frozen=True)
class Cell:
    """A figure in a column.

    Attributes:
        value: the figure; None if there is none.
        interval: the ends of its 95 % interval.
        missing: why there is no value, in words.
        coverage: what it is a figure of: "58 of 60 documents".
    """

    value: float | None
    interval: Interval | None = None
    missing: str | None = None
    coverage: str | None = None


@dataclasses.dataclass(frozen=True)
class Delta:
    """The model's figure minus the base's, with its paired 95 % interval; or why they are not compared."""

    value: float | None
    interval: Interval | None = None
    missing: str | None = None


@dataclasses.dataclass(frozen=True)
class Line:
    """A row of the table: one cell per column. `remark` says what else there is to know about it."""

    title: str
    unit: str
    cells: Sequence[Cell]
    delta: Delta | None
    higher_is_better: bool = True
    remark: str = ""

    @property
    def verdict(self) -> Verdict | None:
        """Whether the model is better than the base; unclear if the interval of the difference has both signs. None where
        there is no difference with an interval."""
        if self.delta is None or self.delta.interval is None:
            return None
        low, high = self.delta.interval
        if low <= 0 <= high:
            return "unclear"
        return "better" if (low > 0) == self.higher_is_better else "worse"


_FIGURES = 80  # width of all columns of figures together, in percent of the table
VERDICTS = "A difference counts as better or worse if its 95 % interval does not contain 0; otherwise it is unclear."


def compared(label: str, columns: Sequence[Column], groups: Mapping[str, Sequence[Line]]) -> Markup:
    """The table. `groups` are its lines by heading; a single group without a name has no heading."""
    with_delta = any(column.kind == "base" for column in columns)
    heads = _heads(columns, with_delta)
    width = f"width:{_FIGURES / len(heads):.1f}%"  # one for all, so that intervals are not broken in one column alone
    top = element("tr", element("td"), *[element("th", head, scope="col", style=width) for head in heads])
    bodies = [_body(name, lines, columns, with_delta, len(heads) + 1) for name, lines in groups.items()]
    return scrolled(element("table", element("thead", top), *bodies, class_="numbers compared"), label)


def _heads(columns: Sequence[Column], with_delta: bool) -> list[Markup]:
    """Those of the columns; the difference stands behind the base."""
    heads = []
    for column in columns:
        heads.append(join(element("bdi", column.name), element("small", _KINDS[column.kind])))
        if column.kind == "base" and with_delta:
            heads.append(join("difference", element("small", "model minus base")))
    return heads


_KINDS: Mapping[Kind, str] = {"model": "the model", "base": "the base", "other": "another run", "published": "published"}


def _body(name: str, lines: Sequence[Line], columns: Sequence[Column], with_delta: bool, width: int) -> Markup:
    head = [element("tr", element("th", name, scope="rowgroup", colspan=width, class_="group"))] if name else []
    return element("tbody", *head, *[_line(line, columns, with_delta) for line in lines])


def _line(line: Line, columns: Sequence[Column], with_delta: bool) -> Markup:
    direction = "" if line.higher_is_better else "↓ lower is better"
    remarks = [text for text in (line.unit, direction, line.remark) if text]
    title = element("th", line.title, *([element("small", "; ".join(remarks))] if remarks else []), scope="row")
    cells = []
    for column, cell in zip(columns, line.cells, strict=True):
        cells.append(element("td", *_value(cell), class_=column.kind))
        if column.kind == "base" and with_delta:
            cells.append(element("td", *_delta(line), class_="delta"))
    return element("tr", title, *cells)


def _value(cell: Cell) -> list[Markup | str]:
    coverage = [element("small", cell.coverage)] if cell.coverage else []
    if cell.value is None:
        return ["–", *([element("small", cell.missing, class_="why")] if cell.missing else []), *coverage]
    return [value_text(cell.value), *([] if cell.interval is None else [_interval(cell.interval)]), *coverage]


def _interval(interval: Interval, sign: bool = False) -> Markup:
    low, high = (signed_text(end) if sign else value_text(end) for end in interval)
    return element("small", f"{low} to {high}")


def _delta(line: Line) -> list[Markup | str]:
    delta = line.delta
    if delta is None or delta.value is None:
        return ["–", *([element("small", delta.missing, class_="why")] if delta is not None and delta.missing else [])]
    shown: list[Markup | str] = [signed_text(delta.value)]
    if delta.interval is not None:
        shown.append(_interval(delta.interval, sign=True))
    return [*shown, *([] if line.verdict is None else [verdict_chip(line.verdict)])]


_SIGNS: Mapping[Verdict, tuple[str, bool | None]] = {
    "better": ("▲ better", True),
    "worse": ("▼ worse", False),
    "unclear": ("≈ unclear", None),
}


def verdict_chip(verdict: Verdict) -> Markup:
    return chip(*_SIGNS[verdict])


def value_text(value: float) -> str:
    """Two digits behind the point, as in the paper's tables; one for large figures. What rounds to 0 has no sign."""
    value = round(value, 2) + 0.0
    return (f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.2f}").replace("-", "−")


def signed_text(value: float, digits: int = 2) -> str:
    """A difference with its sign, which it does not have if it rounds to 0."""
    digits = 1 if abs(value) >= 1000 else digits
    value = round(value, digits) + 0.0
    return f"{value:+,.{digits}f}".replace("-", "−") if value else f"{value:.{digits}f}"


STYLE = """
.compared{min-width:640px}.compared th:first-child,.compared td:first-child{position:sticky;left:0;background:var(--bg);
min-width:8.5rem;max-width:13rem;font-size:.88rem;color:var(--ink);z-index:1}
.compared tbody th{font-weight:600}.compared .group{padding-top:1.3rem;color:var(--ink);font-size:.95rem;max-width:none}
.compared thead th{vertical-align:bottom;overflow-wrap:break-word;min-width:5.6rem;max-width:11rem}
.compared small{display:block;font-weight:400;line-height:1.35}
.compared td small{white-space:nowrap}.compared td small.why{white-space:normal;min-width:3.7rem}
.compared td.delta .chip{margin-top:3px}
.compared td.model{font-weight:600}.compared td.published{color:var(--muted)}
@media (max-width:640px){.compared{min-width:0;font-size:.8rem}
.compared td small{white-space:normal;max-width:4.6rem;margin-left:auto;font-size:.72rem}
.compared .chip{font-size:.68rem;padding:0 6px}
.compared th:first-child,.compared td:first-child{min-width:5.7rem;max-width:7rem;hyphens:auto;font-size:.76rem}
.compared thead th{min-width:4rem;max-width:5.4rem;font-size:.72rem}.compared thead small{font-size:.7rem}
.compared th,.compared td{padding-right:9px}}
@media print{.compared{min-width:0;font-size:.72rem}.compared small{font-size:.92em}.compared tr{break-inside:avoid}
.compared th:first-child,.compared td:first-child{position:static}.compared thead th,.compared td{min-width:0}
.compared td small{white-space:normal}.compared tr:has(>.group){break-after:avoid}}
"""
