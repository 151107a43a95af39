"""Image and video files: resolving a record's media paths, reading files, and sampling the frames of a video."""

from __future__ import annotations

import contextlib
import functools
import io
import os
from collections.abc import Iterator
from pathlib import PureWindowsPath
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from mmrlhf_jax.data.archives import ArchivedFile, archives_on_the_way, find_archived, is_archive
from mmrlhf_jax.data.hub import check_repository, hub_errors
from mmrlhf_jax.data.names import in_order
from mmrlhf_jax.data.sources.embedded import EmbeddedFile
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.faults import retried
from mmrlhf_jax.files import is_remote
from mmrlhf_jax.models.geometry import evenly_spaced

MediaFile = epath.Path | EmbeddedFile | ArchivedFile

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
# Frames cut from a video file are stored as JPEG of this quality, without chroma subsampling.
FRAME_QUALITY = 95


def check_media_root(root: epath.Path) -> None:
    """UserError if `root` is neither a folder, nor a zip archive, nor a folder inside one."""
    check_repository(root)
    with hub_errors(root):
        if is_archive(root) or root.is_dir():
            return
        base, way = _real_folder(root)
        found = find_archived(base, way) if way else None
        if found is None or not found.is_dir():
            raise UserError(f"{root}: the media root is not a folder, nor a zip archive")


def _real_folder(root: epath.Path) -> tuple[epath.Path, str]:
    """(the nearest existing folder or archive at or above `root`, the path from there to `root`, which leads into archives)."""
    base = root
    while not _is_folder(base) and not is_archive(base) and base != base.parent:
        base = base.parent
    return base, "" if base == root else str(root.relative_to(base))


def resolve_media(root: str | epath.Path, relative: str, where: str) -> MediaFile:
    """The file or folder of a record's media path, under `root` or inside a zip archive that stands for a folder there.

    Raises UserError for an absolute path or URL, for a path that leaves the root (through `..` or a symbolic link), and for one
    that does not exist. `where` names the record and is the beginning of the message.
    """
    root = epath.Path(root)
    windows = PureWindowsPath(relative)
    if windows.root or windows.drive or "://" in relative or "\0" in relative:
        raise UserError(f"{where}: media path {relative!r} must be relative to the media root {root}")
    path = root / relative
    if not _is_inside(root, path):
        raise UserError(f"{where}: media path {relative!r} leaves the media root {root}; move the file under it")
    try:
        with hub_errors(root):
            base, way = _real_folder(root)
            relative_to_base = os.path.join(way, relative)
            found = (_find_remote if is_remote(root) else _find)(base, relative_to_base)
    except UserError as error:  # about an archive or the hub
        raise UserError(f"{where}: {error}") from error
    if found is None:
        looked_into = "".join(f", nor in {archive}" for archive in archives_on_the_way(base, relative_to_base))
        raise UserError(f"{where}: media file {relative!r} does not exist under {root}{looked_into}; check path and media root")
    if isinstance(found, ArchivedFile) and found.archive != base and not _is_inside(base, found.archive):
        raise UserError(f"{where}: archive {found.archive} is a link that leaves the media root {root}; copy the file instead")
    return found


def _find(base: epath.Path, relative: str) -> MediaFile | None:
    path = base / relative
    if not _exists(path):
        return find_archived(base, relative)
    if path.is_dir():
        try:
            archived = find_archived(base, relative)
        except UserError:  # the archive cannot be read, but the folder exists
            archived = None
        _check_is_whole(path, archived)
    return path


def _find_remote(base: epath.Path, relative: str) -> MediaFile | None:
    """Like `_find`, but looks into archives first: their directories are cached, whereas asking for a path takes a request."""
    archived = find_archived(base, relative)
    if archived is not None and (
        archived.archive == base or not _is_folder(archived.archive.parent / archived.archive.name[: -len(".zip")])
    ):
        return archived
    path = base / relative
    if not _exists(path):
        return archived
    if archived is not None and archived.is_dir():
        _check_is_whole(path, archived)
    return path


def _check_is_whole(folder: epath.Path, archived: ArchivedFile | None) -> None:
    """UserError if an archive holds the same folder with other images, because it may have been unpacked incompletely."""
    if archived is None or not archived.is_dir() or not folder.is_dir():
        return
    here, there = (set(images_in(each)) for each in (folder, archived))
    if here != there:
        raise UserError(
            f"folder {folder} holds {len(here)} images, but {archived.archive} holds {len(there)} for it, and of them"
            f" {len(here & there)} have the same names; unpack it whole, or remove one of the two"
        )


def _is_folder(path: epath.Path) -> bool:
    return _is_remote_folder(path) if is_remote(path) else path.is_dir()


@functools.cache
def _is_remote_folder(path: epath.Path) -> bool:
    return path.is_dir()


def read_media(path: MediaFile, where: str) -> bytes:
    """The bytes of a media file; transient storage errors are retried.

    Raises UserError if it cannot be read (a folder, no permission, ...), and Unavailable if the storage does not answer.
    """
    try:
        with hub_errors(path):
            return retried(path.read_bytes, f"{where}: media file {path}")
    except UserError as error:
        raise UserError(f"{where}: media file {error}") from error
    except OSError as error:
        raise UserError(f"{where}: media file {path} cannot be read ({error.strerror or error})") from error


def video_files(path: str | MediaFile, count: int, root: str | epath.Path | None = None) -> list[MediaFile]:
    """The files that `read_video_frames` reads: `count` images of a frame folder, or the one video file.

    Images are sorted by name, with numbers of different widths by value (`names.in_order`), and sampled at
    floor(linspace(0, n - 1, count)), as in MM-RLHF; if there are fewer images, some are used more than once. Hidden files, such
    as the `._0.png` that macOS writes beside 0.png, are ignored. UserError for a link that leaves `root`, the media root.
    """
    path = epath.Path(path) if isinstance(path, str) else path
    if not path.is_dir():
        return [path]
    images = images_in(path)
    if not images:
        raise UserError(f"{path}: the frame folder holds no images ({', '.join(IMAGE_SUFFIXES)})")
    images = [images[name] for name in in_order(images)]
    chosen = [images[i] for i in evenly_spaced(len(images), count)]
    for file in dict.fromkeys(chosen) if root is not None and not isinstance(path, ArchivedFile) else ():
        if not _is_inside(epath.Path(root), file):
            raise UserError(f"{path}: frame {file.name!r} is a link that leaves the media root {root}; copy the file instead")
    return chosen


def images_in(folder: MediaFile) -> dict[str, MediaFile]:
    """The images of a folder by name."""
    files = {file.name: file for file in folder.iterdir()}
    return {name: files[name] for name in files if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")}


def read_video_frames(path: str | MediaFile, count: int, root: str | epath.Path | None = None) -> list[bytes]:
    """`count` evenly spaced frames as encoded images, in order.

    For a frame folder these are the files' own bytes. A video file is decoded (PyAV), its frames are rotated by the file's
    display matrix, and encoded as JPEG. Raises UserError for an empty folder, for a file that cannot be read or decoded, and
    like `video_files`.
    """
    path = epath.Path(path) if isinstance(path, str) else path
    if path.is_dir():
        files = video_files(path, count, root)
        contents = {file: read_media(file, str(path)) for file in dict.fromkeys(files)}
        return [contents[file] for file in files]
    return _decode_video(path, count)


def _is_inside(root: epath.Path, path: epath.Path) -> bool:
    # normpath resolves `..` for any file system; realpath also follows symbolic links, which only local ones have.
    normal = os.path.normpath if is_remote(root) else os.path.realpath
    outer, inner = normal(os.fspath(root)), normal(os.fspath(path))
    return any(os.path.commonpath([folder, inner]) == folder for folder in (outer, *_blobs(outer)))


def _blobs(root: str) -> Iterator[str]:
    """If `root` lies in a snapshot of the hub's cache, the repository's `blobs` folder, to which the files there are links."""
    parts = root.split(os.sep)
    if "snapshots" in parts and (repository := parts[: parts.index("snapshots")])[-1].startswith(("datasets--", "models--")):
        yield os.sep.join([*repository, "blobs"])


def _exists(path: epath.Path) -> bool:
    try:
        return path.exists()
    except OSError:  # the file name is too long
        return False


def _decode_video(path: MediaFile, count: int) -> list[bytes]:
    with decoding(path):
        encoded, wanted = retried(lambda: _chosen_frames(path, count), f"{path}")
    if not encoded:
        raise UserError(f"{path}: the video has no frames; replace it or remove the record")
    # A container may announce more frames than can be decoded; the last decoded one replaces the missing ones.
    last = max(encoded)
    return [encoded.get(index, encoded[last]) for index in wanted]


@contextlib.contextmanager
def decoding(path: MediaFile) -> Iterator[None]:
    """Inside, errors of the decoder become UserError about the video file."""
    import av

    try:
        yield
    except (av.FFmpegError, OSError) as error:
        raise UserError(f"{path}: the video cannot be decoded ({error}); replace it or remove the record") from error


def _chosen_frames(path: MediaFile, count: int) -> tuple[dict[int, bytes], list[int]]:
    """(encoded frames by number, the numbers of the sampled frames)."""
    import av

    with path.open("rb") as file:
        wanted = evenly_spaced(count_frames(file, path), count)
        file.seek(0)
        encoded: dict[int, bytes] = {}
        with av.open(file) as container:
            for index, frame in enumerate(container.decode(video_stream(container, path))):
                if index in wanted:
                    encoded[index] = _encode_jpeg(upright(frame, path))
                if index == wanted[-1]:
                    break
    return encoded, wanted


def count_frames(file: object, path: MediaFile) -> int:
    """The number of frames, counted from the stream's packets without decoding; headers often omit it or are wrong."""
    import av

    with av.open(file) as container:
        return sum(1 for packet in container.demux(video_stream(container, path)) if packet.size)


def video_stream(container: Any, path: MediaFile) -> Any:
    """The only video stream, apart from covers and thumbnails. UserError if there is none or more than one."""
    from av.stream import Disposition

    pictures = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
    streams = [stream for stream in container.streams.video if not stream.disposition & pictures]
    if not streams:
        found = "only a cover picture" if container.streams.video else "no video"
        raise UserError(f"{path}: the video cannot be decoded (the file holds {found}); replace it or remove the record")
    if len(streams) > 1:
        sizes = ", ".join(f"{stream.width}x{stream.height} ({stream.codec_context.name})" for stream in streams)
        raise UserError(f"{path}: holds {len(streams)} videos, {sizes}; write a file with the one that is meant")
    return streams[0]


def upright(frame: Any, path: epath.Path) -> Image.Image:
    """A decoded frame, rotated by the stream's display matrix, in which phones store how they were held.

    The display matrix [a b . c d . ...] maps a pixel at (x, y) to (a x + c y, b x + d y), in units of 1 / 65536. UserError for
    a rotation that is no multiple of 90 degrees.
    """
    image = frame.to_image()
    stored = frame.side_data.get("DISPLAYMATRIX")
    if stored is None:
        return image
    a, b, _, c, d = np.frombuffer(stored, np.int32)[:5].tolist()
    quarter_turns = (b == c == 0 and a and d) or (a == d == 0 and b and c)
    if not quarter_turns:
        raise UserError(f"{path}: the video is to be shown turned by no quarter turn ([{a} {b} {c} {d}]); encode it upright")
    if not a:  # columns become rows
        image, a, d = image.transpose(Image.Transpose.TRANSPOSE), c, b
    if a < 0:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return image.transpose(Image.Transpose.FLIP_TOP_BOTTOM) if d < 0 else image


def _encode_jpeg(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, format="JPEG", quality=FRAME_QUALITY, subsampling=0)
    return out.getvalue()
