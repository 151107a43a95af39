"""Closes resources at the end of a block, whatever happens: all of them, and the first error is the one that is raised."""

from __future__ import annotations

from collections.abc import Callable


class Cleanup:
    """A context that closes on exit everything that was `add`ed, in reverse order.

    Each resource is closed even if closing another one raises or is interrupted. The error that ended the block is raised, with
    later errors added to it as notes; without one, the first error of a close is raised. If an interrupt arrives between two
    closes, a resource may be closed twice.

    `contextlib.ExitStack` guarantees less: its last error replaces the block's error, and an interrupt between two closes
    leaves the others open.
    """

    def __init__(self) -> None:
        self._open: list[tuple[str, Callable[[], None]]] = []
        self._error: BaseException | None = None

    def add(self, name: str, close: Callable[[], None]) -> None:
        """Call `close` on exit. `name` is used in the note about a close that fails."""
        self._open.append((name, close))

    def __enter__(self) -> Cleanup:
        return self

    def __exit__(self, kind, error: BaseException | None, trace) -> None:
        self._error = error
        while self._open:
            try:
                self._close_all()
            except BaseException as later:  # an interrupt between two closes
                self._keep(later, "closing")
        if self._error is not error:
            raise self._error

    def _close_all(self) -> None:
        while self._open:
            name, close = self._open[-1]
            try:
                close()
            except BaseException as later:  # interrupts as well, because the others must still be closed
                self._keep(later, f"closing {name}")
            self._open.pop()

    def _keep(self, later: BaseException, where: str) -> None:
        if self._error is None:
            self._error = later
        elif later is not self._error:
            reason = str(later).strip() or "no message"
            self._error.add_note(f"while {where} afterwards: {type(later).__name__}: {reason}")
