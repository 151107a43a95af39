"""A directory that is written as a whole or not at all, on this machine or in an object store."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from etils import epath

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.files import hidden_beside, is_remote
from mmrlhf_jax.sole_writer import sole_writer

LAST = "config.json"  # without it no reader takes the directory for a model


@dataclass(frozen=True)
class NewDirectory:
    """Small files are written to `files`, a folder of this machine; what is large is streamed to `large`."""

    files: Path
    large: epath.Path


def refuse_existing(out: epath.PathLike) -> None:
    out = epath.Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: exists and is not empty; give a new directory, nothing is overwritten")


@contextlib.contextmanager
def new_directory(out: epath.PathLike) -> Iterator[NewDirectory]:
    """`out` when all has gone well: a temporary sibling takes its place, or, in an object store, config.json comes last.

    UserError where another process is writing it, on this host or another one, or has written it meanwhile.
    """
    out = epath.Path(out)
    if not is_remote(out):
        out = epath.Path(os.path.realpath(out))  # nothing takes the place of a link, but of the directory that it leads to
    workplace = hidden_beside(out, "exporting")
    with sole_writer(workplace, out, "is exporting to it") as lock:
        try:
            refuse_existing(out)
            with _in_store(out) if is_remote(out) else _beside(out, Path(workplace / "partial")) as directory:
                yield directory
        finally:
            lock.quiet()
            with contextlib.suppress(OSError):  # the error that brought us here is the one to be seen
                workplace.rmtree(missing_ok=True)


@contextlib.contextmanager
def _beside(out: epath.Path, directory: Path) -> Iterator[NewDirectory]:
    shutil.rmtree(directory, ignore_errors=True)  # of a process that was killed
    directory.mkdir()
    yield NewDirectory(directory, epath.Path(directory))
    refuse_existing(out)
    directory.replace(out)  # over an empty directory, too


@contextlib.contextmanager
def _in_store(out: epath.Path) -> Iterator[NewDirectory]:
    with tempfile.TemporaryDirectory() as folder:
        try:
            yield NewDirectory(Path(folder), out)
            names = [path.relative_to(folder) for path in Path(folder).rglob("*") if path.is_file()]
            for name in sorted(names, key=lambda name: (str(name) == LAST, name)):
                (out / str(name)).write_bytes((Path(folder) / name).read_bytes())
        except BaseException:
            with contextlib.suppress(OSError):  # the error that brought us here is the one to be seen
                out.rmtree(missing_ok=True)
            raise
