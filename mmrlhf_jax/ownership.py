"""Ownership of a directory by one process at a time: a file names the owner, which rewrites it regularly (a heartbeat).

It works on local file systems, on shared ones, and in object stores. Clocks of different hosts are never compared: an owner on
another host is alive if its file changes; for an owner on this host the kernel is asked.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

from etils import epath

from mmrlhf_jax import owner_file
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.faults import Fault, Unavailable, fault, first_line, reason, retried
from mmrlhf_jax.files import entries, is_remote
from mmrlhf_jax.owner import Owner, held_here, named, now_here
from mmrlhf_jax.progress import clock_time, say

BEAT_SECONDS = 5.0
# An owner on another host is gone if its file does not change for so long: twelve beats, because shared file systems may show
# changes late.
SILENT_SECONDS = 60.0
LOOK_SECONDS = 1.0
# In an object store without "create only", the process that still finds its own record after this time is the owner.
SETTLE_SECONDS = 1.0


class Living(NamedTuple):
    """An owner that is alive."""

    who: str
    sign: str  # its last sign of life, in words
    here: bool  # whether it is on this host


class Ownership:
    """An owner file at `path`. After `take`, use it as a context: it beats inside, and is released at the end.

    `lost(reason)` is called, in any thread, if another process has taken over, which happens if this one was suspended for
    long; this process must then not write any more.
    """

    def __init__(
        self,
        path: epath.PathLike,
        what: str,
        doing: str,
        advice: str,
        lost: Callable[[str], None],
        *,
        elsewhere: str = "",
        follows: str = "going on in its place",
    ):
        """`what`, `doing` and `advice` make the message for a second process: what is owned, and what to do about it.

        `elsewhere` is the advice if the owner is on another host, where this process cannot check whether it is alive.
        `follows` says how the work of an owner that is gone is continued.
        """
        self.path, self._what, self._doing, self._advice, self._lost = epath.Path(path), what, doing, advice, lost
        self._elsewhere, self._follows = elsewhere or advice, follows
        self._me = Owner.me()
        self._seen: str | None = None  # the file's text since its last change
        self._silent, self._looked = 0.0, time.monotonic()
        self._confirmed, self._complaint = now_here(), ""
        self._made: list[Path] = []  # folders that were created for the file, innermost first
        self._cleared, self._checked = False, 0.0
        self._takeover: Ownership | None = None
        self._stop, self._thread = threading.Event(), threading.Thread(target=self._run, name="owner", daemon=True)

    def take(self) -> None:
        """Become the owner, after watching an owner on another host as long as necessary. UserError if that is alive."""
        while not self.attempt():
            time.sleep(LOOK_SECONDS)

    def attempt(self) -> bool:
        """Try to become the owner. False if it must be tried again; UserError if another owner is alive, or if the file cannot
        be written."""
        try:
            outcome = retried(self.look, f"{self.path}")
        except (UserError, Unavailable):
            raise
        except Exception as error:  # any storage backend's error
            self._remove_folders()
            if not isinstance(error, OSError) and fault(error) not in (Fault.DENIED, Fault.NO_ROOM):
                raise
            raise UserError(f"{self._what}: cannot be written ({reason(error)})") from None
        if isinstance(outcome, bool):
            return outcome
        advice = self._advice if outcome.here else self._elsewhere
        raise UserError(f"{self._what}: {outcome.who} {self._doing}; {advice} ({outcome.sign})")

    def look(self) -> bool | Living:
        """Try once: True if this process is now the owner, the owner if it is alive, False if that is not known yet."""
        passed, self._looked = time.monotonic() - self._looked, time.monotonic()
        text = owner_file.read(self.path)
        if text is None:
            self._made = self._made or owner_file.missing(self.path.parent)
            return self._holds() if owner_file.create(self.path, self._beat_text()) else False
        owner = Owner.parse(text)
        if owner is not None and owner.is_here:
            if owner.has_ended:
                return self._take_over(text, owner)
            age = f"{clock_time(max(now_here() - owner.at, 0.0))} ago" if owner.at and owner.place else "not recorded"
            return Living(named(owner), f"it lives; its last sign of life was {age}", here=True)
        if text != self._seen:
            if self._seen is not None:
                return Living(named(owner), f"its last sign of life was at most {passed:.0f} s ago", here=False)
            wait = f"looking for signs of life, for {SILENT_SECONDS:.0f} s at most"
            say(f"{self.path.parent}: {named(owner)} was at work here; {wait}")
            self._seen, self._silent = text, 0.0
            return False
        self._silent += min(passed, 2 * LOOK_SECONDS)  # time during which this process was suspended does not count
        return self._take_over(text, owner) if self._silent >= SILENT_SECONDS else False

    def __enter__(self) -> Ownership:
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        """Release the file. An error of that is only reported, so that it does not replace the error that ended the block."""
        self.quiet()
        try:
            self._give_back()
        except Exception as error:  # any storage backend's error
            say(f"{self.path}: cannot be removed ({first_line(error)}); the next process will see that this one has ended")
        finally:
            held_here.discard(self._me.nonce)

    def _give_back(self) -> None:
        if self._is_mine(owner_file.read(self.path)):
            for path in entries(self.path.parent) if self._cleared else ():
                if self._is_beside(path):  # left by processes that were killed while they tried to become the owner
                    path.unlink(missing_ok=True)
            self.path.unlink(missing_ok=True)
            self._remove_folders()

    def _remove_folders(self) -> None:
        """Remove the folders that were created for this file, if they are empty."""
        with contextlib.suppress(OSError):  # a folder with contents is kept, with its parents
            for folder in self._made:
                os.rmdir(folder)

    def _is_beside(self, path: epath.Path) -> bool:
        """Whether a path is a temporary or takeover file of this owner file."""
        return path.name.startswith((f".{self.path.name}.", f"{self.path.name}.after-"))

    def clear(self, keep: Collection[str] = ()) -> None:
        """Remove everything else in the file's folder, except names in `keep`; the folder itself is removed on release.

        This removes a workplace while it is still owned, so that no other process can begin to use it. A failure is reported,
        and does not affect the result of the work.
        """
        self.check(at_once=True)
        try:
            for path in entries(self.path.parent):
                if path.name not in (self.path.name, *keep) and not self._is_beside(path):
                    path.rmtree(missing_ok=True) if path.is_dir() else path.unlink(missing_ok=True)
        except Exception as error:  # any storage backend's error
            say(f"{self.path.parent}: cannot be removed ({first_line(error)}); the next process will remove it, or you may")
        self._cleared, self._made = True, self._made or ([] if is_remote(self.path) else [Path(self.path.parent)])

    def quiet(self) -> None:
        """Stop the heartbeat."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def check(self, *, at_once: bool = False) -> None:
        """Check that this process is still the owner. Call it before writing; it reads the file only after a long time without
        a beat, or with `at_once`.

        Storage errors are ignored, because then no other process could have taken over, and the heartbeat reports them.
        """
        if at_once or now_here() - max(self._confirmed, self._checked) > 3 * BEAT_SECONDS:
            self._checked = now_here()
            with contextlib.suppress(Exception):  # any storage backend's error
                self._confirm()

    def _take_over(self, held: str, owner: Owner | None) -> bool:
        """Replace an owner that is gone. If several processes find it gone, the one that owns a second file takes over."""
        if self._takeover is None:
            name = f"{self.path.name}.after-{owner.nonce[:16] if owner and owner.nonce else 'unknown'}"
            self._takeover = Ownership(self.path.parent / name, self._what, self._doing, self._advice, self._lost)
        if self._takeover.look() is not True:
            return False
        follow, self._takeover = self._takeover, None
        try:
            if owner_file.read(self.path) != held:  # another process has taken over before
                return False
            owner_file.replace(self.path, self._beat_text())
            say(f"{self.path.parent}: {named(owner)}, which was at work here, is gone; {self._follows}")
        finally:
            follow.__exit__()
        return self._holds()

    def _holds(self) -> bool:
        if is_remote(self.path):
            time.sleep(SETTLE_SECONDS)
            if not self._is_mine(owner_file.read(self.path)):
                return False
        held_here.add(self._me.nonce)
        self._confirmed = now_here()
        return True

    def _is_mine(self, text: str | None) -> bool:
        owner = None if text is None else Owner.parse(text)
        return owner is not None and owner.nonce == self._me.nonce

    def _beat_text(self) -> str:
        self._me = dataclasses.replace(self._me, beat=self._me.beat + 1, at=now_here())
        return self._me.text()

    def _run(self) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            try:
                if self._confirm():
                    owner_file.replace(self.path, self._beat_text())
                self._complaint = ""
            except Exception as error:  # a full disk, or a store that does not answer: the thread must go on
                complaint = str(error).strip() or type(error).__name__
                if complaint != self._complaint:
                    say(f"{self.path}: no sign of life can be left there ({complaint})")
                self._complaint = complaint

    def _confirm(self) -> bool:
        """Whether the file exists and names this process. Calls `lost` if it names another one."""
        text = owner_file.read(self.path)
        if text is None:  # it was removed, perhaps with its directory, and is not created again
            return False
        if not self._is_mine(text):
            other = named(Owner.parse(text))
            self._lost(f"{self.path.parent}: {other} is at work here now: this process gave no sign of life for too long")
            return False
        self._confirmed = now_here()
        return True
