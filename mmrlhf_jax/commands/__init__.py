"""The bodies of the command line's verbs: `cli` declares a verb and calls the function of its name here.

A verb is in the file of its name, the verbs of a group (`mmrlhf data ...`) in that of the group. Only `cli` imports this
package.
"""

from __future__ import annotations

import importlib
from types import ModuleType


def __getattr__(name: str) -> ModuleType:
    """Import a module such as `commands.train` on first access, so that `--help` and errors in options need no jax."""
    try:
        return importlib.import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"{__name__}.{name}":
            raise
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
