"""Files that only one process can create, and that appear together with their content; on local and shared file systems and in
object stores."""

from __future__ import annotations

import itertools
import os
import uuid
from pathlib import Path

import fsspec
from etils import epath

from mmrlhf_jax.files import hidden_beside, is_remote


def missing(folder: epath.Path) -> list[Path]:
    """The folder and its parents that do not exist, innermost first; empty for object stores, which have no folders."""
    above = [] if is_remote(folder) else [Path(folder), *Path(folder).parents]
    return list(itertools.takewhile(lambda path: not path.exists(), above))


def read(path: epath.Path) -> str | None:
    """The file's text; None if there is no file. Invalid bytes, which a failed disk may leave, are replaced."""
    try:
        return path.read_bytes().decode(errors="replace")
    except FileNotFoundError:
        return None


def create(path: epath.Path, text: str) -> bool:
    """Create the file. Returns False if it exists already."""
    if is_remote(path):
        store, name = fsspec.core.url_to_fs(os.fspath(path))
        if path.exists():
            return False
        try:
            store.pipe_file(name, text.encode(), mode="create")  # only if it is new, a condition that some stores ignore
        except FileExistsError:
            return False
        return True
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _beside(path)
    try:
        partial.write_text(text)
        return _link(partial, path) or _create_without_links(path, text)
    except (FileExistsError, FileNotFoundError):  # FileNotFoundError: the directory was removed meanwhile
        return False
    finally:
        partial.unlink(missing_ok=True)


def _link(partial: epath.Path, path: epath.Path) -> bool:
    """Create the file atomically, as a hard link. Returns False on a file system without links."""
    try:
        os.link(partial, path)
    except (FileExistsError, FileNotFoundError):
        raise
    except OSError:
        return False
    return True


def _create_without_links(path: epath.Path, text: str) -> bool:
    with open(path, "x") as file:
        try:
            file.write(text)
            file.flush()
        except BaseException:  # an owner file without an owner would make other processes wait
            path.unlink(missing_ok=True)
            raise
    return True


def replace(path: epath.Path, text: str) -> None:
    """Replace the file's content atomically."""
    if is_remote(path):
        path.write_text(text)
        return
    partial = _beside(path)
    try:
        partial.write_text(text)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _beside(path: epath.Path) -> epath.Path:
    return hidden_beside(path, uuid.uuid4().hex[:8])
