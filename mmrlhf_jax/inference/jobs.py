"""Long passes over a data set that write one JSON line per record: on one host or on several, each for itself.

Every host computes a share of the records and keeps finished lines in a folder beside the output (`Journal`). A host that has
finished takes over the shares of hosts that have died. When all lines are there, one host writes them in the order of the data.
So a pass can be killed on any host at any time, and continued on as many hosts as there are then: no line is lost or doubled.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from etils import epath

from mmrlhf_jax import strict_json
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.faults import first_line, retried
from mmrlhf_jax.files import exists, hidden_beside, read_bytes, read_text, write_atomically
from mmrlhf_jax.inference.journal import Journal, Work
from mmrlhf_jax.ownership import Ownership
from mmrlhf_jax.progress import say
from mmrlhf_jax.records import RankedRecord
from mmrlhf_jax.sole_writer import Held, held, sole_writer

# Version of the lines' contents. Increment it when they change, so that lines of an earlier version are not used again.
VERSION = 4
POLL_SECONDS = 2.0
# A process that has not come so long after another one has finished its share is taken for one that will not come.
LATE_SECONDS = 120.0


class Share(NamedTuple):
    """Which records a process computes: those whose index is `process` modulo `count`."""

    process: int = 0
    count: int = 1

    def of(self, index: int) -> int:
        """The process whose share this record belongs to."""
        return index % self.count


ALONE = Share()


def has_responses(record: RankedRecord, line: Any) -> bool:
    """Whether a stored line is this record's, with all its responses."""
    return (line["id"], len(line["responses"])) == (record.id, len(record.responses))


def run_job(
    examples,
    out: epath.PathLike,
    job: str,
    work: Work,
    *,
    share: Share = ALONE,
    is_line: Callable[[RankedRecord, Any], bool] = has_responses,
) -> None:
    """Compute a line for every example and write them to `out`, in the order of the examples.

    `out` is a path, or the result of `reserved`. `job` is a text with everything that the lines depend on besides the data;
    lines that an earlier run of the same job and data has finished are used again, if `is_line` holds. Returns, in every
    process, when `out` is written. UserError like `reserved`, and for a line with a number that is not finite.
    """
    key = job_key(job, examples)
    with reserved(out, share) as place:
        if share.count > 1 and exists(place.out):
            if _mark_beside(place.out) != _mark(key, read_bytes(place.out)):
                _refuse_existing(place.out)
            say(f"{place.out}: the other processes of this job have written it")
            return
        _Pass(examples, place, hidden_beside(place.out, f"{key}.parts"), work, share, key, is_line).run()


def job_key(job: str, examples) -> str:
    """What names the kept lines of a job with this data."""
    return hashlib.sha256(f"{VERSION} {job} {examples.fingerprint}".encode()).hexdigest()[:16]


@contextlib.contextmanager
def reserved(out: epath.PathLike, share: Share = ALONE) -> Iterator[Held | Unheld]:
    """Reserve an output file before a model is loaded. Pass the yielded object to `run_job`.

    Of several processes the first reserves it for all. UserError if the file exists, if it cannot be written, or if another
    process, on this or another host, is writing it.
    """
    if isinstance(out, Held | Unheld):
        yield out
        return
    if share.count > 1 and exists(out) and _mark_beside(out):  # a process that was killed may come back when all is done
        yield Unheld(epath.Path(out))
        return
    _refuse_existing(out)
    if share.process:
        yield Unheld(epath.Path(out))
        return
    with held(out, hidden_beside(out, "writing"), "is writing it") as place:
        _refuse_existing(out)  # a process that held the lock before may have written it
        try:
            yield place
        finally:
            place.lock.clear()


class Unheld(NamedTuple):
    """An output that another process of the same job has reserved."""

    out: epath.Path


def _mark(key: str, content: bytes) -> str:
    """What tells processes that come late that a job of several processes has written this output."""
    return f"{key} {hashlib.sha256(content).hexdigest()}"


def _mark_beside(out: epath.PathLike) -> str | None:
    """The mark of a job of several processes beside an output, which may be an earlier one's; None: there is none."""
    path = hidden_beside(out, "finished")
    return read_text(path) if exists(path) else None


def _refuse_existing(out: epath.PathLike) -> None:
    if exists(out):
        raise UserError(f"{out}: already exists; choose another --out or remove it first")


class _Pass:
    """One process of a job."""

    def __init__(
        self,
        examples,
        place: Held | Unheld,
        folder: epath.Path,
        work: Work,
        share: Share,
        key: str,
        is_line: Callable[[RankedRecord, Any], bool],
    ):
        self._examples, self._place, self._folder, self._work, self._share = examples, place, folder, work, share
        self._key, self._holds = key, is_line
        self._journal = Journal(folder, share.process, self._is_line)
        self._locks: dict[int, Ownership] = {}
        self._waiting = 0.0  # since when, by the monotonic clock

    def run(self) -> None:
        found = len(self._journal.refresh())
        if found:
            say(f"{self._place.out}: {found} of {len(self._examples)} records were done before")
        if not self._compute(self._share.process) and self._missing(self._share.process):
            say(f"process {self._share.process}: another one computes its records")
        shown, self._waiting = None, time.monotonic()
        while (left := self._missing()) and not exists(self._place.out):
            if any(self._compute(process) for process in sorted({self._share.of(index) for index in left})):
                continue
            waits = sorted({self._share.of(index) for index in left})
            if waits != shown:
                say(f"waiting for {len(left)} records of process {', '.join(map(str, waits))}")
                shown = waits
            time.sleep(POLL_SECONDS)
        self._write()
        remove_kept(self._folder)

    def _missing(self, process: int | None = None) -> list[int]:
        """The records, of one process or of all, whose lines are not there."""
        done = self._journal.refresh()
        wanted = range(len(self._examples)) if process is None else range(process, len(self._examples), self._share.count)
        return [index for index in wanted if index not in done]

    def _compute(self, process: int) -> bool:
        """Compute what is missing of a process's share; False if that process, or one in its place, lives, or nothing is."""
        if not self._missing(process):
            return False
        path = self._folder / f"process-{process:04d}"
        if self._share.count == 1:  # the output's lock is enough
            self._journal.fill(self._missing(process), self._work)
            return True
        unseen = process != self._share.process and not exists(path) and not self._journal.has_parts_of(process)
        if unseen and time.monotonic() - self._waiting < LATE_SECONDS:
            return False
        lock = self._locks.get(process) or _lock(path, process)
        self._locks[process] = lock
        try:
            if not lock.attempt():
                return False
        except UserError:  # it lives
            del self._locks[process]
            return False
        with lock:
            # What it stored before it gave up the lock is there now; or another process has written the output from it.
            missing = [] if exists(self._place.out) else self._missing(process)
            if missing and process != self._share.process:
                say(f"process {process} gives no sign of life; its records are computed by process {self._share.process}")
            if missing:
                self._journal.fill(missing, self._work)
        del self._locks[process]
        return bool(missing)

    def _write(self) -> None:
        """Write the output, or wait until the process that holds it has done so."""
        if isinstance(self._place, Held):
            self._put_together(self._place.lock)
            return
        while not exists(self._place.out):
            with contextlib.suppress(UserError):  # the process that reserved it lives
                with sole_writer(hidden_beside(self._place.out, "writing"), self._place.out, "is writing it") as lock:
                    if not exists(self._place.out):
                        self._put_together(lock)
                    lock.clear()
                return
            time.sleep(POLL_SECONDS)

    def _put_together(self, lock: Ownership) -> None:
        _refuse_existing(self._place.out)  # another program may have made it meanwhile
        lines = self._journal.refresh()
        content = b"".join(strict_json.dumps(lines[index]).encode() + b"\n" for index in range(len(self._examples)))
        lock.check(at_once=True)
        _refuse_existing(self._place.out)
        if self._share.count > 1:
            write_atomically(hidden_beside(self._place.out, "finished"), _mark(self._key, content).encode())
        write_atomically(self._place.out, content)

    def _is_line(self, index: int, line: Any) -> bool:
        return 0 <= index < len(self._examples) and self._holds(self._examples.records[index], line)


def remove_kept(folder: epath.Path) -> None:
    """Remove what was kept, when the output is there."""
    try:
        retried(lambda: folder.rmtree(missing_ok=True), f"{folder}")
    except Exception as error:  # any storage backend's error: the output is already written
        say(f"{folder}: cannot be removed ({first_line(error)}); it is not needed any more")


def _lock(path: epath.Path, process: int) -> Ownership:
    def lost(reason: str) -> None:
        say(f"{reason}; its records may be computed twice, with the same result")

    return Ownership(path, f"the records of process {process}", "computes them", "wait for it, or end it", lost)
