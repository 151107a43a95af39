"""The tables of the page show the figures that are computed, and why others are missing."""

from __future__ import annotations

import re

import pytest
from etils import epath

from mmrlhf_jax.suite import results
from mmrlhf_jax.suite.figures import figures, read_run
from mmrlhf_jax.suite.report.page import Shown, page_of
from tests.pages.html import parsed, rows, text
from tests.suite.support import runs
from tests.suite.support.reports import BASE, MODEL, first_numbers, floats, page, section, write
from tests.suite.support.runs import COLOURS, SUITE


def test_the_figures_are_those_that_are_computed(tmp_path, model, base):
    tree, found = page(tmp_path, model, base), figures(SUITE, read_run(model, SUITE), read_run(base, SUITE))
    shown = rows(section(tree, "dimensions").find(".//table"))
    assert list(shown) == ["Seeing", "Lying ↓ lower is better", "Telling"]
    for axis, cells in zip(found.axes.values(), shown.values(), strict=True):
        numbers = [float(cell.replace("−", "-")) for cell in first_numbers(cells)]
        assert numbers == pytest.approx([axis.model.value, axis.base.value, axis.delta.value], abs=0.006)
    table = rows(section(tree, "benchmarks").find(".//table"))
    assert first_numbers(table["Colours %"]) == ["75.00", "50.00", "+25.00"]
    assert table["Shapes of 5"][0].endswith("4 of 4 documents")
    assert "2 of 2 rows" in shown["Seeing"][0]


def test_a_row_of_several_parts_is_followed_by_these(tmp_path, model, base):
    table = rows(section(page(tmp_path, model, base), "benchmarks").find(".//table"))
    assert list(table)[-3:] == ["Tales %; mean of 2 parts", "First %; part of Tales", "Second %; part of Tales"]
    assert first_numbers(table["Tales %; mean of 2 parts"]) == ["50.00", "35.00", "+17.50"]  # on the documents of both
    assert table["Second %; part of Tales"][0].split()[0] == "30.00" and table["Second %; part of Tales"][0].endswith(
        "2 of 3 documents"
    )


def test_what_is_missing_is_counted_and_said(tmp_path, model, base):
    tree = page(tmp_path, model, base)
    assert rows(section(tree, "coverage").find(".//table")) == {"the judge failed": ["1", "0"]}
    opening = text(tree.find(".//main/div/ul"))
    assert (
        "1 of 4 rows was computed from a part of their documents. Each row says how many" in opening
        and "1 score of one model alone is left out" in opening
    )


def test_a_row_without_figure_leaves_its_dimension_without_mean(tmp_path, base):
    model = write(tmp_path / "aligned", MODEL | {"shapes": [None]})
    tree = page(tmp_path, model, base)
    assert rows(section(tree, "dimensions").find(".//table"))["Seeing"][0] == "– 1 of 2 rows: Shapes missing"
    assert rows(section(tree, "benchmarks").find(".//table"))["Shapes of 5"][0].startswith("– no document is scored")
    assert "2 of 3 means are complete" in text(tree.find(".//p[@class='lead']"))


def test_what_was_not_run_is_named_and_not_in_the_charts(tmp_path):
    model = write(tmp_path / "aligned", {"first": [60], "second": [20]})
    tree = page(tmp_path, model)
    assert "Not run, and not on this page: Colours; Shapes; Lies." in text(tree.find(".//main"))
    assert list(rows(section(tree, "dimensions").find(".//table"))) == ["Telling"]
    assert next(iter(rows(section(tree, "benchmarks").find(".//table")))).startswith("Tales")
    assert section(tree, "where-the-models-differ-most") is None and "minus base" not in text(tree)


def test_of_a_benchmark_that_was_run_in_part_the_other_rows_are_named(tmp_path, papers):
    for task in ("pope_pop", "pope_random", "mme", "videochatgpt_gen"):
        for path in (papers / "results").glob(f"{task}.*"):
            path.unlink()
    tree = page(tmp_path, papers)
    assert "Not run, and not on this page: MME; POPE popular; POPE random." in text(tree.find(".//main"))
    table = rows(section(tree, "benchmarks").find(".//table"))
    assert next(cells for head, cells in table.items() if head.startswith("VideoChatGPT of 5"))[0].startswith("–")
    assert "POPE adversarial %" in table and "POPE popular %" not in table


def test_results_that_were_made_otherwise_are_not_compared(tmp_path, model, base):
    results.write(base, runs.results(COLOURS, floats(BASE["colours"]), harness="lmms-eval 0.6.0"))
    tree = page(tmp_path, model, base)
    reason = "one is by lmms-eval 0.7.3, the other one by lmms-eval 0.6.0"
    assert rows(section(tree, "benchmarks").find(".//table"))["Colours %"][2] == f"– {reason}"
    assert f"Not compared with the base: Colours ({reason})." in text(tree.find(".//main"))
    assert not [case for case in tree.findall(".//article") if "Colours" in text(case.find(".//h3"))]
    made = section(tree, "how-the-figures-were-made")
    assert [text(head) for head in made.findall("h3")] == [
        "aligned",
        "base",
        "Settings of the tasks of aligned",
        "Settings of the tasks of base",
    ]


def test_how_figures_were_made_is_on_the_page(tmp_path, model, base):
    made = section(page(tmp_path, model, base), "how-the-figures-were-made")
    of_model, _, settings = map(rows, made.findall(".//table"))
    expected = {"results": [str(model)], "model": ["models/aligned"], "settings: dtype": ["float32"]}
    assert of_model == expected | {"judge: name": ["gpt"], "judge: url": ["–"]}
    assert settings["Colours"] == ["lmms-eval 0.7.3; max new tokens 16"] and "First" in settings


def test_further_runs_are_further_columns(tmp_path, model, base):
    third = write(tmp_path / "third", {"colours": [0, 0, 0, 100]})
    tree = page(tmp_path, model, base, third)
    assert [text(head) for head in section(tree, "benchmarks").findall(".//thead//th")] == [
        "aligned the model",
        "base the base",
        "difference model minus base",
        "third another run",
    ]
    table = rows(section(tree, "benchmarks").find(".//table"))
    assert table["Colours %"][3].split()[0] == "25.00" and table["Shapes of 5"][3] == "– no results"
    assert rows(section(tree, "dimensions").find(".//table"))["Seeing"][3] == "– 1 of 2 rows: Shapes missing"


def test_parts_of_a_row_have_differences_or_the_reason_why_not(tmp_path, model, base):
    table = rows(section(page(tmp_path, model, base), "benchmarks").find(".//table"))
    assert first_numbers(table["First %; part of Tales"]) == ["70.00", "50.00", "+20.00"]
    assert first_numbers(table["Second %; part of Tales"])[2] == "+15.00"  # of the two documents that both have
    results.write(base, runs.results(SUITE.tasks["first"], floats(BASE["first"]), settings={"max_new_tokens": 8}))
    table = rows(section(page(tmp_path, model, base), "benchmarks").find(".//table"))
    assert table["First %; part of Tales"][2] == "– made with other settings: max_new_tokens 16 and 8"


def test_key_figures_have_their_interval_the_formula_and_the_papers_figure_apart(tmp_path, model, base):
    results.write(base, runs.results(COLOURS, [100.0, 100.0, 100.0, 90.0]))
    runs_of = [Shown(epath.Path(each), read_run(each, SUITE)) for each in (model, base)]
    tile = next(each for each in parsed(page_of(SUITE, runs_of)).iter("div") if each.get("class") == "tile")
    likely, about, published = (span.text for span in tile.findall("span"))
    assert re.fullmatch(r"95 % interval (−|\+)?[\d.]+ to (−|\+)?[\d.]+ %\.", likely), likely
    assert (about, published) == ("The ratio of colours.", "The paper reports 2 %.")


def test_the_summary_says_what_is_better_and_leaves_out_counts_of_nothing(tmp_path, model, base):
    lead = text(page(tmp_path, model, base).find(".//p[@class='lead']"))
    assert "Of 4 rows that can be compared with base, " in lead and "0 are" not in lead
    assert lead.endswith(
        "A difference counts as better or worse if its 95 % interval does not contain 0; otherwise it is unclear."
    )
    assert "better" not in text(page(tmp_path, model).find(".//p[@class='lead']"))
    alone = [write(tmp_path / f"{name}1", {"colours": [100]}) for name in ("aligned", "base")]
    assert "No row has an interval of its difference from base1." in text(page(tmp_path, *alone).find(".//p[@class='lead']"))


def test_a_run_that_lacks_tasks_of_another_one_is_named(tmp_path, base):
    model = write(tmp_path / "aligned", {"colours": MODEL["colours"], "first": MODEL["first"]})
    opening = text(page(tmp_path, model, base).find(".//main/div/ul"))
    assert "aligned has no results of Shapes; Lies; its column is empty there." in opening and "base has no" not in opening
    third = write(tmp_path / "third", {"lies": [10, 20]})
    opening = text(page(tmp_path, base, model, third).find(".//main/div/ul"))
    assert (
        "aligned has no results of Shapes; Lies; its" in opening and "third has no results of Colours; Shapes; Tales" in opening
    )


def test_of_many_lacking_benchmarks_the_number_is_said(tmp_path, papers):
    few = tmp_path / "few"
    for task in ("ai2d", "nsfw_text"):
        results.write(few, results.read(papers, task))
    opening = text(page(tmp_path, few, papers).find(".//main"))
    assert "few has no results of 33 benchmarks; its column is empty there." in opening


def test_of_many_intervals_it_is_said_how_many_would_err(tmp_path, model, base):
    assert "by chance" not in text(page(tmp_path, model, base).find(".//main/div"))
