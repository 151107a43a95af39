"""A failed checkpoint is said once: late writes print nothing, all other errors that cannot be raised still do."""

from __future__ import annotations

import asyncio
import logging
import sys
import time

import pytest
import tensorstore

from mmrlhf_jax.training.orbax_threads import print_no_errors_twice


@pytest.fixture
def printed(monkeypatch) -> list[BaseException]:
    """The errors that Python would print as impossible to raise."""
    errors: list[BaseException] = []
    monkeypatch.setattr(logging.getLogger("absl"), "filters", [])
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: errors.append(unraisable.exc_value))
    return errors


def end_late(result) -> None:
    """A tensorstore operation that ends when the event loop that waited for it is closed."""
    promise, future = tensorstore.Promise.new()

    async def wait() -> None:
        await future

    loop = asyncio.new_event_loop()
    waiting = loop.create_task(wait())
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    promise.set_result(result)
    time.sleep(0.05)  # its callbacks run in a thread
    waiting._log_destroy_pending = False


def test_late_writes_print_nothing(printed):
    end_late(1)
    assert [str(error) for error in printed] == ["Event loop is closed"], "the case is the one that tensorstore prints"
    printed.clear()
    print_no_errors_twice()
    end_late(2)
    assert not printed


@pytest.mark.parametrize("error", [RuntimeError("Event loop is closed"), RuntimeError("another"), ValueError("a value")])
def test_other_errors_are_printed(printed, error):
    class Broken:
        def __del__(self):
            raise error

    print_no_errors_twice()
    broken = Broken()
    del broken
    assert printed == [error]


def test_the_errors_of_orbax_threads_are_not_logged(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("absl"), "filters", [])
    print_no_errors_twice()
    with caplog.at_level(logging.ERROR, logger="absl"):
        logging.getLogger("absl").error("_SignalingThread.run() raised an exception")
        logging.getLogger("absl").error("something else")
    assert [record.getMessage() for record in caplog.records] == ["something else"]
