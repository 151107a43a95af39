"""A user's own files of a task's documents, as the parquet files that the harness reads.

A parquet file of the hub, with the hub's description of its columns and its pictures in it, is used as it is. All else is
converted: columns that hold pictures get the type of pictures. Where there is no such picture, the document is there without
it, and the reason is noted in BROKEN. Every record is checked.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet
from PIL import Image, UnidentifiedImageError

from mmrlhf_jax import strict_json
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.suite import rows
from mmrlhf_jax.suite.reasons import NO_PICTURE

BATCH = 256  # documents that are read together
BROKEN = "broken.json"  # number of a document -> why it cannot be used


def as_parquet(path: Path, columns: Mapping[str, str], folder: Path) -> list[Path]:
    """The parquet files with the documents of a file, or of the files of a folder. `columns` -> what each must hold.

    UserError, with file, line and column, for files that cannot be read, lack a column, or hold something else in one.
    """
    found, broken, before = [], {}, 0
    for number, each in enumerate(rows.files_of(path)):
        file, reasons = _converted(each, columns, folder / f"data-{number:05d}.parquet")
        broken |= {str(before + place): reason for place, reason in reasons.items()}
        before += pyarrow.parquet.read_metadata(file).num_rows
        found.append(file)
    if not before:
        raise UserError(f"{path}: has no documents")
    (folder / BROKEN).write_text(strict_json.dumps(broken))
    return found


def _converted(path: Path, columns: Mapping[str, str], out: Path) -> tuple[Path, dict[int, str]]:
    """(the file itself or one with the same documents and the hub's description of their columns, place of a document -> why it
    cannot be used)."""
    pictures = [name for name, holds in columns.items() if holds in rows.PICTURES]
    if path.suffix == ".parquet":
        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                rows.check_names(path, file.schema_arrow.names, columns)
                described = rows.DESCRIBED in (file.schema_arrow.metadata or {})
                if not pictures or (described and not _has_paths(file, columns)):
                    _check(file, path, rows.checked(columns, described=described))
                    return path, {}
                records = list(_records(file, path, None))
        except (pyarrow.ArrowException, OSError) as error:
            text = " ".join(str(error).split())
            raise UserError(f"{path}: is not a parquet file that can be read ({text})") from None
    else:
        records = [(f"{path}: line {number}", row) for number, row in rows.json_lines(path)]
        rows.check_names(path, list(dict.fromkeys(name for _, row in records for name in row)), columns)
    broken = {}
    for place, (where, row) in enumerate(records):
        rows.check(row, columns, where)
        for name in pictures:
            if row.get(name) is None and columns[name].endswith("or null"):
                continue
            row[name], reason = _picture(row.get(name), path, f"{where}: {name!r}")
            if reason is not None:
                broken[place] = f"{name}: {reason}"
    _write([row for _, row in records], pictures, path, out)
    return out, broken


def _check(file: pyarrow.parquet.ParquetFile, path: Path, columns: Mapping[str, str]) -> None:
    """`rows.check` of the documents of a file that is used as it is, in parts, since it may be large."""
    there = [name for name, holds in columns.items() if name in file.schema_arrow.names and holds not in rows.PICTURES]
    for where, row in _records(file, path, there):
        rows.check(row, {name: columns[name] for name in there}, where)


def _has_paths(file: pyarrow.parquet.ParquetFile, columns: Mapping[str, str]) -> bool:
    """Whether a picture may be a path in the place of bytes, or not there although it must be."""
    for name, holds in columns.items():
        if holds in rows.PICTURES:
            without_bytes, without_path = (_nulls(file, f"{name}.{part}") for part in ("bytes", "path"))
            if without_bytes > (without_path if holds.endswith("or null") else 0):
                return True
    return False


def _nulls(file: pyarrow.parquet.ParquetFile, column: str) -> int:
    """How many documents have nothing in a column; all of them if that is not stated."""
    found = 0
    for group in map(file.metadata.row_group, range(file.metadata.num_row_groups)):
        for chunk in map(group.column, range(group.num_columns)):
            if chunk.path_in_schema == column:
                stated = chunk.statistics is not None and chunk.statistics.has_null_count
                found += chunk.statistics.null_count if stated else group.num_rows
    return found


def _records(
    file: pyarrow.parquet.ParquetFile, path: Path, columns: Sequence[str] | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (file and number, columns) of the documents of a parquet file; of these columns, or of all."""
    number = 0
    for batch in file.iter_batches(BATCH, columns=columns) if columns is None or columns else ():
        for row in batch.to_pylist():
            yield f"{path}: document {number}", row
            number += 1


def _picture(cell: Any, path: Path, where: str) -> tuple[dict[str, Any] | None, str | None]:
    """(a picture as the harness has it, None), or (None, why there is none)."""
    content, reason = rows.picture(cell, path, where)
    name = cell if isinstance(cell, str) else cell.get("path") if isinstance(cell, dict) else None
    if content is None:
        return None, f"there is no file {rows.named(name, path)}" if name and reason == NO_PICTURE else reason
    try:
        with Image.open(io.BytesIO(content)):
            return {"bytes": content, "path": name}, None
    except (UnidentifiedImageError, OSError):
        return None, f"{'the file ' + name if name else 'what is there'} is no picture that can be read"


def _write(records: list[dict[str, Any]], pictures: list[str], path: Path, out: Path) -> None:
    """Write documents with the hub's description of their columns."""
    for name in dict.fromkeys(name for row in records for name in row):
        for row in records:
            row.setdefault(name, None)
    try:
        found = datasets.Dataset.from_list(records)
        for name in pictures:
            if name in found.column_names:
                found = found.cast_column(name, datasets.Image())
        found.to_parquet(out)
    except (pyarrow.ArrowException, TypeError, ValueError) as error:  # columns that the harness does not need are not checked
        text = " ".join(str(error).split())
        raise UserError(f"{path}: a column has values of different types in different documents ({text})") from None
