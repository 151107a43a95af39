"""How a command ends after an error: one line for the user, and an exit status on which launchers decide (`exits`)."""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Iterator

from mmrlhf_jax import exits
from mmrlhf_jax.errors import UserError


@contextlib.contextmanager
def in_one_line() -> Iterator[None]:
    """A context whose errors end the process, with one line if they are the user's or the storage's, else with a traceback."""
    try:
        yield
    except SystemExit as end:
        # For example a signal before the first step, which only this process has received.
        if end.code and not isinstance(end, exits.StoppedTogether):
            exits.leave(end.code)
        raise
    except UserError as error:
        print("\n".join([f"error: {error}", *getattr(error, "__notes__", [])]), file=sys.stderr)
        exits.leave(error.status)
    except ImportError as error:
        if "gcsfs" not in str(error):
            raise
        print("error: gs:// paths need gcsfs; `pip install 'mmrlhf-jax[gcs]'`", file=sys.stderr)
        exits.leave(2)
    except Exception as error:
        from mmrlhf_jax.faults import away, in_words

        if line := in_words(error):
            print(f"error: {line}", file=sys.stderr)
            exits.leave(exits.PEER_LOST if away(error) else 2)  # launchers restart the command on PEER_LOST
        if not exits.one_of_several():
            raise
        traceback.print_exc()
        exits.leave(1)
