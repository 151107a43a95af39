"""Who hangs is named: of processes that wait in a step, the one that is elsewhere is the one that all wait for."""

from __future__ import annotations

import json

import pytest

from mmrlhf_jax.training.goodput import PARTS, Goodput
from mmrlhf_jax.training.peers import BEAT_SECONDS, COMPILING, LOADING, MEASURING, Peers


class Memory:
    """Lines as the coordination service has them, with a count of the calls."""

    def __init__(self):
        self.lines: dict[int, str] = {}
        self.reads = self.writes = 0
        self.away = False

    def write(self, process: int, line: str) -> None:
        self.writes += 1
        if self.away:
            raise OSError("the coordinator is away")
        self.lines[process] = line

    def read(self) -> dict[int, str]:
        self.reads += 1
        if self.away:
            raise OSError("the coordinator is away")
        return dict(self.lines)

    def beat(self, process: int, step: int, doing: str, number: int = 1):
        beat = {"beat": number, "step": step, "doing": doing, "host": f"host-{process}", "pid": 1}
        self.lines[process] = json.dumps(beat)


@pytest.fixture
def memory():
    return Memory()


@pytest.fixture
def watched(memory):
    return Peers(memory, 0, 3, timeout=30.0, hang=300.0)


def looks(peers: Peers, start: float, end: float, every: float = BEAT_SECONDS, each=lambda now: None):
    """What a process finds that looks again and again: the first complaint of either kind."""
    gone = behind = None
    while start <= end:
        each(start)
        found = peers.look(start)
        gone, behind = gone or found[0], behind or found[1]
        start += every
    return gone, behind


def alive(memory, **where):
    """All three processes beat, so that none is gone."""
    number = iter(range(1, 10_000))

    def each(now):
        count = next(number)
        for process, (step, doing) in where["at"].items():
            memory.beat(process, step, doing, count)

    return each


def test_the_process_that_is_behind_is_named_with_what_it_does(watched, memory):
    each = alive(memory, at={0: (7, "in step"), 1: (7, "waiting for data"), 2: (8, "in step")})
    assert looks(watched, 0.0, 299.0, each=each) == (None, None)
    assert looks(watched, 300.0, 305.0, each=each) == (None, "process 1 on host-1 hangs at step 7: waiting for data")


def test_progress_of_any_process_is_no_hang(watched, memory):
    at = dict.fromkeys(range(3), (7, "in step"))
    each = alive(memory, at=at)
    looks(watched, 0.0, 295.0, each=each)
    at[2] = (8, "in step")
    assert looks(watched, 300.0, 595.0, each=each) == (None, None)


@pytest.mark.parametrize("doing", [COMPILING, LOADING, MEASURING])
def test_what_has_no_steps_of_its_own_is_no_hang_however_long_it_takes(watched, memory, doing):
    each = alive(memory, at={0: (0, "in step"), 1: (0, "in step"), 2: (0, doing)})
    assert looks(watched, 0.0, 1000.0, each=each) == (None, None)


def test_a_process_that_does_not_beat_is_gone_and_one_that_finished_is_not(watched, memory):
    for process, doing in enumerate(("in step", "in step", "finished")):
        memory.beat(process, 7, doing)
    assert looks(watched, 0.0, 30.0) == (None, None)
    assert watched.look(31.0)[0] == "process 1 on host-1 is gone (silent for 31 s, last at step 7)"


def test_a_process_that_never_beat_is_gone_as_well(watched, memory):
    memory.beat(2, 7, "finished")
    assert looks(watched, 0.0, 30.0) == (None, None)
    assert watched.look(35.0)[0] == "process 1 is gone (no sign of life for 35 s)"


def test_a_beat_that_cannot_be_written_is_said_and_the_next_one_is_tried(watched, memory, capsys):
    memory.away = True
    watched._beat("in step")
    watched._beat("in step")
    assert capsys.readouterr().err.count("the coordinator is away") == 1
    memory.away = False
    watched._beat("in step")
    assert 0 in memory.lines


# What makes a peer seem gone that is not


@pytest.mark.parametrize("jump", [60.0, 86_400.0, -86_400.0])
def test_a_jump_of_the_clock_makes_no_peer_gone(watched, memory, jump):
    """Or a process that stood still: it does not know what it missed."""
    memory.beat(1, 7, "in step")
    memory.beat(2, 7, "in step")
    assert looks(watched, 0.0, 5.0) == (None, None)
    assert looks(watched, 5.0 + jump, 15.0 + jump) == (None, None)


def test_lines_that_cannot_be_read_for_long_make_no_peer_gone(watched, memory):
    """Nobody could write meanwhile, and after it everybody looks before the others' next beat."""
    for process in range(3):
        memory.beat(process, 7, "in step")
    looks(watched, 0.0, 5.0)
    memory.away = True
    assert looks(watched, 10.0, 200.0) == (None, None)
    memory.away = False
    assert watched.look(205.0) == (None, None)


def test_lines_that_are_older_than_what_was_written_make_no_peer_gone(watched, memory):
    """As from a store that answers with what it had: this process's own last beat is not in it either."""
    for process in range(1, 3):
        memory.beat(process, 7, "in step")
    watched._beat("in step")
    old = dict(memory.lines)
    watched._beat("in step")
    memory.lines = old
    assert looks(watched, 0.0, 200.0) == (None, None)


def test_slow_answers_make_no_peer_gone(watched, memory):
    """A look every 25 s, each with a new beat of the others."""
    each = alive(memory, at=dict.fromkeys(range(3), (7, "in step")))
    assert looks(watched, 0.0, 250.0, every=25.0, each=each) == (None, None)


def test_a_tick_is_one_write_and_one_read_however_many_processes_there_are(memory):
    """256 processes that each read every other's beat would read 65,536 objects every five seconds."""
    peers = [Peers(memory, number, 256, timeout=30.0, hang=300.0) for number in range(256)]
    for tick in range(3):
        for each in peers:
            each._beat("in step")
        for each in peers:
            assert each.look(5.0 * tick) == (None, None)
    assert (memory.writes, memory.reads) == (3 * 256, 3 * 256)
    assert len(memory.lines) == 256


def test_time_that_is_not_a_steps_is_counted_by_what_it_went_into(monkeypatch):
    clock = iter([0.0, 10.0, 10.0, 14.0, 20.0, 25.0, 40.0])
    monkeypatch.setattr("mmrlhf_jax.training.goodput.time.monotonic", lambda: next(clock))
    goodput = Goodput()  # 0
    goodput.started()  # 10
    with goodput.part("compile"):  # 10 to 14
        pass
    with goodput.part("checkpoint"):  # 20 to 25
        pass
    figures = goodput.figures()  # 40
    assert figures["goodput/start_seconds"] == 10
    assert (figures["goodput/compile_seconds"], figures["goodput/checkpoint_seconds"]) == (4, 5)
    assert figures["goodput/productive"] == (40 - 19) / 40


def test_the_next_attempt_goes_on_counting_and_steps_that_are_done_again_were_not_productive(monkeypatch):
    clock = iter([0.0, 10.0, 50.0])
    monkeypatch.setattr("mmrlhf_jax.training.goodput.time.monotonic", lambda: next(clock))
    parts = {f"goodput/{part}_seconds": 0.0 for part in PARTS} | {"goodput/attempt": 2, "goodput/start_seconds": 20.0}
    kept = parts | {"goodput/seconds": 60.0, "goodput/productive": 40 / 60}
    found = parts | {"goodput/seconds": 100.0, "goodput/productive": 0.8}
    goodput = Goodput()
    goodput.follows(found, kept)
    goodput.started()
    figures = goodput.figures()
    assert (figures["goodput/attempt"], figures["goodput/seconds"]) == (3, 100 + 50)
    assert figures["goodput/start_seconds"] == 20 + 10
    assert figures["goodput/repeated_seconds"] == pytest.approx(80 - 40)
    assert figures["goodput/productive"] == pytest.approx((150 - 30 - 40) / 150)


@pytest.mark.parametrize("lacking", ["start_seconds", "seconds", "attempt"])
@pytest.mark.parametrize("instead", [{}, None, [0.5]], ids=str)
def test_figures_of_an_earlier_version_are_not_gone_on_from(lacking, instead):
    figures = {f"goodput/{part}_seconds": 1.0 for part in PARTS} | {"goodput/attempt": 2, "goodput/seconds": 60.0}
    del figures[f"goodput/{lacking}"]
    goodput = Goodput()
    goodput.follows(figures | ({} if instead == {} else {f"goodput/{lacking}": instead}), {"goodput/productive": None})
    assert goodput.figures()["goodput/attempt"] == 1
