"""Reads the rows of a parquet file as JSON values: texts, numbers, lists and objects, for any column types.

- A null is an absent field, in rows and in nested objects; in a list it stays null, because positions matter there.
- An image, as Hugging Face stores it (`{"bytes": ..., "path": ...}`) or as plain bytes, becomes a name (`embedded.py`) by which
  its bytes are read on access. If its bytes are null or empty, it becomes its path. Bytes in any other field become `{"bytes":
  name}`, so that they are not mistaken for text, with `"kind": "image"` (or video, audio) if they have such a signature.
- Dates, times, decimals, numbers that are not finite and other values that JSON lacks become text.

Rows are read a few megabytes at a time, even if a row group is larger.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from typing import Any

from etils import epath

from mmrlhf_jax.data.sources.embedded import media_kind, media_name
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.faults import first_line

BATCH_BYTES = 32 << 20
SMALLEST_IMAGE = 32  # bytes; every image file is larger
_MOST_ROWS = 1024  # rows per batch
_PAGE_HEADER = 1024  # bytes; the headers of a column chunk are smaller
# Names of media fields; plain bytes in them are an image or a video.
MEDIA_FIELDS = frozenset({"image", "images", "video", "videos"})


def parquet_rows(path: epath.Path, base: str) -> Iterator[dict[str, Any]]:
    """Yield all rows in order. Names of embedded images begin with `base`, the file's name.

    Raises UserError for a file that is damaged or no parquet file, and if pyarrow is not installed.
    """
    if importlib.util.find_spec("pyarrow") is None:
        raise UserError(f"{path}: reading parquet needs pyarrow; `pip install pyarrow`, or convert the file to .jsonl")
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with path.open("rb") as opened:
            yield from _rows(pq.ParquetFile(opened, buffer_size=1 << 20, pre_buffer=False), path, base)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: a column of text is not valid UTF-8 ({error.reason}); write it again") from error
    except pa.ArrowException as error:
        raise UserError(f"{path}: not a readable parquet file ({first_line(error)})") from error
    except OSError as error:
        if error.errno is not None:  # an error of the file system; without errno it is pyarrow's
            raise
        raise UserError(f"{path}: not a readable parquet file ({first_line(error)})") from error


def _rows(file: Any, path: epath.Path, base: str) -> Iterator[dict[str, Any]]:
    names = file.schema_arrow.names
    if (twice := _doubled(names)) is not None:
        raise UserError(f"{path}: two columns are named {twice!r}; rename one of them")
    for field in file.schema_arrow:
        _check_names(field.type, f"{path}: column {field.name!r}")
    leaves = [file.schema.column(number).path for number in range(len(file.schema))]
    left_out = _media_of_every_row(file, leaves)
    leaves = [leaf for leaf in leaves if leaf not in left_out.values()]
    index = 0
    for group in range(file.num_row_groups):
        size = _MOST_ROWS if left_out else _batch_rows(file.metadata.row_group(group))
        for batch in file.iter_batches(size, row_groups=[group], columns=leaves):
            columns = [_values(column) for column in batch.columns]
            for cells in zip(*columns, strict=True):
                row = {name: cell for name, cell in zip(batch.schema.names, cells, strict=True) if cell is not None}
                row |= {name: _with_bytes(row[name]) for name in left_out.keys() & row.keys()}
                yield {name: _plain(cell, media_name(base, index, name), name) for name, cell in row.items()}
                index += 1


def _check_names(kind: Any, where: str) -> None:
    """UserError if an object type in a column, at any depth, has two fields of the same name, which a dict cannot hold."""
    fields = [kind.field(number) for number in range(kind.num_fields)]
    if (twice := _doubled([field.name for field in fields])) is not None:
        raise UserError(f"{where} has two fields named {twice!r}; rename or remove one of them")
    for field in fields:
        _check_names(field.type, where)


def _doubled(names: list[str]) -> str | None:
    """The alphabetically first name that occurs more than once; None if there is none."""
    return min((name for name in set(names) if names.count(name) > 1), default=None)


def _media_of_every_row(file: Any, leaves: list[str]) -> dict[str, str]:
    """Columns in which every row has an image -> the leaf column with their bytes, which need not be read to list rows."""
    found = {}
    for name in file.schema_arrow.names:
        for way in (name, f"{name}.list.element", f"{name}.list.item"):
            if {leaf for leaf in leaves if leaf.startswith(f"{name}.")} != {f"{way}.bytes", f"{way}.path"}:
                continue
            number = leaves.index(f"{way}.bytes")
            if all(_has_no_null(file.metadata.row_group(group).column(number)) for group in range(file.num_row_groups)):
                found[name] = f"{way}.bytes"
    return found


def _has_no_null(chunk: Any) -> bool:
    """Whether a column chunk's statistics exclude nulls, and its size excludes that all values are empty (then paths are
    read)."""
    statistics = chunk.statistics
    enough = chunk.total_uncompressed_size > _PAGE_HEADER + SMALLEST_IMAGE * chunk.num_values
    return statistics is not None and statistics.has_null_count and not statistics.null_count and enough


def _with_bytes(cell: Any) -> Any:
    """A cell whose bytes were not read, with a placeholder for them."""
    return [{"bytes": b"."} for _ in cell] if isinstance(cell, list) else {"bytes": b"."}


def _batch_rows(group: Any) -> int:
    each = group.total_byte_size // max(1, group.num_rows)
    return max(1, min(_MOST_ROWS, BATCH_BYTES // max(1, each)))


def _is_plain(kind: Any) -> bool:
    """Whether `to_pylist` converts all values of an Arrow type without loss."""
    import pyarrow as pa

    if any(not _is_plain(kind.field(i).type) for i in range(kind.num_fields)):
        return False
    types = pa.types
    own = (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary, types.is_fixed_size_binary)
    own += (types.is_integer, types.is_boolean, types.is_null, types.is_float32, types.is_float64, types.is_nested)
    return any(is_kind(kind) for is_kind in own)


def _values(array: Any) -> list[Any]:
    """An Arrow array as Python values. Times and decimals, whose precision may exceed Python's, become text."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if isinstance(array.type, pa.BaseExtensionType):
        return _values(array.storage)
    kind = array.type
    if _is_plain(kind):
        return array.to_pylist()
    if pa.types.is_dictionary(kind):
        return _values(array.dictionary_decode())
    if pa.types.is_duration(kind) or pa.types.is_float16(kind):
        return array.cast(pa.int64() if pa.types.is_duration(kind) else pa.float32()).to_pylist()
    if pa.types.is_temporal(kind) or pa.types.is_decimal(kind):
        return array.cast(pa.string()).to_pylist()
    if pa.types.is_struct(kind):
        fields = [_values(field) for field in array.flatten()]
        names = [kind.field(i).name for i in range(kind.num_fields)]
        there = enumerate(array.is_valid().to_pylist())
        return [{name: field[i] for name, field in zip(names, fields, strict=True)} if valid else None for i, valid in there]
    if pa.types.is_map(kind):
        entries = _values(array.cast(pa.list_(pa.struct([("key", kind.key_type), ("value", kind.item_type)]))))
        return [None if of_one is None else [(entry["key"], entry["value"]) for entry in of_one] for of_one in entries]
    if hasattr(array, "flatten"):  # lists of every kind
        inner = iter(_values(array.flatten()))
        lengths = pc.list_value_length(array).to_pylist()
        there = array.is_valid().to_pylist()
        return [[next(inner) for _ in range(length)] if valid else None for length, valid in zip(lengths, there, strict=True)]
    return array.to_pylist()


def _is_media(value: dict[str, Any], field: str) -> bool:
    """Whether an object is a Hugging Face cell of an image or video, possibly with further keys if the field is a media
    field."""
    is_named_so = value.keys() <= {"bytes", "path"} or field.lower() in MEDIA_FIELDS
    return "bytes" in value and is_named_so and isinstance(value["bytes"], bytes | None)


def _plain(value: Any, name: str, field: str) -> Any:
    """A value as a JSON value. Bytes become `name`; `field` is the name of the innermost field that contains the value."""
    if isinstance(value, bytes):
        if field.lower() in MEDIA_FIELDS:
            return name
        kind = media_kind(value)
        return {"bytes": name} | ({"kind": kind} if kind else {})
    if isinstance(value, dict):
        if _is_media(value, field):
            return name if value["bytes"] else value.get("path") or None
        present = {key: inner for key, inner in value.items() if inner is not None}
        return {key: _plain(inner, media_name(name, key), key) for key, inner in present.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, media_name(name, i), field) for i, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, (str, int, float, bool)) else str(value)
