"""`mmrlhf data build`: a source file and its media into one TFDS data set of ArrayRecord files.

An example holds the record as JSON text and the media's original bytes; nothing is re-encoded (frames cut from a video
file apart). Examples stand in the order of the source. TensorFlow is not needed, here or to read the result.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import os
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath

from mmrlhf_jax.data.examples import (
    DATASET_INFO_FILE,
    RECORDS_FILE,
    BuiltExamples,
    Example,
    Progress,
    SourceExamples,
    dump_record,
)
from mmrlhf_jax.data.media import check_image
from mmrlhf_jax.errors import UserError

logger = logging.getLogger(__name__)

SHARD_BYTES = 128 << 20  # media per file; a shard is held in memory while it is written


def build(
    source: str | epath.Path,
    out_dir: str | epath.Path,
    media_root: str | epath.Path | None = None,
    *,
    video_frames: int = 32,
    progress: Progress | None = None,
) -> BuiltExamples:
    """Build `source` into the directory `out_dir`, which appears complete or not at all.

    Every image is decoded once, to prove that it can be. `progress(stage, done, total)` is called per record, in the
    stages "fingerprint" (reading) and "write"; where `out_dir` already holds a build of the very same content, that one
    is returned, and the last call is progress("reused", n, n). Raises UserError for whatever is wrong with the source
    or its media (naming the record), and for an `out_dir` that holds anything else.
    """
    examples = SourceExamples(source, media_root, video_frames)
    out = epath.Path(out_dir)
    fingerprint = examples.compute_fingerprint(progress)
    if _is_in_use(out):
        return _reuse(out, fingerprint, progress)
    # A sibling, so that the rename stays within one file system. Named after its content: what a killed build left
    # behind is found (and cleared) by the next one.
    workplace = out.parent / f".{out.name}.{fingerprint[:12]}.building"
    _remove(workplace)
    workplace.mkdir(parents=True)
    try:
        builder = RankedPreferences(examples, progress, data_dir=workplace)
        builder.download_and_prepare()
        lines = "".join(dump_record(record) + "\n" for record in examples.records)
        (builder.data_path / RECORDS_FILE).write_text(lines)
        if out.exists():  # empty
            out.rmdir()
        builder.data_path.rename(out)
    finally:
        _remove(workplace)
    return BuiltExamples(out)


class RankedPreferences(tfds.core.ShardBasedBuilder, skip_registration=True):
    """The TFDS builder. Shards are written one after the other and keep the order of the source."""

    name = "ranked_preferences"
    VERSION = tfds.core.Version("1.0.0")
    # Nothing is downloaded: no checksums to look for (for which TFDS 4.9.10 needs importlib_resources, undeclared).
    url_infos = None

    def __init__(self, examples: SourceExamples, progress: Progress | None = None, **kwargs: Any) -> None:
        self._examples = examples
        self._progress = progress
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        encoded = tfds.features.Tensor(shape=(None,), dtype=np.object_)
        return tfds.core.DatasetInfo(
            builder=self,
            description="Ranked multimodal preferences: one prompt with its media and ranked responses per example.",
            features=tfds.features.FeaturesDict({"record": tfds.features.Text(), "images": encoded, "frames": encoded}),
            metadata=tfds.core.MetadataDict(fingerprint=self._examples.fingerprint, video_frames=self._examples.video_frames),
            disable_shuffling=True,
        )

    def _shard_iterators_per_split(self, dl_manager: tfds.download.DownloadManager) -> dict[str, list[_Shard]]:
        del dl_manager  # nothing is downloaded
        bounds = _shard_bounds(self._examples)
        return {"train": [_Shard(self._examples, a, b, self._progress) for a, b in itertools.pairwise(bounds)]}

    def _example_writer(self) -> tfds.core.ExampleWriter:
        return _UncompressedWriter(self.info.file_format)

    # TFDS announces downloads on standard output; there are none, and the caller shows progress.
    def _log_download_bytes(self) -> None: ...

    def _log_download_done(self) -> None: ...


class _UncompressedWriter(tfds.core.ExampleWriter):
    """ArrayRecord without compression of its own: media are compressed already.

    On photographs the default (brotli) saves nothing, writes 6 times and reads 3 times slower.
    """

    def write(self, path: epath.PathLike, examples: Iterable[tuple[int, bytes]]) -> None:
        writer = ArrayRecordWriter(os.fspath(path), "group_size:1,uncompressed")
        try:
            for _, example in examples:
                writer.write(example)
        finally:
            writer.close()


@dataclasses.dataclass(frozen=True)
class _Shard:
    """Generates the examples of one file: those numbered [start, stop) in the source."""

    examples: SourceExamples
    start: int
    stop: int
    progress: Progress | None

    def __call__(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for index in range(self.start, self.stop):
            example = self.examples[index]
            _check_media(example, f"{self.examples.path}: record {example.record.id!r}")
            yield (
                index,
                {
                    "record": dump_record(example.record),
                    "images": _object_array(example.images),
                    "frames": _object_array(example.frames),
                },
            )
            if self.progress:
                self.progress("write", index + 1, len(self.examples))


def _check_media(example: Example, where: str) -> None:
    for path, data in zip(example.record.images, example.images, strict=True):
        check_image(data, f"{where}, image {path!r}")
    for number, data in enumerate(dict.fromkeys(example.frames), start=1):
        check_image(data, f"{where}, video {example.record.video!r}, frame {number}")


def _shard_bounds(examples: SourceExamples) -> list[int]:
    """0, the first example of every further shard, and the number of examples."""
    bounds, size = [0], 0
    for index in range(len(examples)):
        size += sum(file.stat().length for file in examples.media_files(index))
        if size > SHARD_BYTES and index > bounds[-1]:
            bounds.append(index)
            size = 0
    return [*bounds, len(examples)]


def _object_array(values: tuple[bytes, ...]) -> np.ndarray:
    # NumPy's own byte strings would drop trailing zero bytes.
    array = np.empty(len(values), dtype=np.object_)
    array[:] = values
    return array


def _is_in_use(out: epath.Path) -> bool:
    return out.exists() and not (out.is_dir() and next(iter(out.iterdir()), None) is None)


def _reuse(out: epath.Path, fingerprint: str, progress: Progress | None) -> BuiltExamples:
    if not (out / DATASET_INFO_FILE).exists():
        raise UserError(f"{out}: already exists and is not a built data set; choose another OUT")
    built = BuiltExamples(out)
    if built.fingerprint != fingerprint:
        raise UserError(f"{out}: holds a data set built from other content; choose another OUT, or remove it first")
    logger.info("%s: already built from the same content, reused", out)
    if progress:
        progress("reused", len(built), len(built))
    return built


def _remove(directory: epath.Path) -> None:
    if directory.exists():
        directory.rmtree()
