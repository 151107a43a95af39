"""The parts of the study of Dynamic Reward Scaling: annotators, the rule that grades answers, and the intervals."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest
from scipy import stats

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.quickstart import alignment, pipeline
from mmrlhf_jax.quickstart.dataset import generate
from mmrlhf_jax.quickstart.questions import question_from_record
from mmrlhf_jax.quickstart.responses import GRADES
from mmrlhf_jax.quickstart.scenes import objects_from_key
from tests.benchmarks.drs_study.analysis import differences, holm, p_value
from tests.benchmarks.drs_study.annotators import annotated, order_of, quality_of, temperature_for, votes_of
from tests.benchmarks.drs_study.cell import RESULT, Cell
from tests.benchmarks.drs_study.held_out import HeldOut
from tests.benchmarks.drs_study.quality import grade
from tests.benchmarks.drs_study.report import write_report
from tests.benchmarks.drs_study.sizes import Sizes
from tests.benchmarks.drs_study.study import START, claim
from tests.benchmarks.drs_study.variants import BASELINE, CEILING


@pytest.fixture(scope="module")
def records():
    return [record for record, _ in generate("study", 400, 1)]


def test_the_rule_gives_every_response_of_the_data_its_own_grade(records):
    for record in records:
        question, objects = question_from_record(record), objects_from_key(record.extra["scene"])
        for response in record.responses:
            assert grade(question, objects, response.text) == response.extra["quality"], response.text


def test_answers_that_the_data_does_not_have_are_graded_too(records):
    record = next(r for r in records if r.extra["question"]["kind"] == "existence" and not r.extra["question"]["truth"])
    question, objects = question_from_record(record), objects_from_key(record.extra["scene"])
    assert grade(question, objects, "Yes yes yes") == "hallucinated"
    assert grade(question, objects, "") == "wrong"


def test_annotators_who_do_not_err_give_the_true_ranking(records):
    for record, made in zip(records, annotated(records, 0.0, seed=1), strict=True):
        assert [r.rank for r in made.responses] == [r.rank for r in record.responses]
        assert [r.critique for r in made.responses] == [r.critique for r in record.responses]


@pytest.mark.parametrize("share", [0.15, 0.3])
def test_temperatures_give_the_share_of_wrong_pairs_also_with_other_draws(records, share):
    temperature = temperature_for(records, share, seed=0)
    assert order_of(annotated(records, temperature, seed=0)).share_wrong == pytest.approx(share, abs=0.01)
    assert order_of(annotated(records, temperature, seed=7)).share_wrong == pytest.approx(share, abs=0.04)


def test_wrong_orders_are_rarer_where_the_gap_in_quality_is_larger(records):
    by_gap: dict[bool, list[bool]] = {False: [], True: []}
    for record in annotated(records, 1.7, seed=3):
        for chosen, rejected in record.pairs():
            gap = quality_of(record.responses[chosen]) - quality_of(record.responses[rejected])
            if gap:
                by_gap[abs(gap) > 1].append(gap < 0)
    small, large = (np.mean(by_gap[key]) for key in (False, True))
    assert small > 2 * large > 0


def test_one_annotator_prefers_by_bradley_and_terry():
    """Of two responses that differ by 1.5 at temperature 2, the better one gets the vote with probability sigmoid(.75)."""
    draws = np.random.default_rng(0).gumbel(size=(20_000, 1, 2))
    votes = [votes_of(np.array([4.5, 3.0]) + 2.0 * each)[0] for each in draws]
    assert np.mean(votes) == pytest.approx(1 / (1 + math.exp(-0.75)), abs=0.01)


def test_votes_by_hand():
    """Two annotators, three responses: the first sees a > b > c, the second a = b < c."""
    assert votes_of(np.array([[3.0, 2.0, 1.0], [1.0, 1.0, 2.0]])).tolist() == [2.5, 1.5, 2.0]


def test_an_erring_annotators_critique_has_the_mark_and_verdict_that_he_gives(records):
    verdicts, marks, changed = {grade.verdict for grade in GRADES.values()}, {"correct", "wrong", "partly"}, 0
    for record, made in zip(records, annotated(records, 3.5, seed=2), strict=True):
        for before, after in zip(record.responses, made.responses, strict=True):
            if before.critique == after.critique:
                continue
            changed += 1
            (old,), (new,) = ([v for v in verdicts if r.critique.endswith(v)] for r in (before, after))
            seen, said = before.critique.removesuffix(old).split(), after.critique.removesuffix(new).split()
            assert new != old
            assert seen[:-1] == said[:-1]  # what the picture shows stays true
            if seen[-1] != said[-1]:
                assert {seen[-1].strip("."), said[-1].strip(".")} <= marks
                assert (said[-1] == "correct.") == new.startswith("Right")
    assert changed > 50


def test_responses_of_equal_quality_stay_tied(records):
    for made in annotated(records, 3.5, seed=2):
        for chosen, rejected in made.pairs():
            assert quality_of(made.responses[chosen]) != quality_of(made.responses[rejected])


# --- Intervals --------------------------------------------------------------------------------------------------------


def figures(shift: float, seed: int = 0):
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 2, (5, 200)).astype(float)
    noise = rng.normal(0, 0.2, (5, 200))
    return {0.0: {BASELINE: base, "shifted": base + shift + noise, "alike": base + rng.normal(0, 0.2, (5, 200))}}


def test_differences_are_paired_and_their_intervals_cover_them():
    found = differences(figures(0.1), BASELINE)
    shifted, alike = found[0.0, "shifted"], found[0.0, "alike"]
    assert shifted.value == pytest.approx(0.1, abs=0.02) and shifted.holds
    assert shifted.interval[0] < shifted.value < shifted.interval[1]
    assert not alike.holds
    # Unpaired, the shares of 0 and 1 alone would have a standard error of sqrt(2 * .25 / 1000) = .022.
    assert shifted.interval[1] - shifted.interval[0] < 2 * 1.96 * 0.022


def test_intervals_grow_with_what_a_whole_seed_shares():
    rng = np.random.default_rng(1)
    base = np.zeros((5, 200))
    by_seed = base + rng.normal(0, 0.1, (5, 1))
    by_answer = base + rng.normal(0, 0.1, (5, 200))
    found = differences({0.0: {BASELINE: base, "by_seed": by_seed, "by_answer": by_answer}}, BASELINE)
    widths = {name: np.subtract(*found[0.0, name].interval[::-1]) for name in ("by_seed", "by_answer")}
    assert widths["by_seed"] > 5 * widths["by_answer"]


def test_a_variant_that_equals_the_baseline_does_not_hold():
    base = np.ones((5, 20))
    found = differences({0.0: {BASELINE: base, "same": base.copy()}}, BASELINE)
    assert found[0.0, "same"].value == 0 and not found[0.0, "same"].holds


@pytest.mark.parametrize(("by_seed", "by_prompt"), [(0.0, 0.3), (0.05, 0.3), (0.2, 0.0), (0.05, 0.05)])
def test_p_values_are_below_a_level_as_rarely_as_it_says_if_nothing_differs(by_seed, by_prompt):
    """With five seeds; a bootstrap of five finds more than there is. Satterthwaite's degrees of freedom are an approximation,
    which shows at small levels."""
    rng = np.random.default_rng(0)

    def drawn() -> np.ndarray:
        return rng.normal(0, by_seed, (5, 1)) + rng.normal(0, by_prompt, (1, 150)) + rng.normal(0, 0.4, (5, 150))

    found = np.array([p_value(drawn()) for _ in range(2000)])
    assert 0.005 < (found < 0.05).mean() < 0.065
    assert (found < 0.005).mean() < 0.015


def test_a_p_value_by_hand():
    """Two-way mean squares of a table of 3 x 2, and Student's t with Satterthwaite's degrees of freedom."""
    gap = np.array([[1.0, 3.0], [2.0, 6.0], [3.0, 3.0]])  # mean 3
    of_seeds, of_prompts, of_rest = 2.0, 6.0, 2.0  # of 2, 1 and 2 degrees of freedom
    variance = of_seeds + of_prompts - of_rest
    freedom = variance**2 / (of_seeds**2 / 2 + of_prompts**2 / 1 + of_rest**2 / 2)
    assert freedom == pytest.approx(0.9)
    assert p_value(gap) == pytest.approx(2 * stats.t.sf(3 / math.sqrt(variance / 6), 1.0))
    assert p_value(gap[:2]) == 1.0  # too few seeds


def test_holms_procedure():
    assert holm({"a": 0.01, "b": 0.02, "c": 0.3}) == {"a", "b"}  # .01 <= .05/3, .02 <= .05/2, .3 > .05
    assert holm({"a": 0.02, "b": 0.024, "c": 0.04}) == set()  # .02 > .05/3


# --- The whole of it, tiny --------------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_tiny_study_measures_every_policy_once_and_reports_differences(tmp_path, monkeypatch):
    monkeypatch.setattr(alignment, "BATCH", 16)
    monkeypatch.setattr(alignment, "EPOCHS", 1)
    sizes = Sizes({"train": 48, "preference": 12, "held_out": 8}, (0.3,), 1, (BASELINE, CEILING, "median"), 2, 2)
    claim(tmp_path, sizes)
    start = pipeline.Quickstart(tmp_path / "start", sizes.scenes)
    pipeline.make_data(start)
    pipeline.make_model(start)
    shutil.copytree(start.model("base"), start.model("policy"))
    held_out = HeldOut(start.model("policy"), start.data("held_out"))
    kinds = [question.kind for question in held_out.questions]
    (tmp_path / START).write_text(json.dumps(held_out.start | {"kinds": kinds}))
    with pytest.raises(UserError, match="no seed is complete"):
        write_report(tmp_path, sizes)

    cells = [Cell(tmp_path, level, seed, sizes) for level, seed in sizes.cells()]
    for cell in cells:
        cell.run(held_out)
    made = {path: path.stat().st_mtime_ns for path in tmp_path.glob(f"cells/*/*/{RESULT}")}
    assert len(made) == 5
    for cell in cells:
        cell.run(held_out)
    assert made == {path: path.stat().st_mtime_ns for path in tmp_path.glob(f"cells/*/*/{RESULT}")}

    write_report(tmp_path, sizes)
    found = json.loads((tmp_path / "results.json").read_text())["differences"]["right"]
    (difference,) = [each for each in found if each["variant"] == "median"]
    measured = [cells[0].result(name) for name in ("median", BASELINE)]
    assert all(len(each[metric]) == 8 for each in measured for metric in ("answers", "right", "kl", "tokens", "wins"))
    assert difference["value"] == pytest.approx(np.mean(measured[0]["right"]) - np.mean(measured[1]["right"]))
    assert "k median" in (tmp_path / "table.md").read_text() and "<svg" in (tmp_path / "report.html").read_text()
    assert all(unit > 0 for unit in measured[0]["unit"]) and max(measured[0]["left_out"]) <= 4
    with pytest.raises(UserError, match="has other sizes"):
        claim(tmp_path, sizes._replace(seeds=2))
    claim(tmp_path, sizes)
