"""The page of an evaluation: every case is on it, the filters choose what they say, and nothing is loaded from elsewhere."""

from __future__ import annotations

import dataclasses
import json
import re
import xml.etree.ElementTree as ElementTree

import pytest

from mmrlhf_jax.data.mixture import open_examples
from mmrlhf_jax.data.rewarded import Scored
from mmrlhf_jax.data.sources import read_source
from mmrlhf_jax.evaluation.benchmarks import ranked as by_category
from mmrlhf_jax.evaluation.benchmarks import recognise
from mmrlhf_jax.evaluation.cases import page_of
from mmrlhf_jax.evaluation.evaluated import Evaluated
from mmrlhf_jax.evaluation.reward_bench import figures
from tests import ranked
from tests.evaluation import rows

RUN = {"benchmark": "ranked", "grouping": "category", "data": "rows.jsonl", "model": "models/rm", "scores": None}


def parsed(page: str) -> ElementTree.Element:
    assert not re.search(r'(src|href)="(?!data:|#)', page) and "<script" not in page
    return ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>"))


def text(element) -> str:
    return " ".join(" ".join(element.itertext()).split())


def cases(tree) -> list[ElementTree.Element]:
    return tree.findall(".//article")


@pytest.fixture
def examples(tmp_path):
    """Two groups of two pictures and of one, and one without any, in categories whose names need escaping."""
    path = ranked.write(tmp_path, [(1, 2, 3), (1, 2), (1, 1, 2)], [[(40, 30), (600, 200)], [(20, 20)], []])
    read = [json.loads(line) for line in path.read_text().splitlines()]
    for row, category in zip(read, ("<b>&", "two", "two"), strict=True):
        row["category"] = category
    read[0]["prompt"] = "Is <image> a <script>alert('x')</script> & <image>?"
    path.write_text("".join(json.dumps(row) + "\n" for row in read))
    return open_examples(path)


def rewarded(record, rewards, reason=None) -> Scored:
    made = zip(record.responses, rewards, strict=True)
    return Scored(record.replace_responses([dataclasses.replace(one, reward=reward) for one, reward in made]), reason)


def evaluated(examples) -> Evaluated:
    """Of the first group a pair is right, one wrong and one tied; the second is not scored; the third is right."""
    first, second, third = examples.records
    scored = [
        rewarded(first, (1.0, 1.0, 1.5)),
        Scored.nothing(second, "the picture is broken"),
        rewarded(third, (2.0, 3.0, -1.25))._replace(truncated=(1,)),
    ]
    scored[0] = scored[0]._replace(samples=((("See <i>", 0.5), ("No", 1.5)), (), ()))
    return Evaluated(scored, examples, range(3))


def page(found, benchmark=by_category.BENCHMARK, run=RUN) -> str:
    return page_of(found, figures(found.records, benchmark, run["grouping"]), benchmark, run, "rm")


def test_every_case_has_its_media_answers_critiques_rewards_and_verdicts(examples):
    found = cases(parsed(page(evaluated(examples))))
    assert [text(case.find("header/b")) for case in found] == ["group-0", "group-1", "group-2"]
    assert [len(case.findall(".//img")) for case in found] == [2, 1, 0]
    first, second, third = map(text, found)
    assert [text(chip) for chip in found[0].findall("header/span")] == ["2 of 3 wrong", "1 of 3 tie", "<b>&"]
    assert "<script>alert('x')</script>" in first and "+0.500 See <i>" in first and "+1.500 No" in first
    assert "A over B +0.000 tie" in first and "A over C −0.500 wrong" in first and "B over C −0.500 wrong" in first
    assert "not scored" in second and "the picture is broken" in second
    assert third.count("critique cut off") == 1 and "B rank 1 critique cut off" in third and "cut off" not in first + second
    assert "A over C +3.250 right" in third and "B over C +4.250 right" in third
    for case, record in zip(found, examples.records, strict=True):
        shown = text(case)
        assert all(" ".join(one.text.split()) in shown for one in record.responses)


def test_characters_that_no_document_can_hold_are_replaced(examples):
    found = evaluated(examples)
    strange = dataclasses.replace(found.records[1].responses[0], text="a\x00b\x1b\uffff</p>\tc")
    others = found.records[1].responses[1:]
    found.scored[1] = found.scored[1]._replace(record=found.records[1].replace_responses([strange, *others]))
    assert "a�b��</p> c" in text(cases(parsed(page(found)))[1])


def test_filters_hide_the_other_cases(examples):
    """The style sheet hides, for each button, the cases without its class."""
    document = page(evaluated(examples))
    tree = parsed(document)
    labels = {label.get("for"): text(label) for label in tree.findall(".//label")}
    assert {label: name for label, name in labels.items() if label.startswith("show")} == {
        "show-all": "all (3)",
        "show-right": "right (1)",
        "show-wrong": "wrong (1)",
        "show-tie": "tie (1)",
        "show-not-scored": "not scored (1)",
    }
    groups = {name: label for label, name in labels.items() if label.startswith("group")}
    assert set(groups) == {"all groups", "<b>&", "two"}
    hidden = dict(re.findall(r"\.filtered:has\(#([\w-]+):checked\) \.case:not\(\.([\w-]+)\)", document))
    kept = lambda label: [i for i, case in enumerate(cases(tree)) if hidden[label] in case.get("class").split()]
    assert (kept("show-right"), kept("show-wrong"), kept("show-tie"), kept("show-not-scored")) == ([2], [0], [0], [1])
    assert (kept(groups["<b>&"]), kept(groups["two"])) == ([0], [1, 2])
    assert {button.get("id") for button in tree.findall(".//input")} == set(labels)
    assert [button.get("id") for button in tree.findall(".//input") if button.get("checked")] == ["show-all", "group-all"]


def test_the_figures_are_those_that_are_printed(examples):
    tree = parsed(page(evaluated(examples)))
    table = tree.find(".//section[@id='figures']//table")
    found = {row[0]: row[1:] for row in ([text(cell) for cell in tr] for tr in table.findall("tbody/tr"))}
    assert found["<b>&"][:6] == ["3", "1", "3", "0", "1", "0.0 %"]
    assert found["two"][:6] == ["3", "2", "2", "2", "0", "100.0 %"]
    assert found["all pairs"][:6] == ["6", "3", "5", "2", "1", "40.0 %"]
    assert found["mean of 2 groups"][5] == "50.0 %"
    opening = text(tree.find(".//main"))
    assert "1 of 6 pairs are not scored" in opening and "83.3 %" in opening
    assert "Of the pairs that are not tied 50.0 % are right." in opening


def test_media_that_are_not_there_are_left_out_and_counted(examples, tmp_path, capsys):
    (tmp_path / "1_0.png").unlink()
    found = cases(parsed(page(evaluated(examples))))
    assert [len(case.findall(".//img")) for case in found] == [2, 0, 0]
    assert "the media of 1 of 3 records cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "made", "grouping"),
    [("mm-rlhf", rows.mm_rlhf, "official"), ("vl-rewardbench", rows.vl, "official"), ("vl-rewardbench", rows.vl, "paper")],
)
def test_published_tables_stand_below_the_models_own_row(tmp_path, name, made, grouping):
    """A table keeps the grouping that it was published with, whichever the figures have."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in made()))
    records = read_source(path).records
    benchmark = recognise(records)
    assert benchmark.name == name
    scored = [rewarded(record, [-one.rank for one in record.responses]) for record in records]
    found = Evaluated(scored, None, [None] * len(records))
    tree = parsed(page(found, benchmark, RUN | {"benchmark": name, "grouping": grouping}))
    tables = tree.findall(".//section[@id='published-figures']//table")
    assert len(tables) == len(benchmark.published)
    for table, published in zip(tables, benchmark.published, strict=True):
        shown = [[text(cell) for cell in tr] for tr in table.findall("tbody/tr")]
        assert shown[0] == ["rm"] + ["100.0 %"] * len(published.columns)
        assert [row[0] for row in shown[1:]] == list(published.rows)
        is_whole = name == "mm-rlhf"  # its tables are printed with two digits
        assert all(("." not in cell) == is_whole for row in shown[1:] for cell in row[1:])
        figures_shown = [[float(cell.removesuffix(" %")) / 100 for cell in row[1:]] for row in shown[1:]]
        assert figures_shown == [pytest.approx(values, abs=1e-9) for values in published.rows.values()]  # not rounded
        assert all(source in text(tree) for source in (published.source, published.title))
    assert len(cases(tree)) == len(records)
