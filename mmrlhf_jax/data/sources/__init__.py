"""Readers of ranked and paired preference data, one module per input format. All of them return `RankedRecord`s.

To add a format, write a module with a `FORMAT` and list it below. A file is read by the first format whose `matches` accepts
its first row; a row that another format would read is refused.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from etils import epath

from mmrlhf_jax.data.sources import (
    llama_factory,
    mmrb2,
    mmrlhf_annotations,
    mmrlhf_pairs,
    not_pairs,
    preference_rows,
    question_rows,
    ranked,
    reward_benches,
    swift_rows,
    vlfeedback,
)
from mmrlhf_jax.data.sources.fields import check_is_path
from mmrlhf_jax.data.sources.folding import ContradictingPairs, free_id
from mmrlhf_jax.data.sources.rank_by import rank_unranked
from mmrlhf_jax.data.sources.rows import Format, OnError, Row, read_rows
from mmrlhf_jax.data.sources.shards import SourceFiles, find_files
from mmrlhf_jax.data.sources.unread import checked
from mmrlhf_jax.errors import UserError, shown
from mmrlhf_jax.records import RankedRecord

_FORMATS: tuple[Format, ...] = (
    reward_benches.VL_REWARD_BENCH,
    reward_benches.MULTIMODAL_REWARD_BENCH,
    mmrb2.FORMAT,
    swift_rows.FORMAT,
    vlfeedback.FORMAT,
    ranked.FORMAT,
    mmrlhf_annotations.FORMAT,
    mmrlhf_pairs.FORMAT,
    question_rows.QUESTIONS,
    question_rows.RLHF_V,
    llama_factory.FORMAT,
    preference_rows.FORMAT,
)

# Every reader's rows pass the same checks of tags and media.
FORMATS = tuple(checked(format_) for format_ in _FORMATS)
# For prompts that a model is to answer: rows may lack responses, which none of the other uses can do without.
PROMPT_FORMATS = tuple(checked(ranked.PROMPTS if format_ is ranked.FORMAT else format_) for format_ in _FORMATS)


class UsedTwice(UserError):
    """Two records of a file have the same id."""


@dataclasses.dataclass(frozen=True)
class Source:
    """The records of a source, in its order, with their format and files.

    `notes` are lines on changes that were made to the records (new ids, ranks from scores).
    """

    records: list[RankedRecord]
    format: Format
    files: SourceFiles
    notes: tuple[str, ...] = ()

    def rows(self, record: RankedRecord) -> int:
        """The number of rows of the file that the record was made from."""
        return max(1, len(record.pairs())) if self.format.row == "pair" else 1


def read_records(path: str | epath.Path, on_error: OnError | None = None) -> list[RankedRecord]:
    """The records of `read_source`."""
    return read_source(path, on_error).records


def read_source(
    path: str | epath.Path, on_error: OnError | None = None, rank_by: str | None = None, prompts: bool = False
) -> Source:
    """Read all records of a source, in its order (a group that is folded from pairs has the place of its first pair).

    `path` is a file, a folder of files, or a pattern (`shards.find_files`). The format is recognised from the first row of each
    file, and must be the same in all files and rows. Raises UserError for a missing or empty file, a truncated line (with its
    number), an unknown format, a field that is missing or has the wrong type, a row of another format, an id that is used
    twice, and pairs that contradict each other. With `on_error`, errors of single rows or groups are passed to it instead, and
    all other rows are read. `rank_by` names a score by which records without any rank are ranked (`rank_by.rank_unranked`).
    With `prompts`, rows of the project's own form may lack responses.
    """
    files = find_files(path)
    rows: list[Row] = []
    format_, known = None, PROMPT_FORMATS if prompts else FORMATS
    for file in files.files:
        of_file = read_rows(file, on_error, files.name(file))
        own = recognise(of_file[0], known)
        if format_ is not None and own is not format_:
            raise UserError(f"{file}: is in the form {own.name}, but {files.files[0].name} is {format_.name}; name one of them")
        format_ = own
        rows += of_file
    records = _join(format_, _parse(format_, rows, on_error, known), on_error)
    notes: list[str] = []
    if format_.repeats_ids:
        records = _renamed(records, path, notes)
    if format_.remark is not None and (remark := format_.remark(records)):
        notes.append(f"{path}: {remark}")
    records = _with_paths(_with_own_ids(records, path, on_error), path, on_error)
    if rank_by is not None:
        records = rank_unranked(records, rank_by, str(path), notes)
    return Source(records, format_, files, tuple(notes))


def recognise(first: Row, known: Sequence[Format] = FORMATS) -> Format:
    """The format of a file, recognised by its first row. UserError for an unknown one."""
    if named := not_pairs.name_of(first.data):
        raise UserError(f"{first.where}: {named}")
    format_ = _own_format(first, known)
    if format_ is None:
        names = "; ".join(f.name for f in known)
        found = f"unknown format, fields {shown(sorted(first.data))}"
        raise UserError(f"{first.where}: {found}{_nearest(first, known)}; known are: {names}")
    return format_


def _own_format(row: Row, known: Sequence[Format]) -> Format | None:
    return next((format_ for format_ in known if format_.matches(row.data)), None)


def _check_form(row: Row, format_: Format, first: Row, known: Sequence[Format]) -> None:
    """UserError for a row that would be recognised as another format if it were the first, because its fields then have another
    meaning."""
    own = _own_format(row, known)
    if own is not None and own is not format_:
        names, others = ({name for name, value in each.data.items() if value is not None} for each in (row, first))
        unlike = sorted(names ^ others)
        told = f" (only one of them has the fields {shown(unlike)})" if unlike else ""
        raise UserError(
            f"{row.where}: is in the form {own.name}, but {first.where} is {format_.name}{told}; give all rows the same fields,"
            " or make two files of them"
        )


def _nearest(first: Row, known: Sequence[Format]) -> str:
    """In words, the format that shares most fields with the row; "" if none shares any."""
    shared = {format_: len(first.data.keys() & set(re.findall(r"\w+", format_.fields))) for format_ in known}
    nearest = max(known, key=shared.__getitem__)
    return f"; the nearest is {nearest.name} ({nearest.fields})" if shared[nearest] else ""


def drop_contradictions(report: OnError) -> OnError:
    """An `on_error` that leaves out groups with contradicting pairs, calls `report` for each, and raises other errors."""

    def on_error(error: UserError) -> None:
        if not isinstance(error, ContradictingPairs):
            raise error
        for group in error.groups:
            report(UserError(f"pairs contradict each other under id {group}; the group is left out"))

    return on_error


def _parse(format_: Format, rows: list[Row], on_error: OnError | None, known: Sequence[Format]) -> list[Any]:
    parsed = []
    for row in rows:
        try:
            item = format_.parse(row)
            _check_form(row, format_, rows[0], known)
            parsed.append(item)
        except UserError as error:
            if on_error is None:
                raise
            on_error(error)
    return parsed


def _join(format_: Format, parsed: list[Any], on_error: OnError | None) -> list[RankedRecord]:
    if on_error is None:
        return format_.join(parsed)
    try:
        return format_.join(parsed)
    except ContradictingPairs as error:
        on_error(error)
        wrong = set(error.rows)
        return format_.join([item for number, item in enumerate(parsed) if number not in wrong])
    except UserError as error:  # an error of the whole file
        on_error(error)
        return []


def _renamed(records: list[RankedRecord], path: str | epath.Path, notes: list[str]) -> list[RankedRecord]:
    """The records with unique ids: later ones with the same id are renamed, with a note."""
    taken: set[str] = set()
    named = [dataclasses.replace(record, id=free_id(record.id, taken)) for record in records]
    changed = [(old.id, new.id) for old, new in zip(records, named, strict=True) if old.id != new.id]
    if changed:
        ids = len({old for old, _ in changed})
        old, new = changed[0]
        more = f"{len(changed)} later records are renamed, the first from {old!r} to {new!r}"
        notes.append(f"{path}: {ids} ids occur more than once; {more}")
    return named


def _with_paths(records: list[RankedRecord], path: str | epath.Path, on_error: OnError | None) -> list[RankedRecord]:
    """The records whose media are paths and not inline data. Not every format checks this itself."""
    kept = []
    for record in records:
        try:
            for media in (*record.images, *filter(None, [record.video])):
                check_is_path(media, "image" if record.images else "video", f"{path}: record {shown(record.id)}")
            kept.append(record)
        except UserError as error:
            if on_error is None:
                raise
            on_error(error)
    return kept


def _with_own_ids(records: list[RankedRecord], path: str | epath.Path, on_error: OnError | None) -> list[RankedRecord]:
    seen: dict[str, int] = {}
    kept = []
    for number, record in enumerate(records, start=1):
        if record.id not in seen:
            seen[record.id] = number
            kept.append(record)
            continue
        twice = f"by records {seen[record.id]} and {number}"
        error = UsedTwice(f"{path}: id {shown(record.id)} is used twice, {twice}; give every record its own")
        if on_error is None:
            raise error
        on_error(error)
    return kept
