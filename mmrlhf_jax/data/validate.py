"""`mmrlhf data validate`: checks every record of a source and lists all errors, instead of stopping at the first."""

from __future__ import annotations

import collections
import dataclasses
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from etils import epath

from mmrlhf_jax.data.checks import MAX_TEXT, check_record
from mmrlhf_jax.data.examples import Progress
from mmrlhf_jax.data.mixture import find_parts, open_examples
from mmrlhf_jax.data.shards import check_media
from mmrlhf_jax.data.sources import ContradictingPairs, UsedTwice
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.places import WrongMedia
from mmrlhf_jax.records import RankedRecord


@dataclasses.dataclass(frozen=True)
class Finding:
    """An error in the data. `kind` is a category, by which findings are counted."""

    kind: str
    message: str


@dataclasses.dataclass(frozen=True)
class Report:
    """`notes` counts records that are valid, but from which a preference objective learns nothing; `remarks` are the notes of
    the sources."""

    records: int
    findings: tuple[Finding, ...]
    notes: collections.Counter[str]
    remarks: tuple[str, ...] = ()


def validate(
    source: str | epath.Path,
    media_root: str | epath.Path | None = None,
    *,
    video_frames: int = 32,
    video_fps: float | None = None,
    frames_per_second: float | None = None,
    max_text: int = MAX_TEXT,
    progress: Progress | None = None,
) -> Report:
    """Check a source file, a mixture file or a built directory. Raises UserError if it cannot be read at all."""
    findings: list[Finding] = []
    notes: collections.Counter[str] = collections.Counter()
    records = 0
    remarks: list[str] = []

    def note_error(error: UserError) -> None:
        findings.extend(_from_error(error))

    for part in find_parts(source):
        examples = open_examples(
            [part], media_root, video_frames, note_error, video_fps=video_fps, frames_per_second=frames_per_second
        )
        records += len(examples)
        remarks += getattr(examples, "notes", ())
        findings += _check_media(examples, progress)
        for number, record in enumerate(examples.records):
            where = examples.where(number)
            findings += (Finding(kind, f"{where}: {message}") for kind, message in check_record(record, max_text))
            notes.update(note_record(record))
    return Report(records, tuple(findings), notes, tuple(remarks))


def note_record(record: RankedRecord) -> Iterator[str]:
    """Yield the reason why a valid record gives no pair, if there is one."""
    ranks = [response.rank for response in record.responses]
    if len(ranks) == 1:
        yield "records of one response"
    elif all(rank is None for rank in ranks):
        yield "records without ranks"
    elif not record.pairs():
        yield "records whose responses are all tied"


def _check_media(examples: Any, progress: Progress | None) -> Iterator[Finding]:
    def check(number: int) -> Finding | None:
        try:
            check_media(examples[number], examples.where(number))
        except UserError as error:
            return Finding("media", str(error))
        return None

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoders release the GIL
        for done, finding in enumerate(pool.map(check, range(len(examples))), start=1):
            if finding:
                yield finding
            if progress:
                progress("media", done, len(examples))


def _from_error(error: UserError) -> Iterator[Finding]:
    if isinstance(error, ContradictingPairs):
        yield from (Finding("contradicting pairs", f"pairs contradict each other under id {group}") for group in error.groups)
    else:
        kind = "id used twice" if isinstance(error, UsedTwice) else "media" if isinstance(error, WrongMedia) else "unreadable"
        yield Finding(kind, str(error))
