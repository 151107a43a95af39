"""What has to be closed at the end, whatever the end is: everything is, and the first error is the one that is seen."""

from __future__ import annotations

from collections.abc import Callable


class Cleanup:
    """A context; on leaving it all that was `add`ed is closed, the last first.

    Each is closed whether or not another raises, or an interrupt cuts it short. The error in flight stays the one that leaves,
    with what went wrong afterwards noted below it; without one the first error of a close leaves. What is interrupted between
    two closes may be closed twice.

    `contextlib.ExitStack` promises less: there the last error takes the place of the one in flight, and an interrupt that comes
    between two closes leaves the others undone.
    """

    def __init__(self) -> None:
        self._open: list[tuple[str, Callable[[], None]]] = []
        self._error: BaseException | None = None

    def add(self, name: str, close: Callable[[], None]) -> None:
        """`name` is for the note that says which close failed."""
        self._open.append((name, close))

    def __enter__(self) -> Cleanup:
        return self

    def __exit__(self, kind, error: BaseException | None, trace) -> None:
        self._error = error
        while self._open:
            try:
                self._close_all()
            except BaseException as later:  # an interrupt, between two closes
                self._keep(later, "closing")
        if self._error is not error:
            raise self._error

    def _close_all(self) -> None:
        while self._open:
            name, close = self._open[-1]
            try:
                close()
            except BaseException as later:  # an interrupt too: the others are still to be closed
                self._keep(later, f"closing {name}")
            self._open.pop()

    def _keep(self, later: BaseException, where: str) -> None:
        if self._error is None:
            self._error = later
        elif later is not self._error:
            reason = str(later).strip() or "no message"
            self._error.add_note(f"while {where} afterwards: {type(later).__name__}: {reason}")
