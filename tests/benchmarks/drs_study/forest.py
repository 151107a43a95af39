"""Charts of differences with intervals, one row per objective."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from markupsafe import Markup

from mmrlhf_jax.pages.charts import ticks
from mmrlhf_jax.pages.parts import element, signed
from tests.benchmarks.drs_study.analysis import Difference, Key
from tests.benchmarks.drs_study.variants import VARIANTS

if TYPE_CHECKING:
    from tests.benchmarks.drs_study.report import Findings

WIDTH, ROW, LABELS, NUMBERS = 960, 22, 330, 120  # pixels
LEGEND = (
    "Green and red points are differences that hold, better and worse; grey ones can be chance. Lines are intervals of about"
    " 95 %. At the right stand the difference in points, and the mean β of all steps and seeds."
)


def forest(found: Findings, differences: Mapping[Key, Difference], level: float) -> Markup:
    """The differences in the share right of all variants at one level, as points with intervals; beside them the mean β."""
    rows = [(name, difference) for (at, name), difference in differences.items() if at == level]
    ends = [100 * end for difference in differences.values() for end in difference.interval]
    low, high = min([*ends, -1.0]), max([*ends, 1.0])

    def x(value: float) -> float:
        return LABELS + (value - low) / (high - low) * (WIDTH - LABELS - NUMBERS)

    height = ROW * len(rows) + 26
    drawn = [element("line", x1=f"{x(0):.1f}", x2=f"{x(0):.1f}", y1=0, y2=height - 24, class_="axis")]
    for place, (name, difference) in enumerate(rows):
        drawn += _row(VARIANTS[name].title, difference, found.mean_beta(level, name), x, ROW * place + ROW / 2)
    drawn += [
        element("text", f"{value:+g}".replace("-", "−"), x=f"{x(value):.1f}", y=height - 8, text_anchor="middle")
        for value in ticks(low, high, most=8)
    ]
    bases = dict.fromkeys(difference.baseline for _, difference in rows)
    shares = (f"{VARIANTS[name].title} ({100 * found.mean('right', level, name):.1f} % right)" for name in bases)
    caption = f"{level_name(level)}: points more or less than {' or '.join(shares)}"
    drawing = element("svg", element("title", caption), *drawn, viewBox=f"0 0 {WIDTH} {height}", role="img")
    return element("div", element("figure", element("figcaption", element("b", caption)), drawing), class_="scroll wide")


def _row(title: str, difference: Difference, beta: float, x: Callable[[float], float], y: float) -> list[Markup]:
    low, high = (100 * end for end in difference.interval)
    kind = ("good" if difference.value > 0 else "bad") if difference.holds else "plain"
    value = 100 * difference.value
    return [
        element("text", title, x=LABELS - 12, y=f"{y:.1f}", text_anchor="end", dominant_baseline="middle"),
        element("line", x1=f"{x(low):.1f}", x2=f"{x(high):.1f}", y1=f"{y:.1f}", y2=f"{y:.1f}", class_="interval"),
        element(
            "circle",
            element("title", f"{title}: {signed(value, 1)}"),
            cx=f"{x(value):.1f}",
            cy=f"{y:.1f}",
            r=5,
            class_=f"dot {kind}",
        ),
        *[
            element("text", text, x=WIDTH - inset, y=f"{y:.1f}", text_anchor="end", dominant_baseline="middle")
            for text, inset in ((signed(value, 1), 70), (f"β {beta:.3f}", 4))
        ],
    ]


def level_name(level: float) -> str:
    return f"{100 * level:.0f} % wrong pairs"
