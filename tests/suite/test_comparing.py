"""Two models are compared on documents that both have, if these and how the figures were made are the same."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from mmrlhf_jax.suite.comparing import Pair, obstacle, pair
from mmrlhf_jax.suite.resampling import estimate
from mmrlhf_jax.suite.results import Figure
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


def test_a_figure_that_documents_do_not_give_is_compared_on_the_same_documents_alone():
    other = {ROW.name: Figure(1.25)}
    model, base = (dataclasses.replace(each, figures=other) for each in (MODEL, BASE))
    assert pair(ROW, model, base).delta.value == 0.0 and pair(ROW, model, base).delta.interval is None
    fewer = dataclasses.replace(base, documents=base.documents[:4])
    assert pair(ROW, model, fewer).startswith("1 documents have a value for one of the two, and the figure is not made")


def test_without_a_figure_or_a_document_in_common_there_is_none():
    none = runs.results(runs.SHAPES, [None] * 5)
    assert pair(ROW, none, BASE) == pair(ROW, BASE, none) == "no document is scored"
    halves = [runs.results(runs.SHAPES, values) for values in ([1.0, 2.0, None, None], [None, None, 1.0, 2.0])]
    assert pair(ROW, *halves) == "the two have no document with a value in common"
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
