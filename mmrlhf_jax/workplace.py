"""Workplaces: where an output directory is built before it is renamed into place, or filled in place if that is impossible."""

from __future__ import annotations

import os
import re
from pathlib import Path

from etils import epath

from mmrlhf_jax.files import hidden_beside, is_remote


def place_of(out: epath.PathLike, suffix: str) -> tuple[epath.Path, epath.Path]:
    """(the output directory, the hidden folder in which it is built), which is beside it, or inside it if it `is_filled`.

    A symbolic link is resolved, so that its target is replaced and not the link.
    """
    out = epath.Path(out)
    if is_remote(out):
        return out, hidden_beside(out, suffix)
    out = epath.Path(os.path.realpath(out))
    beside = hidden_beside(out, suffix)
    return out, out / beside.name if is_filled(out) else beside


def is_filled(out: epath.Path) -> bool:
    """Whether a directory must be filled file by file, because no other directory can be renamed to it: in an object store, for
    a mount point, and if its parent is not writable."""
    if is_remote(out):
        return True
    return out.is_dir() and (_is_mount(out) or not os.access(out.parent, os.W_OK | os.X_OK))


def _is_mount(path: epath.Path) -> bool:
    """Whether a path is a mount point, including bind mounts of the same file system, which `os.path.ismount` misses."""
    if os.path.ismount(path):
        return True
    try:
        lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
    except OSError:  # not Linux
        return False
    points = (re.sub(rb"\\([0-7]{3})", lambda code: bytes([int(code[1], 8)]), line.split()[4]) for line in lines)
    return os.fsencode(path) in points
