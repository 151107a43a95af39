"""A user's own documents of a task, instead of those of the hub: `--data TASK=FILE`."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmrlhf_jax.errors import UserError, of_option
from mmrlhf_jax.faults import first_line
from mmrlhf_jax.suite import catalogue, rows
from mmrlhf_jax.suite.task import Task

HUB, FILE = "the hub", "a file"  # where documents are from
_SAMPLED = 2**24  # bytes at the beginning of a file, and at its end


@dataclasses.dataclass(frozen=True)
class Local:
    """A file of documents, or a folder of such files. Videos lie beside it, as they lie in HF_HOME."""

    path: str

    @property
    def folder(self) -> str:
        path = os.path.abspath(self.path)
        return path if os.path.isdir(path) else os.path.dirname(path)

    @property
    def files(self) -> list[Path]:
        """Its files, sorted. UserError if there are none."""
        return rows.files_of(Path(self.path))

    @functools.cached_property
    def documents(self) -> int | None:
        """How many documents there are; None if that is not known without the library that reads them."""
        found = 0
        for path in self.files:
            if path.suffix == ".jsonl":
                found += _lines(path)
                continue
            try:
                import pyarrow.parquet
            except ImportError:
                return None
            try:
                found += pyarrow.parquet.read_metadata(path).num_rows
            except (OSError, pyarrow.ArrowException) as error:
                raise UserError(f"{path}: is not a parquet file that can be read ({first_line(error)})") from None
        return found

    def content(self, task: Task) -> str:
        """A digest by which hosts find out whether they have the same documents: names and sizes of what `fingerprint` is of,
        and the content of the files of documents, of large ones a part. Times differ where files were copied."""
        stated = [each[:2] for each in self._stated(task)]
        return _digest([stated, _media(self.folder, task, times=False), [_sampled(path) for path in self.files]])

    def fingerprint(self, task: Task) -> str:
        """A digest of names, sizes and times of its files, and of the pictures, videos and subtitles beside them that are used
        for a task."""
        return _digest([self._stated(task), _media(self.folder, task)])

    def _stated(self, task: Task) -> list[tuple[str, int, int]]:
        pictures = [name for name, holds in task.columns.items() if holds in rows.PICTURES]
        named = [path for each in self.files for path in _named(each, pictures)] if pictures else []
        return [_stated(each, self.folder) for each in (*self.files, *named)]


def source_of(local: Local | None) -> str:
    """Where a task's documents are from, in words."""
    return HUB if local is None else FILE


def _sampled(path: Path) -> str:
    """A digest of a file: of all of a small one, of the beginning and the end of a large one. (A parquet file's end has sums
    of its columns.)"""
    with path.open("rb") as file:
        found = hashlib.sha256(file.read(_SAMPLED))
        file.seek(max(file.tell(), path.stat().st_size - _SAMPLED))
        found.update(file.read())
    return found.hexdigest()


def _lines(path: Path) -> int:
    """How many lines of a file are not empty."""
    try:
        return sum(bool(line.strip()) for line in path.read_bytes().split(b"\n"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def fingerprint_of_media(home: os.PathLike, task: Task) -> str | None:
    """A digest of names, sizes and times of the hub's videos and subtitles of a task, as they are in HF_HOME; None for a task
    without such files."""
    return _digest(_media(home, task)) if task.data.files else None


def _digest(stated: Any) -> str:
    return hashlib.sha256(repr(stated).encode()).hexdigest()[:16]


def _media(home: os.PathLike | str, task: Task, times: bool = True) -> list[tuple]:
    """(name, size, time) of all that is in the folders of a task's videos and subtitles, or without the time."""
    folders = [Path(home) / pattern.split("{")[0] for pattern in task.data.files]
    found = [_stated(each, home) for folder in folders if folder.is_dir() for each in sorted(folder.iterdir())]
    return found if times else [each[:2] for each in found]


def _stated(path: Path, folder: os.PathLike | str) -> tuple[str, int, int]:
    """(name, size, time) of a file; sizes below 0 of one that is not there."""
    try:
        found = path.stat()
    except OSError:
        return os.path.relpath(path, folder), -1, 0
    return os.path.relpath(path, folder), found.st_size, found.st_mtime_ns


def _named(path: Path, pictures: Sequence[str]) -> Iterator[Path]:
    """The pictures that a file of documents names. What cannot be read is said when the documents are asked for."""
    with contextlib.suppress(UserError):
        cells = _cells_of_parquet(path, pictures) if path.suffix == ".parquet" else _cells_of_lines(path, pictures)
        for cell in cells:
            try:
                found = rows.named(cell, path) if isinstance(cell, str) else None
            except UserError:
                continue
            if found is not None:
                yield found


def _cells_of_lines(path: Path, pictures: Sequence[str]) -> Iterator[Any]:
    for _, row in rows.json_lines(path):
        for name in pictures:
            cell = row.get(name)
            yield cell.get("path") if isinstance(cell, dict) else cell


def _cells_of_parquet(path: Path, pictures: Sequence[str]) -> Iterator[Any]:
    """The paths alone: the pictures in the file are large. None without the library that reads it."""
    try:
        import pyarrow.parquet
    except ImportError:
        return
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for name in pictures:
                kind = file.schema_arrow.field(name).type if name in file.schema_arrow.names else None
                if kind is None or pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind):
                    continue
                column = f"{name}.path" if pyarrow.types.is_struct(kind) else name
                for batch in file.iter_batches(columns=[column]):
                    for cell in batch.column(0).to_pylist():
                        yield cell.get("path") if isinstance(cell, dict) else cell
    except (OSError, pyarrow.ArrowException):
        return


def expected_documents(task: Task, local: Local | None, limit: int | None) -> int | None:
    """About how many documents a task has up to a limit, of its own files or of the hub; None if that is not known."""
    documents = task.data.documents if local is None else local.documents
    return documents if documents is None or limit is None else min(documents, limit)


def parse(values: Iterable[str]) -> Mapping[str, Local]:
    """Task -> its own documents, of values TASK=FILE; a benchmark's name stands for its tasks. UserError for what is neither,
    and for files that are not there."""
    found: dict[str, Local] = {}
    for value in values:
        name, equals, path = value.partition("=")
        if not (equals and name and path):
            raise UserError(f"--data {value}: expected TASK=FILE, with a task of `mmrlhf eval benchmarks --list`")
        with of_option("--data"):
            tasks, local = catalogue.find(name), Local(os.path.expanduser(path))
        with of_option(f"--data {name}:"):
            if local.documents == 0:
                raise UserError(f"{path}: has no documents")
        for task in tasks:
            if found.setdefault(task.name, local) != local:
                raise UserError(f"--data: {task.name} has two files, {found[task.name].path} and {path}")
    return found
