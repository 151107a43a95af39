"""Images inside a parquet file, as Hugging Face stores them: `{"bytes": ..., "path": ...}` cells.

A row names such an image by a path below its file (`rows.parquet/17/images/0`); the bytes are read when they are asked for,
a row group at a time, so that a data set of any size can be listed without them.
"""

from __future__ import annotations

import dataclasses
import errno
import functools
from typing import Any

from etils import epath

from mmrlhf_jax.errors import UserError


def name_embedded(value: Any, name: str) -> Any:
    """A cell with every embedded image replaced by its name; everything else as it is."""
    if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):
        return name
    if isinstance(value, list):
        return [name_embedded(item, f"{name}/{i}") for i, item in enumerate(value)]
    return value


@dataclasses.dataclass(frozen=True)
class EmbeddedFile:
    """One image of a parquet file, with as much of a path's interface as readers of media need."""

    parquet: epath.Path
    row: int
    column: str
    item: int | None  # in a column of lists

    @property
    def name(self) -> str:
        return f"{self.row}/{self.column}" + ("" if self.item is None else f"/{self.item}")

    def read_bytes(self) -> bytes:
        try:
            start, cells = _row_group(self.parquet, *_place(self.parquet, self.row), self.column)
            cell = cells[self.row - start]
            return (cell if self.item is None else cell[self.item])["bytes"]
        except (LookupError, TypeError):  # a path of the user's own, not a name that was given to an image here
            raise FileNotFoundError(errno.ENOENT, "the file holds no such image", str(self)) from None

    def stat(self) -> epath.stat_utils.StatResult:
        """The whole file's: an estimate of the image's size is its share of the rows."""
        whole = self.parquet.stat()
        return dataclasses.replace(whole, length=whole.length // _row_starts(self.parquet)[-1])

    def is_dir(self) -> bool:
        return False

    def __fspath__(self) -> str:
        return f"{self.parquet}/{self.name}"

    __str__ = __fspath__


def find_embedded(parquet: epath.Path, relative: str, where: str) -> EmbeddedFile | None:
    """The embedded image that `relative` names, or None where it names none of this file's."""
    if not parquet.name.lower().endswith(".parquet") or not relative.startswith(f"{parquet.name}/"):
        return None
    parts = relative.split("/")[1:]
    if len(parts) not in (2, 3) or not all(part.isdecimal() for part in (parts[0], *parts[2:])):
        raise UserError(f"{where}: {relative!r} names no image of {parquet}")
    return EmbeddedFile(parquet, int(parts[0]), parts[1], int(parts[2]) if len(parts) == 3 else None)


@functools.lru_cache(maxsize=64)
def _row_starts(parquet: epath.Path) -> tuple[int, ...]:
    """First row of every row group, then the number of rows."""
    import pyarrow.parquet as pq

    with parquet.open("rb") as file:
        metadata = pq.ParquetFile(file).metadata
        starts = [0]
        for group in range(metadata.num_row_groups):
            starts.append(starts[-1] + metadata.row_group(group).num_rows)
        return tuple(starts)


def _place(parquet: epath.Path, row: int) -> tuple[int, int]:
    """(row group, its first row)."""
    starts = _row_starts(parquet)
    if row >= starts[-1]:
        raise IndexError(row)
    group = next(group for group, start in enumerate(starts[1:]) if row < start)
    return group, starts[group]


@functools.lru_cache(maxsize=2)
def _row_group(parquet: epath.Path, group: int, start: int, column: str) -> tuple[int, list[Any]]:
    import pyarrow.parquet as pq

    with parquet.open("rb") as file:
        return start, pq.ParquetFile(file).read_row_group(group, columns=[column]).column(0).to_pylist()
