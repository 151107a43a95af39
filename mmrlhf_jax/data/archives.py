"""Media inside zip archives are read in place, without unpacking.

An archive stands for the folder of its name: if MM-RLHF's `short.zip` lies beside `dpo_pairs.jsonl`, the path `short/a.jpg` is
looked up in it, as `short/a.jpg` and as `a.jpg`. A real folder `short` that contains the file takes precedence. Only the
archive's central directory is read completely, and cached.
"""

from __future__ import annotations

import dataclasses
import errno
import functools
import io
import posixpath
import stat
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import PurePosixPath, PureWindowsPath
from typing import BinaryIO

import fsspec
from etils import epath

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.files import is_remote

SUFFIX = ".zip"
_REMOTE_BLOCK = 1 << 18  # bytes to read ahead in a remote archive, of which only single files are read


@dataclasses.dataclass(frozen=True)
class ArchivedFile:
    """A file or folder in an archive, with the part of a path's interface that readers of media use. `inner` "" is the root."""

    archive: epath.Path
    inner: str

    @property
    def name(self) -> str:
        return posixpath.basename(self.inner)

    def exists(self) -> bool:
        contents = _contents(self.archive)
        return contents is not None and (self.inner in contents.files or self.inner in contents.folders)

    def is_dir(self) -> bool:
        return self.inner in _contents(self.archive).folders

    def iterdir(self) -> Iterator[ArchivedFile]:
        for name in _contents(self.archive).folders[self.inner]:
            yield ArchivedFile(self.archive, posixpath.join(self.inner, name))

    def stat(self) -> epath.stat_utils.StatResult:
        """The size of the unpacked file, with its CRC as `mtime`; for a folder, the archive's own state."""
        if self.is_dir():
            return self.archive.stat()
        info = _contents(self.archive).files[self.inner]
        return dataclasses.replace(self.archive.stat(), length=info.file_size, mtime=info.CRC)

    def open(self, mode: str = "rb") -> BinaryIO:
        return io.BytesIO(self.read_bytes())

    def read_bytes(self) -> bytes:
        """The unpacked file. Raises OSError with the reason if it cannot be read."""
        contents = _contents(self.archive)
        info = contents.files.get(self.inner)
        if info is None:
            kind = errno.EISDIR if self.inner in contents.folders else errno.ENOENT
            raise OSError(kind, "is a folder" if kind == errno.EISDIR else "the archive holds no such file", str(self))
        if info.flag_bits & 1:
            raise OSError(errno.EACCES, "it is encrypted in the archive; store it without a password", str(self))
        if stat.S_ISLNK(info.external_attr >> 16):
            raise OSError(errno.ELOOP, "it is a link in the archive; store the file itself", str(self))
        try:
            return contents.archive.read(info)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
            raise OSError(errno.EBADMSG, f"the archive is damaged, or packed in an unusual way: {error}", str(self)) from error

    def __fspath__(self) -> str:
        return posixpath.join(str(self.archive), self.inner)

    __str__ = __fspath__


def is_archive(path: epath.Path) -> bool:
    return path.name.lower().endswith(SUFFIX) and _contents(path) is not None


def find_archived(root: epath.Path, relative: str) -> ArchivedFile | None:
    """The file or folder of path `relative` inside an archive that stands for one of the path's folders; None if there is none.

    `root` is a folder, or an archive itself.
    """
    parts = PurePosixPath(posixpath.normpath(relative)).parts
    if root.name.lower().endswith(SUFFIX):
        return _first([ArchivedFile(root, posixpath.join(*way, *parts)) for way in ((), (root.name[: -len(SUFFIX)],))])
    for archive, name, rest in _on_the_way(root, parts):
        if found := _first([ArchivedFile(archive, f"{name}/{rest}".rstrip("/")), ArchivedFile(archive, rest)]):
            return found
    return None


def archives_on_the_way(root: epath.Path, relative: str) -> list[epath.Path]:
    """The existing archives that `find_archived` looks into."""
    parts = PurePosixPath(posixpath.normpath(relative)).parts
    return [archive for archive, _, _ in _on_the_way(root, parts) if _contents(archive) is not None]


def _on_the_way(root: epath.Path, parts: tuple[str, ...]) -> Iterator[tuple[epath.Path, str, str]]:
    """Yield (archive, name of the folder that it stands for, rest of the path) for every folder of the path below `root`."""
    for depth in range(1, len(parts) + 1):
        folder = root.joinpath(*parts[:depth])
        yield folder.parent / f"{folder.name}{SUFFIX}", folder.name, "/".join(parts[depth:])


def _first(candidates: list[ArchivedFile]) -> ArchivedFile | None:
    return next((candidate for candidate in candidates if candidate.exists()), None)


@dataclasses.dataclass(frozen=True)
class _Contents:
    archive: zipfile.ZipFile
    files: dict[str, zipfile.ZipInfo]
    folders: dict[str, list[str]]  # folder -> names of the entries in it


def _contents(path: epath.Path) -> _Contents | None:
    """The contents of the archive at `path`; None if there is no such file. UserError for a file that is no archive."""
    if is_remote(path):  # cached for the process's lifetime, because looking for changes takes a request
        return _read_remote_directory(path)
    try:
        state = path.stat()
    except OSError:
        return None
    return None if state.is_directory else _read_directory(path, state.length, state.mtime)


@functools.cache
def _read_remote_directory(path: epath.Path) -> _Contents | None:
    files, name = fsspec.core.url_to_fs(str(path))
    return _directory(path, files.open(name, "rb", block_size=_REMOTE_BLOCK)) if files.isfile(name) else None


@functools.lru_cache(maxsize=64)
def _read_directory(path: epath.Path, length: int, mtime: float) -> _Contents:
    return _directory(path, path.open("rb"))


def _directory(path: epath.Path, file: BinaryIO) -> _Contents:
    try:
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a complete zip archive ({error}); fetch or write it again") from error
    files: dict[str, zipfile.ZipInfo] = {}
    folders: dict[str, list[str]] = {"": []}
    for info in archive.infolist():
        name = info.filename.replace("\\", "/")
        if ".." in PurePosixPath(name).parts or name.startswith("/") or PureWindowsPath(name).drive:
            raise UserError(f"{path}: holds the entry {info.filename!r}, which leads out of the archive; write it again")
        inner = "" if name in ("", ".") else posixpath.normpath(name)
        if info.is_dir():
            _add_folder(folders, inner)
        elif inner in files or inner in folders:
            raise UserError(f"{path}: holds {info.filename!r} twice; write the archive again")
        else:
            files[inner] = info
            _add_folder(folders, posixpath.dirname(inner))
            folders[posixpath.dirname(inner)].append(posixpath.basename(inner))
    return _Contents(archive, files, folders)


def _add_folder(folders: dict[str, list[str]], inner: str) -> None:
    if inner == "." or inner in folders:
        return
    parent = posixpath.dirname(inner)
    _add_folder(folders, parent)
    folders[inner] = []
    folders[parent].append(posixpath.basename(inner))
