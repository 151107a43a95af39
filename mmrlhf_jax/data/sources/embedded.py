"""Images (and videos) embedded in parquet files. Rows refer to them by names such as `rows.parquet/17/images/0`.

A name is a path below the folder of the source: file, row number, column, and then the indices and field names that lead to the
bytes, each URL-quoted. The bytes are read on access, some megabytes at a time, so that a data set of any size can be listed
without reading them.
"""

from __future__ import annotations

import base64
import collections
import dataclasses
import errno
import functools
import io
import re
import threading
from typing import Any, BinaryIO
from urllib.parse import quote, unquote

from etils import epath

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.faults import first_line

WINDOW_BYTES = 256 << 20  # bytes of a column to keep in memory


# Signatures with which image, video and audio files begin, as regular expressions.
_BEGINNINGS = {
    "image": rb"\xff\xd8\xff|\x89PNG\r\n|GIF8|II\*\0|MM\0\*|BM.{4}\0{4}|RIFF.{4}WEBP|.{4}ftyp(?:avi[fs]|hei[cfmsx]|mif1)",
    "video": rb".{4}ftyp|\x1aE\xdf\xa3|RIFF.{4}AVI |\0\0\x01[\xb3\xba]|FLV\x01",
    "audio": rb"RIFF.{4}WAVE|ID3|fLaC|OggS",
}
MEDIA_KINDS = frozenset(_BEGINNINGS)


def media_kind(content: bytes) -> str | None:
    """`image`, `video` or `audio` if the content has the signature of a common format, else None."""
    kinds = (kind for kind, beginning in _BEGINNINGS.items() if re.match(beginning, content[:32], re.DOTALL))
    return next(kinds, None)


def is_inline(path: str) -> bool:
    """Whether a text is not a path but the medium itself: a data URL, or base64 of a common format."""
    if path.startswith("data:"):
        return True
    if len(path) <= 64:
        return False
    try:
        return media_kind(base64.b64decode(path[:44], validate=True)) is not None
    except ValueError:
        return False


def media_name(base: str, *way: str | int) -> str:
    return "/".join([base, *(quote(str(step), safe=" ") for step in way)])


@dataclasses.dataclass(frozen=True)
class EmbeddedFile:
    """An image in a parquet file, with the part of a path's interface that readers of media use."""

    parquet: epath.Path
    row: int
    column: str
    way: tuple[str, ...] = ()  # indices and field names that lead from the cell to the bytes

    @property
    def name(self) -> str:
        return media_name(str(self.row), self.column, *self.way)

    def read_bytes(self) -> bytes:
        """The image's bytes. Raises FileNotFoundError if the file has no such image, and OSError if it is damaged."""
        try:
            value = _cell(self.parquet, self.row, self.column)
            for step in self.way:
                value = value[int(step) if isinstance(value, (list, tuple)) else step]
            content = value["bytes"] if isinstance(value, dict) else value
            if not isinstance(content, bytes):
                raise TypeError
        except (LookupError, TypeError, ValueError):  # a path that the user wrote, not a name from `media_name`
            raise FileNotFoundError(errno.ENOENT, "the file holds no such image", str(self)) from None
        if not content:
            path = f", only its path {value['path']!r}" if isinstance(value, dict) and value.get("path") else ""
            raise FileNotFoundError(errno.ENOENT, f"the image is empty here{path}; store its bytes", str(self))
        return content

    def open(self, mode: str = "rb") -> BinaryIO:
        return io.BytesIO(self.read_bytes())

    def stat(self) -> epath.stat_utils.StatResult:
        """The state of the parquet file, with its size per row as an estimate of the image's size."""
        whole = self.parquet.stat()
        return dataclasses.replace(whole, length=whole.length // max(1, _row_starts(self.parquet)[-1]))

    def is_dir(self) -> bool:
        return False

    def __fspath__(self) -> str:
        return f"{self.parquet}/{self.name}"

    __str__ = __fspath__


def find_embedded(parquet: epath.Path, base: str, relative: str, where: str) -> EmbeddedFile | None:
    """The embedded image of name `relative`; None if the name does not begin with this file's name `base`. UserError for a
    malformed name."""
    if not base.lower().endswith(".parquet") or not relative.startswith(f"{base}/"):
        return None
    row, *way = relative.removeprefix(f"{base}/").split("/")
    if not way or not row.isdecimal():
        raise UserError(f"{where}: {relative!r} names no image of {parquet}")
    column, *rest = map(unquote, way)
    return EmbeddedFile(parquet, int(row), column, tuple(rest))


@functools.lru_cache(maxsize=64)
def _row_starts(parquet: epath.Path) -> tuple[int, ...]:
    """The first row of every row group, followed by the total number of rows."""
    import pyarrow.parquet as pq

    with parquet.open("rb") as file:
        metadata = pq.ParquetFile(file).metadata
        starts = [0]
        for group in range(metadata.num_row_groups):
            starts.append(starts[-1] + metadata.row_group(group).num_rows)
        return tuple(starts)


def _cell(parquet: epath.Path, row: int, column: str) -> Any:
    starts = _row_starts(parquet)
    if row >= starts[-1]:
        raise IndexError(row)
    group = next(group for group, start in enumerate(starts[1:]) if row < start)
    return _column(parquet, group, column)[row - starts[group]]


class _Column:
    """A column of a row group, of which a window is kept in memory, because a row group may be the whole file.

    Cells are read sequentially; access to a cell before the window restarts reading from the beginning of the row group.
    """

    def __init__(self, parquet: epath.Path, group: int, column: str) -> None:
        self._parquet, self._group, self._column = parquet, group, column
        self._lock = threading.Lock()
        self._start()

    def _start(self) -> None:
        import pyarrow.parquet as pq

        file = pq.ParquetFile(self._parquet.open("rb"), buffer_size=1 << 20, pre_buffer=False)
        if self._column not in file.schema_arrow.names:
            raise KeyError(self._column)
        metadata = file.metadata.row_group(self._group)
        each = max(1, metadata.total_byte_size // max(1, metadata.num_rows))
        rows = max(1, min(1024, WINDOW_BYTES // 8 // each))
        self._batches = file.iter_batches(rows, row_groups=[self._group], columns=[self._column], use_threads=False)
        self._kept: collections.deque[tuple[int, Any]] = collections.deque()
        self._next, self._size = 0, 0

    def __getitem__(self, row: int) -> Any:
        with self._lock:
            if self._batches is None or (self._kept and row < self._kept[0][0]):
                self._start()
            while row >= self._next:
                self._read_batch()
            start, array = next((start, array) for start, array in reversed(self._kept) if start <= row)
            return array[row - start].as_py()

    def _read_batch(self) -> None:
        import pyarrow as pa

        batches, self._batches = self._batches, None  # so that the access after an error restarts reading
        try:
            batch = next(batches)
        except (pa.ArrowException, StopIteration, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:  # an error of the storage; the file may be sound
                raise
            reason = first_line(error) if str(error) else "it ends too early"
            raise OSError(errno.EBADMSG, f"the parquet file is damaged: {reason}", str(self._parquet)) from error
        self._batches = batches
        array = batch.column(batch.schema.names.index(self._column))
        self._kept.append((self._next, array))
        self._next, self._size = self._next + len(array), self._size + array.nbytes
        while self._size > WINDOW_BYTES and len(self._kept) > 1:
            self._size -= self._kept.popleft()[1].nbytes


@functools.lru_cache(maxsize=2)
def _column(parquet: epath.Path, group: int, column: str) -> _Column:
    return _Column(parquet, group, column)
