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

LAST = ("adapter_config.json", "config.json")  # without them no reader takes the directory for a model
MARK = "unfinished"  # in the workplace: the names of the files with which the directory is being filled
STREAMED = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")  # into an object store, as they are made


@dataclass(frozen=True)
class NewDirectory:
    """Small files are written to `files`, a folder of this machine; what is large is streamed to `large`."""

    files: Path
    large: epath.Path


def refuse_existing(out: epath.PathLike) -> list[str]:
    """UserError where something is at `out` that is not the beginning of an export that was cut off: those files, by name."""
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
    """Hold the place of a directory before what is to be written is known: the path to be given to `new_directory`.

    UserError where something is there, where nothing can be written, where another process is writing it, on this host or
    another one, and in a run of several processes.
    """
    if isinstance(out, Held):
        yield out
        return
    if jax.distributed.is_initialized() and jax.process_count() > 1:  # a process on its own needs no device to copy files
        raise UserError(f"{out}: one process writes a model; start `mmrlhf export` on one host, on its own")
    refuse_existing(out)
    out, workplace = place_of(out, "exporting")
    with held(out, workplace, "is exporting to it", follows="starting anew") as place:
        try:
            _remove_begun(out, refuse_existing(out))
            place.lock.clear()  # of what a process left that was killed
            yield place
        finally:
            place.lock.clear(keep=[MARK] if _is_begun(out, workplace) else [])


@contextlib.contextmanager
def new_directory(out: epath.PathLike) -> Iterator[NewDirectory]:
    """`out`, a path or what is `reserved`, when all has gone well: a temporary sibling takes its place. Where nothing can take
    its place (in an object store, or where a disk is mounted) it is filled, and config.json comes last.

    UserError as of `reserved`, and where another process has written it meanwhile.
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
        except BaseException:  # which is the one to be seen
            place.lock.check(at_once=True)
            try:
                _remove_begun(out, _begun(out, place.workplace, complete=True))
            except Exception as error:  # any storage backend's error
                say(f"{out}: what this export wrote cannot be removed ({first_line(error)}); the next one does that")
            raise


def _partial(place: Held) -> Path:
    """A folder that no other process writes to, not even one that took this one's place while it was suspended."""
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
    """The files in a directory with which an export has begun to fill it. None where it is a model already, which an export
    finished that was killed then, or, unless that is asked for (`complete`), this one."""
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
    except Exception:  # whatever a storage backend raises: it is to be looked at again
        return True


def _remove_begun(out: epath.Path, names: Collection[str]) -> None:
    for name in sorted(names, key=lambda name: name not in LAST):  # first what makes it a model
        (out / name).unlink(missing_ok=True)
    folders = {parent for name in names for parent in Path(name).parents if parent != Path(".")}
    for folder in sorted(folders, key=lambda folder: -len(folder.parts)):
        with contextlib.suppress(OSError):  # an object store has none
            os.rmdir(out / folder)
