"""What a user is told of storage that fails while a checkpoint is written."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from etils import epath

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.faults import Fault, Unavailable, fault, first_line


@contextlib.contextmanager
def explained_writing(directory: epath.Path, kept: Callable[[], str]) -> Iterator[None]:
    """Turn storage errors into UserError or Unavailable; `kept` says which checkpoint is complete all the same.

    The last complete checkpoint stays the newest in every case, because Orbax gives a checkpoint its name only when it is
    complete.
    """
    try:
        yield
    except (UserError, Unavailable):
        raise
    except Exception as error:  # tensorstore and Orbax raise their own types beside OSError
        if fault(error) is Fault.NO_ROOM:
            raise UserError(
                f"{directory}: no room for a checkpoint ({first_line(error)}); {kept()}."
                " Make room, or set run.directory or run.keep, and start the same command again"
            ) from None
        if fault(error) is Fault.DENIED:
            raise UserError(f"{directory}: a checkpoint may not be written ({first_line(error)}); {kept()}") from None
        if fault(error) is Fault.PASSING:  # no retry: the step has donated the state's buffers meanwhile
            raise Unavailable(f"{directory}: a checkpoint could not be written ({first_line(error)}); {kept()}") from None
        raise
