"""A folder of media beside a grown data set, so that it trains wherever it lies."""

from __future__ import annotations

import hashlib

from etils import epath

from mmrlhf_jax.data.examples import Example
from mmrlhf_jax.data.videos import FRAMES_FILE, write_frames_file
from mmrlhf_jax.files import exists, write_atomically
from mmrlhf_jax.models.video import VideoLayout
from mmrlhf_jax.records import RankedRecord

FOLDER = "media"
_KINDS = {b"\xff\xd8": "jpg", b"\x89PNG": "png", b"GIF8": "gif", b"RIFF": "webp", b"BM": "bmp"}


class MediaFolder:
    """Media by the digest of their bytes; equal ones are stored once."""

    def __init__(self, directory: epath.Path):
        self._directory = directory

    def keep(self, example: Example) -> RankedRecord:
        """The example's record with the paths of its stored media: a video becomes the folder of its sampled frames."""
        images = tuple(self._file(data) for data in example.images)
        video = self._frames(example.frames, example.video) if example.frames else None
        return example.record.with_media(images, video)

    def _file(self, data: bytes) -> str:
        return self._write(f"{FOLDER}/{_digest(data)}.{_kind(data)}", data)

    def _frames(self, frames: tuple[bytes, ...], video: VideoLayout | None) -> str:
        """A folder of the frames, which tells their times if these are known."""
        times = b"" if video is None or video.times is None else write_frames_file(video)
        folder = f"{FOLDER}/{_digest(b''.join(map(_whole_digest, frames)) + times)}"
        for number, data in enumerate(frames):
            self._write(f"{folder}/{number:05d}.{_kind(data)}", data)
        if times:
            self._write(f"{folder}/{FRAMES_FILE}", times)
        return folder

    def _write(self, name: str, data: bytes) -> str:
        path = self._directory / name
        if not exists(path):
            write_atomically(path, data)
        return name


def _whole_digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:24]


def _kind(data: bytes) -> str:
    return next((kind for start, kind in _KINDS.items() if data.startswith(start)), "img")
