"""The parts of the study of Dynamic Reward Scaling: annotators, the rule that grades answers, and the intervals."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from scipy import stats

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.huggingface.load import load_model
from mmrlhf_jax.quickstart import alignment, pipeline
from mmrlhf_jax.quickstart.dataset import generate
from mmrlhf_jax.quickstart.questions import question_from_record
from mmrlhf_jax.quickstart.responses import GRADES
from mmrlhf_jax.quickstart.scenes import objects_from_key
from mmrlhf_jax.sharding.mesh import make_mesh
from tests.benchmarks.drs_study import __main__ as study_command
from tests.benchmarks.drs_study.__main__ import main
from tests.benchmarks.drs_study.analysis import agreement, differences, holm, mean_test
from tests.benchmarks.drs_study.annotators import annotated, order_of, quality_of, temperature_for, votes_of
from tests.benchmarks.drs_study.cell import RESULT, Cell
from tests.benchmarks.drs_study.held_out import HeldOut
from tests.benchmarks.drs_study.quality import grade
from tests.benchmarks.drs_study.report import write_report
from tests.benchmarks.drs_study.sizes import Sizes
from tests.benchmarks.drs_study.study import START, STUDY, claim, watch_all, worker_pool
from tests.benchmarks.drs_study.variants import BASELINE, CEILING

ROOT = Path(__file__).parents[2]


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


def test_a_share_that_no_temperature_gives_is_refused(records):
    with pytest.raises(ValueError, match="wrong pairs: not reached"):
        temperature_for(records[:20], 0.6, seed=0)


def test_human_scores_are_between_1_and_5_and_ordered_as_the_ranks(records):
    for made in annotated(records, 3.5, seed=2):
        scores = [set(response.scores.values()) for response in made.responses]
        assert all(len(each) == 1 for each in scores)
        (values,) = zip(*map(sorted, scores), strict=True)
        assert min(values) >= 1 and max(values) <= 5 and sum(values) / len(values) == pytest.approx(3)
        for chosen, rejected in made.pairs():
            assert values[chosen] > values[rejected]


def test_responses_of_equal_quality_stay_tied(records):
    for made in annotated(records, 3.5, seed=2):
        for chosen, rejected in made.pairs():
            assert quality_of(made.responses[chosen]) != quality_of(made.responses[rejected])


# --- Intervals --------------------------------------------------------------------------------------------------------


def to_baseline(name: str) -> str | None:
    return None if name == BASELINE else BASELINE


def figures(shift: float, seed: int = 0):
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 2, (5, 200)).astype(float)
    noise = rng.normal(0, 0.2, (5, 200))
    return {0.0: {BASELINE: base, "shifted": base + shift + noise, "alike": base + rng.normal(0, 0.2, (5, 200))}}


def test_differences_are_paired():
    found = differences(figures(0.1), to_baseline)
    shifted, alike = found[0.0, "shifted"], found[0.0, "alike"]
    assert shifted.value == pytest.approx(0.1, abs=0.02) and shifted.holds
    assert shifted.interval[0] < shifted.value < shifted.interval[1]
    assert shifted.value > shifted.needed and shifted.p < 0.025
    assert not alike.holds and abs(alike.value) < alike.needed
    # Unpaired, the shares of 0 and 1 alone would have a standard error of sqrt(2 * .25 / 1000) = .022.
    assert shifted.interval[1] - shifted.interval[0] < 2 * 1.96 * 0.022


def test_intervals_grow_with_what_a_whole_seed_shares():
    rng = np.random.default_rng(1)
    base = np.zeros((5, 200))
    by_seed = base + rng.normal(0, 0.1, (5, 1))
    by_answer = base + rng.normal(0, 0.1, (5, 200))
    found = differences({0.0: {BASELINE: base, "by_seed": by_seed, "by_answer": by_answer}}, to_baseline)
    widths = {name: np.subtract(*found[0.0, name].interval[::-1]) for name in ("by_seed", "by_answer")}
    assert widths["by_seed"] > 5 * widths["by_answer"]


def test_a_variant_that_equals_the_baseline_does_not_hold():
    base = np.ones((5, 20))
    found = differences({0.0: {BASELINE: base, "same": base.copy()}}, to_baseline)
    assert found[0.0, "same"].value == 0 and not found[0.0, "same"].holds


# Standard deviations of a difference between seeds and between prompts, beside .4 between answers.
SPREADS = pytest.mark.parametrize(("by_seed", "by_prompt"), [(0.0, 0.3), (0.05, 0.3), (0.2, 0.0), (0.05, 0.05)])


def drawn_gap(rng: np.random.Generator, by_seed: float, by_prompt: float) -> np.ndarray:
    """float64[5, 150] of mean 0."""
    return rng.normal(0, by_seed, (5, 1)) + rng.normal(0, by_prompt, (1, 150)) + rng.normal(0, 0.4, (5, 150))


@SPREADS
def test_p_values_are_below_a_level_as_rarely_as_it_says_if_nothing_differs(by_seed, by_prompt):
    """With five seeds; a bootstrap of five finds more than there is. Satterthwaite's degrees of freedom are an approximation,
    which shows at small levels: at that of Holm's first step P is too small about three times as often as it says."""
    rng = np.random.default_rng(0)
    found = np.array([mean_test(drawn_gap(rng, by_seed, by_prompt)).p for _ in range(10_000)])
    assert 0.005 < (found < 0.05).mean() < 0.065
    assert (found < 0.05 / 39).mean() < 0.0045


@pytest.mark.long
@SPREADS
def test_how_often_intervals_cover_the_truth(by_seed, by_prompt):
    """Too often where whole seeds differ little, too rarely where they differ much: the page says "about 95 %"."""
    rng, covered = np.random.default_rng(0), []
    for trial in range(300):
        gap = drawn_gap(rng, by_seed, by_prompt)
        found = differences({0.0: {BASELINE: np.zeros_like(gap), "v": gap}}, to_baseline, seed=trial, draws=400)[0.0, "v"]
        covered.append(found.interval[0] <= 0 <= found.interval[1])
    assert np.mean(covered) > (0.8 if by_seed > 0.1 else 0.9)


def test_what_is_needed_is_what_would_hold_first():
    rng = np.random.default_rng(3)
    test = mean_test(drawn_gap(rng, 0.05, 0.1))
    assert test._replace(mean=1.001 * test.needed(0.01)).p < 0.01 < test._replace(mean=0.999 * test.needed(0.01)).p


def test_agreement_by_hand():
    """Of four pairs three are ordered as annotated; one of these is annotated the wrong way, and so is the fourth."""
    assert agreement([[1.0, 2.0], [], [0.5, -3.0]], [[1, 1], [], [-1, -1]]) == (0.75, 0.75)


def test_a_p_value_by_hand():
    """Two-way mean squares of a table of 3 x 2, and Student's t with Satterthwaite's degrees of freedom."""
    gap = np.array([[1.0, 3.0], [2.0, 6.0], [3.0, 3.0]])  # mean 3
    of_seeds, of_prompts, of_rest = 2.0, 6.0, 2.0  # of 2, 1 and 2 degrees of freedom
    variance = of_seeds + of_prompts - of_rest
    freedom = variance**2 / (of_seeds**2 / 2 + of_prompts**2 / 1 + of_rest**2 / 2)
    assert freedom == pytest.approx(0.9)
    assert mean_test(gap).p == pytest.approx(2 * stats.t.sf(3 / math.sqrt(variance / 6), 1.0))
    assert mean_test(gap[:2]).p == 1.0  # too few seeds


def test_holms_procedure():
    assert holm({"a": 0.01, "b": 0.02, "c": 0.3}) == {"a", "b"}  # .01 <= .05/3, .02 <= .05/2, .3 > .05
    assert holm({"a": 0.02, "b": 0.024, "c": 0.04}) == set()  # .02 > .05/3


# --- What a study says -------------------------------------------------------------------------------------------------

NAMES = (BASELINE, CEILING, "median", "batch_implicit")
SIZES = Sizes({"train": 8, "preference": 4, "held_out": 60}, (0.0, 0.3), 3, NAMES, 2, 2)


def write_results(
    out, sizes: Sizes, shifts: dict[tuple[float, str], float], *, without_kl: int = 0, seeds=(1, 2, 3), spread=0.02
) -> None:
    """A study whose shares right are random, but for `shifts` by level and variant; objectives differ by `spread` otherwise."""
    rng = np.random.default_rng(0)
    prompts = sizes.scenes["held_out"]
    start = {"right": [0.0] * prompts, "quality": [2.0] * prompts, "tokens": [5.0] * prompts, "kinds": ["colour"] * prompts}
    claim(out, sizes)
    (out / START).write_text(json.dumps(start))
    for level, seed in sizes.cells():
        cell, base = Cell(out, level, seed, sizes), rng.random(prompts)
        pairs = {"margins": [[float(x)] for x in rng.normal(1, 2, prompts)], "truly": [[1]] * prompts}
        order = {"pairs": 10, "wrong": round(10 * level), "share_wrong": level}
        for part in cell.parts:
            result = {"seconds": 30.0}
            if part == "data":
                result |= {"temperature": level, "preference": order}
            elif part == "reward_model":
                result |= {"preference": pairs, "held_out": pairs}
            else:
                right = base + rng.normal(0, spread, prompts) + shifts.get((level, part), 0.0)
                kl = [None if part == "median" and i < without_kl else 1.0 for i in range(prompts)]
                result |= {"right": right.tolist(), "wins": base.tolist(), "quality": base.tolist(), "tokens": base.tolist()}
                result |= {"kl": kl, "unit": kl, "left_out": [0.0] * prompts, "mean_beta": 0.1, "k": 0.7}
                result |= {"training": {"beta/min": 0.1, "beta/max": 0.1}}
            if seed in seeds:
                (cell.folder / part).mkdir(parents=True)
                (cell.folder / part / RESULT).write_text(json.dumps(result))


def test_what_holds_is_said_of_dynamic_reward_scaling_and_of_the_others_apart(tmp_path, capsys):
    write_results(tmp_path / "out", SIZES, {(0.3, "median"): 0.2, (0.0, "batch_implicit"): -0.1}, without_kl=2)
    write_report(tmp_path / "out", SIZES)
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    scaled, largest, others, resolution = found["conclusion"]
    holding = "MM-DPO, k median, w .5 at 30 % wrong pairs +"
    assert "of 2 differences (1 setting at 2 levels) these hold: " + holding in scaled and "0 % wrong pairs −" not in scaled
    assert "largest β" in largest and "of 2 differences" in largest and holding in largest
    assert "of 4 differences" in others and "batch_implicit, w .1 (released code) at 0 % wrong pairs −10" in others
    assert resolution.startswith("To hold among 6 comparisons, a difference between this many answers and seeds must be about ")
    assert scaled in capsys.readouterr().err and found["prompts_without_kl"] == 2 and found["decides"]
    table = (tmp_path / "out" / "table.md").read_text()
    assert "**+20" in table and "Bold: differs from 0 among all 6." in table and "over 3 of 3 seeds" in table
    page = (tmp_path / "out" / "report.html").read_text()
    assert "these hold" in page and "without the 2 prompts" in page and "batch_implicit" in page


def test_if_nothing_holds_that_is_said_with_what_could_not_be_seen(tmp_path):
    write_results(tmp_path / "out", SIZES, {})
    write_report(tmp_path / "out", SIZES)
    said = json.loads((tmp_path / "out" / "results.json").read_text())["conclusion"]
    assert [sentence.endswith("none holds.") for sentence in said] == [True, True, True, False]
    assert "can be there unseen" in said[-1]
    assert "**" not in (tmp_path / "out" / "table.md").read_text()


def test_objectives_that_answer_alike_do_not_differ(tmp_path):
    write_results(tmp_path / "out", SIZES, {}, spread=0.0)
    write_report(tmp_path / "out", SIZES)
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert found["conclusion"][-1] == "No answer differs between two objectives."
    assert all(each["value"] == 0 and each["needed"] is None for each in found["differences"]["right"])


def test_nothing_holds_before_all_seeds_are_there(tmp_path):
    sizes = SIZES._replace(seeds=4)
    write_results(tmp_path / "out", sizes, {(0.3, "median"): 0.5})
    write_report(tmp_path / "out", sizes)
    assert "**" not in (tmp_path / "out" / "table.md").read_text()
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert not found["complete"] and not found["decides"] and found["conclusion"][0].startswith("3 of 4 seeds are complete.")


def test_a_study_of_two_seeds_says_that_it_is_too_small(tmp_path):
    sizes = SIZES._replace(seeds=2)
    write_results(tmp_path / "out", sizes, {(0.3, "median"): 0.5})
    write_report(tmp_path / "out", sizes)
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert found["conclusion"] == ["A study of 2 seeds cannot say which differences hold; it shows how the whole one looks."]
    table = (tmp_path / "out" / "table.md").read_text()
    assert "**" not in table and "Bold" not in table and found["complete"] and not found["decides"]


def test_a_study_without_a_complete_seed_has_no_report(tmp_path):
    write_results(tmp_path / "out", SIZES, {}, seeds=())
    with pytest.raises(UserError, match="no seed is complete"):
        write_report(tmp_path / "out", SIZES)


# --- Its directory and its processes ----------------------------------------------------------------------------------


def test_a_directory_with_something_else_is_refused(tmp_path):
    with pytest.raises(UserError, match="no study is there"):
        claim(tmp_path, SIZES, reads_only=True)
    (tmp_path / "start").mkdir()
    with pytest.raises(UserError, match="something else than a study"):
        claim(tmp_path, SIZES)
    assert not (tmp_path / STUDY).exists()


def test_a_study_is_continued_by_the_same_code_alone_and_may_get_further_variants(tmp_path):
    claim(tmp_path, SIZES)
    claim(tmp_path, SIZES._replace(variants=(BASELINE, "paper")))
    known = json.loads((tmp_path / STUDY).read_text())
    assert known["variants"].keys() == {*NAMES, "paper"}
    with pytest.raises(UserError, match="has other policy steps"):
        claim(tmp_path, SIZES._replace(policy_steps=3))
    for changed, said in (
        ({"variants": known["variants"] | {"paper": {"beta": 0.3}}}, "the variant paper has another objective"),
        ({"code": "0"}, "begun with other code"),
        ({"libraries": known["libraries"] | {"optax": "0"}}, "or other versions of libraries"),
    ):
        (tmp_path / STUDY).write_text(json.dumps(known | changed))
        with pytest.raises(UserError, match=said):
            claim(tmp_path, SIZES._replace(variants=(BASELINE, "paper")))
    claim(tmp_path, SIZES, reads_only=True)  # the report of a study by other code
    for damaged, said in (("{", "not JSON"), ('{"a": 1}', "not the description of a study"), ("[]", "not the description")):
        (tmp_path / STUDY).write_text(damaged)
        with pytest.raises(UserError, match=said):
            claim(tmp_path, SIZES)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="not a directory"):
        claim(tmp_path / "file", SIZES)


def adopt_nothing(_: None) -> None:
    pass


def fail() -> None:
    raise UserError("this part failed")


def end_by_a_signal() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def write_later(path: Path) -> None:
    """As a training run does: it takes a signal to end as one to finish its step and write a checkpoint."""
    signal.signal(signal.SIGTERM, lambda *_: None)
    path.with_suffix(".begun").touch()
    while not path.with_suffix(".ended").exists():
        time.sleep(0.01)
    end = time.monotonic() + 3
    while time.monotonic() < end:
        time.sleep(0.01)
    path.touch()


def wait_for(path: Path, work) -> None:
    while not path.with_suffix(".begun").exists():
        time.sleep(0.01)
    path.with_suffix(".ended").touch()
    work()


@pytest.mark.long
@pytest.mark.parametrize(("work", "said"), [(fail, "this part failed"), (end_by_a_signal, "ended from outside")])
def test_the_first_error_ends_all_workers(tmp_path, work, said):
    path = tmp_path / "late"
    with pytest.raises(UserError, match=said), worker_pool(2, adopt_nothing, None) as pool:
        running = [pool.submit(write_later, path), pool.submit(wait_for, path, work)]
        watch_all(pool)
        running[1].result()
    assert not multiprocessing.active_children()
    time.sleep(4)
    assert path.with_suffix(".begun").exists() and not path.exists()


@pytest.mark.long
def test_workers_end_with_a_study_that_was_killed(tmp_path):
    path = tmp_path / "late"
    study = f"""
from pathlib import Path
from tests.benchmarks.drs_study.study import worker_pool
from tests.benchmarks.test_drs_study import adopt_nothing, write_later
if __name__ == "__main__":
    with worker_pool(1, adopt_nothing, None) as pool:
        pool.submit(write_later, Path({str(path)!r})).result()
"""
    (tmp_path / "study.py").write_text(study)
    running = subprocess.Popen([sys.executable, str(tmp_path / "study.py")], env=os.environ | {"PYTHONPATH": str(ROOT)})
    while not path.with_suffix(".begun").exists():
        assert running.poll() is None
        time.sleep(0.01)
    running.kill()
    running.wait()
    path.with_suffix(".ended").touch()
    time.sleep(4)
    assert not path.exists()


# --- The command -------------------------------------------------------------------------------------------------------


def command(monkeypatch, *arguments: str) -> int | str | None:
    """The exit status or message of the study's command."""
    monkeypatch.setattr(sys, "argv", ["drs_study", *arguments])
    try:
        main()
    except SystemExit as ended:
        return ended.code
    return None


def test_the_command_makes_what_is_missing_and_reports(tmp_path, monkeypatch, capsys):
    made = []
    monkeypatch.setattr(study_command, "WHOLE", SIZES)
    monkeypatch.setattr(study_command, "make_start", lambda out, sizes: made.append("start"))
    monkeypatch.setattr(study_command, "run_cells", lambda out, sizes, workers: write_results(out, sizes, {}))
    out = tmp_path / "out"
    assert "no study is there" in command(monkeypatch, str(out), "--report")
    assert command(monkeypatch, str(out)) is None
    assert made == ["start"] and (out / "report.html").exists()
    assert "has other" in command(monkeypatch, str(out), "--report", "--small")
    (out / "report.html").unlink()
    monkeypatch.chdir(out)
    assert command(monkeypatch, ".", "--report") is None
    assert made == ["start"] and (out / "report.html").exists()
    for workers in ("0", str(len(os.sched_getaffinity(0)) + 1)):
        assert command(monkeypatch, str(out), "--workers", workers) == 2
        assert "the number of cores" in capsys.readouterr().err


def test_a_second_study_in_one_directory_is_refused(tmp_path, monkeypatch):
    refused = []
    monkeypatch.setattr(study_command, "WHOLE", SIZES)
    monkeypatch.setattr(study_command, "make_start", lambda *_: refused.append(command(monkeypatch, ".")))
    monkeypatch.setattr(study_command, "run_cells", lambda out, sizes, workers: write_results(out, sizes, {}))
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    assert command(monkeypatch, str(tmp_path / "out")) is None
    assert len(refused) == 1 and "is running a study in it" in refused[0]


# --- The whole of it, tiny --------------------------------------------------------------------------------------------


class Examples(list):
    """Records as examples."""

    fingerprint = "these records"

    @property
    def records(self):
        return list(self)

    def __getitem__(self, index):
        return SimpleNamespace(record=super().__getitem__(index))


class Written:
    """An engine whose drawn answers and log-probs of texts are given; a token is written as itself."""

    def __init__(self, answers, logps):
        self.answers, self.logps = answers, logps

    def decode(self, tokens):
        return " ".join(tokens)

    def asked(self, *_, **__):
        return None

    def write(self, *_):
        return [[SimpleNamespace(tokens=text.split(), logps=[logp], reason=reason) for text, logp, reason in self.answers]]

    def score_responses(self, examples, *_):
        return [{"logps": [self.logps[response.text] for response in record.responses]} for record in examples.records]


@pytest.mark.parametrize(
    ("answers", "kl", "unit", "left_out"),
    [
        # Drawn twice, counted twice.
        ([("a b", -1.0, "stop"), ("c", -3.0, "stop"), ("a b", -1.0, "stop")], 0.0, (2 * math.exp(-1) + math.exp(2)) / 3, 0),
        # Cut off at its longest, or of other tokens than those that the text is scored by: not counted.
        ([("a b", -1.0, "stop"), ("c", -3.0, "length"), ("d", -2.5, "stop")], 1.0, math.exp(-1), 2),
        ([("c", -3.0, "length"), ("d", -2.5, "stop")], None, None, 2),
    ],
)
def test_the_divergence_by_hand(records, answers, kl, unit, left_out):
    """The policy gives the texts a b, c and d the log-probs -1, -3 and -2, the start -2, -1 and -2."""
    held_out = object.__new__(HeldOut)
    held_out.examples = Examples(records[:1])
    held_out._policy = Written(answers, {"a b": -1.0, "c": -3.0, "d": -2.0})
    held_out._start = Written(answers, {"a b": -2.0, "c": -1.0, "d": -2.0})
    found = held_out._divergence(seed=1)
    assert found["kl"] == [kl if kl is None else pytest.approx(kl)] and found["left_out"] == [left_out]
    assert found["unit"] == [unit if unit is None else pytest.approx(unit)]


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
    own = load_model(start.model("policy"), mesh=make_mesh({}, jax.devices()[:1]))
    same = held_out.measured(own, seed=1)  # the start is its own policy
    assert same["answers"] == held_out.start["answers"] and set(same["wins"]) == {0.5}

    cells = [Cell(tmp_path, level, seed, sizes) for level, seed in sizes.cells()]
    begun = cells[0].folder / "median" / "run"
    begun.mkdir(parents=True)
    (begun / "left by a kill").touch()
    for cell in cells:
        cell.run(held_out)
    assert not begun.exists()
    made = {path: path.stat().st_mtime_ns for path in tmp_path.glob(f"cells/*/*/{RESULT}")}
    assert len(made) == 5
    for cell in cells:
        cell.run(held_out)
    assert made == {path: path.stat().st_mtime_ns for path in tmp_path.glob(f"cells/*/*/{RESULT}")}

    write_report(tmp_path, sizes)
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["seconds"] == pytest.approx(sum(json.loads(path.read_text())["seconds"] for path in made))
    found = found["differences"]["right"]
    (difference,) = [each for each in found if each["variant"] == "median"]
    measured = [cells[0].result(name) for name in ("median", BASELINE)]
    assert all(len(each[metric]) == 8 for each in measured for metric in ("answers", "right", "kl", "tokens", "wins"))
    assert difference["value"] == pytest.approx(np.mean(measured[0]["right"]) - np.mean(measured[1]["right"]))
    assert "k median" in (tmp_path / "table.md").read_text() and "<svg" in (tmp_path / "report.html").read_text()
    with pytest.raises(UserError, match="has other seeds"):
        claim(tmp_path, sizes._replace(seeds=2))
    claim(tmp_path, sizes)
