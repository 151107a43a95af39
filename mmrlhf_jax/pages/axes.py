"""A radar chart and bars of the same figures: one axis per dimension, one outline or bar per series."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from markupsafe import Markup

from mmrlhf_jax.intervals import Interval
from mmrlhf_jax.pages.parts import element
from mmrlhf_jax.pages.series import bar_swatch, key, marker, outline_swatch

_SIZE, _MIDDLE, _RADIUS = (500, 400), (250.0, 200.0), 142.0
_RINGS = (0.25, 0.5, 0.75, 1.0)
_LINE = 16  # from one line of an axis's label to the next
_LONGEST_LINE = 13  # characters of an axis's label, which is broken between words


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure and the ends of its 95 % interval; None where there is none."""

    value: float | None
    interval: Interval | None = None


NOTHING = Figure(None)


@dataclasses.dataclass(frozen=True)
class Axis:
    """A dimension: one figure per series, on a scale from `low` to `high`."""

    name: str
    figures: Sequence[Figure]
    higher_is_better: bool = True
    low: float = 0.0
    high: float = 100.0

    @property
    def marked(self) -> str:
        """The name, with an arrow if lower is better."""
        return self.name if self.higher_is_better else f"{self.name} ↓"

    @property
    def said(self) -> str:
        """The name as it is read out, with the direction in words."""
        return self.name if self.higher_is_better else f"{self.name} (lower is better)"

    def share(self, value: float) -> float:
        """The place of a value between the worst (0) and the best (1) end of the scale; what lies outside is at its end."""
        share = min(max((value - self.low) / (self.high - self.low), 0.0), 1.0)
        return share if self.higher_is_better else 1 - share


def shown(figure: Figure) -> str:
    """A figure as text with one digit behind the point; a dash where there is none."""
    return "–" if figure.value is None else f"{figure.value:.1f}".replace("-", "−")


# The radar ------------------------------------------------------------------------------------------------------------


def radar(title: str, names: Sequence[str], axes: Sequence[Axis]) -> Markup:
    """An outline per series; on every axis further out is better. A series has a gap where an axis has no figure of it."""
    grid = [_ring(share, len(axes)) for share in _RINGS]
    grid += [_ring_label(axes[0], share, len(axes)) for share in _RINGS]
    spokes = [element("line", x1=_MIDDLE[0], y1=_MIDDLE[1], x2=x, y2=y, class_="grid") for x, y in _ends(len(axes))]
    labels = [_label(axis.marked, i, len(axes)) for i, axis in enumerate(axes)]
    outlines = [_outline(number, axes) for number in reversed(range(len(names)))]  # the first lies above the others
    drawn = [element("title", _read_out(title, names, axes)), *grid, *spokes, *labels, *outlines]
    drawing = element("svg", *drawn, viewBox=f"0 0 {_SIZE[0]} {_SIZE[1]}", role="img", class_="radar")
    return element("figure", element("figcaption", element("b", title), key(names, outline_swatch)), drawing)


def _point(axis: int, count: int, share: float) -> tuple[float, float]:
    angle = math.radians(360 * axis / count - 90)
    return _MIDDLE[0] + share * _RADIUS * math.cos(angle), _MIDDLE[1] + share * _RADIUS * math.sin(angle)


def _ends(count: int) -> list[tuple[str, str]]:
    return [(f"{x:.1f}", f"{y:.1f}") for x, y in (_point(i, count, 1.0) for i in range(count))]


def _ring(share: float, count: int) -> Markup:
    return element("polygon", points=_path([_point(i, count, share) for i in range(count)]), class_="grid ring")


def _ring_label(axis: Axis, share: float, count: int) -> Markup:
    """The value that a ring has on the first axis, which points up."""
    x, y = _point(0, count, share)
    value = axis.low + (share if axis.higher_is_better else 1 - share) * (axis.high - axis.low)
    return element("text", f"{value:g}", x=f"{x - 4:.1f}", y=f"{y + 11:.1f}", text_anchor="end", class_="ring")


def _path(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _outline(number: int, axes: Sequence[Axis]) -> Markup:
    """The markers of a series, and lines between those of neighbouring axes."""
    points = [
        None if (value := axis.figures[number].value) is None else _point(i, len(axes), axis.share(value))
        for i, axis in enumerate(axes)
    ]
    class_ = f"outline s{number}"
    if None not in points:
        lines = [element("polygon", points=_path(points), class_=class_)]
    else:
        neighbours = zip(points, [*points[1:], points[0]], strict=True)
        lines = [element("polyline", points=_path(pair), class_=class_) for pair in neighbours if None not in pair]
    return element("g", *lines, *[marker(number, *point) for point in points if point is not None])


def _label(text: str, axis: int, count: int) -> Markup:
    """An axis's name outside of the rim, in lines of whole words."""
    angle = math.radians(360 * axis / count - 90)
    x, y = (_MIDDLE[0] + (_RADIUS + 12) * math.cos(angle), _MIDDLE[1] + (_RADIUS + 12) * math.sin(angle))
    anchor = "middle" if abs(math.cos(angle)) < 0.2 else "start" if math.cos(angle) > 0 else "end"
    lines = _broken(text)
    first = y + 4 - _LINE * (len(lines) - 1) * (1 - math.sin(angle)) / 2  # above the rim the last line is next to it
    spans = [element("tspan", line, x=f"{x:.1f}", y=f"{first + _LINE * i:.1f}") for i, line in enumerate(lines)]
    return element("text", *spans, text_anchor=anchor, class_="group")


def _broken(text: str) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and len(longer) > _LONGEST_LINE and word != "↓":
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _read_out(title: str, names: Sequence[str], axes: Sequence[Axis]) -> str:
    """What a screen reader says of a chart."""
    said = [", ".join(f"{name} {shown(figure)}" for name, figure in zip(names, axis.figures, strict=True)) for axis in axes]
    return f"{title}. " + "; ".join(f"{axis.said}: {figures}" for axis, figures in zip(axes, said, strict=True))


# Bars -----------------------------------------------------------------------------------------------------------------

_BAR, _STEP, _SCALE = 10, 17, 17  # height of a bar, of its line, and of the labels of the scale below, in pixels
_WIDEST = 80  # width of the whole scale, in percent


def bars(title: str, names: Sequence[str], axes: Sequence[Axis]) -> Markup:
    """A bar per figure with its interval, grouped by axis. Widths are in percent, so that texts have one size on every
    screen."""
    groups = [element("div", _heading(axis), _group(names, axis), class_="axis-bars") for axis in axes]
    caption = element("figcaption", element("b", title), key(names, bar_swatch))
    return element("figure", caption, element("div", *groups, class_="axes-bars"), class_="bars")


def _heading(axis: Axis) -> Markup:
    remark = "" if axis.higher_is_better else element("span", " ↓ lower is better", class_="muted")
    return element("p", element("b", axis.name), remark)


def _group(names: Sequence[str], axis: Axis) -> Markup:
    height = _STEP * len(names)
    drawn = [element("title", _read_out("Bars", names, [axis]))]
    for place, end, anchor in ((0, axis.low, "start"), (_WIDEST, axis.high, "middle")):
        drawn.append(element("line", x1=f"{place}%", x2=f"{place}%", y1=0, y2=height + 3, class_="axis"))
        label = f"{end:g}".replace("-", "−")
        drawn.append(element("text", label, x=f"{place}%", y=height + _SCALE - 3, text_anchor=anchor, class_="scale"))
    for number, figure in enumerate(axis.figures):
        drawn += _bar(number, figure, axis, _STEP * number + _STEP / 2)
    return element("svg", *drawn, role="img", style=f"height:{height + _SCALE}px")


def _bar(number: int, figure: Figure, axis: Axis, y: float) -> list[Markup]:
    if figure.value is None:
        return [element("text", "–", x=4, y=y, dominant_baseline="central")]
    end, top = _place(figure.value, axis), y - _BAR / 2
    drawn = [element("rect", x=0, y=top, width=f"{end:.2f}%", height=_BAR, class_=f"filled s{number}")]
    if figure.interval is not None:
        low, high = (_place(value, axis) for value in figure.interval)
        ends = {"x1": f"{low:.2f}%", "x2": f"{high:.2f}%", "y1": y, "y2": y}
        drawn += [element("line", **ends, class_="halo"), element("line", **ends, class_="whisker")]
        end = max(end, high)
    text = element("text", shown(figure), x=f"{end:.2f}%", dx=7, y=y, dominant_baseline="central")
    return [*drawn, text]


def _place(value: float, axis: Axis) -> float:
    """The end of a bar, in percent of the drawing's width."""
    return _WIDEST * min(max((value - axis.low) / (axis.high - axis.low), 0.0), 1.0)


STYLE = """
.radar{max-width:600px;margin:0 auto}.grid.ring{fill:none}.radar{overflow:visible}
svg text.ring{font-size:11px;paint-order:stroke;stroke:var(--card);stroke-width:3px}.radar text.group{font-size:14px}
@media (max-width:640px){svg text.ring{font-size:15px}.radar text.group{font-size:16.5px}}
.axes-bars{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(260px,100%),1fr));gap:6px 28px;padding:4px}
.axis-bars{break-inside:avoid}.axis-bars p{margin:4px 0 2px;font-size:.84rem}.whisker{stroke:var(--ink);stroke-width:2}
.halo{stroke:var(--card);stroke-width:5}
.axis-bars svg text{fill:var(--ink);paint-order:stroke;stroke:var(--card);stroke-width:4px}
.axis-bars svg text.scale{fill:var(--muted)}
@media print{figure.bars{break-inside:auto}.bars figcaption{break-after:avoid}}
"""
