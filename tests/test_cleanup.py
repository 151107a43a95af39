"""Every close runs, and the first error is the one that leaves."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time

import pytest

from mmrlhf_jax.cleanup import Cleanup
from mmrlhf_jax.training.stop import StopSignal


def raising(error):
    def close():
        raise error

    return close


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt, SystemExit, OSError])
def test_an_error_in_flight_is_not_hidden_by_closes_that_fail_and_all_of_them_run(kind):
    first, closed = ValueError("the first"), []
    with pytest.raises(ValueError, match="the first") as raised, Cleanup() as cleanup:
        for number in range(3):
            cleanup.add(f"number {number}", lambda number=number: closed.append(number))
            cleanup.add(f"bad {number}", raising(kind(f"bad {number}")))
        raise first
    assert raised.value is first and closed == [2, 1, 0]
    assert [f"closing bad {n} afterwards: {kind.__name__}: bad {n}" in note for n, note in zip((2, 1, 0), first.__notes__)] == [
        True
    ] * 3


def test_without_one_the_first_error_of_a_close_leaves():
    with pytest.raises(OSError, match="second of three") as raised, Cleanup() as cleanup:
        cleanup.add("a", raising(KeyboardInterrupt()))
        cleanup.add("b", raising(OSError("second of three")))
        cleanup.add("c", lambda: None)
    assert "closing a" in raised.value.__notes__[0]


def test_without_any_error_all_is_closed_the_last_first():
    closed = []
    with Cleanup() as cleanup:
        cleanup.add("a", lambda: closed.append("a"))
        cleanup.add("b", lambda: closed.append("b"))
    assert closed == ["b", "a"]


@pytest.mark.parametrize("error", [None, ValueError("the first")])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_ctrl_c_cuts_the_close_short_that_it_meets_and_no_other_and_a_second_sigterm_none(number, error):
    closed, entered, is_meant = [], threading.Event(), number == signal.SIGINT

    def slow():
        entered.set()
        deadline = time.monotonic() + (60 if is_meant else 0.3)
        while time.monotonic() < deadline:  # a sleep that a handler of a signal interrupts goes on
            time.sleep(0.05)
        closed.append("slow")

    def send():
        entered.wait()
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    sender.start()
    wanted = ValueError if error is not None else KeyboardInterrupt if is_meant else None
    with contextlib.nullcontext() if wanted is None else pytest.raises(wanted), StopSignal() as stop, Cleanup() as cleanup:
        stop.steps_begin()
        stop.requested = True
        cleanup.add("last", lambda: closed.append("last"))
        cleanup.add("slow", slow)
        cleanup.add("first", lambda: closed.append("first"))
        if error is not None:
            raise error
    sender.join()
    assert closed == (["first", "last"] if is_meant else ["first", "slow", "last"])
