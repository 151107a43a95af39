"""Where a directory is made before it takes its place, and where it has to be made in its place."""

from __future__ import annotations

import os
import re
from pathlib import Path

from etils import epath

from mmrlhf_jax.files import hidden_beside, is_remote


def place_of(out: epath.PathLike, suffix: str) -> tuple[epath.Path, epath.Path]:
    """Where a directory is, and the hidden folder in which it is made: beside it, or in it where it `is_filled`.

    Nothing takes the place of a link, but of the directory that it leads to.
    """
    out = epath.Path(out)
    if is_remote(out):
        return out, hidden_beside(out, suffix)
    out = epath.Path(os.path.realpath(out))
    beside = hidden_beside(out, suffix)
    return out, out / beside.name if is_filled(out) else beside


def is_filled(out: epath.Path) -> bool:
    """Whether a directory is filled file by file because none can take its place: in an object store, which renames by copying,
    where a disk is mounted, and where nothing may be made beside it."""
    if is_remote(out):
        return True
    return out.is_dir() and (_is_mount(out) or not os.access(out.parent, os.W_OK | os.X_OK))


def _is_mount(path: epath.Path) -> bool:
    """`os.path.ismount` does not know folders of the same file system that are mounted a second time."""
    if os.path.ismount(path):
        return True
    try:
        lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
    except OSError:  # no Linux
        return False
    points = (re.sub(rb"\\([0-7]{3})", lambda code: bytes([int(code[1], 8)]), line.split()[4]) for line in lines)
    return os.fsencode(path) in points
