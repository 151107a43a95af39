"""Classifies errors of storage: transient ones, which are retried, damaged data, missing space or permission, and others."""

from __future__ import annotations

import enum
import errno
import random
import re
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import TypeVar

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.progress import say

Found = TypeVar("Found")

TRIES = 6
FIRST_DELAY = 1.0  # seconds; doubled after every attempt


class Fault(enum.Enum):
    """The kind of an error. PASSING errors may not occur again if the call is repeated."""

    PASSING = "a passing error of the storage"
    DAMAGED = "damaged"
    NO_MEMORY = "out of memory"
    NO_ROOM = "no room"
    DENIED = "access denied"
    OTHER = "an error"


class Unavailable(Exception):
    """Storage did not answer after all retries. The data on it may be sound, and the same command may succeed later."""


def fault(error: BaseException) -> Fault:
    """The kind of an error, from its type, number or status, those of its causes, or (for libraries with a single error type)
    its text."""
    found = [_own_fault(each) for each in chain(error)]
    for kind in (Fault.NO_MEMORY, Fault.DENIED, Fault.NO_ROOM, Fault.PASSING, Fault.DAMAGED):
        if kind in found:
            return kind
    return Fault.OTHER


def retried(act: Callable[[], Found], what: str) -> Found:
    """Call `act`, and retry after transient errors with growing delays, each of which is reported. Unavailable if all TRIES
    fail.

    `what` names the action for messages."""
    for number in range(1, TRIES + 1):
        try:
            return act()
        except (UserError, Unavailable):  # Unavailable: `act` has already retried itself
            raise
        except Exception as error:
            if fault(error) is not Fault.PASSING:
                raise
            if number == TRIES:
                raise Unavailable(f"{what}: {first_line(error)}, {TRIES} times") from error
            delay = FIRST_DELAY * 2 ** (number - 1) * random.uniform(0.5, 1.5)  # jitter, so that hosts do not retry together
            say(f"{what}: {first_line(error)}; trying again in {delay:.1f} s ({number} of {TRIES - 1})")
            time.sleep(delay)
    raise AssertionError("unreachable")


def away(error: BaseException) -> bool:
    """Whether the error means that storage does not answer at the moment.

    This is narrower than `fault`: only errors of a file system or storage library count, directly or as `__cause__`. An error
    that only has a similar text, or that was raised while such an error was handled, may be a bug, whose traceback is needed.
    """
    return isinstance(error, Unavailable) or (fault(error) is Fault.PASSING and _of_storage(error, set()))


def _of_storage(error: BaseException | None, seen: set[int]) -> bool:
    if error is None or id(error) in seen:  # chains of causes may be circular
        return False
    seen.add(id(error))
    if isinstance(error, OSError) or _PASSING_NAMES.search(_names(error)) or _status(error) in _PASSING_STATUS:
        return _own_fault(error) is Fault.PASSING
    within = getattr(error, "exceptions", ())
    return _of_storage(error.__cause__, seen) or (bool(within) and all(_of_storage(each, seen) for each in within))


def in_words(error: Exception) -> str | None:
    """One line of explanation for an error of storage or memory that the user can resolve; None for other errors."""
    if isinstance(error, Unavailable):
        return f"{error}; the same command goes on when the storage answers again"
    if away(error):
        return f"{first_line(error)}; the same command goes on when the storage answers again"
    name = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
    match fault(error):
        case Fault.NO_ROOM:
            advice = "what is complete stays: make room, and start the same command again"
            return f"{name}no room to write ({reason(error)}); {advice}"
        case Fault.DENIED:
            return f"{name}access denied ({reason(error)})"
        case Fault.NO_MEMORY:
            return f"out of memory ({reason(error)}); take fewer rows at once, or more or larger devices"
    return None


def reason(error: BaseException) -> str:
    """The message of a file system error without number and file name; for other errors, their first line."""
    return getattr(error, "strerror", None) or first_line(error)


def first_line(error: BaseException) -> str:
    """The first line of the error's text, at most 200 characters; the name of its type if it has no text."""
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the error, its causes and contexts, and the errors inside groups, each once."""
    waiting, seen = [error], set()
    while waiting:
        each = waiting.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        waiting += [each.__cause__, None if each.__suppress_context__ else each.__context__, *getattr(each, "exceptions", ())]


def _own_fault(error: BaseException) -> Fault:
    if isinstance(error, MemoryError):
        return Fault.NO_MEMORY
    if isinstance(error, OSError):
        number = error.errno if error.errno is not None else next((a for a in error.args if isinstance(a, int)), None)
        if number in _BY_NUMBER:
            return _BY_NUMBER[number]
    status = _status(error)
    if status in _PASSING_STATUS or status in _DENIED_STATUS:
        return Fault.PASSING if status in _PASSING_STATUS else Fault.DENIED
    for kind, types in _BY_TYPE:
        if isinstance(error, types):
            return kind
    if _PASSING_NAMES.search(_names(error)):
        return Fault.PASSING
    return next((kind for kind, pattern in _BY_TEXT if pattern.search(str(error))), _by_weak_type(error))


def _status(error: BaseException) -> int | None:
    """The HTTP status of a library's error, None if it has none."""
    said = (getattr(error, name, None) for name in ("status", "code", "status_code"))
    return next((each for each in said if isinstance(each, int)), None)


def _names(error: BaseException) -> str:
    return " ".join(each.__name__ for each in type(error).__mro__)


def _by_weak_type(error: BaseException) -> Fault:
    """DAMAGED for the types that readers raise for invalid data, else OTHER."""
    return Fault.DAMAGED if isinstance(error, (ValueError, LookupError, EOFError, TypeError, zlib.error)) else Fault.OTHER


_PASSING_STATUS = (408, 425, 429, 500, 502, 503, 504)
_DENIED_STATUS = (401, 403)
_BY_NUMBER = (
    dict.fromkeys(_PASSING_STATUS, Fault.PASSING)
    | dict.fromkeys(_DENIED_STATUS, Fault.DENIED)
    | {
        getattr(errno, name): kind
        for kind, names in {
            Fault.PASSING: "ETIMEDOUT ECONNRESET ECONNABORTED ECONNREFUSED EAGAIN EINTR EIO EREMOTEIO EPIPE EBUSY ESTALE"
            " ENETDOWN ENETUNREACH ENETRESET EHOSTDOWN EHOSTUNREACH ENOTCONN ESHUTDOWN",
            Fault.DENIED: "EACCES EPERM EROFS",
            Fault.NO_ROOM: "ENOSPC EFBIG EDQUOT",
            Fault.NO_MEMORY: "ENOMEM",
            Fault.DAMAGED: "ENOENT ENOTDIR EISDIR",
        }.items()
        for name in names.split()
        if hasattr(errno, name)
    }
)
_BY_TYPE = (
    (Fault.DENIED, PermissionError),
    (Fault.PASSING, (TimeoutError, ConnectionError)),
    (Fault.DAMAGED, (FileNotFoundError, NotADirectoryError, EOFError, zipfile.BadZipFile)),
)
# Names of error types of aiohttp, requests, google.api_core, google.auth and gcsfs, which need not be installed.
_PASSING_NAMES = re.compile(
    r"\b(ClientConnectionError|ClientPayloadError|ServerDisconnectedError|ServerTimeoutError|ConnectTimeout|ReadTimeout|"
    r"ChunkedEncodingError|ServiceUnavailable|TooManyRequests|InternalServerError|BadGateway|GatewayTimeout|DeadlineExceeded|"
    r"RetryError|TransportError|FSTimeoutError|ProtocolError|IncompleteRead)\b"
)
_BY_TEXT = tuple(
    (kind, re.compile(pattern, re.IGNORECASE))
    for kind, pattern in (
        (Fault.NO_MEMORY, r"out of memory|failed to allocate|bad_alloc|cannot allocate memory"),
        (Fault.DENIED, r"PERMISSION_DENIED|UNAUTHENTICATED|permission denied|\b(401|403)\b.*(unauthorized|forbidden)"),
        (Fault.NO_ROOM, r"no space left|file too large|disk quota exceeded"),
        (
            Fault.PASSING,
            r"\b(UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED|ABORTED)\b|"
            r"\b(429|50[0234])\b.*(too many requests|internal|bad gateway|service|gateway)|\bHTTP\D{0,20}(429|50[0234])\b|"
            r"connection (reset|refused|aborted)|timed out|too many requests|service unavailable|"
            r"temporary failure in name resolution|stale file handle|input/output error",
        ),
        (Fault.DAMAGED, r"\b(DATA_LOSS|NOT_FOUND|OUT_OF_RANGE|FAILED_PRECONDITION|INVALID_ARGUMENT)\b|corrupt|checksum"),
    )
)
