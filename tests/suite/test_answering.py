"""A policy answers all tasks: nothing is made twice, a task that fails ends no other one, hosts share the documents."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from mmrlhf_jax import ownership, progress
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.inference.jobs import ALONE, Share
from mmrlhf_jax.owner import Owner
from mmrlhf_jax.suite import answering, hosts
from mmrlhf_jax.suite.answering import Answering
from mmrlhf_jax.suite.answers import answers_path
from mmrlhf_jax.suite.needs import pace
from mmrlhf_jax.suite.needs.pace import Pace
from mmrlhf_jax.suite.task import TaskFailed
from tests.suite.support.asked import Documents, Parrot, only, task

TASKS = [task("mme"), task("pope", 3), task("ai2d", 5)]


def run(directory, source=None, policy=None, share=ALONE, tasks=TASKS, launch="") -> tuple[Answering, Parrot]:
    policy = policy or Parrot()
    found = Answering(directory, tasks, source or Documents(), lambda: policy, share, launch)
    found.run()
    return found, policy


def answers(directory) -> dict[str, dict[str, str]]:
    return {each.name: {name: answer.answer for name, answer in only(directory, each.name).items()} for each in TASKS}


def used(found: Answering) -> dict[str, dict[str, str]]:
    """The answers that count."""
    return {each.name: {name: answer.answer for name, answer in found.answered(each).answers.items()} for each in TASKS}


def test_every_document_of_every_task_is_answered_once(tmp_path):
    found, policy = run(tmp_path)
    assert {name: len(each) for name, each in answers(tmp_path).items()} == {"mme": 4, "pope": 3, "ai2d": 5}
    assert len(policy.said) == len(set(policy.said)) == 12
    assert answers(tmp_path)["pope"]["2"] == "you said: pope 2, version 1"
    (finished,) = found.finished(TASKS[1])
    assert (finished.documents, finished.unanswered, finished.failed) == (3, {}, None)
    kept = only(tmp_path, "mme")["3"]
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
    found, policy = run(tmp_path, source)
    assert len(policy.said) == 12
    assert used(found)["mme"]["0"] == "you said: mme 0, version 2"
    source.version = 1  # as before: those answers are still there
    found, policy = run(tmp_path, source)
    assert policy.said == [] and used(found)["mme"]["0"] == "you said: mme 0, version 1"


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


def test_other_tasks_go_on_only_where_there_are_others(tmp_path, capsys):
    run(tmp_path / "one", Documents(failing={"mme": 2}), tasks=TASKS[:1])
    run(tmp_path / "last", Documents(failing={"ai2d": 2}))
    said = capsys.readouterr().err.splitlines()
    assert "mme: it is out of order" in said and "ai2d: it is out of order" in said


@pytest.mark.parametrize(
    ("source", "says"), [("the hub", "waiting for its documents from the hub"), ("a file", "waiting for its documents")]
)
def test_documents_that_take_long_to_be_loaded_are_waited_for_and_said(tmp_path, monkeypatch, capsys, source, says):
    monkeypatch.setattr(answering, "said_if_slow", functools.partial(progress.said_if_slow, seconds=0.05))
    documents = Documents()
    monkeypatch.setattr(documents, "made_with", lambda task: {"source": source})

    @contextlib.contextmanager
    def ask(task, *arguments, original=documents.ask):
        time.sleep(0.5 if task.name == "pope" else 0)
        with original(task, *arguments) as asking:
            yield asking

    monkeypatch.setattr(documents, "ask", ask)
    run(tmp_path, documents, Parrot(after=lambda: time.sleep(0.03)))
    said = [line for line in capsys.readouterr().err.splitlines() if says in line]
    assert said == [f"pope: {says}; see {tmp_path / 'logs'}"]


@pytest.mark.parametrize(("known", "stored"), [(None, 0), (0, 0), (7, 7)])
def test_how_many_documents_a_task_may_have_is_not_guessed_for_its_coverage(tmp_path, monkeypatch, known, stored):
    source = Documents()

    @contextlib.contextmanager
    def ask(*_):
        raise TaskFailed("it cannot be loaded")
        yield

    monkeypatch.setattr(source, "ask", ask)
    monkeypatch.setattr(source, "expected", lambda task: known)
    found, _ = run(tmp_path, source)
    assert [each.documents for each in found.finished(TASKS[0])] == [stored]


@pytest.fixture
def counts(monkeypatch):
    """(done, total) of a run's answers, after each of them."""
    found, counting = [], Pace.update

    def update(self, *arguments, **options):
        counting(self, *arguments, **options)
        found.append((self.done, self.total))

    monkeypatch.setattr(Pace, "update", update)
    return found


def test_the_answers_of_a_task_that_fails_are_not_counted_on(tmp_path, counts):
    missing = {("mme", "0"): "no picture", ("ai2d", "1"): "no picture"}
    run(tmp_path, Documents(failing={"mme": 2, "pope": 0}, missing=missing))
    assert counts == [(1, 11), (2, 6), (3, 5), (4, 5), (5, 5)]
    counts.clear()
    run(tmp_path, Documents(failing={"mme": 3}))  # of which one document has an answer
    assert counts == [(1, 12), (2, 11), (3, 10), (4, 10), (5, 10), (6, 9)]  # three of ai2d are still to be looked at


@pytest.mark.parametrize("loses", ["asked", "known"])
def test_so_do_those_of_a_task_that_fails_on_several_hosts(tmp_path, counts, loses, monkeypatch):
    source = Documents()
    if loses == "asked":

        @contextlib.contextmanager
        def ask(task, answered, share, original=source.ask):
            if task.name == "mme":
                raise TaskFailed("it cannot be loaded")
            with original(task, answered, share) as asking:
                yield asking

        monkeypatch.setattr(source, "ask", ask)
    else:
        source.failing["mme"] = 1
    found, _ = run(tmp_path, source, share=Share(1, 2))
    assert counts[-1] == (3, 3), counts
    assert [each.documents for each in found.finished(TASKS[0])] == [4]


class Compiling(Parrot):
    """A policy whose first answer takes long, by a clock that is moved."""

    def __init__(self, clock):
        super().__init__(after=lambda: clock.append(clock.pop() + 1))
        self._clock = clock

    def answers(self, requests, progress):
        self._clock.append(self._clock.pop() + 500)
        return super().answers(requests, progress)


def test_the_time_in_which_a_policy_is_loaded_and_compiled_is_not_projected(tmp_path, monkeypatch, capsys):
    clock = [0.0]
    for module in (progress, pace):
        monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    policy = Compiling(clock)

    def loaded():
        clock.append(clock.pop() + 1000)
        return policy

    Answering(tmp_path, [task("mme", 100), task("pope", 3)], Documents(), loaded, ALONE).run()
    said = capsys.readouterr().err
    (explained,) = [line for line in said.splitlines() if "at this rate" in line]
    assert explained.startswith("mme: 10 answers took 10 s; at this rate it takes 1 min 29 s more, and all tasks 1 min 32 s"), (
        said
    )
    assert "mme: 100 documents\n" in said


def test_one_document_and_one_task_are_one(tmp_path, capsys):
    run(tmp_path, tasks=[task("mme", 1)])
    assert "mme: 1 document\n" in capsys.readouterr().err
    run(tmp_path, tasks=[task("mme", 1)])
    assert "1 of 1 task was answered before\n" in capsys.readouterr().err


def test_documents_that_cannot_be_asked_or_answered_have_their_reason(tmp_path):
    source = Documents(missing={("mme", "1"): "the video /x.mp4 is missing"})
    policy = Parrot(refuse=lambda request: "too long" if request.prompt.startswith("mme 3") else None)
    found, _ = run(tmp_path, source, policy)
    assert found.finished(TASKS[0])[0].unanswered == {"1": "the video /x.mp4 is missing", "3": "too long"}
    assert sorted(only(tmp_path, "mme")) == ["0", "2"]
    _, policy = run(tmp_path)  # the video is there now
    assert sorted(policy.said) == ["mme 1, version 1", "mme 3, version 1"]


def test_the_contents_of_documents_are_kept_and_a_task_that_is_forgotten_is_asked_again(tmp_path):
    for process in (1, 0):
        found, _ = run(tmp_path, share=Share(process, 2))
    assert found.answered(TASKS[0]).contents == dict.fromkeys("0123", "1") and not found.is_left
    found.forget(TASKS[0])
    assert found.is_left and not found.was_asked(TASKS[0]) and found.was_asked(TASKS[1])
    found, policy = run(tmp_path, share=Share(1, 2))
    found, policy = run(tmp_path, share=Share(0, 2))
    assert policy.said == [] and len(found.answered(TASKS[0]).contents) == 4  # the same requests have their answers


def _without_policy(opened: list[str]):
    opened.append("tried")
    raise UserError("http://nowhere: no server answers")


@pytest.mark.parametrize("before", [{"refuse": lambda request: "too long" if "1" in request.document else None}, {}])
def test_a_policy_that_is_gone_leaves_the_reasons_of_before_where_all_was_asked(tmp_path, capsys, before):
    """Also where a task failed before, as its documents could not be had."""
    first, _ = run(tmp_path, Documents(failing={} if before else {"mme": 2, "ai2d": 0}), Parrot(**before))
    finished, used_before = [first.finished(each) for each in TASKS], used(first)
    opened: list[str] = []
    found = Answering(tmp_path, TASKS, Documents(), lambda: _without_policy(opened), ALONE)
    assert not found.is_left
    found.run()
    assert [found.finished(each) for each in TASKS] == finished and used(found) == used_before
    assert opened == ["tried"]
    said = capsys.readouterr().err
    for name in ("mme", "pope", "ai2d") if before else ("mme", "ai2d"):
        assert f"{name}: what had no answer before is not asked again (http://nowhere: no server answers)" in said
    found, policy = run(tmp_path)  # it is there again
    assert len(policy.said) == (3 if before else 7) and all(map(found.was_asked, TASKS))
    assert {name: len(each) for name, each in used(found).items()} == {"mme": 4, "pope": 3, "ai2d": 5}


def test_a_policy_that_is_gone_ends_the_command_where_something_was_never_asked(tmp_path):
    run(tmp_path, policy=Parrot(lambda request: "too long"), tasks=TASKS[:1])
    found = Answering(tmp_path, TASKS, Documents(), lambda: _without_policy([]), ALONE)
    assert found.is_left
    with pytest.raises(UserError, match="no server answers"):
        found.run()


def test_hosts_have_shares_and_the_first_one_waits_for_none_that_has_finished(tmp_path):
    said = []
    for process in (2, 1, 0):
        found, policy = run(tmp_path, share=Share(process, 3))
        said += policy.said
    assert len(said) == len(set(said)) == 12
    assert [len(each.unanswered) for each in found.finished(TASKS[0])] == [0, 0, 0]
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


@pytest.mark.parametrize("damage", [lambda lines: lines[:-1], lambda lines: [*lines[:-1], lines[-1][:40]], lambda lines: []])
def test_an_answer_that_is_not_there_any_more_is_made_again(tmp_path, damage):
    whole, _ = run(tmp_path)
    path = answers_path(tmp_path, "mme")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(damage(lines)))
    found, policy = run(tmp_path)
    assert len(policy.said) == len(lines) - len([line for line in damage(lines) if line.endswith("\n")])
    assert used(found) == used(whole) and len(used(found)["mme"]) == 4


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b'{"refused": {}}', b'{"made_with": {"version": 1}, "new": 1}'])
def test_a_damaged_note_of_what_is_finished_is_made_again(tmp_path, content):
    run(tmp_path)
    (note,) = (tmp_path / "shares").glob("mme.*.json")
    whole = note.read_bytes()
    note.write_bytes(content)
    _, policy = run(tmp_path)
    assert note.read_bytes() == whole and policy.said == []


def test_the_older_answer_of_another_host_is_never_taken_for_the_newer_one(tmp_path):
    for process in (1, 0):
        run(tmp_path, share=Share(process, 2))
    source = Documents()
    source.version = 2
    found, policy = run(tmp_path, source)  # on one host, with other data
    assert len(policy.said) == 12
    assert {answer[-1] for each in used(found).values() for answer in each.values()} == {"2"}
    _, policy = run(tmp_path, source)
    assert policy.said == []


def test_a_document_that_cannot_be_asked_any_more_has_no_answer(tmp_path):
    run(tmp_path)
    source = Documents(missing={("mme", "1"): "its picture is missing"})
    source.version = 2
    found, _ = run(tmp_path, source)
    assert "1" not in used(found)["mme"] and found.finished(TASKS[0])[0].unanswered == {"1": "its picture is missing"}


def test_a_host_that_is_gone_is_seen_to_be_gone_from_another_machine(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(answering, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(ownership, "SILENT_SECONDS", 0.05)
    lock = tmp_path / "shares" / "process-0001"
    lock.parent.mkdir()
    lock.write_text(dataclasses.replace(Owner.me(), host="gone", place="elsewhere", nonce="abc").text())
    found, _ = run(tmp_path, share=Share(0, 2))
    assert {name: len(each) for name, each in used(found).items()} == {"mme": 4, "pope": 3, "ai2d": 5}
    assert "process 1 gives no sign of life" in capsys.readouterr().err


def test_the_first_host_waits_for_what_the_others_mend_in_this_launch(tmp_path, monkeypatch):
    monkeypatch.setattr(answering, "POLL_SECONDS", 0.01)
    lost = Documents(missing={("mme", "1"): "no video", ("mme", "2"): "no video"})
    for process in (1, 0):
        run(tmp_path, lost, share=Share(process, 2), launch="first")
    with ThreadPoolExecutor() as pool:
        first = pool.submit(run, tmp_path, share=Share(0, 2), launch="second")
        time.sleep(0.3)
        assert not first.done()  # what process 1 has finished is of the first launch
        run(tmp_path, share=Share(1, 2), launch="second")
        found, _ = first.result(timeout=10)
    assert [each.unanswered for each in found.finished(TASKS[0])] == [{}, {}] and len(used(found)["mme"]) == 4


def test_a_host_that_comes_while_the_first_one_answers_in_its_place_leaves_it_to_that(tmp_path, capsys):
    with hosts.First(tmp_path, Share(0, 2)), _held(hosts.owner(tmp_path, 1)):
        run(tmp_path, policy=pytest.fail, share=Share(1, 2))
    assert "process 0 has taken its documents over" in capsys.readouterr().err
    with (
        _held(hosts.owner(tmp_path, 1)),
        pytest.raises(UserError, match="the answers of process 1"),
    ):  # another one of this number
        run(tmp_path, share=Share(1, 2))


def _held(lock: ownership.Ownership) -> ownership.Ownership:
    lock.take()
    return lock
