"""What is wrong with the server that an option names, and what to do."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from mmrlhf_jax.errors import UserError

# How messages of `inference.endpoint` say that nothing answers there.
_SILENT = re.compile(r": (Connect(Error|Timeout)\b|no reply within )")


@contextlib.contextmanager
def of_server(option: str) -> Iterator[None]:
    """A context whose errors of the user name the option that has a server's address, and say what to do if nothing answers."""
    try:
        yield
    except UserError as error:
        advice = "; start the server, or correct the address" if _SILENT.search(str(error)) else ""
        raise UserError(f"{option} {error}{advice}") from None
