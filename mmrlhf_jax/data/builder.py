"""`mmrlhf data build`: a source and its media into one TFDS data set of ArrayRecord files.

An example holds the record as JSON text and the media's original bytes; nothing is re-encoded, except frames cut from a video
file. Examples are in the order of the source. TensorFlow is not needed, neither to write nor to read the result.

Files and metadata have TFDS's format, but TFDS's writer is not used, because it starts over after a kill and is parallel only
on Beam.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

from etils import epath

from mmrlhf_jax.data.built_examples import DATASET_INFO_FILE, LAYOUTS_FILE, RECORDS_FILE, BuiltExamples
from mmrlhf_jax.data.digests import digest
from mmrlhf_jax.data.examples import Progress, compute_digests, dump_record, fingerprint_of
from mmrlhf_jax.data.mixture import find_parts, open_examples
from mmrlhf_jax.data.shards import NAME, Shard, features, plan_shards, write_shards, write_shards_with_beam
from mmrlhf_jax.data.sources import OnError
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.files import entries
from mmrlhf_jax.ownership import Ownership
from mmrlhf_jax.sole_writer import LOCK, sole_writer
from mmrlhf_jax.workplace import is_filled, place_of

logger = logging.getLogger(__name__)

MARK = "unfinished"  # a file in the workplace that names the source being built


def build(
    source: str | epath.Path,
    out_dir: str | epath.Path,
    media_root: str | epath.Path | None = None,
    *,
    video_frames: int = 32,
    jobs: int | None = None,
    beam_options: Sequence[str] | None = None,
    on_error: OnError | None = None,
    rank_by: str | None = None,
    video_fps: float | None = None,
    frames_per_second: float | None = None,
    on_note: Callable[[str], None] | None = None,
    progress: Progress | None = None,
) -> BuiltExamples:
    """Build `source` (a file or a mixture file) into the directory `out_dir`, which appears complete or not at all.

    If `out_dir` is in an object store (gs://) or is a mount point, it cannot be renamed into place: its shards appear one by
    one, and it becomes a data set when its metadata is written last.

    Every image is decoded once, to check it. `jobs` processes write in parallel (None: one per core), or the workers of an
    Apache Beam pipeline with `beam_options`. Unfinished work is kept in `.OUT.building` beside `out_dir`; the same call
    continues it after a kill or an error in the source. `on_error` and `rank_by` are passed to `sources.read_source`, and
    `video_fps` and `frames_per_second` to `SourceExamples`, and
    `on_note` is called with its notes. `progress(stage, done, total)` is called per record. If `out_dir` already holds a build
    of the same content, that is returned, and the last call is progress("reused", n, n).

    Raises UserError for errors in the source or its media (naming the record), for an `out_dir` with other contents, and for
    one that another process is building.
    """
    examples = _open_sources(source, media_root, video_frames, on_error, rank_by, video_fps, frames_per_second)
    for note in examples.notes if on_note else ():
        on_note(note)
    out, workplace = place_of(out_dir, "building")
    # If `out` cannot be replaced by a rename, shards are written directly into it, and dataset_info.json is written last.
    directory = out if is_filled(out) else workplace / "data"
    if _is_in_use(out, workplace) and not _is_unfinished(out, workplace):
        found = _reuse(out, examples, progress)
        if workplace.exists():  # left by a build that was killed after its rename, or that is just finishing
            with contextlib.suppress(UserError), sole_writer(workplace, out, "is building it") as lock:
                lock.clear()
        return found
    planned = plan_shards(examples, directory, workplace / "notes")
    with sole_writer(workplace, out, "is building it") as lock:
        if _is_in_use(out, workplace) and not _is_unfinished(out, workplace):  # another process has built it meanwhile
            found = _reuse(out, examples, progress)
            lock.clear()
            return found
        _write(lock, planned, directory, workplace, source, jobs, beam_options, progress)
        lock.check(at_once=True)
        _complete(planned, directory, examples)
        _move(directory, out)
        lock.clear()
    return BuiltExamples(out)


def _move(directory: epath.Path, out: epath.Path) -> None:
    """Rename the complete data set to `out`, unless it was written there."""
    if directory != out:
        if out.exists():  # empty
            out.rmdir()
        directory.rename(out)


def _open_sources(
    source: str | epath.Path,
    media_root: str | epath.Path | None,
    video_frames: int,
    on_error: OnError | None,
    rank_by: str | None,
    video_fps: float | None,
    frames_per_second: float | None,
):
    """The examples of a source. UserError if it has weights, holds a data set that is already built, or has no group left."""
    if any(part.weight != 1 for part in find_parts(source)):
        raise UserError(f"{source}: weights are for training; build the sets without them and list them in data.path")
    examples = open_examples(
        source, media_root, video_frames, on_error, rank_by, video_fps=video_fps, frames_per_second=frames_per_second
    )
    if not hasattr(examples, "part") or any(isinstance(inner, BuiltExamples) for inner in getattr(examples, "sets", ())):
        raise UserError(f"{source}: holds what is built already; name source files")
    for inner in getattr(examples, "sets", [examples]):
        if not len(inner):
            raise UserError(f"{inner.path}: nothing is left of it, every group was left out; correct it, or leave it out")
    return examples


def _write(
    lock: Ownership,
    planned: Sequence[Shard],
    directory: epath.Path,
    workplace: epath.Path,
    source: str | epath.Path,
    jobs: int | None,
    beam_options: Sequence[str] | None,
    progress: Progress | None,
) -> None:
    """Write the shards that are not finished. After an error the finished shards are kept; if there is none, all is removed."""
    for folder in (directory, workplace / "notes"):
        folder.mkdir(parents=True, exist_ok=True)
    (workplace / MARK).write_text(f"{source}\n")
    _remove_others(planned, directory, workplace)
    try:
        if beam_options is None:
            write_shards(planned, os.cpu_count() or 1 if jobs is None else jobs, progress)
        else:
            write_shards_with_beam(planned, beam_options)
    except BaseException:
        if not any(shard.note() for shard in planned):  # no shard is finished
            for shard in planned:
                shard.path.unlink(missing_ok=True)
            lock.clear()
        raise


def _complete(planned: Sequence[Shard], directory: epath.Path, examples: Any) -> None:
    """Write the metadata that makes a folder of shards a TFDS data set."""
    import tensorflow_datasets as tfds

    notes = [shard.note() for shard in planned]
    lost = [shard.path.name for shard, note in zip(planned, notes, strict=True) if note is None]
    if lost:
        raise UserError(f"{directory}: {len(lost)} files were not written, the first is {lost[0]}; run the same command again")
    records = "".join(dump_record(record) + "\n" for record in examples.records).encode()
    layouts = "".join(layout + "\n" for note in notes for layout in note.layouts).encode()
    for name, content in ((RECORDS_FILE, records), (LAYOUTS_FILE, layouts)):
        (directory / name).write_bytes(content)
    digests = (bytes.fromhex(digest) for note in notes for digest in note.digests)
    template = tfds.core.ShardedFileTemplate(
        data_dir=directory, dataset_name=NAME, split="train", filetype_suffix="array_record"
    )
    split = tfds.core.SplitInfo(
        name="train",
        shard_lengths=[len(shard.examples) for shard in planned],
        num_bytes=sum(note.size for note in notes),
        filename_template=template,
    )
    tfds.folder_dataset.write_metadata(
        data_dir=directory,
        features=features(),
        split_infos=[split],
        filename_template=template,
        check_data=False,
        description="Ranked multimodal preferences: one prompt with its media and ranked responses per example.",
        metadata=tfds.core.MetadataDict(
            fingerprint=fingerprint_of(digests),
            video_frames=examples.video_frames,
            files={RECORDS_FILE: digest(records), LAYOUTS_FILE: digest(layouts)},
        ),
        disable_shuffling=True,
    )


def _is_in_use(out: epath.Path, workplace: epath.Path) -> bool:
    return out.exists() and not (out.is_dir() and all(path == workplace for path in out.iterdir()))


def _is_unfinished(out: epath.Path, workplace: epath.Path) -> bool:
    """Whether `out` holds shards of an interrupted build."""
    return is_filled(out) and (workplace / MARK).exists() and not (out / DATASET_INFO_FILE).exists()


def _reuse(out: epath.Path, examples: Any, progress: Progress | None) -> BuiltExamples:
    if not (out / DATASET_INFO_FILE).exists():
        raise UserError(f"{out}: already exists and is not a built data set; choose another OUT")
    built = BuiltExamples(out)
    if built.fingerprint != fingerprint_of(compute_digests(examples, progress)):
        raise UserError(f"{out}: holds a data set built from other content; choose another OUT, or remove it first")
    logger.info("%s: already built from the same content, reused", out)
    if progress:
        progress("reused", len(built), len(built))
    return built


def _remove_others(planned: Sequence[Shard], directory: epath.Path, workplace: epath.Path) -> None:
    """Remove files of an earlier build of other content, and temporary files of a killed process."""
    known = {shard.path.name for shard in planned}
    for path in entries(directory):
        if path.name not in known and path != workplace:  # the workplace lies inside if `out` is a whole bucket
            path.unlink()
    for path in entries(workplace):
        if path.name not in (directory.name, "notes", MARK) and LOCK not in path.name:  # left by a killed writer
            path.rmtree()
