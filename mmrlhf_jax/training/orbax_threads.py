"""What Orbax's threads print when a checkpoint cannot be written. Whoever waits for the checkpoint gets the error itself."""

from __future__ import annotations

import logging
import sys


class _Logged(logging.Filter):
    """Orbax logs the errors of its threads with their tracebacks."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "_SignalingThread.run() raised an exception" not in record.getMessage()


def print_no_errors_twice() -> None:
    """From now on the errors of these threads are only raised, and not printed as well.

    Orbax logs them. And writes that end after another one has failed find its event loop closed, which tensorstore cannot
    raise anywhere: Python would print a traceback for each. Errors of any other text or origin are printed as before.
    """
    logging.getLogger("absl").addFilter(_Logged())
    print_unraisable = sys.unraisablehook

    def print_others(unraisable) -> None:
        error = unraisable.exc_value
        late_write = isinstance(error, RuntimeError) and str(error) == "Event loop is closed" and unraisable.object is None
        if not late_write:
            print_unraisable(unraisable)

    sys.unraisablehook = print_others
