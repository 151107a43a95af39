"""How the series of a chart look. Each has a colour, a dash and a marker of its own, so that they differ in grey as well."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from markupsafe import Markup

from mmrlhf_jax.pages.charts import swatch
from mmrlhf_jax.pages.parts import element

MOST_SERIES = 6  # with more, the lines of a chart can no longer be told apart


def _corners(count: int, turn: float, size: float = 1.0) -> tuple[tuple[float, float], ...]:
    """The corners of a regular polygon around (0, 0); `turn` is the angle of the first one, in degrees."""
    angles = (math.radians(turn + 360 * i / count) for i in range(count))
    return tuple((size * math.cos(angle), size * math.sin(angle)) for angle in angles)


# The markers, as corners of polygons with a radius of about 1; the first is a circle.
_MARKERS = ((), _corners(4, 45, 1.15), _corners(3, -90, 1.3), _corners(4, 0, 1.3), _corners(3, 90, 1.3), _corners(6, 0, 1.15))


def marker(number: int, x: float, y: float, size: float = 3.5) -> Markup:
    """The marker of series `number` at a place of a drawing."""
    corners, class_ = _MARKERS[number], f"marker s{number}"
    if not corners:
        return element("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r=size, class_=class_)
    points = " ".join(f"{x + size * dx:.1f},{y + size * dy:.1f}" for dx, dy in corners)
    return element("polygon", points=points, class_=class_)


def outline_swatch(number: int) -> Markup:
    """What an outline of series `number` looks like."""
    line = element("line", x1=1, x2=29, y1=7, y2=7, class_=f"outline s{number}")
    return swatch(line, marker(number, 15, 7, 4))


def bar_swatch(number: int) -> Markup:
    """What a bar of series `number` looks like."""
    return swatch(element("rect", x=1, y=2, width=28, height=10, class_=f"filled s{number}"))


def key(names: Sequence[str], look: Callable[[int], Markup]) -> Markup:
    """The names of the series, each behind its swatch, for the caption of a chart."""
    items = [element("span", look(number), " ", element("bdi", name)) for number, name in enumerate(names)]
    return element("span", *items, class_="key")


STYLE = """
.s0{--s:var(--s0)}.s1{--s:var(--s1)}.s2{--s:var(--s2)}.s3{--s:var(--s3)}.s4{--s:var(--s4)}.s5{--s:var(--s5)}
.outline{fill:none;stroke:var(--s);stroke-width:2;stroke-linejoin:round}
.outline.s1{stroke-dasharray:7 4}.outline.s2{stroke-dasharray:2 3}.outline.s3{stroke-dasharray:9 3 2 3}
.outline.s4{stroke-dasharray:4 2}.outline.s5{stroke-dasharray:1 4}
.marker{fill:var(--s);stroke:var(--card);stroke-width:1}
.filled{fill:var(--s);fill-opacity:.85;stroke:var(--s)}.filled.s1{fill-opacity:.32}
.filled.s2{fill-opacity:0;stroke-dasharray:2 2}.filled.s3{fill-opacity:.12}
.filled.s4{fill-opacity:.55}.filled.s5{fill-opacity:0}
.key{display:flex;flex-wrap:wrap;gap:2px 16px;overflow-wrap:anywhere;min-width:0}
@media print{svg{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
"""
