"""Suppresses the tracebacks that Orbax's threads print when a checkpoint cannot be written; the waiting caller gets the
error."""

from __future__ import annotations

import logging
import sys


class _Logged(logging.Filter):
    """Drops the log records in which Orbax prints an error of one of its threads with its traceback."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "_SignalingThread.run() raised an exception" not in record.getMessage()


def print_no_errors_twice() -> None:
    """Install filters in this process, after which these threads' errors are raised but not also printed.

    There are two sources. Orbax logs each error. And tensorstore writes that end after another write has failed find Orbax's
    event loop closed; tensorstore cannot raise that error, so Python prints it as unraisable. All other errors are still
    printed.
    """
    logging.getLogger("absl").addFilter(_Logged())
    print_unraisable = sys.unraisablehook

    def print_others(unraisable) -> None:
        error = unraisable.exc_value
        late_write = isinstance(error, RuntimeError) and str(error) == "Event loop is closed" and unraisable.object is None
        if not late_write:
            print_unraisable(unraisable)

    sys.unraisablehook = print_others
