"""The folders of a run's checkpoints: removed and renamed so that a kill leaves nothing under a checkpoint's name but a
checkpoint."""

from __future__ import annotations

from collections.abc import Collection

from etils import epath

from mmrlhf_jax.faults import retried
from mmrlhf_jax.files import entries, exists, is_remote
from mmrlhf_jax.training.stored import COMMITTED

# Suffixes of folders that are not checkpoints: being written by Orbax, found unreadable and kept, being removed.
UNFINISHED, UNREADABLE, REMOVED = ".orbax-checkpoint-tmp", ".unreadable", ".removed"


def prepare(directory: epath.Path, finished: Collection[int]) -> None:
    """Create the directory, and remove unfinished and half-removed checkpoints of a killed process; `finished` are the steps
    of the complete ones."""
    directory.mkdir(parents=True, exist_ok=True)
    names = set(map(str, finished))
    for path in entries(directory):
        if UNFINISHED in path.name or path.name.endswith(REMOVED) or (path.name.isdecimal() and path.name not in names):
            remove(path)


def remove(folder: epath.Path) -> None:
    """Remove a checkpoint so that a kill during removal leaves no partial folder under a checkpoint's name.

    Local folders are renamed first; in an object store the commit marker is deleted first.
    """
    aside = folder if folder.name.endswith(REMOVED) else folder.parent / f"{folder.name}{REMOVED}"
    if is_remote(folder):
        (folder / COMMITTED).unlink(missing_ok=True)
        aside = folder
    elif folder != aside and exists(folder):
        folder.rename(aside)
    aside.rmtree(missing_ok=True)


def set_aside(old: epath.Path) -> None:
    """Rename an unreadable checkpoint, which keeps its files and frees its step's name."""
    new = old.parent / f"{old.name}{UNREADABLE}"

    def rename() -> None:
        if exists(old):  # otherwise an earlier attempt succeeded although it reported an error
            old.rename(new)

    retried(lambda: new.rmtree(missing_ok=True), f"{new}")  # left by an earlier attempt of the run
    if is_remote(old):  # renaming copies file by file there, so a retry would find its target partly present
        rename()
    else:
        retried(rename, f"{old}")
