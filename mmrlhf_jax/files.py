"""Reads and writes files, locally and in object stores: writes are atomic, and transient errors are retried."""

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

# If TensorFlow is installed, epath would use it for remote files, but TensorFlow does not support hf://.
os.environ.setdefault("EPATH_USE_TF", "false")
# fsspec caches directory listings by default, but a process must see files that other processes have written since.
fsspec.config.conf.setdefault("gs", {}).setdefault("use_listings_cache", False)


def user_cache() -> Path:
    """The directory for what can be made again and takes long to make."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmrlhf_jax"


def expand_home(path: str) -> str:
    """The path with a leading `~` or `~name` replaced by that home directory. UserError if there is no such user.

    Shells do this only at the start of a word, not in `--set run.directory=~/runs`, and not in files.
    """
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise UserError(f"{path}: there is no home directory of that name; a folder whose name begins with ~ is ./{path}")
    return expanded


READ_FROM, WRITTEN_TO = ("gs", "s3", "az", "hf"), ("gs", "s3", "az")


def check_place(path: str, *, writes: bool = False) -> str:
    """The path, unchanged. UserError if its scheme (`hf://`, `gs://`) cannot be read from (or written to), because libraries
    would create a local folder of that name; and if it is not UTF-8, which many libraries do not support."""
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


def is_address(place: str | None) -> bool:
    """Whether a place is the http(s) address of a server. UserError for HOST:PORT, which lacks the scheme."""
    if place is None:
        return False
    if re.fullmatch(r"[A-Za-z0-9.-]+:\d{2,5}(/.*)?", place) and not os.path.exists(place):
        raise UserError(f"{place}: an address of a server begins with http:// or https://: give http://{place}")
    return place.lower().startswith(("http://", "https://"))


def is_remote(path: epath.PathLike) -> bool:
    """Whether a path is in an object store, such as gs://. These have no links and no empty folders, and rename by copying."""
    return "://" in os.fspath(path)


def is_bucket(path: epath.PathLike) -> bool:
    """Whether a path is a whole bucket, such as gs://bucket."""
    return is_remote(path) and "/" not in os.fspath(path).split("://", 1)[1].rstrip("/")


def hidden_beside(path: epath.PathLike, suffix: str) -> epath.Path:
    """`.NAME.SUFFIX` beside a path, for temporary files; a long NAME is shortened to a prefix and a digest.

    For a whole bucket it is inside the bucket, because beside it are only other buckets.
    """
    path = epath.Path(path)
    name = path.name
    encoded = os.fsencode(name)
    if len(encoded) > 160:
        name = f"{name[:40]}-{hashlib.sha256(encoded).hexdigest()[:12]}"
    return (path if is_bucket(path) else path.parent) / f".{name}.{suffix}"


def entries(directory: epath.PathLike) -> list[epath.Path]:
    """The entries of a folder, sorted by name; empty if there is no such folder (object stores have no empty folders)."""
    folder = epath.Path(directory)
    try:
        return retried(lambda: sorted(folder.iterdir(), key=lambda path: path.name), f"{folder}")
    except FileNotFoundError:
        return []


def matching(directory: epath.PathLike, pattern: str) -> list[epath.Path]:
    """The entries whose names match a pattern. (epath's `glob` would interpret the folder's name as part of the pattern.)"""
    return [path for path in entries(directory) if fnmatch.fnmatchcase(path.name, pattern)]


def plain_path(path: epath.PathLike) -> epath.Path:
    """A path to the same file, for libraries that interpret paths as patterns (`[`, `*`, `?`, `\\`), as Orbax does.

    If the path has such characters, the result is a symbolic link in a temporary folder, which is removed when the process
    ends. UserError for such a path in an object store, which has no links, and for one that is not UTF-8.
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


_links: dict[str, epath.Path] = {}  # target -> symbolic link


def exists(path: epath.PathLike) -> bool:
    """Whether the path exists; transient storage errors are retried."""
    path = epath.Path(path)
    return retried(path.exists, f"{path}")


def read_bytes(path: epath.PathLike) -> bytes:
    """The content of a file. Transient storage errors are retried; Unavailable if the storage does not answer."""
    path = epath.Path(path)
    return retried(path.read_bytes, f"{path}")


def read_text(path: epath.PathLike) -> str:
    """The content of a UTF-8 file, like `read_bytes`."""
    return read_bytes(path).decode()


def write_atomically(path: epath.PathLike, content: bytes) -> None:
    """Write a temporary file and rename it: after a kill or an error (a full disk, say) there is either the old or the new
    file.

    Transient storage errors are retried; Unavailable if the storage does not answer.
    """
    path = epath.Path(path)
    retried(lambda: _write_atomically(path, content), f"{path}")


def _write_atomically(path: epath.Path, content: bytes) -> None:
    if is_remote(path):  # object stores write atomically: an object appears when it is complete
        path.write_bytes(content)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = hidden_beside(path, f"{uuid.uuid4().hex[:8]}.partial")  # other processes may write the same file
    with named(path):
        try:
            partial.write_bytes(content)
            partial.replace(path)
        except OSError:
            partial.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def named(path: epath.Path) -> Iterator[None]:
    """A context that adds the file's name to an OSError, which errors of writing to an open file lack."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = os.fspath(path)
        raise


def can_write(directory: epath.PathLike) -> bool:
    """Whether files can be created in a folder, which need not exist yet; assumed for object stores."""
    path = epath.Path(directory)
    if is_remote(path):
        return True
    while not exists(path) and path != path.parent:
        path = path.parent
    return os.access(path, os.W_OK)


def check_can_be_written(path: epath.PathLike) -> None:
    """UserError for a local file that is a folder, or whose folder cannot be made or takes no files. Nothing is left there."""
    path = epath.Path(path)
    if is_remote(path):
        return
    if path.is_dir():
        raise UserError(f"{path}: is a folder; give the name of a file in it")
    folder = path.parent
    try:
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        with tempfile.TemporaryFile(dir=os.fspath(folder)):
            pass
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({folder}: {error.strerror}); choose another place") from None


def write_json_lines(path: epath.PathLike, rows: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object per line. UserError, naming the record, for a number that is not finite; then no file is
    written."""
    named = ((f"{path}: record {row.get('id', number)!r}", row) for number, row in enumerate(rows, 1))
    lines = [strict_json.dumps(row, where=where, ensure_ascii=False) + "\n" for where, row in named]
    write_atomically(path, "".join(lines).encode())


def read_json_object(path: epath.PathLike) -> dict[str, Any]:
    """The JSON object in a file. Raises UserError if the file holds anything else."""
    try:
        found = strict_json.loads(read_text(path))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: holds a {type(found).__name__}, not a JSON object")
    return found


def write_arrays(path: epath.PathLike, **arrays: np.ndarray) -> None:
    """Write arrays to a compressed .npz file."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_atomically(path, buffer.getvalue())


def read_sound_arrays(path: epath.PathLike) -> dict[str, np.ndarray] | None:
    """The arrays of a cache file; None if there is none, or (reported) if it is no complete .npz. Storage errors are raised."""
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
