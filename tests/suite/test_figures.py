"""The figures of a run, alone and against another one, are what one gets by hand; what is missing says why."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.suite import published, results
from mmrlhf_jax.suite.figures import Run, figures, read_run
from mmrlhf_jax.suite.mm_rlhf import MM_RLHF
from mmrlhf_jax.suite.results import Document, Figure, Results
from tests.suite.support import runs
from tests.suite.support.runs import COLOURS, FIRST, LIES, SECOND, SHAPES, SUITE


def run(name: str = "aligned", **values) -> Run:
    """A run with results of these tasks, by the values of their documents."""
    return Run(name, {task: runs.results(SUITE.tasks[task], each) for task, each in values.items()})


MODEL = {"colours": [100.0, 0.0, 100.0, 100.0], "shapes": [4.0, 2.0, 5.0], "lies": [10.0, 20.0]}
MODEL |= {"first": [60.0, 80.0], "second": [20.0, 40.0, 30.0]}
BASE = {"colours": [100.0, 0.0, 0.0, 100.0], "shapes": [3.0, 2.0, 4.0], "lies": [40.0, 20.0]}
BASE |= {"first": [50.0, 50.0], "second": [20.0, 10.0, 30.0]}


# One run


def test_rows_and_axes_of_a_run():
    found = figures(SUITE, run(**MODEL))
    assert {name: row.model.value for name, row in found.rows.items()} == pytest.approx(
        {"colours": 75.0, "shapes": 11 / 3, "lies": 15.0, "tales": 50.0}
    )
    assert {name: axis.model.value for name, axis in found.axes.items()} == pytest.approx(
        {"seeing": (75 + 100 * 11 / 15) / 2, "lying": 15.0, "telling": 50.0}
    )
    assert found.axes["seeing"].model.interval is not None and found.base is None and found.headlines == {}
    assert all(each.base is each.delta is None for each in (*found.rows.values(), *found.axes.values()))


def test_an_axis_interval_is_made_of_its_rows_draws():
    model = run(**MODEL)
    found = figures(SUITE, model).axes["seeing"].model.estimate
    draws = [np.array(model.results[name].figures[name].draws) * scale for name, scale in (("colours", 1), ("shapes", 20))]
    assert found.draws == pytest.approx(np.mean(draws, axis=0))


def test_a_missing_task_leaves_k_of_n_rows_and_no_mean():
    found = figures(SUITE, run(**{name: values for name, values in MODEL.items() if name != "shapes"}))
    axis = found.axes["seeing"].model
    assert (axis.value, axis.rows, axis.of, axis.lacking) == (None, 1, 2, ("shapes",))
    assert axis.missing == "1 of 2 rows: Shapes missing"
    assert found.rows["shapes"].model.missing == "no results" and found.rows["shapes"].model.coverage is None
    assert found.axes["lying"].model.value == 15.0


def test_a_missing_part_leaves_no_row():
    found = figures(SUITE, run(first=MODEL["first"])).rows["tales"].model
    assert found.value is None and found.missing == "Second: no results"
    assert (found.coverage.expected, found.coverage.scored) == (2, 2)
    both = run(first=[None, None], second=[None])
    assert figures(SUITE, both).rows["tales"].model.missing == "no document is scored"


def test_documents_that_are_not_scored_are_counted_and_their_rows_named():
    found = figures(SUITE, run(**MODEL | {"shapes": [4.0, None, None]}))
    shapes = found.rows["shapes"].model
    assert (shapes.value, shapes.coverage.expected, shapes.coverage.scored) == (4.0, 3, 1)
    assert shapes.coverage.missing == {"the judge failed": 2}
    assert found.axes["seeing"].model.partial == ("shapes",) and found.axes["lying"].model.partial == ()


@pytest.mark.parametrize(
    "changes, why",
    [
        ({"harness": "lmms-eval 0.8.0"}, "its rows are by lmms-eval 0.7.3 and lmms-eval 0.8.0"),
        ({"settings": {"mode": "paper"}}, "its rows are of different modes: corrected, paper"),
    ],
)
def test_versions_and_modes_are_not_mixed_in_a_mean(changes, why):
    model = run(**MODEL)
    corrected = dataclasses.replace(model.results["colours"], settings={"mode": "corrected"})
    other = dataclasses.replace(model.results["shapes"], **changes)
    found = figures(SUITE, Run("mixed", model.results | {"colours": corrected, "shapes": other})).axes["seeing"].model
    assert (found.value, found.missing, found.rows) == (None, why, 2)
    ours = dataclasses.replace(other, harness="mmrlhf_jax", settings={})
    assert figures(SUITE, Run("both", model.results | {"shapes": ours})).axes["seeing"].model.value is not None


ATTACKS, CLASSIFIED = {"judge": "k", "classifier": False}, {"judge": "k", "classifier": True}


@pytest.mark.parametrize(
    "one, other, why",
    [
        ({"judge": "m"}, {"judge": "k"}, "k and m"),
        ({"judge": "m", "classifier": False}, ATTACKS, "k and m"),
        (ATTACKS, CLASSIFIED, "k and k as a classifier"),
        (ATTACKS, ATTACKS, None),
        ({"judge": "m"}, ATTACKS, None),  # a judge of attacks, and one of everything else
        ({"judge": "m"}, {"judge": None}, None),  # no answer had to be judged
        ({"judge": "m"}, {}, None),
    ],
)
def test_verdicts_of_two_judges_are_not_mixed_in_a_mean_nor_in_a_key_figure(one, other, why):
    model = run(**MODEL)
    judged = {name: dataclasses.replace(model.results[name], settings=s) for name, s in (("colours", one), ("shapes", other))}
    mixed = Run("mixed", model.results | judged)
    axis = figures(SUITE, mixed).axes["seeing"].model
    assert axis.missing == (why and f"its rows are judged by {why}") and (axis.value is None) == (why is not None)
    suite = dataclasses.replace(SUITE, headlines=(dataclasses.replace(SUITE.headlines[0], rows=("colours", "shapes")),))
    headline = figures(suite, mixed, Run("same", mixed.results)).headlines["twice"]
    assert headline.missing == axis.missing and (headline.value is None) == (why is not None)


# Two runs


def test_differences_of_rows_axes_and_key_figures():
    found = figures(SUITE, run(**MODEL), run("base", **BASE))
    assert {name: row.delta.value for name, row in found.rows.items()} == pytest.approx(
        {"colours": 25.0, "shapes": 2 / 3, "lies": -15.0, "tales": 15.0}
    )
    for name, axis in found.axes.items():
        assert axis.delta.value == pytest.approx(axis.model.value - axis.base.value), name
        assert axis.delta.interval is not None
    assert found.headlines["twice"].value == pytest.approx(1.5)
    assert found.rows["tales"].delta.documents == 5 and found.axes["seeing"].delta.documents == 7


def test_the_interval_of_a_difference_is_paired():
    values = list(np.random.default_rng(0).normal(50, 20, 60))
    better = [value + 2 for value in values]
    found = figures(SUITE, run(lies=better), run("base", lies=values))
    low, high = found.axes["lying"].delta.interval
    assert low == pytest.approx(2) == high
    alone = found.axes["lying"].model.interval
    assert alone[1] - alone[0] > 5


def test_differences_are_of_common_documents_alone():
    model = run(**MODEL | {"shapes": [4.0, None, 5.0]})
    found = figures(SUITE, model, run("base", **BASE))
    row, axis = found.rows["shapes"], found.axes["seeing"]
    assert (row.model.value, row.base.value) == (4.5, 3.0)
    assert (row.delta.value, row.delta.documents, row.delta.left_out) == (1.0, 2, 1)
    assert axis.delta.value == pytest.approx((25 + 20 * 1.0) / 2)
    assert (axis.delta.documents, axis.delta.left_out) == (6, 1)


def test_a_document_without_a_value_in_one_run_is_in_the_differences_of_row_and_axis():
    """As an answer that names no object, beside one of the base that names wrong ones."""
    model = run(**MODEL)
    lies = model.results["lies"]
    silent = dataclasses.replace(lies.documents[0], values={"lies": None})
    lies = dataclasses.replace(lies, documents=(silent, lies.documents[1]), figures={"lies": Figure(20.0)})
    found = figures(SUITE, Run("silent", model.results | {"lies": lies}), run("base", **BASE))
    row, axis = found.rows["lies"].delta, found.axes["lying"].delta
    assert row.value == axis.value == 20.0 - 30.0
    assert (row.documents, row.left_out, axis.documents, axis.left_out) == (2, 0, 2, 0)


def test_a_refused_row_is_in_no_difference_of_its_axis_and_no_key_figure():
    base = run("base", **BASE)
    other = dataclasses.replace(base.results["colours"], settings={"max_new_tokens": 99})
    found = figures(SUITE, run(**MODEL), Run("base", base.results | {"colours": other}))
    why = "made with other settings: max_new_tokens 16 and 99"
    assert found.rows["colours"].delta.missing == why and found.rows["shapes"].delta.missing is None
    assert found.axes["seeing"].delta.missing == f"Colours: {why}" and found.axes["seeing"].base.value is not None
    assert found.axes["lying"].delta.value == -15.0
    assert found.headlines["twice"].value is None and "not comparable" in found.headlines["twice"].missing


def test_a_key_figure_has_an_interval_or_the_reason_why_not():
    found = figures(SUITE, run(**MODEL), run("base", **BASE | {"colours": [100.0, 100.0, 100.0, 90.0]})).headlines["twice"]
    assert found.interval is not None and found.without_interval is None
    zeros = figures(SUITE, run(**MODEL), run("base", **BASE | {"colours": [100.0, 0.0, 0.0, 0.0]})).headlines["twice"]
    assert (zeros.value, zeros.interval) == (3.0, None) and zeros.without_interval == "in some draws the base is 0"
    lone = {"colours": [50.0]}
    alone = figures(SUITE, run(**lone), run("base", **lone)).headlines["twice"]
    assert alone.value == 1.0 and alone.without_interval == "1 of its 1 rows have no interval"
    never = figures(SUITE, run(**MODEL), run("base", **BASE | {"colours": [0.0] * 4})).headlines["twice"]
    assert never.value is None and never.missing == "the base is 0"


def test_what_one_of_both_lacks_has_no_difference():
    found = figures(SUITE, run(**MODEL), run("base", **{name: BASE[name] for name in ("colours", "first", "second")}))
    assert found.rows["shapes"].delta.missing == "no results"
    assert found.axes["seeing"].delta.missing == "1 of 2 rows: Shapes missing"
    assert found.axes["telling"].delta.value == 15.0


# The paper's table


def test_the_papers_rows_through_files_give_its_teaser(tmp_path):
    for model, name in ((published.BASE, "base"), (published.MM_DPO, "aligned")):
        for task in MM_RLHF.tasks.values():
            rows = {row.name: published.FIGURES[model][row.part_of or row.name] for row in task.rows}
            document = Document("1", "1", "Q", (), "A", None, dict(rows))
            made = Results(task.name, "lmms-eval 0.7.3", {}, {row: Figure(value) for row, value in rows.items()}, (document,))
            results.write(tmp_path / name, made)
    found = figures(MM_RLHF, read_run(tmp_path / "aligned", MM_RLHF), read_run(tmp_path / "base", MM_RLHF))
    for axis in MM_RLHF.axes:
        for side, model in (("model", published.MM_DPO), ("base", published.BASE)):
            if (axis.name, model) not in published.UNEXPLAINED:
                printed = published.TEASER[model][axis.name]
                assert getattr(found.axes[axis.name], side).value == pytest.approx(printed, abs=0.0501)
    assert round(found.headlines["conversation_change"].value, 1) == 19.4
    assert round(found.headlines["safety_change"].value, 1) == 59.7


# Files


def write(directory, of: Run):
    for each in of.results.values():
        results.write(directory, each)


def test_a_run_is_read_from_its_files(tmp_path):
    model = run(**MODEL)
    write(tmp_path / "aligned", model)
    assert read_run(tmp_path / "aligned", SUITE) == model
    (tmp_path / "aligned" / "run.json").write_text('{"version": 1, "model": "org/name", "settings": {}, "judge": null}')
    again = read_run(tmp_path / "aligned", SUITE)
    assert again.name == "org/name" and again.about["judge"] is None


def test_a_part_is_read_and_other_tasks_are_reported(tmp_path, capsys):
    write(tmp_path, run(colours=MODEL["colours"]))
    results.write(tmp_path, dataclasses.replace(runs.results(SHAPES, [1.0, 2.0]), task="other"))
    assert list(read_run(tmp_path, SUITE).results) == ["colours"]
    assert "other is no task of the small suite; it is left out" in capsys.readouterr().err
    assert read_run(tmp_path / "nothing", SUITE).results == {}


def test_results_that_are_not_sound_are_named(tmp_path):
    write(tmp_path, run(colours=MODEL["colours"]))
    results.documents_path(tmp_path, "colours").write_text("")
    with pytest.raises(UserError, match=r"colours\.documents\.jsonl: is not the file"):
        read_run(tmp_path, SUITE)


def test_rows_that_a_task_does_not_have_are_refused(tmp_path):
    made = dataclasses.replace(runs.results(SHAPES, [1.0]), figures={"forms": Figure(1.0)}, documents=())
    results.write(tmp_path, made)
    with pytest.raises(UserError, match=r"shapes\.json: rows has 'forms', which is no row of shapes"):
        read_run(tmp_path, SUITE)
    without = dataclasses.replace(made, figures={})
    assert figures(SUITE, Run("m", {"shapes": without})).rows["shapes"].model.missing == "its task gives no figure"


def test_every_task_of_the_small_suite_is_used():
    assert set(MODEL) == set(SUITE.tasks) == {task.name for task in (COLOURS, SHAPES, LIES, FIRST, SECOND)}
