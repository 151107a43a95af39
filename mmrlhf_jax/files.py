"""Files that appear whole or not at all, here and in object stores."""

from __future__ import annotations

import atexit
import contextlib
import fnmatch
import hashlib
import io
import os
import re
import shutil
import tempfile
import time
import uuid
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import fsspec.config
import numpy as np
from etils import epath

from mmrlhf_jax import strict_json
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.faults import retried
from mmrlhf_jax.progress import say

# Where TensorFlow happens to be installed, epath would ask it for remote files, and it knows no hf://.
os.environ.setdefault("EPATH_USE_TF", "false")
# fsspec's file systems remember listings; but a process must see what others, on other hosts perhaps, have written since.
fsspec.config.conf.setdefault("gs", {}).setdefault("use_listings_cache", False)

REWRITE_SECONDS = 10


def expand_home(path: str) -> str:
    """A path with `~` or `~name` in front replaced by that home directory. UserError where there is no such user.

    Shells do this only at the start of a word: not in `--set run.directory=~/runs`, and not in files.
    """
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise UserError(f"{path}: there is no home directory of that name; a folder whose name begins with ~ is ./{path}")
    return expanded


READ_FROM, WRITTEN_TO = ("gs", "s3", "az", "hf"), ("gs", "s3", "az")


def check_place(path: str, *, writes: bool = False) -> str:
    """The path itself. UserError where it names a kind of place that is not read from (or not written to): such a path would
    be a folder called `hf:` or `gs:` here. Nor are names that are not UTF-8, which many libraries below cannot take."""
    _check_utf8(path)
    if "\0" in path:
        raise UserError(f"{path!a}: the name has a NUL character, which no file system takes; choose another")
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):(/+)", path)
    if found is None or os.path.exists(path):
        return path
    scheme, known = found[1], WRITTEN_TO if writes else READ_FROM
    if len(found[2]) == 1:
        raise UserError(f"{path}: a place is written {scheme}://..., a folder whose name is {scheme}: as ./{path}")
    if scheme not in known:
        what = "nothing is written to" if writes else "nothing is read from"
        others = ", ".join(f"{name}://" for name in known)
        upload = "; write to a directory here, then `hf upload`" if scheme == "hf" else f" (but {others} and directories here)"
        raise UserError(f"{path}: {what} {scheme}://{upload}")
    return path


def _check_utf8(path: str) -> None:
    try:
        path.encode()
    except UnicodeEncodeError:
        raise UserError(f"{path!a}: the name is not UTF-8; choose another") from None


def is_remote(path: epath.PathLike) -> bool:
    """Whether a path is an object store's, as gs:// is. Those have no links, no empty folders, and rename by copying."""
    return "://" in os.fspath(path)


def is_bucket(path: epath.PathLike) -> bool:
    """Whether a path is a whole bucket, as gs://bucket is."""
    return is_remote(path) and "/" not in os.fspath(path).split("://", 1)[1].rstrip("/")


def hidden_beside(path: epath.PathLike, suffix: str) -> epath.Path:
    """`.NAME.SUFFIX` beside a path, for what is to become it; of a name without room for more characters a part.

    Beside a bucket there are only other people's buckets: there it is in it.
    """
    path = epath.Path(path)
    name = path.name
    encoded = os.fsencode(name)
    if len(encoded) > 160:
        name = f"{name[:40]}-{hashlib.sha256(encoded).hexdigest()[:12]}"
    return (path if is_bucket(path) else path.parent) / f".{name}.{suffix}"


def entries(directory: epath.PathLike) -> list[epath.Path]:
    """What a folder holds, sorted by name; nothing where there is none (in an object store an empty one does not exist)."""
    folder = epath.Path(directory)
    try:
        return retried(lambda: sorted(folder.iterdir(), key=lambda path: path.name), f"{folder}")
    except FileNotFoundError:
        return []


def matching(directory: epath.PathLike, pattern: str) -> list[epath.Path]:
    """Those whose names have a pattern. epath's own `glob` takes the folder's name for a part of the pattern."""
    return [path for path in entries(directory) if fnmatch.fnmatchcase(path.name, pattern)]


def plain_path(path: epath.PathLike) -> epath.Path:
    """A path to the same place, for libraries that take a path's name for a pattern (`[`, `*`, `?`, `\\`), as Orbax does.

    Where the name has such characters that is a link in a folder of this process's own, which goes when it ends. UserError for
    such a name in an object store, which has no links, and for one that is not UTF-8.
    """
    path = epath.Path(path)
    name = os.fspath(path)
    _check_utf8(name)
    special = [character for character in ("*?[]\\#%\n\r" if is_remote(path) else "*?[\\") if character in name]
    if is_remote(path):
        if special:
            raise UserError(f"{path}: names of objects with {' '.join(map(repr, special))} are not supported; choose another")
        return path
    path = epath.Path(os.path.abspath(name))
    if not special:
        return path
    if os.fspath(path) not in _links:
        folder = tempfile.mkdtemp(prefix="mmrlhf-link-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        link = Path(folder) / "link"
        link.symlink_to(os.fspath(path))
        _links[os.fspath(path)] = epath.Path(link)
    return _links[os.fspath(path)]


_links: dict[str, epath.Path] = {}  # by what they lead to


def exists(path: epath.PathLike) -> bool:
    """Whether anything is there, asked again where the storage does not answer at once."""
    path = epath.Path(path)
    return retried(path.exists, f"{path}")


def read_bytes(path: epath.PathLike) -> bytes:
    """A whole file. Passing errors of the storage are tried again; Unavailable where it does not answer."""
    path = epath.Path(path)
    return retried(path.read_bytes, f"{path}")


def read_text(path: epath.PathLike) -> str:
    """As `read_bytes`, in UTF-8."""
    return read_bytes(path).decode()


def write_atomically(path: epath.PathLike, content: bytes) -> None:
    """Write beside the target, then rename: a kill, or an error such as a full disk, leaves the old file or the new one.

    Passing errors of the storage are tried again; Unavailable where it does not answer.
    """
    path = epath.Path(path)
    retried(lambda: _write_atomically(path, content), f"{path}")


def _write_atomically(path: epath.Path, content: bytes) -> None:
    if is_remote(path):  # an object is there when all of it is
        path.write_bytes(content)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = hidden_beside(path, f"{uuid.uuid4().hex[:8]}.partial")  # other processes may write the same file
    with _named(path):
        try:
            partial.write_bytes(content)
            partial.replace(path)
        except OSError:
            partial.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def _named(path: epath.Path) -> Iterator[None]:
    """Writing to an open file fails without its name, which the user needs most."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = os.fspath(path)
        raise


def can_write(directory: epath.PathLike) -> bool:
    """Whether files can be made in a folder that need not be there yet; of an object store it is assumed."""
    path = epath.Path(directory)
    if is_remote(path):
        return True
    while not exists(path) and path != path.parent:
        path = path.parent
    return os.access(path, os.W_OK)


def write_json_lines(path: epath.PathLike, rows: Iterable[dict[str, Any]]) -> None:
    """One object a line. UserError, and no file, where one holds a number that is not finite: it names the record."""
    named = ((f"{path}: record {row.get('id', number)!r}", row) for number, row in enumerate(rows, 1))
    lines = [strict_json.dumps(row, where=where, ensure_ascii=False) + "\n" for where, row in named]
    write_atomically(path, "".join(lines).encode())


class GrowingFile:
    """Text that is added to line by line, and is on disk at once.

    An object store cannot append: there the whole is written anew, at most every REWRITE_SECONDS, on `flush` and at the end, so
    that a kill costs the lines since the last of these.
    """

    def __init__(self, path: epath.PathLike, text: str) -> None:
        """`text` is what the file holds already, or is to hold; another content is overwritten."""
        self._path, self._parts, self._written = epath.Path(path), [text], time.monotonic()
        write_atomically(self._path, text.encode())
        self._size, self._file = len(text.encode()), None
        if not is_remote(path):
            retried(self._open, f"{self._path}")

    def write(self, line: str) -> None:
        """Passing errors of the storage are tried again; Unavailable where it does not answer."""
        if not is_remote(self._path):
            content = line.encode()
            retried(lambda: self._append(content), f"{self._path}")
            self._size += len(content)
            return
        self._parts.append(line)
        if time.monotonic() - self._written > REWRITE_SECONDS:
            self._rewrite()

    def flush(self) -> None:
        """Returns when every line is stored, in an object store too: for what must not be ahead of the lines."""
        if is_remote(self._path) and len(self._parts) > 1:
            self._rewrite()

    def close(self) -> None:
        self.flush()
        if self._file is not None:
            self._file.close()

    def _open(self) -> None:
        """At the end of the last line: what a try that failed has left behind it gives way."""
        self._file = io.FileIO(self._path, "ab")
        if self._file.seek(0, io.SEEK_END) > self._size:
            self._file.truncate(self._size)

    def _append(self, content: bytes) -> None:
        """After an error the file is opened anew: some file systems never take anything more by the old handle."""
        try:
            with _named(self._path):
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


def read_json_object(path: epath.PathLike) -> dict[str, Any]:
    """The names and values of a JSON file. Raises UserError where it holds anything else."""
    try:
        found = strict_json.loads(read_text(path))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: holds a {type(found).__name__}, not a JSON object")
    return found


def write_arrays(path: epath.PathLike, **arrays: np.ndarray) -> None:
    """A compressed .npz file."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_atomically(path, buffer.getvalue())


def read_sound_arrays(path: epath.PathLike) -> dict[str, np.ndarray] | None:
    """What a cache holds; None where there is none, and, which is said, where the file is no whole .npz. A read that fails is
    an error as ever."""
    try:
        return read_arrays(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        say(f"{path}: not a whole file, and not used")
        return None


def read_arrays(path: epath.PathLike) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(read_bytes(path))) as stored:
        return dict(stored)
