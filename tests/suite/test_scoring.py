"""Stored answers are scored: a task that fails or has no judge says so, and what has not changed is not scored again."""

from __future__ import annotations

import dataclasses

import pytest

from mmrlhf_jax.suite import results
from mmrlhf_jax.suite.answering import Finished
from mmrlhf_jax.suite.answers import Answer, Answered, AnswerFile, stored
from mmrlhf_jax.suite.judges.assignment import JudgeAssignment
from mmrlhf_jax.suite.reasons import NOT_ANSWERED, OTHER_DOCUMENT, OTHER_REQUEST
from mmrlhf_jax.suite.request import Request
from mmrlhf_jax.suite.results import Document, Figure, Results
from mmrlhf_jax.suite.scoring import UNSOUND, WITHOUT_JUDGE, Scoring, has_figures
from mmrlhf_jax.suite.task import TaskFailed
from tests.suite.support.asked import OPTIONS, task

MME, POPE, WILD = task("mme"), task("pope", 3), task("wild", 2, judge="always")


class Lengths:
    """A scorer: the figure is the mean length of the answers."""

    def __init__(self, failing=(), version="1.0"):
        self.scored, self.failing, self.version = [], failing, version

    def settings(self, task):
        return {"max_new_tokens": task.new_tokens}

    def metrics_of(self, task):
        return f"lengths {self.version}"

    def score(self, task, answered, judging):
        answers, unanswered = answered.answers, answered.unanswered
        self.scored.append(task.name)
        if task.name in self.failing:
            raise TaskFailed("its code is broken")
        documents = [
            Document(name, name, each.prompt, (), each.answer, None, {task.name: float(len(each.answer))})
            for name, each in answers.items()
        ]
        documents += [Document(name, name, "", (), None, None, {}, reason) for name, reason in unanswered.items()]
        value = sum(each.values[task.name] for each in documents if not each.missing) / max(len(answers), 1)
        return Results(task.name, self.metrics_of(task), self.settings(task), {task.name: Figure(value)}, documents)


class Kept:
    """Answers in files that count as they are."""

    def __init__(self, directory, finished):
        self._directory, self._finished = directory, finished
        self.forgotten = []

    def finished(self, task):
        return [self._finished[task.name]]

    def answered(self, task):
        unanswered = {name: reason for each in self.finished(task) for name, reason in each.unanswered.items()}
        contents = {name: digest for each in self.finished(task) for name, digest in each.contents.items()}
        return Answered(self.answers(task), unanswered, contents)

    def forget(self, task):
        self.forgotten.append(task.name)

    def answers(self, task):
        return {document: list(by_key.values())[-1] for document, by_key in stored(self._directory, task.name).items()}


@pytest.fixture
def finished(tmp_path) -> dict[str, Finished]:
    for each in (MME, POPE, WILD):
        with AnswerFile(tmp_path, each.name) as file:
            for number in range(2):
                file.add(Answer.to(Request(f"{number}", (f"{each.name} {number}?",), (), OPTIONS), "a" * (number + 1), "stop"))
    unanswered = {"2": "too long", "3": "the video is missing"}
    return {
        "mme": Finished({}, 4, unanswered),
        "pope": Finished({}, 3, {}, "the process has died"),
        "wild": Finished({}, 2, {}),
    }


def run(directory, finished, scorer=None) -> Lengths:
    scorer = scorer or Lengths()
    Scoring(directory, scorer, JudgeAssignment(), Kept(directory, finished)).run([MME, POPE, WILD])
    return scorer


def test_figures_reasons_and_coverage(tmp_path, finished):
    run(tmp_path, finished)
    mme, pope, wild = (results.read(tmp_path, name) for name in ("mme", "pope", "wild"))
    assert mme.figures["mme"].value == 1.5
    assert dataclasses.astuple(mme.coverage) == (4, 2, 2, {"too long": 1, "the video is missing": 1})
    assert pope.figures["pope"] == Figure(None, "the process has died")
    assert dataclasses.astuple(pope.coverage) == (3, 2, 0, {"the process has died": 3})
    assert wild.figures["wild"] == Figure(None, WITHOUT_JUDGE)
    assert dataclasses.astuple(wild.coverage) == (2, 2, 0, {WITHOUT_JUDGE: 2})
    assert [each.answer for each in wild.documents] == ["a", "aa"]


def test_a_task_that_cannot_be_scored_ends_no_other_one(tmp_path, finished, capsys):
    finished["pope"] = Finished({}, 2, {})
    scorer = run(tmp_path, finished, Lengths(failing=["mme"]))
    assert scorer.scored == ["mme", "pope"]
    assert results.read(tmp_path, "mme").figures["mme"] == Figure(None, "its code is broken")
    assert results.read(tmp_path, "pope").figures["pope"].value == 1.5
    assert "mme: its code is broken; the other tasks go on" in capsys.readouterr().err


def test_no_other_task_goes_on_behind_the_last_one(tmp_path, finished, capsys):
    Scoring(tmp_path, Lengths(failing=["mme"]), JudgeAssignment(), Kept(tmp_path, finished)).run([MME])
    assert capsys.readouterr().err == "mme: its code is broken\n"


def test_documents_that_could_not_be_had_are_not_counted(tmp_path, finished):
    """Neither by the catalogue nor by a guess."""
    finished["gone"] = Finished({}, 0, {}, "the hub is away")
    gone = task("gone", 7)
    Scoring(tmp_path, Lengths(), JudgeAssignment(), Kept(tmp_path, finished)).run([gone])
    found = results.read(tmp_path, "gone")
    assert found.figures["gone"] == Figure(None, "the hub is away") and found.coverage.expected == 0


@pytest.mark.parametrize(
    ("changes", "has"),
    [
        ({}, True),  # two figures, one failure, one without a judge
        ({"mme": "gone"}, False),
        ({"mme": "gone", "pope": "gone"}, False),
    ],
)
def test_a_run_without_any_figure_is_seen(tmp_path, finished, changes, has):
    finished |= {name: Finished({}, 2, {}, why) for name, why in changes.items()}
    run(tmp_path, finished)
    assert has_figures(tmp_path, [MME, POPE, WILD]) is has
    assert has_figures(tmp_path, [WILD])  # its answers are kept for a judge
    assert not has_figures(tmp_path, [task("never", 1)])


def test_what_is_whole_is_not_scored_again_and_what_changed_or_is_missing_is(tmp_path, finished):
    finished |= {"mme": Finished({}, 2, {}), "pope": Finished({}, 3, {"2": "too long"})}
    assert run(tmp_path, finished).scored == ["mme", "pope"]
    assert run(tmp_path, finished).scored == ["pope"]
    with AnswerFile(tmp_path, "mme") as file:
        file.add(Answer.to(Request("1", ("mme 1?",), (), OPTIONS), "another", "stop"))
    assert run(tmp_path, finished).scored == ["mme", "pope"]
    assert results.read(tmp_path, "mme").figures["mme"].value == 4.0


@pytest.mark.parametrize("reason", [OTHER_DOCUMENT, OTHER_REQUEST, NOT_ANSWERED])
def test_a_task_whose_data_set_has_changed_is_asked_again_by_the_next_command(tmp_path, finished, capsys, reason):
    finished |= {"mme": Finished({}, 3, {"2": reason}), "pope": Finished({}, 3, {"2": "too long"}, contents={"0": "a"})}
    kept = Kept(tmp_path, finished)
    Scoring(tmp_path, Lengths(), JudgeAssignment(), kept).run([MME, POPE])
    assert kept.forgotten == ["mme"]
    assert "mme: 1 document of the data set is not what was asked" in capsys.readouterr().err


class Senseless(Lengths):
    """A scorer that gives the documents of a task a weight below 0, as the harness does that notes -1 for a failure."""

    def score(self, task, answered, judging):
        found = super().score(task, answered, judging)
        documents = [dataclasses.replace(each, weights={task.name: -1.0}) for each in found.documents]
        return dataclasses.replace(found, documents=documents) if task.name == "mme" else found


@pytest.mark.parametrize("before", [False, True])
def test_results_that_are_not_sound_end_no_other_task(tmp_path, finished, capsys, before):
    finished |= {"mme": Finished({}, 2, {}), "pope": Finished({}, 2, {})}
    if before:
        run(tmp_path, finished)
        with AnswerFile(tmp_path, "mme") as file:
            file.add(Answer.to(Request("1", ("mme 1?",), (), OPTIONS), "another", "stop"))
    scorer = run(tmp_path, finished, Senseless())
    assert scorer.scored == (["mme"] if before else ["mme", "pope"])
    assert results.read(tmp_path, "mme").figures["mme"] == (Figure(1.5) if before else Figure(None, UNSOUND))
    assert results.read(tmp_path, "pope").figures["pope"].value == 1.5
    said = capsys.readouterr().err
    assert f"mme: {UNSOUND} (" in said and "weights" in said and "; the other tasks go on" in said
    assert (f"nothing can be scored now ({UNSOUND}); the figures of before, of 2 documents, stay" in said) == before


def _broken(finished):
    return finished | {"mme": Finished({}, 2, {}, "the file is gone")}, Lengths()


def _not_scorable(finished):
    return finished, Lengths(failing=["mme"])


def _without_pictures(finished):
    return finished | {"mme": Finished({}, 2, {"0": "its picture is missing", "1": "its picture is missing"})}, Lengths()


class Without(Kept):
    """No document is asked any more."""

    def answers(self, task):
        return {}


@pytest.mark.parametrize(
    ("changed", "kept", "says"),
    [
        (_broken, Kept, "the file is gone"),
        (_not_scorable, Kept, "its code is broken"),
        (_without_pictures, Without, "its picture is missing"),
    ],
)
def test_figures_are_not_replaced_by_a_failure(tmp_path, finished, capsys, changed, kept, says):
    finished["mme"] = Finished({}, 2, {})
    run(tmp_path, finished)
    before = results.read(tmp_path, "mme")
    with AnswerFile(tmp_path, "mme") as file:
        file.add(Answer.to(Request("1", ("mme 1?",), (), OPTIONS), "another", "stop"))
    then, scorer = changed(dict(finished))
    Scoring(tmp_path, scorer, JudgeAssignment(), kept(tmp_path, then)).run([MME])
    assert results.read(tmp_path, "mme") == before
    told = f"mme: nothing can be scored now ({says}); the figures of before, of 2 documents, stay"
    assert told in capsys.readouterr().err
    run(tmp_path, finished)
    assert results.read(tmp_path, "mme").figures["mme"].value == 4.0


class Some(Kept):
    """Some documents alone are asked: those that the host has finished."""

    def answers(self, task):
        return {name: each for name, each in super().answers(task).items() if name in self.finished(task)[0].answered}


class OnTwoHosts(Kept):
    """Of two hosts: `finished` has what each of them has done."""

    def finished(self, task):
        return self._finished[task.name]

    def answers(self, task):
        there = {name for each in self.finished(task) for name in each.answered}
        return {name: each for name, each in super().answers(task).items() if name in there}


def test_a_task_that_fails_on_one_of_two_hosts_has_no_figure_until_that_one_has_answered(tmp_path, finished):
    """Which documents are answered is an accident then, and they may be few; the answers stay."""
    first, failed = Finished({}, 2, {}, None, {"0": "key"}), Finished({}, 2, {}, "the process has died")
    for then, figure in (
        ([first, failed], Figure(None, "the process has died")),
        ([failed, first], Figure(None, "the process has died")),
        ([first, Finished({}, 2, {}, None, {"1": "key"})], Figure(1.5)),
    ):
        Scoring(tmp_path, Lengths(), JudgeAssignment(), OnTwoHosts(tmp_path, {"mme": then})).run([MME])
        found = results.read(tmp_path, "mme")
        assert found.figures["mme"] == figure and found.coverage.expected == 2 and found.documents[0].answer == "a"


class Judged(Lengths):
    """A scorer whose figures are by a judge."""

    def __init__(self, judge):
        super().__init__()
        self._judge = judge

    def settings(self, task):
        return super().settings(task) | {"judge": self._judge}


@pytest.mark.parametrize(
    ("now", "why"),
    [
        (Finished({}, 2, {"0": "its picture is missing"}, answered={"1": "key"}), "its picture is missing"),
        (Finished({}, 1, {}, answered={"1": "key"}), "its data have no others"),  # another file, with fewer documents
    ],
)
def test_figures_are_not_replaced_by_those_of_fewer_documents(tmp_path, finished, capsys, now, why):
    finished["mme"] = Finished({}, 2, {}, answered={"0": "key", "1": "key"})
    run(tmp_path, finished)
    before = results.read(tmp_path, "mme")
    for _ in range(2):
        Scoring(tmp_path, Lengths(), JudgeAssignment(), Some(tmp_path, finished | {"mme": now})).run([MME])
        assert results.read(tmp_path, "mme") == before
        told = f"only 1 document can be scored now ({why}); choose another --out for their figures; the figures of before, of 2"
        assert f"mme: {told} documents, stay" in capsys.readouterr().err
    Scoring(tmp_path, Lengths(), JudgeAssignment(), Some(tmp_path, finished)).run([MME])
    assert "stay" not in capsys.readouterr().err
    results.figures_path(tmp_path, "mme").unlink()
    Scoring(tmp_path, Lengths(), JudgeAssignment(), Some(tmp_path, finished | {"mme": now})).run([MME])
    assert results.read(tmp_path, "mme").figures["mme"].value == 2.0


@pytest.mark.parametrize(("first", "second", "stays"), [("m", "k", False), ("m", "m", True), (None, "m", True)])
def test_figures_of_another_judge_are_replaced_also_by_those_of_fewer_documents(tmp_path, finished, first, second, stays):
    finished["mme"] = Finished({}, 2, {}, answered={"0": "key", "1": "key"})
    fewer = Finished({}, 2, {"0": "the judge's reply cannot be read"}, answered={"1": "key"})
    for judge, then in ((first, finished["mme"]), (second, fewer)):
        Scoring(tmp_path, Judged(judge), JudgeAssignment(), Some(tmp_path, finished | {"mme": then})).run([MME])
    found = results.read(tmp_path, "mme")
    assert (found.settings["judge"], found.coverage.scored) == ((first, 2) if stays else (second, 1))


@pytest.mark.parametrize("lost", [results.documents_path, results.figures_path])
def test_a_kill_between_the_two_files_of_results_or_a_damaged_one_is_scored_again(tmp_path, finished, lost):
    finished["mme"] = Finished({}, 2, {})
    run(tmp_path, finished)
    before = results.read(tmp_path, "mme")
    path = lost(tmp_path, "mme")
    whole = path.read_bytes()
    for damaged in (whole.replace(b"mme", b"mne", 1), whole[:-20], whole + b"\xff", b""):  # or as if it were of another pass
        path.write_bytes(damaged)
        assert "mme" in run(tmp_path, finished).scored
        assert results.read(tmp_path, "mme") == before
    assert run(tmp_path, finished).scored == []
    (tmp_path / "scored" / "mme.txt").write_bytes(b"\xff")
    assert "mme" in run(tmp_path, finished).scored


def test_what_another_version_of_the_metrics_has_scored_is_scored_again(tmp_path, finished):
    finished["mme"] = dataclasses.replace(finished["mme"], documents=2, unanswered={})
    assert "mme" in run(tmp_path, finished).scored and "mme" not in run(tmp_path, finished).scored
    assert "mme" in run(tmp_path, finished, Lengths(version="1.1")).scored
    assert results.read(tmp_path, "mme").harness == "lengths 1.1"
