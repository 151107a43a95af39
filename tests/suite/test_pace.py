"""When all tasks will be answered: the measured rate of what was answered, and the assumed one of what was not, corrected."""

from __future__ import annotations

import pytest

from mmrlhf_jax import progress
from mmrlhf_jax.suite.needs import pace
from mmrlhf_jax.suite.needs.pace import Pace


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        for module in (progress, pace):
            monkeypatch.setattr(module.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def begun(clock, loading: float = 0.0) -> Pace:
    """Of three tasks the first one's documents were loaded, and the first of its answers is there. They are assumed to take a
    second each."""
    found = Pace({"short": 101, "long": 10, "video": 4}, {"short": 1.0, "long": 20.0, "video": 50.0})
    found.turn_to("short")
    clock.now += loading
    found.update()
    found.answered()
    return found


def test_tasks_that_have_not_begun_are_reckoned_by_the_ratio_so_far(clock):
    found = begun(clock)
    clock.now += 20
    found.update(advance=10)  # two seconds each, twice as long as assumed
    assert found.left(clock.now) == pytest.approx(2 * 90 + 2 * (10 * 20 + 4 * 50))


def test_the_time_of_downloads_and_compilation_is_not_that_of_answers(clock, capfd):
    found = begun(clock, loading=3600)
    assert found.left(clock.now) is None and capfd.readouterr().err == "answers of all tasks: 1/115\n"
    clock.now += 20
    found.update(advance=10)
    found.answered()
    assert found.left(clock.now) == pytest.approx(180 + 800)


def test_answers_that_are_made_together_are_the_first_one_together(clock):
    found = Pace({"short": 100}, {"short": 1.0})
    found.turn_to("short")
    clock.now += 60
    found.update(advance=32)
    found.answered()
    found.answered()
    assert found.left(clock.now) is None
    clock.now += 16
    found.update(advance=32)
    assert found.left(clock.now) == pytest.approx(18)


def test_a_task_without_a_rate_of_its_own_has_that_of_the_others(clock):
    found = begun(clock)
    clock.now += 200
    found.update(advance=100)  # twice as long as assumed
    found.turn_to("long")
    clock.now += 500
    assert found.left(clock.now) == pytest.approx(2 * (10 * 20 + 4 * 50))


def test_the_second_task_has_its_own_rate_and_the_third_that_of_both(clock):
    found = begun(clock)
    clock.now += 100
    found.update(advance=100)  # as assumed
    found.turn_to("long")
    clock.now += 500  # loading
    found.update()
    found.answered()
    clock.now += 300
    found.update(advance=5)  # 60 seconds each, not 20
    ratio = (100 + 300) / (100 + 5 * 20)
    assert found.left(clock.now) == pytest.approx(60 * 4 + ratio * 4 * 50)


def test_what_was_answered_before_takes_no_time(clock):
    found = begun(clock)
    found.total -= 60
    clock.now += 10
    found.update(advance=10)
    assert found.left(clock.now) == pytest.approx(30 + 400)


def test_the_line_has_the_eta_of_the_task_and_of_all_and_the_first_one_is_explained(clock, capfd):
    found = begun(clock)
    clock.now += 20
    found.update(advance=10)
    clock.now += 20
    found.update(advance=10)
    first, second, third = capfd.readouterr().err.splitlines()
    assert first == (
        "short: 10 answers took 20 s; at this rate it takes 3 min 0 s more, and all tasks 16 min 20 s, without"
        " downloads and judging. The 2 tasks that have not begun are reckoned by their tokens."
    )
    assert second == "answers of all tasks: 11/115, ETA 0:16:20, short ETA 0:03:00"
    assert third == "answers of all tasks: 21/115, ETA 0:16:00, short ETA 0:02:40"


def test_one_is_one(clock, capfd):
    found = Pace({"short": 4, "long": 1}, {"short": 1.0, "long": 1.0})
    found.turn_to("short")
    found.update()
    found.answered()
    clock.now += 20
    found.update()
    first, _ = capfd.readouterr().err.splitlines()
    assert first.startswith("short: 1 answer took 20 s;")
    assert first.endswith(" The task that has not begun is reckoned by its tokens.")


def test_the_last_answer_ends_it(clock, capfd):
    found = Pace({"short": 2}, {"short": 1.0})
    found.turn_to("short")
    clock.now += 2
    found.update(advance=2)
    assert capfd.readouterr().err == "answers of all tasks: 2/2, 0:00:02 elapsed\n"
