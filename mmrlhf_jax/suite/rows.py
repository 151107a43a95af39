"""The documents in a user's own files: JSON lines, or parquet files whose pictures are files beside them.

The harness's processes import this file, too (`harness/local_data.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmrlhf_jax import strict_json
from mmrlhf_jax.errors import UserError, shown
from mmrlhf_jax.suite.reasons import NO_PICTURE

SUFFIXES = (".parquet", ".jsonl")
DESCRIBED = b"huggingface"  # the key of the hub's description in a parquet file's metadata
PICTURES = ("image", "image, or null")  # what the catalogue says of a column that holds a picture
# Columns by which documents are only told apart: a number does as well as a text.
_IDENTIFIER = re.compile(r"(?:.*_)?(?:id|index)", re.IGNORECASE)

# The columns of which questions are made, and right answers.
_ASKED = re.compile(r"question|query|instruction|answer|option", re.IGNORECASE)


def files_of(path: Path) -> list[Path]:
    """The file of a path, or the files of a folder, sorted. UserError if there are none."""
    if path.is_dir():
        found = sorted(each for each in path.iterdir() if each.suffix in SUFFIXES)
        if not found:
            raise UserError(f"{path}: the folder has no files {' or '.join(SUFFIXES)}")
        return found
    if not path.exists():
        raise UserError(f"{path}: there is no such file")
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: is neither {' nor '.join(SUFFIXES)}")
    return [path]


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (number of a line, its object). UserError, with file and line, for what is no JSON object in UTF-8."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    with file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = strict_json.loads(line.decode())
            except UnicodeDecodeError as error:
                byte = line[error.start]
                raise UserError(f"{path}: line {number} is not UTF-8 (byte 0x{byte:02x}); convert the file to UTF-8") from None
            except strict_json.NotStrict as error:
                raise UserError(f"{path}: line {number}: {error.msg}") from None
            except strict_json.JSONDecodeError as error:
                raise UserError(f"{path}: line {number} is not JSON ({error.msg})") from None
            if not isinstance(row, dict):
                raise UserError(f"{path}: line {number} must be an object, found {shown(row)}")
            yield number, row


def check_names(path: Path, names: Sequence[str], columns: Mapping[str, str]) -> None:
    """UserError for a column that no document of a file has; `names` are those that there are."""
    if names and (missing := [name for name, holds in columns.items() if name not in names and "null" not in holds]):
        raise UserError(f"{path}: has no column {missing[0]!r} ({columns[missing[0]]}); it has {', '.join(names)}")


def checked(columns: Mapping[str, str], *, described: bool) -> dict[str, str]:
    """Those of the columns whose values are checked. Of a file that the hub's library wrote (`described`) they are few: the
    others hold what the harness was written for."""
    return {name: holds for name, holds in columns.items() if not described or _ASKED.search(name)}


def check(row: Mapping[str, Any], columns: Mapping[str, str], where: str) -> None:
    """UserError, with `where` (file and line), for a value that is missing or of another type. `columns` -> what the catalogue
    says that they hold. Pictures are looked at by `picture`."""
    for name, holds in columns.items():
        value = row.get(name)
        if holds in PICTURES or (value is None and holds.endswith("or null")):
            continue
        if value is None:
            raise UserError(f"{where}: {name!r} is {'null' if name in row else 'missing'}; it must hold: {holds}")
        expected, right = _type_of(name, holds)
        if not isinstance(value, right) or isinstance(value, bool):
            raise UserError(f"{where}: {name!r} must hold {expected} ({holds}), found {shown(value)}")


def _type_of(name: str, holds: str) -> tuple[str, type | tuple[type, ...]]:
    """(the type of a column's values in words, the type)."""
    kind = re.split(r"\W", holds)[0]
    if kind in ("integer", "text") and _IDENTIFIER.fullmatch(name):
        return "a text or an integer", (str, int)
    if kind == "integer":
        return "an integer", int
    if kind == "number":
        return "a number", (int, float)
    if kind == "list":
        return "a list", list
    if kind == "object":
        return "an object", dict
    return "a text", str


def picture(cell: Any, path: Path, where: str) -> tuple[bytes | None, str | None]:
    """(a picture's file, None), or (None, why there is none), of a cell: bytes, or a path relative to the file of documents, or
    an object of both as the hub stores them. UserError for anything else, and for a path that leaves the file's folder."""
    if isinstance(cell, dict) and cell.keys() <= {"bytes", "path"}:
        cell = cell.get("path") if cell.get("bytes") is None else cell["bytes"]
    if cell is None:
        return None, NO_PICTURE
    if isinstance(cell, bytes):
        return cell, None
    if not isinstance(cell, str):
        raise UserError(f"{where}: must hold a picture or a path, found {shown(cell)}")
    try:
        return named(cell, path).read_bytes(), None
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except FileNotFoundError:
        return None, NO_PICTURE
    except OSError as error:
        return None, f"its picture cannot be read ({error.strerror})"


def named(cell: str, path: Path) -> Path:
    """The picture that a cell of a file of documents names. UserError if that is no path, or outside of that file's folder."""
    folder = path.parent.resolve()
    try:
        found = (folder / cell).resolve()
    except ValueError:  # it holds a NUL
        raise UserError(f"{shown(cell)} is no path, since it holds a character that no path has") from None
    except (OSError, RuntimeError):
        raise UserError(f"the picture {shown(cell)} is a link that leads to itself") from None
    if not found.is_relative_to(folder):
        raise UserError(f"the picture {shown(cell)} is outside of the folder of the file")
    return found
