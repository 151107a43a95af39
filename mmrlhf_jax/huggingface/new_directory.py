"""A directory that is written as a whole or not at all, on this machine or in an object store."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import uuid
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
from etils import epath

from mmrlhf_jax import strict_json
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.faults import first_line
from mmrlhf_jax.files import entries, is_remote
from mmrlhf_jax.progress import say
from mmrlhf_jax.sole_writer import Held, held
from mmrlhf_jax.workplace import is_filled, place_of

LAST = ("adapter_config.json", "config.json")  # written last: without them no reader takes the directory for a model
MARK = "unfinished"  # file in the workplace that lists the files that are being moved into the directory
STREAMED = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")  # files written directly into an object store


@dataclass(frozen=True)
class NewDirectory:
    """Where to write: small files into `files`, a local folder; large files are streamed into `large`."""

    files: Path
    large: epath.Path


def refuse_existing(out: epath.PathLike) -> list[str]:
    """The names of the files that an interrupted export has left at `out`. UserError if anything else is there."""
    out, workplace = place_of(out, "exporting")
    if not out.exists():
        return []
    begun = _begun(out, workplace)
    ours = {Path(name).parts[0] for name in begun} | ({workplace.name} if workplace.parent == out else set())
    if not out.is_dir() or any(path.name not in ours for path in out.iterdir()):
        raise UserError(f"{out}: exists and is not empty; give a new directory, nothing is overwritten")
    return begun


@contextlib.contextmanager
def reserved(out: epath.PathLike) -> Iterator[Held]:
    """Hold the place of a new directory, before its content is known; `new_directory` takes the result instead of a path.

    UserError if something is there, if nothing can be written, if another process, on any host, is writing it, and in a run of
    several processes.
    """
    if isinstance(out, Held):
        yield out
        return
    # The first condition is not redundant: a single process that only copies files needs no device.
    if jax.distributed.is_initialized() and jax.process_count() > 1:
        raise UserError(f"{out}: one process writes a model; start `mmrlhf export` on one host, on its own")
    refuse_existing(out)
    out, workplace = place_of(out, "exporting")
    with held(out, workplace, "is exporting to it", follows="starting anew") as place:
        try:
            _remove_begun(out, refuse_existing(out))
            place.lock.clear()  # remove what a killed process has left
            yield place
        finally:
            place.lock.clear(keep=[MARK] if _is_begun(out, workplace) else [])


@contextlib.contextmanager
def new_directory(out: epath.PathLike) -> Iterator[NewDirectory]:
    """Write a new directory `out`, a path or a place held by `reserved`; it appears only if the block raises nothing.

    A temporary sibling is renamed to it. If that is impossible (in an object store, or at a mount point), the files are moved
    into it one by one, config.json last. UserError like `reserved`, and if another process has written it meanwhile.
    """
    with reserved(out) as place, _filled(place) if is_filled(place.out) else _replaced(place) as directory:
        yield directory


@contextlib.contextmanager
def _replaced(place: Held) -> Iterator[NewDirectory]:
    directory = _partial(place)
    yield NewDirectory(directory, epath.Path(directory))
    place.lock.check(at_once=True)
    refuse_existing(place.out)
    directory.replace(place.out)  # over an empty directory, too


@contextlib.contextmanager
def _filled(place: Held) -> Iterator[NewDirectory]:
    out, mark = place.out, place.workplace / MARK
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) if is_remote(out) else _partial(place)
        mark.write_text("[]")
        try:
            yield NewDirectory(folder, out if is_remote(out) else epath.Path(folder))
            place.lock.check(at_once=True)
            refuse_existing(out)
            names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
            mark.write_text(strict_json.dumps(names))
            for name in sorted(names, key=lambda name: (name in LAST, name)):
                place.lock.check(at_once=name in LAST)
                _move(folder / name, out / name)
        except BaseException:  # raised again below, also if cleaning up fails
            place.lock.check(at_once=True)
            try:
                _remove_begun(out, _begun(out, place.workplace, complete=True))
            except Exception as error:  # any storage backend's error
                say(f"{out}: what this export wrote cannot be removed ({first_line(error)}); the next one does that")
            raise


def _partial(place: Held) -> Path:
    """A folder that no other process writes to, not even one that took over while this process was suspended."""
    folder = Path(place.workplace / f"partial-{uuid.uuid4().hex}")
    folder.mkdir()
    return folder


def _move(source: Path, target: epath.Path) -> None:
    if is_remote(target):
        target.write_bytes(source.read_bytes())
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    source.replace(target)


def _begun(out: epath.Path, workplace: epath.Path, *, complete: bool = False) -> list[str]:
    """The files that an export has moved into the directory so far. Empty if the directory is a complete model, written by an
    export that was killed right after; with `complete`, the files of this process's own complete export are listed, too."""
    try:
        listed = strict_json.loads((workplace / MARK).read_text())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except ValueError:  # the disk was full
        listed = []
    last = {name for name in LAST if (out / name).exists()}
    if last and not (complete and last <= set(listed)):
        return []
    streamed = [path.name for path in entries(out) if STREAMED.fullmatch(path.name)] if is_remote(out) else []
    return [*streamed, *listed]


def _is_begun(out: epath.Path, workplace: epath.Path) -> bool:
    try:
        return any((out / name).exists() for name in _begun(out, workplace))
    except Exception:  # any storage backend's error: keep the mark, so that the next export looks again
        return True


def _remove_begun(out: epath.Path, names: Collection[str]) -> None:
    for name in sorted(names, key=lambda name: name not in LAST):  # first the files in LAST, which make it a model
        (out / name).unlink(missing_ok=True)
    folders = {parent for name in names for parent in Path(name).parents if parent != Path(".")}
    for folder in sorted(folders, key=lambda folder: -len(folder.parts)):
        with contextlib.suppress(OSError):  # object stores have no folders
            os.rmdir(out / folder)
