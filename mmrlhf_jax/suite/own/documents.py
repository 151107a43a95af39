"""The documents of a task that is asked and graded here: a user's own files, or those of the hub."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etils import epath

from mmrlhf_jax import strict_json
from mmrlhf_jax.data.hub import PREFIX, hub_errors
from mmrlhf_jax.errors import UserError, shown
from mmrlhf_jax.faults import first_line
from mmrlhf_jax.suite.local import Local
from mmrlhf_jax.suite.own.grader import Columns, Grader
from mmrlhf_jax.suite.task import Data, Task

PICTURE = "image"  # the column
NO_PICTURE = "its picture is missing"
_ROWS = 16  # of a parquet file at a time: they hold pictures
# The hub makes parquet files of every public data set, whatever its own files are.
CONVERTED = "refs/convert/parquet"


@dataclasses.dataclass(frozen=True)
class Entry:
    """A document: its columns, with the picture as bytes, or why it cannot be used."""

    columns: Columns
    missing: str | None = None


def read(task: Task, local: Local | None, grader: Grader) -> list[Entry]:
    """The documents of a task, in order. UserError, with file, document and column, for what cannot be read or used."""
    files = hub_files(task.data) if local is None else local.files
    found = []
    for path in files:
        for number, row in enumerate(_rows(path)):
            where = f"{path}, document {number}"
            grader.check(row, where)
            if PICTURE not in row:
                raise UserError(f"{where}: has no column {PICTURE!r}; it has {', '.join(row)}")
            picture = _picture(row[PICTURE], path, where)
            found.append(Entry(row | {PICTURE: picture}, NO_PICTURE if picture is None else None))
    if not found:
        raise UserError(f"{', '.join(map(str, files))}: no documents")
    return found


def hub_files(data: Data) -> list[Path]:
    """The parquet files of a data set of the hub, downloaded into the Hugging Face cache if they are not there. UserError if
    they cannot be had."""
    import huggingface_hub

    pattern = pattern_of(data)
    with hub_errors(f"{PREFIX}datasets/{data.hub}"):
        folder = huggingface_hub.snapshot_download(data.hub, repo_type="dataset", revision=CONVERTED, allow_patterns=[pattern])
    found = sorted(Path(folder).glob(pattern))
    if not found:
        raise UserError(f"{data.hub}: the hub has no {pattern} at {CONVERTED}; give the documents by --data")
    return found


def pattern_of(data: Data) -> str:
    """The names of a data set's files at CONVERTED."""
    return f"{data.config or 'default'}/{data.split}/*.parquet"


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    yield from _of_parquet(path) if path.suffix == ".parquet" else _of_json_lines(path)


def _of_parquet(path: Path) -> Iterator[dict[str, Any]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"{path}: parquet needs pyarrow; `pip install pyarrow`, or convert the file to .jsonl") from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(_ROWS):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable parquet file ({first_line(error)})") from None


def _of_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    with epath.Path(path).open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = strict_json.loads(line)
            except ValueError as error:
                raise UserError(f"{path}: line {number} is not JSON ({error})") from None
            if not isinstance(row, dict):
                raise UserError(f"{path}: line {number} must be an object, found {shown(row)}")
            yield row


def _picture(cell: Any, path: Path, where: str) -> bytes | None:
    """The picture's file of a cell: bytes, as the hub stores them, or a path relative to the data's file; None if there is no
    such file. UserError for anything else."""
    if isinstance(cell, dict) and cell.keys() <= {"bytes", "path"}:
        cell = cell.get("bytes") or cell.get("path")
    if cell is None or isinstance(cell, bytes):
        return cell
    if not isinstance(cell, str):
        raise UserError(f"{where}: column {PICTURE!r} must hold a picture or a path, found {shown(cell)}")
    file = (path.parent / cell).resolve()
    if not file.is_relative_to(path.parent.resolve()):
        raise UserError(f"{where}: the picture {shown(cell)} is outside of the folder of the file")
    return file.read_bytes() if file.is_file() else None
