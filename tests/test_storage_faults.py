"""What an error of storage means, whichever library raises it, and what is done about it."""

from __future__ import annotations

import errno
import json
import zipfile

import pytest

from mmrlhf_jax import faults
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.faults import Fault, Unavailable, fault, retried


def named(name: str, *arguments, **attributes) -> Exception:
    """An error of a library that need not be installed."""
    error = type(name, (Exception,), {})(*arguments)
    for key, value in attributes.items():
        setattr(error, key, value)
    return error


def raised_from(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


CASES = [
    (Fault.PASSING, OSError(503)),
    (Fault.PASSING, OSError("503 Service Unavailable")),
    (Fault.PASSING, OSError(429, "Too Many Requests")),
    (Fault.PASSING, OSError(errno.ESTALE, "Stale file handle")),
    (Fault.PASSING, OSError(errno.EIO, "Input/output error")),
    (Fault.PASSING, BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")),
    (Fault.PASSING, BrokenPipeError()),
    (Fault.PASSING, TimeoutError()),
    (Fault.PASSING, named("HttpError", "backend error", code=500)),
    (Fault.PASSING, named("ClientResponseError", status=504)),
    (Fault.PASSING, named("ServerDisconnectedError")),
    (Fault.PASSING, named("ServiceUnavailable", "try later")),
    (Fault.PASSING, ValueError("UNAVAILABLE: HTTP response code: 503 with body ''")),
    (Fault.PASSING, ValueError("RESOURCE_EXHAUSTED: Quota exceeded: HTTP 429")),
    (Fault.PASSING, raised_from(ValueError("no checkpoint there"), ConnectionResetError())),
    (Fault.PASSING, ExceptionGroup("two reads failed", [ValueError("one"), OSError(errno.ETIMEDOUT, "timed out")])),
    (Fault.DAMAGED, FileNotFoundError(errno.ENOENT, "No such file")),
    (Fault.DAMAGED, json.JSONDecodeError("Expecting value", "{", 1)),
    (Fault.DAMAGED, zipfile.BadZipFile("no central directory")),
    (Fault.DAMAGED, EOFError()),
    (Fault.DAMAGED, ValueError("DATA_LOSS: Error reading d/50: CRC-32C checksum verification failed")),
    (Fault.DAMAGED, RuntimeError("NOT_FOUND: manifest")),
    (Fault.DAMAGED, KeyError("params")),
    (Fault.NO_MEMORY, MemoryError()),
    (Fault.NO_MEMORY, RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 17179869184 bytes.")),
    (Fault.NO_MEMORY, OSError(errno.ENOMEM, "Cannot allocate memory")),
    (Fault.DENIED, PermissionError(errno.EACCES, "Permission denied")),
    (Fault.DENIED, named("HttpError", "forbidden", code=403)),
    (Fault.DENIED, OSError(errno.EROFS, "Read-only file system")),
    (Fault.DENIED, ValueError("PERMISSION_DENIED: no access")),
    (Fault.NO_ROOM, OSError(errno.ENOSPC, "No space left on device")),
    (Fault.NO_ROOM, ValueError("OUT_OF_RANGE: Failed to write: File too large [os_error_code='27']")),
    (Fault.OTHER, RuntimeError("a bug")),
    (Fault.OTHER, AssertionError()),
]


@pytest.mark.parametrize(("kind", "error"), CASES, ids=lambda case: str(case)[:40])
def test_an_error_is_called_what_it_is(kind, error):
    assert fault(error) is kind


@pytest.fixture
def pauses(monkeypatch):
    """The seconds that would have been waited."""
    found: list[float] = []
    monkeypatch.setattr(faults.time, "sleep", found.append)
    return found


def failing(times: int, error: Exception):
    left = [times]

    def act() -> str:
        if left[0]:
            left[0] -= 1
            raise error
        return "read"

    return act


@pytest.mark.parametrize("times", [1, 3, faults.TRIES - 1])
def test_a_passing_error_is_tried_again_after_longer_and_longer_pauses_and_each_is_said(pauses, capsys, times):
    assert retried(failing(times, OSError(503)), "the file") == "read"
    assert len(pauses) == times
    assert all(0.5 * 2**i <= seconds <= 1.5 * 2**i for i, seconds in enumerate(pauses))
    assert capsys.readouterr().err.count("the file: 503; trying again in ") == times


def test_one_that_does_not_pass_ends_as_storage_that_is_away(pauses):
    with pytest.raises(Unavailable, match=f"the file: 503, {faults.TRIES} times"):
        retried(failing(100, OSError(503)), "the file")
    assert len(pauses) == faults.TRIES - 1


@pytest.mark.parametrize(
    "error", [UserError("wrong"), FileNotFoundError("gone"), MemoryError(), RuntimeError("a bug")], ids=repr
)
def test_nothing_else_is_tried_again(pauses, error):
    with pytest.raises(type(error)):
        retried(failing(1, error), "the file")
    assert not pauses
