"""A failed checkpoint is said once: late writes print nothing, all other errors that cannot be raised still do."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
import types

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
    waiting._log_destroy_pending = False


def test_late_writes_print_nothing(printed, monkeypatch):
    end_late(1)
    appears(printed)
    assert [str(error) for error in printed] == ["Event loop is closed"], "the case is the one that tensorstore prints"
    printed.clear()
    print_no_errors_twice()
    heard, print_others = [], sys.unraisablehook

    def listen(unraisable):
        print_others(unraisable)
        heard.append(unraisable)

    monkeypatch.setattr(sys, "unraisablehook", listen)
    end_late(2)
    appears(heard)
    assert not printed


def appears(errors: list) -> None:
    """The callbacks of tensorstore run in a thread."""
    deadline = time.monotonic() + 30
    while not errors and time.monotonic() < deadline:
        time.sleep(0.005)
    assert errors


@pytest.mark.parametrize("error", [RuntimeError("another"), OSError("Event loop is closed")])
def test_so_are_other_errors_of_no_object(printed, error):
    print_no_errors_twice()
    sys.unraisablehook(types.SimpleNamespace(exc_type=type(error), exc_value=error, err_msg=None, object=None))
    assert printed == [error]


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
