"""The radar and the bars: further out is better, gaps stay gaps, and the values are read out."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree

import pytest

from mmrlhf_jax.pages import parts, series
from mmrlhf_jax.pages.axes import _MIDDLE, _RADIUS, _WIDEST, NOTHING, Axis, Figure, bars, radar


def axis(name: str, *values: float | None, **more) -> Axis:
    return Axis(name, [NOTHING if value is None else Figure(value) for value in values], **more)


def drawn(markup) -> ElementTree.Element:
    return ElementTree.fromstring(markup)


def radii(group) -> list[float]:
    """How far out the corners of a series are, as shares of the rim, in the order of the axes."""
    points = [tuple(map(float, point.split(","))) for point in group.find("polygon").get("points").split()]
    return [math.dist(point, _MIDDLE) / _RADIUS for point in points]


def test_further_out_is_better_on_every_axis():
    axes = [axis("score", 80, 20), axis("rate", 80, 20, higher_is_better=False), axis("of 5", 4, 1, high=5.0)]
    tree = drawn(radar("all", ["one", "two"], axes))
    second, first = tree.findall("svg/g")  # the first series is drawn last, above the other
    assert radii(first) == pytest.approx([0.8, 0.2, 0.8], abs=1e-3)
    assert radii(second) == pytest.approx([0.2, 0.8, 0.2], abs=1e-3)
    assert [text.find("tspan").text for text in tree.findall("svg/text[@class='group']")] == ["score", "rate ↓", "of 5"]


def test_what_lies_outside_of_the_scale_is_drawn_at_its_end():
    (group,) = drawn(radar("all", ["one"], [axis("a", 120), axis("b", -3), axis("c", 100)])).findall("svg/g")
    assert radii(group) == pytest.approx([1, 0, 1], abs=1e-3)


def test_an_axis_without_a_figure_leaves_a_gap():
    axes = [axis("a", 10), axis("b", None), axis("c", 30), axis("d", 40)]
    (group,) = drawn(radar("all", ["one"], axes)).findall("svg/g")
    assert group.find("polygon") is None and len(group.findall("polyline")) == 2  # c to d, and d to a
    assert len(group.findall("circle")) == 3
    lone = drawn(radar("all", ["one"], [axis("a", 10), axis("b", None), axis("c", None)])).find("svg/g")
    assert not lone.findall("polyline") and len(lone.findall("circle")) == 1


def test_charts_read_out_their_figures_and_escape_names():
    axes = [axis("<a>", 66.25, None), axis("b", -1, 2), axis("c", 3, 4)]
    for chart in (radar("all", ["<one>", "two"], axes), bars("all", ["<one>", "two"], axes)):
        titles = [title.text for title in drawn(chart).iter("title")]
        assert "<a>: <one> 66.2, two –" in titles[0] and "b: <one> −1.0, two 2.0" in " ".join(titles)
        assert all(drawing.get("role") == "img" or drawing.get("aria-hidden") for drawing in drawn(chart).iter("svg"))


def test_a_bar_is_as_long_as_its_figure_and_its_whisker_as_its_interval():
    tree = drawn(bars("all", ["one", "two"], [Axis("rate", [Figure(50.0, (40.0, 60.0)), NOTHING], False)]))
    (drawing,) = [svg for svg in tree.iter("svg") if svg.get("role") == "img"]
    (bar,), (whisker,) = drawing.findall("rect"), drawing.findall("line[@class='whisker']")
    assert bar.get("width") == f"{_WIDEST / 2:.2f}%"
    assert (whisker.get("x1"), whisker.get("x2")) == (f"{0.4 * _WIDEST:.2f}%", f"{0.6 * _WIDEST:.2f}%")
    assert [text.text for text in drawing.findall("text") if text.get("class") is None] == ["50.0", "–"]
    assert "↓ lower is better" in "".join(tree.itertext())


def test_bars_have_a_scale_whose_ends_are_labelled():
    for low, high, labels in ((0.0, 100.0, ["0", "100"]), (-10.0, 110.0, ["−10", "110"])):
        tree = drawn(bars("all", ["one"], [axis("a", 50, low=low, high=high), axis("b", 60, low=low, high=high)]))
        for drawing in (svg for svg in tree.iter("svg") if svg.get("role") == "img"):
            scale = [text for text in drawing.findall("text") if text.get("class") == "scale"]
            assert [text.text for text in scale] == labels
            assert [text.get("x") for text in scale] == ["0%", f"{_WIDEST}%"]
            assert {line.get("x1") for line in drawing.findall("line[@class='axis']")} == {"0%", f"{_WIDEST}%"}
            height = float(drawing.get("style").removeprefix("height:").removesuffix("px"))
            assert all(float(text.get("y")) < height for text in scale)


def test_every_series_has_a_look_of_its_own():
    markers = {str(series.marker(number, 0, 0)).replace(f" s{number}", "") for number in range(series.MOST_SERIES)}
    assert len(markers) == series.MOST_SERIES
    for number in range(series.MOST_SERIES):
        assert f".s{number}{{--s:var(--s{number})}}" in series.STYLE and parts.CSS.count(f"--s{number}:#") == 2


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize(("scheme", "card"), [(0, "#ffffff"), (1, "#1b1f25")], ids=["light", "dark"])
def test_lines_stand_out_from_the_card_that_they_are_drawn_on(scheme, card):
    for number in range(series.MOST_SERIES):
        colour = parts.CSS.split(f"--s{number}:")[1 + scheme][:7]
        light, dark = sorted((luminance(colour), luminance(card)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (number, scheme)
