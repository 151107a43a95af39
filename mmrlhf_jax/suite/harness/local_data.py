"""A user's own files of a task's documents, as the parquet files that the harness reads.

A parquet file of the hub is used as it is. Files without the hub's description of their columns, and JSON lines, are converted:
columns that hold pictures get the type of pictures. In JSON lines a picture is a path relative to the file; where there is no
such file, the document is there without its picture, and the reason is noted in BROKEN.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet

from mmrlhf_jax import strict_json
from mmrlhf_jax.errors import UserError

PICTURES = ("image", "image, or null")  # what is said of a column that holds a picture
DESCRIBED = b"huggingface"  # the key of the hub's description in a parquet file's metadata
BROKEN = "broken.json"  # number of a document -> why it cannot be used


def as_parquet(path: Path, columns: Mapping[str, str], folder: Path) -> list[Path]:
    """The parquet files with the documents of a file, or of the files of a folder. `columns` -> what each must hold.

    UserError, with file, line and column, for files that cannot be read or lack a column.
    """
    found, broken, before = [], {}, 0
    for number, each in enumerate(files_of(path)):
        file, reasons = _converted(each, columns, folder / f"data-{number:05d}.parquet")
        names = pyarrow.parquet.read_schema(file).names
        if missing := [name for name, holds in columns.items() if name not in names and "null" not in holds]:
            raise UserError(f"{each}: has no column {missing[0]!r} ({columns[missing[0]]}); it has {', '.join(names)}")
        broken |= {str(before + place): reason for place, reason in reasons.items()}
        before += pyarrow.parquet.read_metadata(file).num_rows
        found.append(file)
    (folder / BROKEN).write_text(strict_json.dumps(broken))
    return found


def files_of(path: Path) -> list[Path]:
    """The files of a path. UserError if there is none."""
    if path.is_dir():
        found = sorted(each for each in path.iterdir() if each.suffix in (".parquet", ".jsonl"))
        if not found:
            raise UserError(f"{path}: the folder has no .parquet or .jsonl files")
        return found
    if not path.exists():
        raise UserError(f"{path}: there is no such file")
    if path.suffix not in (".parquet", ".jsonl"):
        raise UserError(f"{path}: is neither .parquet nor .jsonl")
    return [path]


def _converted(path: Path, columns: Mapping[str, str], out: Path) -> tuple[Path, dict[int, str]]:
    """(the file itself or one with the same documents and the hub's description of their columns, place of a document -> why it
    cannot be used)."""
    pictures, broken = [name for name, holds in columns.items() if holds in PICTURES], {}
    if path.suffix == ".parquet":
        if not pictures or DESCRIBED in (pyarrow.parquet.read_schema(path).metadata or {}):
            return path, broken
        found = datasets.Dataset(pyarrow.parquet.read_table(path))
    else:
        rows, broken = _rows(path, pictures)
        found = datasets.Dataset.from_list(rows)
    for name in pictures:
        if name in found.column_names:
            found = found.cast_column(name, datasets.Image())
    found.to_parquet(out)
    return out, broken


def _rows(path: Path, pictures: list[str]) -> tuple[list[dict[str, Any]], dict[int, str]]:
    """(the objects of JSON lines with their pictures, place of an object -> why it cannot be used)."""
    rows, broken = [], {}
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = strict_json.loads(line)
        except strict_json.JSONDecodeError as error:
            raise UserError(f"{path}: line {number} is not JSON ({error.msg})") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}: line {number} is not an object")
        for name in pictures:
            if isinstance(row.get(name), str):
                picture = path.parent / row[name]
                if picture.is_file():
                    row[name] = {"bytes": picture.read_bytes(), "path": row[name]}
                else:
                    broken[len(rows)], row[name] = f"{name}: there is no file {picture}", None
        rows.append(row)
    if not rows:
        raise UserError(f"{path}: has no documents")
    return rows, broken
