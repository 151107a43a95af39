"""A policy answers all tasks: nothing is made twice, a task that fails ends no other one, hosts share the documents."""

from __future__ import annotations

import pytest

from mmrlhf_jax.inference.jobs import ALONE, Share
from mmrlhf_jax.suite import answering
from mmrlhf_jax.suite.answering import Answering
from mmrlhf_jax.suite.answers import answers_path, stored
from tests.suite.asked import Documents, Parrot, task

TASKS = [task("mme"), task("pope", 3), task("ai2d", 5)]


def run(directory, source=None, policy=None, share=ALONE, tasks=TASKS) -> tuple[Answering, Parrot]:
    policy = policy or Parrot()
    found = Answering(directory, tasks, source or Documents(), lambda: policy, share)
    found.run()
    return found, policy


def answers(directory) -> dict[str, dict[str, str]]:
    return {each.name: {name: answer.answer for name, answer in stored(directory, each.name).items()} for each in TASKS}


def test_every_document_of_every_task_is_answered_once(tmp_path):
    found, policy = run(tmp_path)
    assert {name: len(each) for name, each in answers(tmp_path).items()} == {"mme": 4, "pope": 3, "ai2d": 5}
    assert len(policy.said) == len(set(policy.said)) == 12
    assert answers(tmp_path)["pope"]["2"] == "you said: pope 2, version 1"
    (finished,) = found.finished(TASKS[1])
    assert (finished.documents, finished.refused, finished.failed) == (3, {}, None)
    kept = stored(tmp_path, "mme")["3"]
    assert (tmp_path / "media" / kept.media[0]).stat().st_size > 100


def test_a_finished_run_asks_neither_tasks_nor_policy(tmp_path):
    run(tmp_path)
    source = Documents()
    Answering(tmp_path, TASKS, source, lambda: pytest.fail("a policy is loaded"), ALONE).run()
    assert source.asked == []


def test_other_prompts_are_answered_anew(tmp_path):
    run(tmp_path)
    source = Documents()
    source.version = 2
    _, policy = run(tmp_path, source)
    assert len(policy.said) == 12
    assert answers(tmp_path)["mme"]["0"] == "you said: mme 0, version 2"


def test_the_same_prompts_of_another_source_are_not(tmp_path, monkeypatch):
    run(tmp_path)
    source = Documents()
    monkeypatch.setattr(source, "made_with", lambda task: {"file": "moved"})
    Answering(tmp_path, TASKS, source, lambda: pytest.fail("a policy is loaded"), ALONE).run()
    assert [name for name, _ in source.asked] == ["mme", "pope", "ai2d"]


class Killed(BaseException):
    pass


def test_nothing_is_answered_twice_wherever_it_is_killed(tmp_path):
    whole = tmp_path / "whole"
    run(whole)
    for count in range(12):
        said, left = [], [count]

        def die(left=left):
            left[0] -= 1
            if left[0] < 0:
                raise Killed

        directory = tmp_path / f"{count}"
        policy = Parrot(after=die)
        with pytest.raises(Killed):
            run(directory, policy=policy)
        said += policy.said
        _, policy = run(directory)
        assert sorted(said + policy.said) == sorted(set(said + policy.said)) and len(said + policy.said) == 12
        assert answers(directory) == answers(whole)


def test_a_task_that_fails_ends_no_other_one_and_goes_on_next_time(tmp_path, capsys):
    found, policy = run(tmp_path, Documents(failing={"mme": 2}))
    assert len(policy.said) == 2 + 3 + 5
    assert [each.failed for each in found.finished(TASKS[0])] == ["it is out of order"]
    assert "mme: it is out of order; the other tasks go on" in capsys.readouterr().err
    found, policy = run(tmp_path)
    assert policy.said == ["mme 2, version 1", "mme 3, version 1"]
    assert [each.failed for each in found.finished(TASKS[0])] == [None]


def test_documents_that_cannot_be_asked_or_answered_have_their_reason(tmp_path):
    source = Documents(missing={("mme", "1"): "the video /x.mp4 is missing"})
    policy = Parrot(refuse=lambda request: "too long" if request.prompt.startswith("mme 3") else None)
    found, _ = run(tmp_path, source, policy)
    assert found.finished(TASKS[0])[0].refused == {"1": "the video /x.mp4 is missing", "3": "too long"}
    assert sorted(stored(tmp_path, "mme")) == ["0", "2"]
    _, policy = run(tmp_path)  # the video is there now
    assert sorted(policy.said) == ["mme 1, version 1", "mme 3, version 1"]


def test_hosts_have_shares_and_the_first_one_waits_for_none_that_has_finished(tmp_path):
    said = []
    for process in (2, 1, 0):
        found, policy = run(tmp_path, share=Share(process, 3))
        said += policy.said
    assert len(said) == len(set(said)) == 12
    assert [len(each.refused) for each in found.finished(TASKS[0])] == [0, 0, 0]
    assert answers_path(tmp_path, "mme", 2).exists()
    assert {name: len(each) for name, each in answers(tmp_path).items()} == {"mme": 4, "pope": 3, "ai2d": 5}


def test_the_first_host_answers_for_one_that_never_comes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(answering, "LATE_SECONDS", 0.0)
    monkeypatch.setattr(answering, "POLL_SECONDS", 0.01)
    run(tmp_path, share=Share(1, 3))
    _, policy = run(tmp_path, share=Share(0, 3))
    assert {name: len(each) for name, each in answers(tmp_path).items()} == {"mme": 4, "pope": 3, "ai2d": 5}
    assert "process 2 gives no sign of life" in capsys.readouterr().err
    assert not any("mme 1," in each for each in policy.said)
