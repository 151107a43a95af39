"""The documents of a task that is asked and graded here: a user's own files, or those of the hub."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmrlhf_jax.data.hub import PREFIX, hub_errors
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.faults import first_line
from mmrlhf_jax.suite import rows
from mmrlhf_jax.suite.local import Local
from mmrlhf_jax.suite.own.grader import Columns, Grader
from mmrlhf_jax.suite.task import Data, Task

PICTURE = "image"  # the column
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
    try:
        return _read(hub_files(task) if local is None else local.files, grader)
    except UserError as error:
        raise UserError(str(error) if local is None else f"--data {task.name}: {error}") from None


def _read(files: Sequence[Path], grader: Grader) -> list[Entry]:
    found = []
    for path in files:
        for where, row in _of_parquet(path) if path.suffix == ".parquet" else _of_json_lines(path):
            grader.check(row, where)
            if PICTURE not in row:
                raise UserError(f"{where}: has no column {PICTURE!r}; it has {', '.join(row)}")
            picture, reason = rows.picture(row[PICTURE], path, f"{where}: column {PICTURE!r}")
            found.append(Entry(row | {PICTURE: picture}, reason))
    if not found:
        raise UserError(f"{', '.join(map(str, files))}: no documents")
    return found


def hub_files(task: Task) -> list[Path]:
    """The parquet files of a task's data set on the hub, downloaded into the Hugging Face cache if they are not there.
    UserError if they cannot be had."""
    import huggingface_hub

    data, pattern = task.data, pattern_of(task.data)
    with hub_errors(f"{PREFIX}datasets/{data.hub}", f"give --data {task.name}=FILE"):
        folder = huggingface_hub.snapshot_download(data.hub, repo_type="dataset", revision=CONVERTED, allow_patterns=[pattern])
    found = sorted(Path(folder).glob(pattern))
    if not found:
        raise UserError(f"{data.hub}: the hub has no {pattern} at {CONVERTED}; give --data {task.name}=FILE")
    return found


def pattern_of(data: Data) -> str:
    """The names of a data set's files at CONVERTED."""
    return f"{data.config or 'default'}/{data.split}/*.parquet"


def _of_parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (file and number of a document, its columns)."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"{path}: parquet needs pyarrow; `pip install pyarrow`, or convert the file to .jsonl") from None
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(_ROWS):
                for row in batch.to_pylist():
                    yield f"{path}, document {number}", row
                    number += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable parquet file ({first_line(error)})") from None


def _of_json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (file and line of a document, its columns)."""
    for number, row in rows.json_lines(path):
        yield f"{path}, line {number}", row
