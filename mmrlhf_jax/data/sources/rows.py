"""Reads files into rows: JSON lines, JSON arrays (both also gzipped) and parquet, each row with its location.

Rows are the input of the formats in this package; `where` (file and line, or file and index) is the beginning of every error
message. Images embedded in a parquet file are given names (`parquet.py`) and read later (`embedded.py`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, BinaryIO, Literal

from etils import epath

from mmrlhf_jax import strict_json
from mmrlhf_jax.data.hub import hub_errors
from mmrlhf_jax.data.sources.parquet import parquet_rows
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.faults import retried
from mmrlhf_jax.records import RankedRecord

_LISTS_OF_OBJECTS = frozenset(
    {"prompt", "chosen", "rejected", "messages", "conversations", "rejected_messages", "responses", "completions", "content"}
)

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")


@dataclasses.dataclass(frozen=True)
class Row:
    """One JSON object of a source file, and its location."""

    where: str
    data: dict[str, Any]


# A function that is called with an error instead of raising it; the row or group with the error is then left out.
OnError = Callable[[UserError], None]


@dataclasses.dataclass(frozen=True)
class Format:
    """An input format: how to recognise it from a file's first row, and how to turn its rows into records.

    `parse` reads one row and raises UserError if it is invalid; `join` makes records of all parsed rows, because in some
    formats a record consists of several rows. `row` says what a row is. With `repeats_ids` the published data has repeated ids,
    and later records get new ones instead of an error. `remark` gives a line on records that are not read whole, or None.
    """

    name: str
    fields: str
    matches: Callable[[dict[str, Any]], bool]
    parse: Callable[[Row], Any]
    join: Callable[[list[Any]], list[RankedRecord]] = list
    row: Literal["group", "pair"] = "group"
    repeats_ids: bool = False
    remark: Callable[[list[RankedRecord]], str | None] | None = None

    def read(self, rows: list[Row]) -> list[RankedRecord]:
        return self.join([self.parse(row) for row in rows])


def row_suffix(path: epath.Path) -> str | None:
    """The longest of SUFFIXES that a file's name ends with; None if there is none."""
    fitting = [suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)]
    return max(fitting, key=len, default=None)


def read_rows(path: epath.Path, on_error: OnError | None = None, name: str | None = None) -> list[Row]:
    """All rows of the file, in order. Raises UserError for a missing, unreadable, truncated or empty file.

    Transient storage errors are retried; Unavailable is raised if the storage does not answer.

    With `on_error`, errors of single lines of a JSON lines file are passed to it, and the other lines are read. Names of
    embedded images begin with `name` (default: the file's name).
    """
    with hub_errors(path):
        return _read(path, on_error, path.name if name is None else name)


def _read(path: epath.Path, on_error: OnError | None, name: str) -> list[Row]:
    if path.is_dir():
        raise UserError(f"{path}: is a directory; name a file ({', '.join(SUFFIXES)})")
    if not path.exists():
        raise UserError(f"{path}: no such file")
    suffix = row_suffix(path)
    if suffix is None:
        raise UserError(f"{path}: unknown kind of file; expected one of {', '.join(SUFFIXES)}")
    read = partial(_read_parquet, path, name) if suffix == ".parquet" else partial(_READERS[suffix], path)
    try:
        found = retried(lambda: list(read()), f"{path}")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: not a complete gzip file ({error}); fetch or write it again") from error
    rows: list[Row] = []
    for row in found:
        if isinstance(row, Row):
            rows.append(Row(row.where, with_lists_of_objects(row.data)))
        elif on_error is None:
            raise row
        else:
            on_error(row)
    if not rows:
        raise UserError(f"{path}: holds no records")
    return rows


def with_lists_of_objects(data: dict[str, Any], depth: int = 3) -> dict[str, Any]:
    """The fields of a row, with objects of lists turned into lists of objects. `datasets` stores a Sequence of objects as an
    object of lists: `{"role": ["user"], "content": ["Why?"]}` is one message.

    Only fields that hold lists of objects in some format are changed.
    """
    changed = {}
    for name in _LISTS_OF_OBJECTS & data.keys() if depth else ():
        objects = _as_objects(data[name])
        if isinstance(objects, list):
            changed[name] = [with_lists_of_objects(one, depth - 1) if isinstance(one, dict) else one for one in objects]
    return {name: changed.get(name, value) for name, value in data.items()} if changed else data


def _as_objects(value: Any) -> Any:
    if not isinstance(value, dict) or not value or not all(isinstance(items, list) for items in value.values()):
        return value
    if len({len(items) for items in value.values()}) > 1:
        return value
    cells = (dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True))
    return [{name: cell for name, cell in row.items() if cell is not None} for row in cells]


def _read_json_lines(path: epath.Path) -> Iterator[Row | UserError]:
    with _open(path) as lines:
        for number, line in enumerate(lines, start=1):  # read as bytes, so that only \n ends a line, not U+2028 in a text
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                where = f"{path}:{number}"
                try:
                    yield Row(where, _object(_parse(line, where), where))
                except UserError as error:
                    yield error


def _read_json_array(path: epath.Path) -> Iterator[Row]:
    with _open(path) as file:
        rows = _parse(file.read().removeprefix(b"\xef\xbb\xbf"), str(path))
    if isinstance(rows, dict) and rows.keys() == {"pairs"}:  # MMRB2's files
        rows = rows["pairs"]
    if not isinstance(rows, list):
        raise UserError(f"{path}: expected a JSON list of records, found {type(rows).__name__}")
    for index, row in enumerate(rows):
        yield Row(f"{path}[{index}]", _object(row, f"{path}[{index}]"))


def _read_parquet(path: epath.Path, name: str) -> Iterator[Row]:
    for index, row in enumerate(parquet_rows(path, name)):
        yield Row(f"{path}[{index}]", row)


_READERS: dict[str, Callable[[epath.Path], Iterator[Row | UserError]]] = {
    ".jsonl": _read_json_lines,
    ".jsonl.gz": _read_json_lines,
    ".json": _read_json_array,
    ".json.gz": _read_json_array,
}


@contextlib.contextmanager
def _open(path: epath.Path) -> Iterator[BinaryIO]:
    with path.open("rb") as file:
        if path.name.lower().endswith(".gz"):
            with gzip.GzipFile(fileobj=file) as unpacked:
                yield unpacked
        else:
            yield file


def _parse(text: bytes, where: str) -> Any:
    try:
        return strict_json.loads(text.decode("utf-8"))
    except strict_json.NotStrict as error:
        item, line = ("" if error.item is None else f"[{error.item}]"), ("" if error.lineno == 1 else f":{error.lineno}")
        raise UserError(f"{where}{item}{line}: {error.msg}") from error
    except strict_json.JSONDecodeError as error:
        place = where if error.lineno == 1 else f"{where}:{error.lineno}"
        advice = "if the file is JSON lines, name it .jsonl" if error.msg == "Extra data" else "it may be torn"
        raise UserError(f"{place}: not valid JSON ({error.msg} at column {error.colno}); {advice}") from error
    except UnicodeError as error:
        raise UserError(f"{where}: not valid UTF-8 text ({error.reason})") from error
    except RecursionError as error:
        raise UserError(f"{where}: JSON nested too deeply") from error


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected a JSON object, found {type(value).__name__}")
    return value
