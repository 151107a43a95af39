"""Two models are compared on documents that are scored in both, if these and how the figures were made are the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest

from mmrlhf_jax.suite.comparing import Pair, obstacle, pair
from mmrlhf_jax.suite.resampling import estimate, figure
from mmrlhf_jax.suite.results import Document, Figure, Results
from mmrlhf_jax.suite.task import Row
from tests.suite.support import runs

(ROW,) = runs.SHAPES.rows
BASE = runs.results(runs.SHAPES, [1.0, 2.0, 3.0, 4.0, 3.0])
MODEL = runs.results(runs.SHAPES, [2.0, 2.0, 4.0, 4.0, 5.0])


def with_document(results, number: int, **changes):
    changed = list(results.documents)
    changed[number] = dataclasses.replace(changed[number], **changes)
    return dataclasses.replace(results, documents=tuple(changed))


def test_with_the_same_documents_the_difference_is_that_of_the_figures():
    found = pair(ROW, MODEL, BASE)
    assert (found.documents, found.left_out) == (5, 0)
    assert found.delta.value == pytest.approx(3.4 - 2.6)
    differences = np.array([1.0, 0.0, 1.0, 0.0, 2.0])
    documents = runs.documents(ROW.name, differences)
    assert found.delta.draws == pytest.approx(estimate(ROW, documents).draws)


def test_on_other_documents_it_is_that_of_those_in_common():
    model = runs.results(runs.SHAPES, [2.0, None, 4.0, 4.0, 5.0])
    base = runs.results(runs.SHAPES, [1.0, 2.0, None, 4.0, 3.0])
    found = pair(ROW, model, base)
    assert (found.documents, found.left_out) == (3, 2)
    assert (found.model.value, found.base.value) == (pytest.approx(11 / 3), pytest.approx(8 / 3))
    differences = [1.0, None, None, 0.0, 2.0]
    assert found.delta.draws == pytest.approx(estimate(ROW, runs.documents(ROW.name, differences)).draws)


def test_documents_of_one_run_alone_are_left_out():
    found = pair(ROW, MODEL, dataclasses.replace(BASE, documents=BASE.documents[:3], figures={ROW.name: Figure(2.0)}))
    assert (found.documents, found.left_out, found.delta.value) == (3, 2, pytest.approx(2 / 3))


def of_objects(row: Row, task: str, answers: Sequence[tuple[int, int] | None], group=lambda n: None) -> Results:
    """Results of answers that name (so many objects, so many of them wrong); None: the answer is not scored."""

    def document(n: int, each: tuple[int, int] | None) -> Document:
        if each is None:
            return Document(str(n), str(n), "Q", (), None, None, {}, "its picture is missing", group=group(n))
        named, wrong = each
        value, weights = (100.0 * wrong / named, {row.name: float(named)}) if named else (None, {})
        return Document(str(n), str(n), "Q", (), "A", None, {row.name: value}, None, weights, group(n))

    documents = tuple(document(n, each) for n, each in enumerate(answers))
    found = estimate(row, documents)
    return Results(task, "mmrlhf_jax", {}, {row.name: figure(row, documents, found.value)}, documents)


def test_an_answer_without_a_value_is_compared_with_one_that_has_it():
    """As CHAIR_i of an answer that names no object: the other model's wrong objects in the same picture count."""
    wordy, silent = (of_objects(ROW, "shapes", [each] * 50 + [(1, 0)] * 50) for each in ((2, 1), (0, 0)))
    found = pair(ROW, silent, wordy)
    assert (found.documents, found.left_out) == (100, 0)
    assert (found.model.value, found.base.value) == (0.0, pytest.approx(100 / 3))
    low, high = found.delta.interval
    assert low < -100 / 3 < high < 0


@pytest.mark.parametrize("lost", [0, 10])
def test_the_draws_of_answers_without_a_value_are_paired(lost):
    """Also where some documents are scored for one of the two alone."""
    rng = np.random.default_rng(0)
    base = [(int(n), 1) if n else (0, 0) for n in rng.integers(0, 4, 80)]
    found = pair(ROW, of_objects(ROW, "shapes", [None] * lost + base[lost:]), of_objects(ROW, "shapes", base))
    assert (found.documents, found.left_out, found.delta.value) == (80 - lost, lost, 0.0)
    assert found.delta.interval == (0.0, 0.0)


@pytest.mark.parametrize("pooling", ["mean of groups", "sum of groups"])
def test_figures_over_groups_are_compared_on_documents_of_all_groups(pooling):
    row = dataclasses.replace(ROW, pooling=pooling, full=2400.0)

    def scored(lost) -> Results:
        answers = [None if lost(n) else (n % 3 + 1, n % 2) for n in range(12)]
        return of_objects(row, "shapes", answers, lambda n: "ab"[n % 2])

    assert pair(row, scored(lambda n: n < 2), scored(lambda n: False)).documents == 10
    first, last = scored(lambda n: n % 2 and n < 6), scored(lambda n: n % 2 and n >= 6)
    assert pair(row, first, last) == "the documents that are scored in both are of 1 of 2 categories: b missing"


def test_a_figure_that_documents_do_not_give_is_compared_on_the_same_documents_alone():
    other = {ROW.name: Figure(1.25)}
    model, base = (dataclasses.replace(each, figures=other) for each in (MODEL, BASE))
    assert pair(ROW, model, base).delta.value == 0.0 and pair(ROW, model, base).delta.interval is None
    fewer = dataclasses.replace(base, documents=base.documents[:4])
    assert pair(ROW, model, fewer).startswith("1 documents are scored in one of the two, and the figure is not made")


def test_without_a_figure_or_a_document_in_common_there_is_none():
    none = runs.results(runs.SHAPES, [None] * 5)
    assert pair(ROW, none, BASE) == pair(ROW, BASE, none) == "no document is scored"
    halves = [runs.results(runs.SHAPES, values) for values in ([1.0, 2.0, None, None], [None, None, 1.0, 2.0])]
    assert pair(ROW, *halves) == "the two have no scored document in common"
    assert pair(ROW, dataclasses.replace(MODEL, figures={}), BASE) == "it has no figure"


def test_draws_of_a_harness_are_paired_with_those_of_a_harness_alone():
    def of_harness(results, value, draws):
        return dataclasses.replace(results, figures={ROW.name: Figure(value, draws=draws)})

    model, base = of_harness(MODEL, 4.5, (4.0, 5.0)), of_harness(BASE, 1.5, (1.0, 1.5))
    assert pair(ROW, model, base).delta.draws.tolist() == [3.0, 3.5]
    for other in (BASE, of_harness(BASE, 1.5, (1.0, 1.0, 1.0)), of_harness(BASE, 1.5, None)):
        assert pair(ROW, model, other).delta.draws is None


# What stands in the way


def test_the_same_harness_settings_and_documents_are_compared():
    assert obstacle(MODEL, BASE) is None and isinstance(pair(ROW, MODEL, BASE), Pair)


@pytest.mark.parametrize(
    "changes, why",
    [
        ({"harness": "lmms-eval 0.8.0"}, "one is by lmms-eval 0.7.3, the other one by lmms-eval 0.8.0"),
        ({"harness": "mmrlhf_jax"}, "one is by lmms-eval 0.7.3, the other one by mmrlhf_jax"),
        ({"settings": {"max_new_tokens": 32}}, "made with other settings: max_new_tokens 16 and 32"),
        ({"settings": {"max_new_tokens": 16, "mode": "paper"}}, "made with other settings: mode None and 'paper'"),
        (
            {"settings": {"max_new_tokens": 16, "judge": {"name": "a"}}},
            "made with other settings: judge None and {'name': 'a'}",
        ),
    ],
)
def test_other_harnesses_versions_options_and_modes_are_refused(changes, why):
    assert obstacle(MODEL, dataclasses.replace(BASE, **changes)) == why


def test_settings_inside_settings_are_named():
    one, other = (dataclasses.replace(MODEL, settings={"judge": {"name": name, "t": 0}}) for name in ("a", "b"))
    assert obstacle(one, other) == "made with other settings: judge.name 'a' and 'b'"
    many = dataclasses.replace(MODEL, settings={name: 1 for name in "abcde"})
    assert obstacle(many, dataclasses.replace(MODEL, settings={})).endswith("c 1 and None and others")


@pytest.mark.parametrize(
    "changes, what",
    [
        ({"prompt": "Another?"}, "prompt"),
        ({"reference": "B"}, "reference"),
        ({"cluster": "c"}, "cluster"),
        ({"media": ("b.jpg",)}, "picture or video"),
    ],
)
def test_documents_with_another_content_are_refused(changes, what):
    model = with_document(MODEL, 1, media=("a.jpg",))
    base = with_document(with_document(BASE, 1, media=("a.jpg",)), 1, **changes)
    assert obstacle(model, base) == f"document '1' has another {what}"


def test_a_document_that_one_of_them_has_not_answered_stands_in_no_ones_way():
    lost = with_document(BASE, 1, prompt="", answer=None, values={}, missing="the picture is missing")
    assert obstacle(MODEL, lost) is obstacle(lost, MODEL) is None
    assert obstacle(MODEL, with_document(MODEL, 1, media=("a.jpg",))) is None  # of runs without pictures nothing is known
