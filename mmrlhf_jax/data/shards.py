"""Shards of a built data set: each is written atomically by one process, and only once.

A finished shard has two files: its ArrayRecord file, and a note with digests of its source and its contents. A repeated build
skips every shard whose note still matches its source. So after a kill only unfinished shards are written again, and after a
corrected image only its shard.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath

from mmrlhf_jax import strict_json
from mmrlhf_jax.cleanup import Cleanup
from mmrlhf_jax.data.built_examples import dump_layout
from mmrlhf_jax.data.examples import Example, Layout, Progress, dump_record
from mmrlhf_jax.data.hub import content_id
from mmrlhf_jax.data.images import decode_image
from mmrlhf_jax.data.processes import CONTEXT, spawn_pool
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.files import is_remote, read_text, write_atomically

SHARD_BYTES = 128 << 20  # of media per file
SHARD_EXAMPLES = 4096
NAME = "ranked_preferences"


@dataclasses.dataclass(frozen=True)
class Note:
    """The contents of a finished shard: per example, its SHA-256 (`SourceExamples.digest`) and the sizes of its media."""

    digests: tuple[str, ...]
    layouts: tuple[str, ...]  # JSON lines
    size: int  # of the shard's file, in bytes


@dataclasses.dataclass(frozen=True)
class Shard:
    """A file to write: its examples (of a source, or of a mixture of sources), in order."""

    examples: Any
    path: epath.Path
    notes: epath.Path  # folder of notes, outside of the data set
    key: str  # digest of the records and the state (size, time of change) of their media files

    @property
    def note_path(self) -> epath.Path:
        return self.notes / f"{self.path.name}.json"

    @property
    def error_path(self) -> epath.Path:
        return self.note_path.with_suffix(".error")

    def note(self) -> Note | None:
        """The note of a finished shard; None if it is missing, or if the shard was made from another state of the source."""
        if not self.note_path.exists() or not self.path.exists():
            return None
        stored = strict_json.loads(read_text(self.note_path))
        if stored.pop("key") != self.key:
            return None
        return Note(tuple(stored["digests"]), tuple(stored["layouts"]), stored["size"])


def plan_shards(examples: Any, directory: epath.Path, notes: epath.Path) -> list[Shard]:
    """Split a source into shards of at most about SHARD_BYTES of media; files go into `directory`, notes into `notes`."""
    with ThreadPoolExecutor(32) as pool:  # getting file sizes is slow on remote file systems
        states = list(pool.map(lambda index: _media_state(examples, index), range(len(examples))))
    bounds, size = [0], 0
    for index, state in enumerate(states):
        size += sum(length for _, length, _ in state)
        if index > bounds[-1] and (size > SHARD_BYTES or index - bounds[-1] >= SHARD_EXAMPLES):
            bounds.append(index)
            size = sum(length for _, length, _ in state)
    bounds.append(len(examples))
    shards = []
    for number, (start, stop) in enumerate(itertools.pairwise(bounds)):
        part = examples.part(range(start, stop))
        name = f"{NAME}-train.array_record-{number:05d}-of-{len(bounds) - 1:05d}"
        content = [
            part.video_frames,
            part.video_fps,
            part.frames_per_second,
            [dump_record(record) for record in part.records],
            states[start:stop],
        ]
        key = hashlib.sha256(strict_json.dumps(content).encode()).hexdigest()
        shards.append(Shard(part, directory / name, notes, key))
    return shards


def write_shard(shard: Shard, tick: Callable[[], None] | None = None) -> None:
    """Write a shard, then its note; `tick` is called per example. A finished shard is not written again.

    Every image and frame is decoded once, to check it. Raises UserError, naming the record, for one that cannot be decoded.
    """
    if shard.note() is not None:
        return
    shard.note_path.unlink(missing_ok=True)  # a note of the file's previous contents
    digests, layouts = [], []
    with _LocalCopy(shard.path, shard.notes.parent) as file:
        # No compression, because media are compressed already. For photographs the default (brotli) saves nothing, and writes 6
        # times and reads 3 times slower.
        writer = ArrayRecordWriter(os.fspath(file), "group_size:1,uncompressed")
        with Cleanup() as cleanup:
            cleanup.add(os.fspath(file), writer.close)
            for index in range(len(shard.examples)):
                example = shard.examples[index]
                layout = check_media(example, shard.examples.where(index))
                digests.append(shard.examples.digest(index, example).hex())
                layouts.append(dump_layout(dataclasses.replace(layout, content=shard.examples.media_content(index))))
                writer.write(_serialised(example))
                if tick:
                    tick()
    stored = {"key": shard.key, "digests": digests, "layouts": layouts, "size": shard.path.stat().length}
    write_atomically(shard.note_path, strict_json.dumps(stored).encode())


def check_media(example: Example, where: str) -> Layout:
    """Decode all media and return their sizes. Raises UserError for media that cannot be decoded."""
    sizes = []
    for path, data in zip(example.record.images, example.images, strict=True):
        width, height = decode_image(data, f"{where}, image {path!r}").size
        sizes.append((height, width))
    for number, data in enumerate(dict.fromkeys(example.frames), start=1):
        decode_image(data, f"{where}, video {example.record.video!r}, frame {number}")
    return Layout(tuple(sizes), example.video)


# Runners -------------------------------------------------------------------------------------------------------------


def write_shards(shards: Sequence[Shard], jobs: int, progress: Progress | None = None) -> None:
    """Write all shards on this machine with `jobs` processes. Raises the first UserError; finished shards are kept."""
    total = sum(len(shard.examples) for shard in shards)
    left = [shard for shard in shards if shard.note() is None]
    done = itertools.count(total - sum(len(shard.examples) for shard in left) + 1)

    def tick() -> None:
        number = next(done)
        if progress:
            progress("write", number, total)

    if jobs == 1 or len(left) <= 1:
        for shard in left:
            write_shard(shard, tick)
    else:
        _write_in_processes(left, jobs, tick)


def write_shards_with_beam(shards: Sequence[Shard], options: Sequence[str]) -> None:
    """Write all shards by an Apache Beam pipeline with these options. Its workers must be able to access the same paths."""
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise UserError("--beam needs Apache Beam; `pip install 'mmrlhf-jax[beam]'`") from None

    for shard in shards:
        shard.error_path.unlink(missing_ok=True)
    left = [shard for shard in shards if shard.note() is None]
    with beam.Pipeline(options=PipelineOptions(list(options))) as pipeline:
        _ = pipeline | beam.Create(left) | beam.Reshuffle() | beam.Map(_write_or_note_error)
    for shard in left:  # in order, so that the same error is raised every time
        if shard.error_path.exists():
            raise UserError(read_text(shard.error_path))


def _write_or_note_error(shard: Shard) -> None:
    """Write a shard; a UserError goes into a file, because Beam would retry a function that raises, and wrap its message."""
    try:
        write_shard(shard)
    except UserError as error:
        write_atomically(shard.error_path, str(error).encode())


_ticks: Any = None


def _adopt_ticks(ticks: Any) -> None:
    global _ticks
    _ticks = ticks


def _write_and_tick(shard: Shard) -> None:
    write_shard(shard, lambda: _ticks.put(None))


def _write_in_processes(shards: Sequence[Shard], jobs: int, tick: Callable[[], None]) -> None:
    ticks = CONTEXT.Queue()
    with spawn_pool(min(jobs, len(shards)), _adopt_ticks, ticks) as pool:
        running = {pool.submit(_write_and_tick, shard) for shard in shards}
        try:
            while running:
                finished, running = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
                for future in finished:
                    future.result()
                while not ticks.empty():
                    ticks.get()
                    tick()
        except BrokenProcessPool:
            raise UserError(
                "a process of the build was killed (out of memory?); run the same command again, perhaps with fewer --jobs:"
                " finished shards are kept"
            ) from None
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


class _LocalCopy:
    """A temporary local file that is moved or copied to `path` if the block succeeds. ArrayRecord writes only local files, and
    a kill must not leave a partial one.

    It is created in `scratch`, on the same disk as `path`; for a remote `path`, in the system's temporary directory.
    """

    def __init__(self, path: epath.Path, scratch: epath.Path) -> None:
        self.path, self.scratch = path, scratch

    def __enter__(self) -> Path:
        self.folder = tempfile.TemporaryDirectory(dir=None if is_remote(self.path) else self.scratch)
        self.file = Path(self.folder.name) / self.path.name
        return self.file

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if error is None:
            if is_remote(self.path):
                epath.Path(self.file).copy(self.path, overwrite=True)
            else:
                os.replace(self.file, self.path)
        self.folder.cleanup()


# Serialising ---------------------------------------------------------------------------------------------------------


@functools.cache
def features() -> Any:
    """The TFDS features of an example."""
    import tensorflow_datasets as tfds

    encoded = tfds.features.Tensor(shape=(None,), dtype=np.object_)
    return tfds.features.FeaturesDict({"record": tfds.features.Text(), "images": encoded, "frames": encoded})


@functools.cache
def _serializer() -> Any:
    from tensorflow_datasets.core import example_serializer

    return example_serializer.ExampleSerializer(features().get_serialized_info())


def _serialised(example: Example) -> bytes:
    content = {
        "record": dump_record(example.record),
        "images": _object_array(example.images),
        "frames": _object_array(example.frames),
    }
    return _serializer().serialize_example(features().encode_example(content))


def _object_array(values: tuple[bytes, ...]) -> np.ndarray:
    # Not a NumPy bytes array, which drops trailing zero bytes.
    array = np.empty(len(values), dtype=np.object_)
    array[:] = values
    return array


def _media_state(examples: Any, index: int) -> list[tuple[str, int, float | str]]:
    """(path, size in bytes, time of change) of every file of an example; the hub has no time of change, so its content id."""
    stats = [(file, file.stat()) for file in (*examples.media_files(index), *examples.frames_files(index))]
    return [(os.fspath(file), stat.length, content_id(file) or stat.mtime) for file, stat in stats]
