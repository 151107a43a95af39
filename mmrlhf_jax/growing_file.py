"""A text file that grows line by line, locally or in an object store."""

from __future__ import annotations

import contextlib
import io
import time

from etils import epath

from mmrlhf_jax.faults import retried
from mmrlhf_jax.files import is_remote, named, write_atomically

REWRITE_SECONDS = 10


class GrowingFile:
    """A text file to which lines are appended; each is on disk immediately.

    Object stores cannot append: there the whole file is rewritten, at most every REWRITE_SECONDS, on `flush` and on `close`,
    and a kill loses the lines since then.
    """

    def __init__(self, path: epath.PathLike, text: str) -> None:
        """The file's content is set to `text`."""
        self._path, self._parts, self._written = epath.Path(path), [text], time.monotonic()
        write_atomically(self._path, text.encode())
        self._size, self._file = len(text.encode()), None
        if not is_remote(path):
            retried(self._open, f"{self._path}")

    def write(self, line: str) -> None:
        """Append a line. Transient storage errors are retried; Unavailable if the storage does not answer."""
        if not is_remote(self._path):
            content = line.encode()
            retried(lambda: self._append(content), f"{self._path}")
            self._size += len(content)
            return
        self._parts.append(line)
        if time.monotonic() - self._written > REWRITE_SECONDS:
            self._rewrite()

    def flush(self) -> None:
        """Return when every line is stored, also in an object store. Called before anything that must not be newer than the
        lines."""
        if is_remote(self._path) and len(self._parts) > 1:
            self._rewrite()

    def close(self) -> None:
        self.flush()
        if self._file is not None:
            self._file.close()

    def _open(self) -> None:
        """Open the file for appending; a partial line that a failed attempt has left at its end is truncated."""
        self._file = io.FileIO(self._path, "ab")
        if self._file.seek(0, io.SEEK_END) > self._size:
            self._file.truncate(self._size)

    def _append(self, content: bytes) -> None:
        """Append bytes. After an error the file is reopened, because on some file systems the old handle stays unusable."""
        try:
            with named(self._path):
                if self._file is None:
                    self._open()
                left = memoryview(content)
                while left:
                    left = left[self._file.write(left) :]
        except OSError:
            file, self._file = self._file, None
            with contextlib.suppress(OSError):
                if file is not None:
                    file.close()
            raise

    def _rewrite(self) -> None:
        self._parts, self._written = ["".join(self._parts)], time.monotonic()
        write_atomically(self._path, self._parts[0].encode())
