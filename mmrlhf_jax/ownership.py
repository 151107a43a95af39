"""One owner at a time: a file names the process that is at work in a directory, and beats as long as that process lives.

It holds here, on file systems that hosts share, and in object stores. The clocks of two hosts are never compared: whether an
owner on another host is alive is seen by watching whether its file changes; of this host the kernel knows.
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
# An owner elsewhere whose file stays the same for so long is gone. Twelve beats: shared file systems may show a change late.
SILENT_SECONDS = 60.0
LOOK_SECONDS = 1.0
# An object store that does not know "create only": who still finds its own record after this is the owner.
SETTLE_SECONDS = 1.0


class Living(NamedTuple):
    """What is known of an owner that lives."""

    who: str
    sign: str  # of life, its last
    here: bool  # on this host, where the kernel knows that it lives


class Ownership:
    """The file at `path`, to be taken and given back. A context: it beats inside, and gives back at the end.

    `lost(reason)` is called, in whatever thread finds it, where another has taken the file over: after this process was
    suspended for long, its next act must not be to write on.
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
        """`what`, `doing` and `advice` are for the message to who comes second: what is held, and what may be done.

        `elsewhere` is the advice where the owner is on another host, of which only its signs of life are known here.
        `follows` says what becomes of the work of an owner that is gone.
        """
        self.path, self._what, self._doing, self._advice, self._lost = epath.Path(path), what, doing, advice, lost
        self._elsewhere, self._follows = elsewhere or advice, follows
        self._me = Owner.me()
        self._seen: str | None = None  # the file as it was when its silence began
        self._silent, self._looked = 0.0, time.monotonic()
        self._confirmed, self._complaint = now_here(), ""
        self._made: list[Path] = []  # the folders above the file that were not there, the innermost first
        self._cleared, self._checked = False, 0.0
        self._takeover: Ownership | None = None
        self._stop, self._thread = threading.Event(), threading.Thread(target=self._run, name="owner", daemon=True)

    def take(self) -> None:
        """Take it, watching an owner on another host for as long as that needs. UserError if it is held."""
        while not self.attempt():
            time.sleep(LOOK_SECONDS)

    def attempt(self) -> bool:
        """Whether it is taken now; False where that has to be tried again. UserError if it is held, or cannot be."""
        try:
            outcome = retried(self.look, f"{self.path}")
        except (UserError, Unavailable):
            raise
        except Exception as error:  # whatever a storage backend raises
            self._remove_folders()
            if not isinstance(error, OSError) and fault(error) not in (Fault.DENIED, Fault.NO_ROOM):
                raise
            raise UserError(f"{self._what}: cannot be written ({reason(error)})") from None
        if isinstance(outcome, bool):
            return outcome
        advice = self._advice if outcome.here else self._elsewhere
        raise UserError(f"{self._what}: {outcome.who} {self._doing}; {advice} ({outcome.sign})")

    def look(self) -> bool | Living:
        """Try once: True if it is taken now, False if it is not known yet whether it is held."""
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
        self._silent += min(passed, 2 * LOOK_SECONDS)  # time in which this process was suspended itself does not count
        return self._take_over(text, owner) if self._silent >= SILENT_SECONDS else False

    def __enter__(self) -> Ownership:
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        """No error of giving back takes the place of the one that ended the work."""
        self.quiet()
        try:
            self._give_back()
        except Exception as error:  # whatever a storage backend raises
            say(f"{self.path}: cannot be removed ({first_line(error)}); whoever comes next sees that this process is gone")
        finally:
            held_here.discard(self._me.nonce)

    def _give_back(self) -> None:
        if self._is_mine(owner_file.read(self.path)):
            for path in entries(self.path.parent) if self._cleared else ():
                if self._is_beside(path):  # of processes that were killed while they tried to get it
                    path.unlink(missing_ok=True)
            self.path.unlink(missing_ok=True)
            self._remove_folders()

    def _remove_folders(self) -> None:
        """Those that were made for this file, where nothing came of it."""
        with contextlib.suppress(OSError):  # one that holds something stays, and those around it
            for folder in self._made:
                os.rmdir(folder)

    def _is_beside(self, path: epath.Path) -> bool:
        """Whether it is one of the files with which this one is taken and followed."""
        return path.name.startswith((f".{self.path.name}.", f"{self.path.name}.after-"))

    def clear(self, keep: Collection[str] = ()) -> None:
        """Remove whatever lies around the file, except for the names to `keep`; the folder itself goes when it is given back.

        This is how a workplace ends: while the file is there and beats, nobody else begins to work in it. What cannot be
        removed is said, and changes nothing about the work, whether that is done or failed.
        """
        self.check(at_once=True)
        try:
            for path in entries(self.path.parent):
                if path.name not in (self.path.name, *keep) and not self._is_beside(path):
                    path.rmtree(missing_ok=True) if path.is_dir() else path.unlink(missing_ok=True)
        except Exception as error:  # whatever a storage backend raises
            say(f"{self.path.parent}: cannot be removed ({first_line(error)}); whoever comes next does that, or you may")
        self._cleared, self._made = True, self._made or ([] if is_remote(self.path) else [Path(self.path.parent)])

    def quiet(self) -> None:
        """Beat no more."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def check(self, *, at_once: bool = False) -> None:
        """To be called before writing: after a long time without a beat, or `at_once`, whether it is still this process's.

        Where the storage does not answer nobody else could have taken it either, and the beats say so.
        """
        if at_once or now_here() - max(self._confirmed, self._checked) > 3 * BEAT_SECONDS:
            self._checked = now_here()
            with contextlib.suppress(Exception):  # whatever a storage backend raises
                self._confirm()

    def _take_over(self, held: str, owner: Owner | None) -> bool:
        """Of several processes that find the owner gone, one gets the right to follow it, which is a file to own as well."""
        if self._takeover is None:
            name = f"{self.path.name}.after-{owner.nonce[:16] if owner and owner.nonce else 'unknown'}"
            self._takeover = Ownership(self.path.parent / name, self._what, self._doing, self._advice, self._lost)
        if self._takeover.look() is not True:
            return False
        follow, self._takeover = self._takeover, None
        try:
            if owner_file.read(self.path) != held:  # somebody followed it before
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
            except Exception as error:  # of a full disk, or a store that is away: the thread lives on
                complaint = str(error).strip() or type(error).__name__
                if complaint != self._complaint:
                    say(f"{self.path}: no sign of life can be left there ({complaint})")
                self._complaint = complaint

    def _confirm(self) -> bool:
        """Whether the file is there and this process's; another's is the end of this one."""
        text = owner_file.read(self.path)
        if text is None:  # removed by somebody, with its directory perhaps; it is not made anew under their hands
            return False
        if not self._is_mine(text):
            other = named(Owner.parse(text))
            self._lost(f"{self.path.parent}: {other} is at work here now: this process gave no sign of life for too long")
            return False
        self._confirmed = now_here()
        return True
