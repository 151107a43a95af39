"""The page of a suite: values with signs, units and verdicts in words; coverage; cases; and nothing from outside as markup."""

from __future__ import annotations

import dataclasses
import io
import xml.etree.ElementTree as ElementTree

import pytest
from PIL import Image

from mmrlhf_jax.pages.compared import Cell, Column, Delta, Line, compared, signed_text
from mmrlhf_jax.pages.differences import LONG, MOST_CHARACTERS, Difference, Differences, ShownAnswer
from mmrlhf_jax.pages.suite import Made, Missing, Report, suite_page
from tests.pages.html import parsed, rows, text

HOSTILE = '</p></article><script>alert("x")</script><img src=x onerror=alert(1)>&amp; \u202eabc'
COLUMNS = (Column("ours", "model"), Column("before", "base"), Column("paper", "published"))


def line(value, base, delta, interval, **more) -> Line:
    cells = (Cell(value, (value - 1, value + 1), None, "60 of 60 rows"), Cell(base, None, None, "58 of 60 rows"), Cell(5.5))
    return Line("row", "%", cells, Delta(delta, interval), **more)


def table(*lines: Line, columns=COLUMNS):
    return ElementTree.fromstring(compared("Figures", columns, {"": lines})).find("table")


@pytest.mark.parametrize(
    ("interval", "higher", "verdict"),
    [
        ((0.5, 2.0), True, "better"),
        ((0.5, 2.0), False, "worse"),
        ((-2.0, -0.5), True, "worse"),
        ((-2.0, -0.5), False, "better"),
        ((-0.1, 2.0), True, "unclear"),
        ((0.0, 2.0), False, "unclear"),
        (None, True, None),
    ],
)
def test_a_difference_is_better_or_worse_if_its_whole_interval_is(interval, higher, verdict):
    found = line(10, 9, 1.0, interval, higher_is_better=higher)
    assert found.verdict == verdict
    (cells,) = rows(table(found)).values()
    assert verdict is None or cells[2].endswith(f" {verdict}")


def test_values_have_signs_intervals_and_coverage():
    ((head, cells),) = rows(table(line(-10.0, 1997.0, -2.5, (-4.0, -1.0), higher_is_better=False, remark="mean of 3"))).items()
    assert head == "row %; ↓ lower is better; mean of 3"
    values = ["−10.00 −11.00 to −9.00 60 of 60 rows", "1,997.0 58 of 60 rows", "−2.50 −4.00 to −1.00 ▲ better", "5.50"]
    assert cells == values


def test_what_is_missing_says_why_in_its_cell():
    cells = (Cell(None, None, "the judge did not answer", "0 of 60"), Cell(3.0, None, None, "0 of 60"), Cell(None))
    (found,) = rows(table(Line("row", "%", cells, Delta(None, None, "other settings")))).values()
    assert found == ["– the judge did not answer 0 of 60", "3.00 0 of 60", "– other settings", "–"]


def test_without_a_base_there_is_no_difference():
    lone = Line("row", "%", (Cell(3.0, None, None, "2 of 2"), Cell(None)), None)
    found = table(lone, columns=(COLUMNS[0], COLUMNS[2]))
    assert [text(head) for head in found.findall("thead/tr/th")] == ["ours the model", "paper published"]
    assert list(rows(found).values()) == [["3.00 2 of 2", "–"]]


def test_every_head_of_a_table_says_what_it_heads():
    found = table(line(1, 2, -1, None))
    assert {head.get("scope") for head in found.iter("th")} == {"col", "row"}
    assert [text(head) for head in found.findall("thead/tr/th")] == [
        "ours the model",
        "before the base",
        "difference model minus base",
        "paper published",
    ]


def jpeg(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (30, 20), colour).save(file, "JPEG")
    return file.getvalue()


def case(number: int, **more) -> Difference:
    answers = (ShownAnswer("ours", "a red kite", [("accuracy", 100.0)]), ShownAnswer("before", "a sea", [("accuracy", None)]))
    made = dict(benchmark=f"Bench {number % 2}", document=f"doc-{number}", prompt="What?", reference="a kite", row="accuracy")
    made |= dict(by=100.0, direction="better" if number % 3 else "worse", answers=answers)
    return Difference(**made | {"pictures": ((jpeg("red"), f"picture of doc-{number}"),)} | more)


def suite(**more) -> Report:
    counts = {"Bench 0": {"better": 20, "worse": 3}, "Bench 1": {"better": 5, "worse": 0}}
    cases = [case(number) for number in range(6)]
    lines = [dataclasses.replace(line(60, 50, 10, (8, 12)), title=f"Dimension {number}") for number in range(3)]
    made = dict(
        title="Bench suite",
        columns=COLUMNS,
        summary="ours against before",
        headlines=[("Conversation", "+19.5 %", "change")],
        dimensions=lines,
        groups={"Dimension 0": [line(60, 50, 10, (8, 12))], "Dimension 1": [line(60, 50, 10, (8, 12))]},
        missing=[
            Missing("Bench 0", "the judge did not answer", (1, 2)),
            Missing("Bench 1", "the judge did not answer", (0, 3)),
        ],
        differences=Differences(cases, counts, 3000),
        made=[Made("ours", {"model": "m", "judge": {"name": None, "url": "u"}, "options": [1, 2], "greedy": True})],
    )
    return Report(**made | more)


def test_the_page_is_one_file_in_which_everything_has_its_place():
    tree = parsed(suite_page(suite()))
    assert [text(each) for each in tree.iter("h2")] == [
        "Dimensions",
        "Benchmarks",
        "Coverage",
        "Where the models differ most",
        "How the figures were made",
    ]
    settings = rows(tree.findall(".//section[@id='how-the-figures-were-made']//table")[0])
    assert settings == {"model": ["m"], "judge: name": ["–"], "judge: url": ["u"], "options": ["1, 2"], "greedy": ["yes"]}
    by_reason, by_benchmark = map(rows, tree.findall(".//section[@id='coverage']//table"))
    assert by_reason == {"the judge did not answer": ["1", "5"]}
    assert by_benchmark == {
        name: [*counts, "the judge did not answer"] for name, counts in (("Bench 0", "12"), ("Bench 1", "03"))
    }
    regions = [region for region in tree.iter("div") if region.get("class") == "scroll"]
    assert all(region.get("tabindex") == "0" and region.get("aria-label") for region in regions)


def test_the_same_figures_stand_in_the_charts_and_in_the_table_beside_them():
    tree = parsed(suite_page(suite()))
    dimensions = tree.find(".//section[@id='dimensions']")
    said = dimensions.find(".//svg[@class='radar']/title").text
    figures = rows(dimensions.find(".//table"))
    assert len(figures) == 3
    for name, cells in figures.items():
        assert (
            f"{name.removesuffix(' %')}: ours {float(cells[0].split()[0]):.1f}, before {float(cells[1].split()[0]):.1f}" in said
        )


def test_the_scale_goes_as_far_as_the_figures():
    lines = suite().dimensions
    assert "All axes go from 0 to 100." in text(parsed(suite_page(suite())))
    lines = [dataclasses.replace(lines[0], cells=(Cell(104.2), Cell(-3.0), Cell(50.0)), higher_is_better=False), *lines[1:]]
    found = text(parsed(suite_page(suite(dimensions=lines))))
    assert "All axes go from -10 to 110." in found and "(-10 at the rim, 110 in the centre)" in found


def test_what_rounds_to_nothing_has_no_sign():
    (cells,) = rows(table(line(-0.001, 0.004, -0.004, (-0.004, 0.004)))).values()
    assert cells[0].startswith("0.00 ") and cells[2] == "0.00 0.00 to 0.00 ≈ unclear"
    assert [signed_text(value, 1) for value in (-0.04, 0.04, 0.06, -1234.56)] == ["0.0", "0.0", "+0.1", "−1,234.6"]


def test_the_text_says_what_is_drawn():
    lines = [dataclasses.replace(each, higher_is_better=number > 0) for number, each in enumerate(suite().dimensions)]
    assert "marked ↓" not in text(parsed(suite_page(suite())))
    found = text(parsed(suite_page(suite(dimensions=lines))))
    assert "On axes marked ↓ a lower figure is better. The radar draws them reversed (0 at the rim, 100 in the centre)" in found
    assert "The bars are not reversed: there a shorter bar is better." in found
    found = text(parsed(suite_page(suite(dimensions=lines[:2]))))
    assert "a shorter bar is better" in found and "The radar" not in found  # two axes make no radar


def test_two_dimensions_are_bars_alone_and_more_columns_than_looks_are_in_the_table():
    more = [Column(f"run {number}", "other") for number in range(6)]
    lines = [dataclasses.replace(each, cells=(*each.cells, *[Cell(1.0)] * 6)) for each in suite().dimensions[:2]]
    tree = parsed(suite_page(suite(columns=(*COLUMNS, *more), dimensions=lines, groups={}, missing=())))
    assert tree.find(".//svg[@class='radar']") is None
    assert "The charts show the first 6 columns" in text(tree)
    assert all(len(cells) == 10 for cells in rows(tree.find(".//section[@id='dimensions']//table")).values())


def test_cases_have_their_pictures_answers_reference_and_values():
    tree = parsed(suite_page(suite()))
    found = tree.findall(".//article")
    assert len(found) == 6 and "".join(found[1].find(".//h3").itertext()) == "Bench 1, document doc-1"
    assert "accuracy +100.00" in text(found[1]) and "▲ better" in text(found[1]) and "▼ worse" in text(found[0])
    assert "ours accuracy 100.00 a red kite before accuracy – a sea Reference a kite" in text(found[1])
    assert found[1].find(".//img").get("alt") == "picture of doc-1"
    section = text(tree.find(".//section[@id='where-the-models-differ-most']"))
    assert (
        "Of 3,000 documents that both models have values for, ours is better on 25 and worse on 3. Below are the 4 and 2"
        in section
    )
    labels = {label.get("for"): text(label) for label in tree.iter("label")}
    assert labels["direction-better"] == "better (4)" and labels["benchmark-of-0"] == "Bench 0 (3 of 23)"
    assert found[1].get("class").split() == ["case", "better", "of-1"]


def test_whatever_comes_from_outside_is_shown_as_text():
    answers = (ShownAnswer(HOSTILE, HOSTILE, [(HOSTILE, 1.0)]), ShownAnswer("b", "", []))
    hostile = case(1, benchmark=HOSTILE, document=HOSTILE, prompt=HOSTILE, reference=HOSTILE, row=HOSTILE, answers=answers)
    hostile = dataclasses.replace(hostile, pictures=((jpeg("red"), HOSTILE),))
    found = Differences([hostile], {HOSTILE: {"better": 1, "worse": 0}}, 1, [HOSTILE])
    columns = tuple(Column(HOSTILE, column.kind) for column in COLUMNS)
    lines = [dataclasses.replace(line(1, 2, 3, None), title=HOSTILE, unit=HOSTILE, remark=HOSTILE)] * 3
    tree = parsed(
        suite_page(
            suite(
                title=HOSTILE,
                columns=columns,
                dimensions=lines,
                groups={HOSTILE: lines},
                differences=found,
                summary=HOSTILE,
                missing=[Missing(HOSTILE, HOSTILE, (1, 2))],
                made=[Made(HOSTILE, {HOSTILE: HOSTILE})],
                remarks=[HOSTILE],
                notes=[HOSTILE],
                headlines=[(HOSTILE, HOSTILE, HOSTILE)],
            )
        )
    )
    assert text(tree).count(HOSTILE) > 20 and not tree.findall(".//p//img")
    (article,) = tree.findall(".//article")
    said = [each for each in article.iter("p") if "".join(each.itertext()) == HOSTILE]
    assert len(said) == 3 and all(each.get("dir") == "auto" for each in said)  # right-to-left text keeps to itself
    assert "(an empty answer)" in text(article)


def test_a_long_answer_can_be_scrolled_and_a_very_long_one_is_cut_off_and_says_so():
    def shown(length: int):
        answers = (ShownAnswer("ours", "x" * length, []), ShownAnswer("before", "y", []))
        tree = parsed(suite_page(suite(differences=Differences([case(1, answers=answers)], {}, 1))))
        return next(each for each in tree.find(".//article").iter("p") if each.text and each.text.startswith("x"))

    assert shown(LONG).get("tabindex") is None
    long = shown(LONG + 1)
    assert long.get("tabindex") == "0" and text(long) == "x" * (LONG + 1)
    longest = shown(MOST_CHARACTERS + 1234)
    assert text(longest) == "x" * MOST_CHARACTERS + " … (1,234 more characters)"


def test_a_suite_without_a_base_has_no_cases():
    tree = parsed(suite_page(suite(differences=None)))
    assert tree.find(".//section[@id='where-the-models-differ-most']") is None and not tree.findall(".//article")


def test_no_case_is_said_in_words():
    found = Differences([], {"Bench 0": {"better": 0, "worse": 0}}, 7)
    section = parsed(suite_page(suite(differences=found))).find(".//section[@id='where-the-models-differ-most']")
    assert "Of 7 documents" in text(section) and "is better on 0 and worse on 0" in text(section)
