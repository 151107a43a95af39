"""Who answers in a run's directory: a single process or several, never both; the first of several says why it ends."""

from __future__ import annotations

import dataclasses
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.inference.jobs import ALONE, Share
from mmrlhf_jax.owner import Owner
from mmrlhf_jax.suite import hosts
from mmrlhf_jax.suite.hosts import First, join

FIRST, SECOND = Share(0, 2), Share(1, 2)
OPTIONS = {"limit": None, "tasks": ["mme"]}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(hosts, "POLL_SECONDS", 0.01)


@pytest.fixture
def beside():
    with ThreadPoolExecutor() as pool:
        yield pool


def test_the_others_begin_when_the_first_one_has_opened_the_launch(tmp_path, beside):
    other = beside.submit(join, tmp_path, SECOND, OPTIONS)
    with First(tmp_path, FIRST) as first:
        time.sleep(0.1)
        assert not other.done()  # it checks its options
        first.open(OPTIONS)
        assert other.result(5) == first.launch
    with First(tmp_path, FIRST) as again:
        assert again.launch != first.launch


def test_why_the_first_one_ends_is_said_to_those_that_wait(tmp_path, beside):
    other = beside.submit(join, tmp_path, SECOND, OPTIONS)
    with pytest.raises(UserError), First(tmp_path, FIRST):
        time.sleep(0.1)
        raise UserError("the judge does not answer")
    with pytest.raises(UserError, match="process 0 has ended: the judge does not answer"):
        other.result(5)


def test_the_others_never_begin_by_themselves(tmp_path, monkeypatch):
    monkeypatch.setattr(hosts, "LATE_SECONDS", 0.2)
    with pytest.raises(UserError, match="process 0 has not begun within"):
        join(tmp_path / "run", SECOND, OPTIONS)
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError), First(tmp_path, FIRST):
        raise UserError("the judge does not answer")
    with pytest.raises(UserError, match="what it said last is: the judge does not answer"):
        join(tmp_path, SECOND, OPTIONS)  # it came too late to be told


def test_they_wait_for_a_first_one_that_is_alive_however_long_it_checks(tmp_path, monkeypatch, beside):
    monkeypatch.setattr(hosts, "LATE_SECONDS", 0.1)
    with First(tmp_path, FIRST) as first:
        other = beside.submit(join, tmp_path, SECOND, OPTIONS)
        time.sleep(0.5)  # it downloads a model
        first.open(OPTIONS)
        assert other.result(5) == first.launch


def test_who_comes_when_all_is_over_has_nothing_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(hosts, "LATE_SECONDS", 0.1)
    with First(tmp_path, FIRST) as first:
        first.open(OPTIONS)
    assert join(tmp_path, SECOND, OPTIONS) is None


def test_other_options_and_another_number_of_processes_are_refused(tmp_path):
    with First(tmp_path, FIRST) as first:
        first.open(OPTIONS)
        with pytest.raises(UserError, match="process 0 was started with limit None, process 1 with 5; start all with the same"):
            join(tmp_path, SECOND, OPTIONS | {"limit": 5})
        with pytest.raises(UserError, match="with processes 2, process 1 with 3"):
            join(tmp_path, Share(1, 3), OPTIONS)


@pytest.mark.parametrize("second", [ALONE, FIRST])
@pytest.mark.parametrize("first", [ALONE, FIRST])
def test_a_directory_has_one_first_process(tmp_path, first, second):
    with First(tmp_path, first), pytest.raises(UserError, match="evaluates there"), First(tmp_path, second):
        pass
    with First(tmp_path, second):
        pass


def test_a_single_process_does_not_begin_where_one_of_several_still_answers(tmp_path):
    lock = hosts.owner(tmp_path, 1)
    lock.take()
    with (
        lock,
        pytest.raises(UserError, match=r"the answers of process 1: .* wait for it, or end it"),
        First(tmp_path, ALONE),
    ):
        pass
    with First(tmp_path, ALONE):
        pass


def test_a_launch_of_a_first_process_that_was_killed_is_not_joined(tmp_path, monkeypatch):
    monkeypatch.setattr(hosts, "LATE_SECONDS", 0.2)
    first = First(tmp_path, FIRST).__enter__()
    first.open(OPTIONS)
    first._lock.quiet()
    path = tmp_path / hosts.FOLDER / "lock"
    gone = dataclasses.replace(Owner.parse(path.read_text()), host="elsewhere", place="elsewhere")
    path.write_text(gone.text())  # on another machine, where it gives no sign of life any more
    with pytest.raises(UserError, match="process 0 has not begun"):
        join(tmp_path, SECOND, OPTIONS)


def test_a_first_process_on_another_machine_is_seen_to_live(tmp_path, monkeypatch, beside):
    monkeypatch.setattr(hosts, "LATE_SECONDS", 0.5)
    with First(tmp_path, FIRST) as first:
        first.open(OPTIONS)
        first._lock.quiet()
        path = tmp_path / hosts.FOLDER / "lock"
        mine, there = path.read_text(), dataclasses.replace(Owner.parse(path.read_text()), host="elsewhere", place="elsewhere")
        path.write_text(there.text())
        other = beside.submit(join, tmp_path, SECOND, OPTIONS)
        time.sleep(0.2)
        assert not other.done()
        path.write_text(dataclasses.replace(there, beat=there.beat + 1).text())
        assert other.result(5) == first.launch
        path.write_text(mine)


def test_a_process_whose_documents_the_first_one_has_taken_over_is_told_apart(tmp_path):
    with First(tmp_path, FIRST):
        lock = hosts.owner(tmp_path, 1)
        lock.take()
        with lock:
            assert hosts.is_first(tmp_path, 1)
        assert not hosts.is_first(tmp_path, 1)
