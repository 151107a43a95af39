"""Charts of differences with intervals, one row per objective."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from mmrlhf_jax.pages.parts import element
from tests.benchmarks.drs_study.analysis import Difference, Key
from tests.benchmarks.drs_study.variants import VARIANTS

if TYPE_CHECKING:
    from tests.benchmarks.drs_study.report import Findings

WIDTH, ROW, LABELS = 960, 22, 330  # pixels


def forest(found: Findings, baseline: str, differences: Mapping[Key, Difference], level: float) -> Markup:
    """The differences in the share right of all variants at one level, as points with intervals."""
    rows = [(name, differences[level, name]) for name in found.sizes.variants if name != baseline]
    ends = [100 * end for difference in differences.values() for end in difference.interval]
    low, high = min([*ends, -1.0]), max([*ends, 1.0])

    def x(value: float) -> float:
        return LABELS + (value - low) / (high - low) * (WIDTH - LABELS - 70)

    height = ROW * len(rows) + 26
    drawn = [element("line", x1=f"{x(0):.1f}", x2=f"{x(0):.1f}", y1=0, y2=height - 24, class_="axis")]
    for place, (name, difference) in enumerate(rows):
        drawn += _row(VARIANTS[name].title, difference, 100.0, x, ROW * place + ROW / 2)
    drawn += [
        element("text", f"{value:+g}".replace("-", "−"), x=f"{x(value):.1f}", y=height - 8, text_anchor="middle")
        for value in _ticks(low, high)
    ]
    base = found.mean("right", level, baseline)
    caption = f"{level_name(level)}: points more or less than {VARIANTS[baseline].title} ({100 * base:.1f} % right)"
    drawing = element("svg", element("title", caption), *drawn, viewBox=f"0 0 {WIDTH} {height}", role="img")
    return element("div", element("figure", element("figcaption", element("b", caption)), drawing), class_="scroll wide")


def _row(title: str, difference: Difference, factor: float, x: Callable[[float], float], y: float) -> list[Markup]:
    low, high = (factor * end for end in difference.interval)
    kind = ("good" if difference.value > 0 else "bad") if difference.holds else "plain"
    value = factor * difference.value
    return [
        element("text", title, x=LABELS - 12, y=f"{y:.1f}", text_anchor="end", dominant_baseline="middle"),
        element("line", x1=f"{x(low):.1f}", x2=f"{x(high):.1f}", y1=f"{y:.1f}", y2=f"{y:.1f}", class_="interval"),
        element(
            "circle",
            element("title", f"{title}: {signed(value)}"),
            cx=f"{x(value):.1f}",
            cy=f"{y:.1f}",
            r=5,
            class_=f"dot {kind}",
        ),
        element("text", signed(value), x=WIDTH - 4, y=f"{y:.1f}", text_anchor="end", dominant_baseline="middle"),
    ]


def _ticks(low: float, high: float) -> list[float]:
    step = next(s for s in (0.5, 1, 2, 5, 10, 20, 50) if (high - low) / s <= 8)
    return [step * i for i in range(int(np.ceil(low / step)), int(np.floor(high / step)) + 1)]


def level_name(level: float) -> str:
    return f"{100 * level:.0f} % wrong pairs"


def signed(value: float, digits: int = 1) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")
