"""The processes that answer in a run's directory: a single one, or one on each of several hosts, of which the first one leads.

    shares/lock                     held by the single process, or by the first one of several, from beginning to end
    shares/launch.json              what the first one has said to the others: its options, or why it has ended
    shares/process-0001             held by another process while it answers, or by the first one in its place
    shares/process-0001.finished    the launch in which that process has done all that it could

A launch is named by the owner of shares/lock. The others begin when the first one has checked everything and opened the launch.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from etils import epath

from mmrlhf_jax import owner_file, strict_json
from mmrlhf_jax.errors import UserError, shown
from mmrlhf_jax.files import entries, exists, read_json_object, write_atomically
from mmrlhf_jax.inference.jobs import LATE_SECONDS, POLL_SECONDS, Share
from mmrlhf_jax.owner import Owner
from mmrlhf_jax.ownership import SILENT_SECONDS, Ownership
from mmrlhf_jax.progress import say
from mmrlhf_jax.sole_writer import LOCK, sole_writer

FOLDER = "shares"  # in a run's directory: also what each host has finished of each task (`answering.py`)
OPEN, REFUSED, OVER = "open", "refused", "over"


def lock_path(directory: epath.PathLike, process: int) -> epath.Path:
    """The owner file of a process's share, in a run's directory."""
    return epath.Path(directory) / FOLDER / f"process-{process:04d}"


def mark_path(directory: epath.PathLike, process: int) -> epath.Path:
    """The file in which a process notes the launch in which it has finished."""
    return epath.Path(directory) / FOLDER / f"process-{process:04d}.finished"


def owner(directory: epath.PathLike, process: int) -> Ownership:
    """The ownership of a process's share, to be taken."""

    def lost(reason: str) -> None:
        say(f"{reason}; its documents may be answered twice")

    return Ownership(
        lock_path(directory, process), f"the answers of process {process}", "makes them", "wait for it, or end it", lost
    )


def is_first(directory: epath.PathLike, process: int) -> bool:
    """Whether the first process of a launch answers in the place of this one."""
    folder = epath.Path(directory) / FOLDER
    first, found = (_owner_in(path) for path in (folder / LOCK, lock_path(directory, process)))
    return first is not None and found is not None and (first.host, first.pid) == (found.host, found.pid)


def _owner_in(path: epath.Path) -> Owner | None:
    text = owner_file.read(path)
    return None if text is None else Owner.parse(text)


class First:
    """A run's directory, held by the process that answers alone, or by the first one of several. Use it as a context.

    UserError if another process answers there, in whatever way.
    """

    def __init__(self, directory: epath.PathLike, share: Share):
        self._directory, self._share = epath.Path(directory), share
        self._path = self._directory / FOLDER / "launch.json"
        self.launch = ""

    def __enter__(self) -> First:
        self._lock = sole_writer(self._directory / FOLDER, self._directory, "evaluates there")
        self._lock.__enter__()
        try:
            self._path.unlink(missing_ok=True)  # of an earlier launch
            self.launch = _owner_in(self._lock.path).nonce
            if self._share.count == 1:
                self._refuse_others()
        except BaseException:
            self._lock.__exit__(None, None, None)
            raise
        return self

    def open(self, options: Mapping[str, Any]) -> None:
        """Let the other processes begin, if they were started with the same options."""
        self._say(state=OPEN, options=dict(options))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        try:
            if self._share.count > 1:
                reason = str(error) if isinstance(error, UserError) else kind and kind.__name__
                self._say(**({"state": OVER} if kind is None else {"state": REFUSED, "reason": reason}))
        finally:
            self._lock.__exit__(kind, error, traceback)

    def _say(self, **what: Any) -> None:
        said = {"launch": self.launch, "processes": self._share.count} | what
        write_atomically(self._path, strict_json.dumps(said, where=f"{self._path}", ensure_ascii=False).encode())

    def _refuse_others(self) -> None:
        """UserError if a process of several, whose first one has ended, still answers here."""
        for path in entries(self._directory / FOLDER):
            if (found := re.fullmatch(r"process-(\d{4,})", path.name)) is not None:
                left = owner(self._directory, int(found[1]))
                left.take()
                with left:  # it has ended without removing its file, which goes with this
                    pass


def join(directory: epath.PathLike, share: Share, options: Mapping[str, Any]) -> str | None:
    """Wait, as another process than the first one, until that has opened its launch. Returns the launch's name; None if the
    launch is over, so that there is nothing to do any more.

    UserError, with what the first process has said, if it ends or does not come, or if it was started with other options.
    """
    directory, options = epath.Path(directory), strict_json.loads(strict_json.dumps(dict(options)))
    path, first = directory / FOLDER / "launch.json", _Watched(directory / FOLDER / LOCK)
    before, given_up, told = _said(path), time.monotonic() + LATE_SECONDS, False
    while True:
        alive, said = first.look(), _said(path)
        if alive is not None and said.get("launch") == alive and said.get("state") == OPEN:
            _check_same(directory, said, share, options)
            return alive
        if said != before and said.get("state") == OVER:
            return None
        if said != before and said.get("state") == REFUSED:
            raise UserError(f"{directory}: process 0 has ended: {said['reason']}")
        if alive is not None:
            given_up = time.monotonic() + LATE_SECONDS
        elif time.monotonic() >= given_up:
            if said.get("state") == OVER:  # this process came after all the others had finished
                return None
            last = f"; what it said last is: {said['reason']}" if said.get("state") == REFUSED else ""
            raise UserError(f"{directory}: process 0 has not begun within {LATE_SECONDS:.0f} s; look at its log{last}")
        if not told:
            say(f"process {share.process}: waiting for process 0 to check the options and to begin")
            told = True
        time.sleep(POLL_SECONDS)


def _said(path: epath.Path) -> dict[str, Any]:
    """The content of launch.json; {} if there is none."""
    try:
        return read_json_object(path) if exists(path) else {}
    except FileNotFoundError:  # removed meanwhile
        return {}


def _check_same(directory: epath.Path, said: Mapping[str, Any], share: Share, options: Mapping[str, Any]) -> None:
    """UserError if the first process was started otherwise than this one."""
    theirs = {"processes": said["processes"], **said["options"]}
    for name, mine in {"processes": share.count, **options}.items():
        if theirs.get(name) != mine:
            raise UserError(
                f"{directory}: process 0 was started with {name} {shown(theirs.get(name))}, process {share.process} with"
                f" {shown(mine)}; start all with the same command"
            )


class _Watched:
    """An owner file that is watched without being taken."""

    def __init__(self, path: epath.Path):
        self._path = path
        self._text: str | None = None
        self._changed: float | None = None  # when it was seen to change; None: never

    def look(self) -> str | None:
        """The nonce of the owner, if it is alive as far as is known."""
        text, now = owner_file.read(self._path), time.monotonic()
        found = None if text is None else Owner.parse(text)
        if found is not None and found.is_here:
            return None if found.has_ended else found.nonce
        if text != self._text:
            self._changed = None if text is None or self._text is None else now
            self._text = text
        return None if found is None or self._changed is None or now - self._changed > SILENT_SECONDS else found.nonce
