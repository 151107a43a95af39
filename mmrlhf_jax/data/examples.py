"""Records with their media, by index, read from a source file. Those of a built data set are in `built_examples`.

Both are cheap to pickle, even after use, because Grain sends them to spawned workers. Neither imports jax or TensorFlow.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from etils import epath

from mmrlhf_jax import strict_json
from mmrlhf_jax.data.digests import media_content
from mmrlhf_jax.data.images import image_size
from mmrlhf_jax.data.media import MediaFile, check_media_root, read_media, read_video_frames, resolve_media, video_files
from mmrlhf_jax.data.sources import OnError, read_source
from mmrlhf_jax.data.sources.embedded import find_embedded
from mmrlhf_jax.data.videos import check_rate, frames_files, video_layout
from mmrlhf_jax.errors import UserError, shown
from mmrlhf_jax.models.video import VideoLayout
from mmrlhf_jax.records import RankedRecord

# Called as progress(stage, records done, total records).
Progress = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True)
class Layout:
    """The sizes of an example's media: (height, width) of every image in pixels, after EXIF rotation, and its video's layout.

    `content` is a digest of the files (`digests.media_content`), if a build has stored it.
    """

    images: tuple[tuple[int, int], ...] = ()
    video: VideoLayout | None = None
    content: str | None = dataclasses.field(default=None, compare=False)

    @property
    def frames(self) -> int:
        """The number of the video's frames; 0 without a video."""
        return self.video.frames if self.video else 0


@dataclasses.dataclass(frozen=True)
class Example:
    """A record with the encoded bytes (JPEG, PNG, ...) of its images and of its video's sampled frames, and the layout of
    these; without it, nothing but the frames themselves is known of the video."""

    record: RankedRecord
    images: tuple[bytes, ...] = ()
    frames: tuple[bytes, ...] = ()
    video: VideoLayout | None = None


class SourceExamples:
    """The examples of a source (a file, a folder of files, or a pattern) in any format of `data.sources`.

    Media are read on access. `media_root` is the folder or zip archive that media paths are relative to (default: the folder of
    the source); `video_frames` is the number of frames to sample from a video, or the most if `video_fps` frames of each second
    are sampled; `frames_per_second` is the rate of the frames in folders of frames that do not tell it (None: not known);
    `on_error`, `rank_by` and `prompts` are passed to `read_source`, whose notes are `notes`.
    """

    weights = None  # an epoch sees every example once

    def __init__(
        self,
        path: str | epath.Path,
        media_root: str | epath.Path | None = None,
        video_frames: int = 32,
        on_error: OnError | None = None,
        rank_by: str | None = None,
        prompts: bool = False,
        video_fps: float | None = None,
        frames_per_second: float | None = None,
    ) -> None:
        if video_frames < 1:
            raise UserError(f"video_frames must be at least 1, found {video_frames}")
        check_rate(video_fps, "video_fps")
        check_rate(frames_per_second, "frames_per_second")
        self.path = epath.Path(path)
        self.video_frames, self.video_fps, self.frames_per_second = video_frames, video_fps, frames_per_second
        if media_root is not None:
            check_media_root(epath.Path(media_root))
        source = read_source(self.path, on_error, rank_by, prompts)
        self.files, self.notes = source.files, source.notes
        self.media_root = source.files.folder if media_root is None else epath.Path(media_root)
        self.records: list[RankedRecord] = source.records
        self.rows = [source.rows(record) for record in source.records]  # number of the file's rows that make each record
        self._contents: dict[int, str] = {}  # by index: digests of media that were read for the fingerprint
        self._videos: dict[str, VideoLayout] = {}  # by path

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Example:
        """The example at `index` in [0, len). Raises UserError for missing or unreadable media."""
        record, where = self.records[index], self.where(index)
        images = tuple(read_media(self._find(path, where), where) for path in record.images)
        if record.video is None:
            return Example(record, images)
        video = self._find(record.video, where)
        try:
            frames = tuple(read_video_frames(video, self._frames(record.video, where), self.media_root))
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        return Example(record, images, frames, self._video(record.video, where))

    def layout(self, index: int) -> Layout:
        """Sizes of the example's media, from image headers; of a video only the first frame is decoded (`video_layout`)."""
        record, where = self.records[index], self.where(index)
        sizes = [image_size(read_media(self._find(path, where), where), f"{where}, image {path!r}") for path in record.images]
        return Layout(tuple(sizes), None if record.video is None else self._video(record.video, where))

    def _video(self, path: str, where: str) -> VideoLayout:
        """The layout of a video, read once in each process."""
        if path not in self._videos:
            try:
                video = self._find(path, where)
                rates = (self.video_fps, self.frames_per_second)
                self._videos[path] = video_layout(video, self.video_frames, *rates, self.media_root)
            except UserError as error:
                raise UserError(f"{where}: {error}") from error
        return self._videos[path]

    def _frames(self, path: str, where: str) -> int:
        """How many frames are sampled of a video."""
        return self.video_frames if self.video_fps is None else self._video(path, where).frames

    def media_files(self, index: int) -> list[MediaFile]:
        """The files that example `index` is read from, images first. Raises UserError for a missing one."""
        record, where = self.records[index], self.where(index)
        if record.video is None:
            return [self._find(path, where) for path in record.images]
        video = self._find(record.video, where)
        try:
            return list(video_files(video, self._frames(record.video, where), self.media_root))
        except UserError as error:
            raise UserError(f"{where}: {error}") from error

    def frames_files(self, index: int) -> list[MediaFile]:
        """The file that tells the times of example `index`'s frames, if its video is a folder of frames that has one."""
        path, where = self.records[index].video, self.where(index)
        return [] if path is None else frames_files(self._find(path, where))

    def part(self, numbers: Iterable[int]) -> SourceExamples:
        """The examples with these indices, as a source of its own."""
        part, numbers = copy.copy(self), list(numbers)
        part.__dict__.pop("fingerprint", None)
        part.records, part.rows = [self.records[i] for i in numbers], [self.rows[i] for i in numbers]
        part._contents = {place: self._contents[i] for place, i in enumerate(numbers) if i in self._contents}
        return part

    def digest(self, index: int, example: Example | None = None) -> bytes:
        """SHA-256 of example `index`: its record, the bytes of its media, and the number of frames per video.

        If `example` is given, its bytes are used, and only video files are read again.
        """
        record, where = self.records[index], self.where(index)
        from_file = record.video is not None and not self._find(record.video, where).is_dir()
        if example is None or from_file:
            media = [read_media(file, where) for file in self.media_files(index)]
        else:
            media = [*example.images, *example.frames]
        self._contents[index] = media_content(record, media, frame_folder=record.video is not None and not from_file)
        content = [dump_record(record).encode(), *media]
        if record.video is not None:
            content.append(b"frames %d" % self.video_frames)
            if self.video_fps is not None:
                content.append(f"at {self.video_fps!r} a second".encode())
            video = None if from_file else self._video(record.video, where)
            # The folder's images do not determine which frames they are.
            if video is not None and (video.rate is not None or self.frames_files(index)):
                content.append(f"times {video.numbers} of {video.total} at {video.rate!r}".encode())
        digest = hashlib.sha256()
        for part in (b"%d" % len(content), *content):  # with lengths, so that different splits give different digests
            digest.update(b"%d:" % len(part) + part)
        return digest.digest()

    def media_content(self, index: int) -> str:
        """A digest of the files of example `index` (`digests.media_content`), kept by an earlier `digest` if there was one."""
        if index not in self._contents:
            self.digest(index)
        return self._contents[index]

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over the digests of all examples, in order."""
        return self.compute_fingerprint()

    def compute_fingerprint(self, progress: Progress | None = None) -> str:
        """`fingerprint` with progress. Reads every media file once, in threads on all cores (hashing releases the GIL)."""
        if "fingerprint" not in self.__dict__:
            self.__dict__["fingerprint"] = fingerprint_of(compute_digests(self, progress))
        return self.fingerprint

    def _find(self, path: str, where: str) -> MediaFile:
        inside = (find_embedded(file, self.files.name(file), path, where) for file in self.files.files)
        return next(filter(None, inside), None) or resolve_media(self.media_root, path, where)

    def is_embedded(self, index: int) -> bool:
        """Whether a medium of example `index` is inside a file of the source, and no file of its own."""
        record, where = self.records[index], self.where(index)
        paths = (*record.images, *([record.video] if record.video else ()))
        return any(find_embedded(file, self.files.name(file), path, where) for file in self.files.files for path in paths)

    def where(self, index: int) -> str:
        """The beginning of an error message about example `index`: path and record."""
        return f"{self.path}: record {shown(self.records[index].id)}"


def compute_digests(examples: Any, progress: Progress | None = None) -> Iterator[bytes]:
    """The digest of every example, in order."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done, digest in enumerate(pool.map(examples.digest, range(len(examples))), start=1):
            yield digest
            if progress:
                progress("fingerprint", done, len(examples))


def fingerprint_of(digests: Iterable[bytes]) -> str:
    return hashlib.sha256(b"".join(digests)).hexdigest()


def dump_record(record: RankedRecord) -> str:
    """A record as one line of the project's own JSONL form; equal records give equal lines."""
    return strict_json.dumps(record.to_json(), where=f"record {record.id!r}", sort_keys=True)
