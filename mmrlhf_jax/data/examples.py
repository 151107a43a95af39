"""Records together with their media, by number: straight from a source file, or from a built data set.

Both kinds are picklable and cheap to pickle after use, because Grain hands them to spawned worker processes; neither
imports jax or TensorFlow.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable
from typing import Any

from etils import epath

from mmrlhf_jax.data.media import read_media, read_video_frames, resolve_media, video_files
from mmrlhf_jax.data.sources import read_records
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.records import RankedRecord, record_from_json

# Called as progress(stage, records done, records in all).
Progress = Callable[[str, int, int], None]

DATASET_INFO_FILE = "dataset_info.json"
RECORDS_FILE = "records.jsonl"  # in a built data set: all records without their media, in order


@dataclasses.dataclass(frozen=True)
class Example:
    """A record and the original encoded bytes of its images and of its video's sampled frames (JPEG, PNG, ...)."""

    record: RankedRecord
    images: tuple[bytes, ...] = ()
    frames: tuple[bytes, ...] = ()


class SourceExamples:
    """The examples of a source file of any format that `read_records` knows; media are read when asked for.

    `media_root` is the folder that media paths are relative to (default: the source file's own); `video_frames` is how
    many frames a video gives.
    """

    def __init__(self, path: str | epath.Path, media_root: str | epath.Path | None = None, video_frames: int = 32) -> None:
        if video_frames < 1:
            raise UserError(f"video_frames must be at least 1, found {video_frames}")
        self.path = epath.Path(path)
        self.media_root = self.path.parent if media_root is None else epath.Path(media_root)
        if not self.media_root.is_dir():
            raise UserError(f"{self.media_root}: the media root is not a folder")
        self.video_frames = video_frames
        self.records: list[RankedRecord] = read_records(self.path)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Example:
        """The example at `index` in [0, len). Raises UserError for missing or unreadable media."""
        record, where = self.records[index], self._where(index)
        images = tuple(read_media(resolve_media(self.media_root, path, where), where) for path in record.images)
        if record.video is None:
            return Example(record, images)
        video = resolve_media(self.media_root, record.video, where)
        try:
            return Example(record, images, tuple(read_video_frames(video, self.video_frames)))
        except UserError as error:
            raise UserError(f"{where}: {error}") from error

    def media_files(self, index: int) -> list[epath.Path]:
        """The files that example `index` is read from, images first. Raises UserError for a missing one."""
        record, where = self.records[index], self._where(index)
        files = [resolve_media(self.media_root, path, where) for path in record.images]
        if record.video is not None:
            files += video_files(resolve_media(self.media_root, record.video, where), self.video_frames)
        return files

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of all that examples are made of: records in order, bytes of their media, frames per video."""
        return self.compute_fingerprint()

    def compute_fingerprint(self, progress: Progress | None = None) -> str:
        """`fingerprint`, with progress: it reads every media file once."""
        if "fingerprint" in self.__dict__:
            return self.fingerprint
        digest = hashlib.sha256()
        for index, record in enumerate(self.records):
            where = self._where(index)
            content = [dump_record(record).encode(), *(read_media(file, where) for file in self.media_files(index))]
            if record.video is not None:
                content.append(b"frames %d" % self.video_frames)
            for part in (b"%d" % len(content), *content):  # lengths first, so that no two contents run together alike
                digest.update(b"%d:" % len(part) + part)
            if progress:
                progress("fingerprint", index + 1, len(self))
        self.__dict__["fingerprint"] = digest.hexdigest()
        return self.fingerprint

    def _where(self, index: int) -> str:
        return f"{self.path}: record {self.records[index].id!r}"


class BuiltExamples:
    """The examples of a directory that `data.builder.build` wrote, in the order of its source.

    Files are opened at the first use, in whichever process that is.
    """

    def __init__(self, directory: str | epath.Path) -> None:
        self.directory = epath.Path(directory)
        if not (self.directory / DATASET_INFO_FILE).exists():
            raise UserError(f"{self.directory}: not a built data set; make one with `mmrlhf data build SRC OUT`")
        self._length, self.fingerprint = _read_info(self.directory)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Example:
        """The example at `index` in [0, len)."""
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        stored = self._data_source[index]
        record = record_from_json(json.loads(stored["record"]), f"{self.directory}: example {index}")
        return Example(record, tuple(stored["images"]), tuple(stored["frames"]))

    @functools.cached_property
    def records(self) -> list[RankedRecord]:
        """All records, read without their media."""
        from mmrlhf_jax.data.sources import ranked, rows

        return ranked.FORMAT.read(rows.read_rows(self.directory / RECORDS_FILE))

    @functools.cached_property
    def _data_source(self) -> Any:
        import tensorflow_datasets as tfds

        return tfds.builder_from_directory(self.directory).as_data_source("train")

    def __getstate__(self) -> dict[str, Any]:
        """Without open files, and without what the other process can read for itself."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_data_source", "records")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def open_examples(
    path: str | epath.Path, media_root: str | epath.Path | None = None, video_frames: int = 32
) -> SourceExamples | BuiltExamples:
    """A directory that was built, or a source file. The other arguments concern a source file only."""
    path = epath.Path(path)
    return BuiltExamples(path) if path.is_dir() else SourceExamples(path, media_root, video_frames)


def dump_record(record: RankedRecord) -> str:
    """A record as one line of the project's own JSONL form; equal records give equal lines."""
    return json.dumps(record.to_json(), sort_keys=True)


def _read_info(directory: epath.Path) -> tuple[int, str]:
    """(number of examples, source fingerprint) from the data set's metadata."""
    import tensorflow_datasets as tfds

    try:
        info = tfds.builder_from_directory(directory).info
    except Exception as error:  # whatever TFDS and protobuf raise for a file that is damaged or of another version
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{directory}: {DATASET_INFO_FILE} cannot be read ({reason}); build it again") from error
    fingerprint = (info.metadata or {}).get("fingerprint")
    if not isinstance(fingerprint, str) or "train" not in info.splits:
        raise UserError(f"{directory}: a data set of another program; make one with `mmrlhf data build SRC OUT`")
    return info.splits["train"].num_examples, fingerprint
