"""Charts as inline SVG, coloured by the page's style sheet (`parts.CSS`), so that they follow light and dark mode."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

from markupsafe import Markup

from mmrlhf_jax.pages.parts import element, percent

Point = tuple[float, float]

MOST_POINTS = 400  # most points of a drawn line, because a chart has fewer pixels than a long run has steps
_MARGIN_LEFT, _MARGIN_RIGHT, _MARGIN_TOP, _MARGIN_BOTTOM = 42, 12, 10, 34


@dataclasses.dataclass(frozen=True)
class Line:
    """A curve. `colour` is a palette number (0 grey, 1 blue, 2 orange); behind a smoothed curve the raw one is drawn
    faintly."""

    name: str
    points: Sequence[Point]
    colour: int = 1
    smooth: bool = True


@dataclasses.dataclass(frozen=True)
class Dot:
    x: float
    y: float
    radius: float
    colour: str  # a class of the style sheet: good, bad, c1
    label: str = ""
    interval: Point | None = None  # the ends of a vertical line through the dot


@dataclasses.dataclass(frozen=True)
class Bars:
    """A histogram behind curves: one bar per interval between adjacent `edges`. Its counts have no axis; the highest bar is as
    high as the chart."""

    name: str
    edges: Sequence[float]
    counts: Sequence[float]


def smoothed(values: Sequence[float], places: Iterable[int]) -> list[float]:
    """Centred moving means at the indices `places`. The window is a twelfth of all values wide, and truncated at both ends."""
    half = len(values) // 24
    windows = [values[max(i - half, 0) : i + half + 1] for i in places]
    return [math.fsum(window) / len(window) for window in windows]


def drawn_places(count: int) -> list[int]:
    """The indices of the values to draw out of `count`: about `MOST_POINTS`, including the last one."""
    return sorted({*range(0, count, -(-count // MOST_POINTS)), count - 1})


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """At most about `most` round numbers within [low, high]."""
    step = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(step * factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= most)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def line_chart(
    title: str,
    lines: Sequence[Line],
    *,
    x_label: str,
    dots: Sequence[Dot] = (),
    bars: Bars | None = None,
    y_range: tuple[float, float] | None = None,
    size: tuple[int, int] = (320, 190),
) -> Markup:
    """A figure: title, a key with the last value of each smoothed line, bars, curves, dots. The x axis spans all of them."""
    lines = [line for line in lines if line.points]
    if not lines:
        return element("figure", element("figcaption", title), element("p", "not logged", class_="muted"))
    xs = [x for line in lines for x, _ in line.points] + [dot.x for dot in dots]
    xs += [] if bars is None else [bars.edges[0], bars.edges[-1]]
    ys = [y for line in lines for _, y in line.points] + [dot.y for dot in dots]
    axes = _Axes((min(xs), max(xs)), y_range or (min(ys), max(ys)), size)
    drawn, keys = [], []
    if bars is not None:
        scale = (axes.y_range[1] - axes.y_range[0]) / (max(bars.counts) or 1)
        heights = [axes.y_range[0] + count * scale for count in bars.counts]
        drawn += _bars(axes, bars.edges, heights, axes.y_range[0], bars.counts, "bar c0")
        keys.append(element("span", swatch(element("rect", x=6, y=2, width=14, height=10, class_="bar c0")), bars.name))
    for line in lines:
        places = drawn_places(len(line.points))
        shown = [line.points[i] for i in places]
        if line.smooth:
            drawn.append(axes.curve(shown, f"line raw c{line.colour}"))
            means = smoothed([y for _, y in line.points], places)
            shown = [(x, mean) for (x, _), mean in zip(shown, means, strict=True)]
        drawn.append(axes.curve(shown, f"line c{line.colour}"))
        last = element("b", f"{shown[-1][1]:.3g}") if line.smooth else ""
        drawing = element("line", x1=1, x2=25, y1=7, y2=7, class_=f"line c{line.colour}")
        keys.append(element("span", swatch(drawing), line.name, " ", last))
    for dot in dots:
        if dot.interval is not None:
            low, high = (_px(axes.y(end)) for end in dot.interval)
            drawn.append(element("line", x1=_px(axes.x(dot.x)), x2=_px(axes.x(dot.x)), y1=low, y2=high, class_="whisker"))
        circle = {"cx": _px(axes.x(dot.x)), "cy": _px(axes.y(dot.y)), "r": _px(dot.radius), "class_": f"dot {dot.colour}"}
        drawn.append(element("circle", element("title", dot.label), **circle))
    return _figure(title, keys, axes.frame(x_label), *drawn, size=size)


def bar_chart(title: str, groups: Sequence[str], series: Sequence[tuple[str, Sequence[float | None], int]]) -> Markup:
    """Shares in [0, 1] as bars, grouped; `series` are (name, a share per group, palette number)."""
    size = (960, 230)
    axes = _Axes((0, len(groups)), (0, 1), size)
    width = (axes.x(1) - axes.x(0)) * 0.78 / max(len(series), 1)
    drawn = []
    for g, group in enumerate(groups):
        middle = axes.x(g + 0.5)
        drawn.append(element("text", group, x=_px(middle), y=size[1] - 14, class_="group", text_anchor="middle"))
        for s, (name, shares, colour) in enumerate(series):
            if shares[g] is None:
                continue
            x, top, floor = middle + (s - len(series) / 2) * width, axes.y(shares[g]), axes.y(0)
            tip = element("title", f"{name}, {group}: {percent(shares[g])}")
            box = {"x": _px(x + 1), "y": _px(top), "width": _px(width - 2), "height": _px(floor - top), "rx": 2}
            drawn.append(element("rect", tip, class_=f"bar c{colour}", **box))
            value = f"{100 * shares[g]:.0f}"
            drawn.append(element("text", value, x=_px(x + width / 2), y=_px(max(top - 4, 9)), text_anchor="middle"))
    boxes = [element("rect", x=6, y=2, width=14, height=10, class_=f"bar c{colour}") for _, _, colour in series]
    keys = [element("span", swatch(box), name) for box, (name, _, _) in zip(boxes, series, strict=True)]
    return element("div", _figure(title, keys, axes.frame(None, percents=True), *drawn, size=size), class_="scroll wide")


def histogram(title: str, values: Sequence[float], *, x_label: str, whole: bool = False, bins: int = 24) -> Markup:
    """A histogram of values in `bins` intervals, or for few different integers with one bar per number."""
    numbers = [float(value) for value in values]
    if not numbers:
        return element("figure", element("figcaption", title), element("p", "none", class_="muted"))
    low, high = min(numbers), max(numbers)
    if whole or len(set(numbers)) <= 2 or (all(value.is_integer() for value in numbers) and high - low < bins):
        low, high = (low - 1.5, high + 1.5) if low == high else (low - 0.5, high + 0.5)
        bins = min(bins, round(high - low)) if all(value.is_integer() for value in numbers) else bins
    width = (high - low) / bins
    counts = [0] * bins
    for value in numbers:
        counts[min(int((value - low) / width), bins - 1)] += 1
    edges = [low + i * width for i in range(bins + 1)]
    middle = sorted(numbers)[len(numbers) // 2]
    return binned(title, edges, counts, x_label=x_label, key=("median", f"{middle:g}"))


def binned(
    title: str, edges: Sequence[float], counts: Sequence[float], *, x_label: str, key: tuple[str, str] | None = None
) -> Markup:
    """A chart with a bar per interval between adjacent edges; `key` is a (name, figure) to show beside the title."""
    size = (320, 190)
    axes = _Axes((edges[0], edges[-1]), (0, max(counts)), size)
    drawn = _bars(axes, edges, counts, 0, counts, "bar c1")
    keys = [] if key is None else [element("span", f"{key[0]} ", element("b", key[1]))]
    return _figure(title, keys, axes.frame(x_label), *drawn, size=size)


def _bars(
    axes: _Axes, edges: Sequence[float], tops: Sequence[float], floor: float, counts: Sequence[float], class_: str
) -> list[Markup]:
    """A bar per interval between adjacent edges, from `floor` to its top; `counts` are what their tips say."""
    drawn = []
    for left, right, top, count in zip(edges, edges[1:], tops, counts, strict=False):
        tip = element("title", f"{left:.6g} to {right:.6g}: {count:.6g}")
        box = {"x": _px(axes.x(left) + 0.5), "y": _px(axes.y(top)), "width": _px(max(axes.x(right) - axes.x(left) - 1, 1))}
        drawn.append(element("rect", tip, class_=class_, height=_px(axes.y(floor) - axes.y(top)), rx=1, **box))
    return drawn


def swatch(*drawn: Markup) -> Markup:
    """What a line or a bar looks like, for the key of a chart: a drawing of 30 x 14."""
    return element("svg", *drawn, viewBox="0 0 30 14", class_="swatch", aria_hidden="true")


class _Axes:
    """Maps values to pixels."""

    def __init__(self, x_range: Point, y_range: Point, size: tuple[int, int]):
        self.width, self.height = size
        self.x_range, self.y_range = _widened(*x_range), _widened(*y_range)

    def x(self, value: float) -> float:
        low, high = self.x_range
        return _MARGIN_LEFT + (value - low) / (high - low) * (self.width - _MARGIN_LEFT - _MARGIN_RIGHT)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return self.height - _MARGIN_BOTTOM - (value - low) / (high - low) * (self.height - _MARGIN_TOP - _MARGIN_BOTTOM)

    def curve(self, points: Sequence[Point], class_: str) -> Markup:
        path = " ".join(f"{_px(self.x(x))},{_px(self.y(y))}" for x, y in points)
        return element("polyline", points=path, class_=class_)

    def frame(self, x_label: str | None, *, percents: bool = False) -> Markup:
        """Grid lines and labels of both axes; without `x_label`, the x axis is left to the caller."""
        left, right, floor = _MARGIN_LEFT, self.width - _MARGIN_RIGHT, self.height - _MARGIN_BOTTOM
        parts = []
        for value in ticks(*self.y_range):
            y, text = _px(self.y(value)), f"{100 * value:g} %" if percents else _short(value)
            parts.append(element("line", x1=left, x2=right, y1=y, y2=y, class_="grid"))
            parts.append(element("text", text, x=left - 6, y=y, text_anchor="end", dominant_baseline="middle"))
        parts.append(element("line", x1=left, x2=right, y1=floor, y2=floor, class_="axis"))
        if x_label is not None:
            for value in ticks(*self.x_range, most=self.width // 60):
                x = _px(self.x(value))
                parts.append(element("line", x1=x, x2=x, y1=floor, y2=floor + 4, class_="axis"))
                parts.append(element("text", _short(value), x=x, y=floor + 15, text_anchor="middle"))
            parts.append(element("text", x_label, x=right, y=self.height - 5, text_anchor="end", class_="name"))
        return Markup("").join(parts)


def _figure(title: str, keys: Sequence[Markup], *drawn: Markup, size: tuple[int, int]) -> Markup:
    drawing = element("svg", element("title", title), *drawn, viewBox=f"0 0 {size[0]} {size[1]}", role="img")
    return element("figure", element("figcaption", element("b", title), *keys), drawing)


def _widened(low: float, high: float) -> Point:
    """The interval, widened if it is empty."""
    return (low, high) if high > low else (low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2)


def _short(value: float) -> str:
    """A tick's label: a decimal number, or in scientific notation if that is shorter."""
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    decimal, scientific = f"{value:.12f}".rstrip("0").rstrip("."), f"{value / 10.0**exponent:g}e{exponent}"
    return decimal if len(decimal) <= max(len(scientific), 5) else scientific


def _px(value: float) -> str:
    return f"{value:.1f}"
