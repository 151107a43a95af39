"""The page of two whole runs in a browser: on a phone and on a desk, printed, and as a screen reader has it."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

from mmrlhf_jax.commands.report import report
from mmrlhf_jax.pages.differences import PRINTED
from tests import browser
from tests.suite.support import whole_runs

pytestmark = browser.needed

PHONE, DESK = 390, 1280
MARGIN, TWO_LINES = 14 * 72 / 25.4, 25  # of a printed page, in points
# Texts that are wider than the cell of a table in which they are, and numbers that are broken over two lines.
CELLS = r"""
(() => {
  const wide = [], broken = [];
  for (const cell of document.querySelectorAll('td, th')) {
    const box = cell.getBoundingClientRect();
    const texts = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT);
    for (let node = texts.nextNode(); node; node = texts.nextNode()) {
      const range = document.createRange();
      range.selectNodeContents(node);
      for (const part of range.getClientRects())
        if (part.left < box.left - 0.5 || part.right > box.right + 0.5) wide.push(node.data);
      for (const number of node.data.matchAll(/(?<![\w\/.])[+−]?\d[\d,.]*(?!\w)/g)) {
        range.setStart(node, number.index);
        range.setEnd(node, number.index + number[0].length);
        if (range.getClientRects().length > 1 && cell.closest('.compared, .missing')) broken.push(node.data);
      }
    }
  }
  return {wide, broken, cells: document.querySelectorAll('td').length};
})()
"""
# Of texts in adjacent cells of a line: those with less than 4 pixels between them.
TOUCHING = r"""
(() => {
  const found = [];
  const edges = (cell) => {
    const range = document.createRange();
    range.selectNodeContents(cell);
    const parts = [...range.getClientRects()].filter((part) => part.width > 0);
    return [Math.min(...parts.map((part) => part.left)), Math.max(...parts.map((part) => part.right))];
  };
  for (const row of document.querySelectorAll('.compared tr, .missing tr'))
    for (let i = 1; i < row.cells.length; i++)
      if (edges(row.cells[i])[0] - edges(row.cells[i - 1])[1] < 4)
        found.push([edges(row.cells[i])[0] - edges(row.cells[i - 1])[1], row.cells[i - 1].innerText, row.cells[i].innerText]);
  return found;
})()
"""
CONTROLS = "[...document.querySelectorAll('a[href], summary, input, select, [tabindex=\"0\"]')]"
# The name of the element that has the focus, and its outline; of a button that is drawn by its label, the label's.
FOCUSED = r"""
(() => {
  const active = document.activeElement;
  const shown = active.matches('.choice') ? active.nextElementSibling : active;
  return [active.tagName, getComputedStyle(shown).outlineStyle];
})()
"""
# All pairs of a text's colour and the colour behind it, with their ratio of contrast by WCAG 2.
CONTRASTS = r"""
(() => {
  const parts = (colour) => colour.match(/[\d.]+/g).map(Number);
  const luminance = (colour) => {
    const linear = (c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = parts(colour).map((each) => linear(each / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let each = element; each; each = each.parentElement) {
      const colour = getComputedStyle(each).backgroundColor;
      if (parts(colour)[3] !== 0) return colour;
    }
  };
  const found = new Map();
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = texts.nextNode(); node; node = texts.nextNode()) {
    const element = node.parentElement;
    if (!node.data.trim() || element.closest('title') || !element.checkVisibility()) continue;
    const style = getComputedStyle(element);
    const colour = element.closest('svg') ? style.fill : style.color;
    const back = behind(element);
    const [high, low] = [luminance(colour), luminance(back)].sort((a, b) => b - a);
    found.set(colour + back, {colour, back, ratio: (high + 0.05) / (low + 0.05), text: node.data.slice(0, 40)});
  }
  return [...found.values()];
})()
"""
SMALLEST = r"""
Math.min(...[...document.querySelectorAll('svg text')].filter((text) => text.textContent.trim()).map((text) =>
  parseFloat(getComputedStyle(text).fontSize) * text.getScreenCTM().a))
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    aligned = whole_runs.write(folder / "aligned", "LLaVA-OV-7B + MM-RLHF", without=("ocrbench",))
    base = whole_runs.write(folder / "base", "LLaVA-OV-7B")
    report([str(aligned), str(base)], str(folder / "report.html"), None)
    return folder / "report.html"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with browser.running(tmp_path_factory.mktemp("browser")) as found:
        yield found


@pytest.fixture(params=[PHONE, DESK], ids=["phone", "desk"])
def opened(request, chromium, page):
    chromium.open(page, request.param)
    return chromium


@pytest.mark.long
def test_it_asks_for_nothing_and_has_no_error(opened):
    assert opened.complaints() == []


def test_errors_and_requests_would_be_seen(chromium, tmp_path):
    path = tmp_path / "page.html"
    path.write_text("<img src='http://127.0.0.1:9/a.png'><script>console.error('x'); undefined.y</script>")
    chromium.open(path, DESK)
    found = " ".join(chromium.complaints())
    assert "asks for http://127.0.0.1:9/a.png" in found and "consoleAPICalled" in found and "exceptionThrown" in found


def test_it_is_no_wider_than_the_window(opened):
    assert opened.value("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.long
def test_texts_stay_in_their_cells_and_numbers_are_whole(opened):
    opened.value("document.querySelectorAll('details').forEach((each) => each.open = true)")
    found = opened.value(CELLS)
    assert found["cells"] > 300 and found["wide"] == [] and found["broken"] == []
    assert opened.value(TOUCHING) == []


def test_texts_of_charts_can_be_read(opened):
    assert opened.value(SMALLEST) >= 9.5


def test_columns_that_do_not_fit_are_reached_by_scrolling_from_the_keyboard(chromium, page):
    chromium.open(page, PHONE)
    wide = "[...document.querySelectorAll('.scroll')].filter((each) => each.scrollWidth > each.clientWidth)"
    assert chromium.value(f"{wide}.length") >= 1
    assert chromium.value(f"{wide}.every((each) => each.tabIndex === 0 && each.getAttribute('aria-label'))")


@pytest.mark.long
def test_printed_it_has_everything_once_and_two_cases_of_each_benchmark(chromium, page):
    chromium.open(page, DESK)
    content = chromium.printed()
    pages = len(re.findall(rb"/Type\s*/Page\b", content))
    assert content.startswith(b"%PDF-") and 10 < pages < 70
    chromium("Emulation.setEmulatedMedia", media="print")
    try:
        shown = chromium.value("[...document.querySelectorAll('.case')].filter((each) => each.checkVisibility()).length")
        benchmarks = chromium.value("document.querySelectorAll('select option').length") - 1
        assert benchmarks > 20 and benchmarks < shown <= PRINTED * benchmarks
        inner = chromium.value("document.querySelector('details table').checkVisibility({contentVisibilityAuto: true})")
        assert inner and chromium.value("document.querySelector('details table').getBoundingClientRect().height") > 50
        assert chromium.value("document.documentElement.scrollWidth <= innerWidth")
    finally:
        chromium("Emulation.setEmulatedMedia", media="")


@pytest.mark.long
def test_a_screen_reader_has_headings_names_and_the_direction_of_every_axis(chromium, page):
    chromium.open(page, DESK)
    found = chromium.read_out()
    roles = {role for role, _ in found}
    assert {"main", "navigation", "heading", "table", "rowheader", "columnheader", "image"} <= roles
    headings = [name for role, name in found if role == "heading"]
    assert headings[0] == "MM-RLHF's benchmarks: aligned" and "Where the models differ most" in headings
    images = [name for role, name in found if role == "image"]
    assert len(images) > 20 and all(images)
    (radar,) = [name for name in images if name.startswith("All dimensions.")]
    assert "Unsafety (lower is better): aligned " in radar and "Hallucination, score: aligned " in radar
    assert all(name for role, name in found if role in ("link", "radio", "combobox", "region", "button"))
    assert chromium.value("document.documentElement.lang") == "en"
    assert "2 or 3 would count as better or worse by chance" in chromium.value("document.body.innerText")
    levels = chromium.value("[...document.querySelectorAll('h1,h2,h3,h4')].map((each) => +each.tagName[1])")
    assert levels[0] == 1 and all(below - above <= 1 for above, below in itertools.pairwise(levels))


def test_every_kind_of_control_is_reached_by_the_tab_key_and_shows_that_it_is(chromium, page):
    chromium.open(page, DESK)
    kinds = chromium.value(f"[...new Set({CONTROLS}.map((each) => each.tagName))]")
    assert set(kinds) == {"A", "DIV", "SUMMARY", "INPUT", "SELECT", "P"}
    reached, seen = set(), 0
    while seen < 500 and reached < set(kinds):
        for kind in ("keyDown", "keyUp"):
            chromium("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)
        name, outline = chromium.value(FOCUSED)
        assert outline != "none", name
        reached.add(name)
        seen += 1
    assert reached == set(kinds)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out_from_its_background(chromium, page, scheme):
    chromium.open(page, DESK)
    chromium("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    try:
        chromium.value("document.querySelectorAll('details').forEach((each) => each.open = true)")
        found = chromium.value(CONTRASTS)
        assert chromium.value("matchMedia('(prefers-color-scheme: dark)').matches") == (scheme == "dark")
    finally:
        chromium("Emulation.setEmulatedMedia", features=[])
    assert len(found) >= 8 and {each["ratio"] >= 4.5 for each in found} == {True}, [
        each for each in found if each["ratio"] < 4.5
    ]


def test_no_heading_is_the_last_line_of_a_printed_page(chromium, page):
    chromium.open(page, DESK)
    content = chromium.printed()
    heights = {float(height) for height in re.findall(rb"/MediaBox \[0 0 [\d.]+ ([\d.]+)\]", content)}
    places = [float(y) for y in re.findall(rb"/XYZ [\d.]+ ([\d.]+) 0\]", content)]  # of headings, from the bottom of the page
    assert len(heights) == 1 and len(places) > 40
    assert min(places) > MARGIN + TWO_LINES
    chromium("Emulation.setEmulatedMedia", media="print")
    try:
        # The heads of a table's groups are no headings, and stand in no outline.
        rows = "[...document.querySelectorAll('.compared tr:has(> .group)')].map((each) => getComputedStyle(each).breakAfter)"
        assert chromium.value(f"[...new Set({rows})]") == ["avoid"]
        figures = "[...document.querySelectorAll('figure.bars, .axis-bars')].map((each) => getComputedStyle(each).breakInside)"
        assert chromium.value(f"{figures}.length") > 10 and chromium.value(f"[...new Set({figures})]") == ["auto", "avoid"]
    finally:
        chromium("Emulation.setEmulatedMedia", media="")
