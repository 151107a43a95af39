"""Readers of ranked and paired preference data. One file per input format; all of them give `RankedRecord`s.

To add a format, write a module with a `FORMAT` and list it below; the first whose `matches` accepts the first row reads
the file.
"""

from __future__ import annotations

from etils import epath

from mmrlhf_jax.data.sources import mmrlhf_annotations, mmrlhf_pairs, preference_rows, ranked
from mmrlhf_jax.data.sources.rows import Format, read_rows, shown
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.records import RankedRecord

FORMATS: tuple[Format, ...] = (
    ranked.FORMAT,
    mmrlhf_annotations.FORMAT,
    mmrlhf_pairs.FORMAT,
    preference_rows.FORMAT,
)


def read_records(path: str | epath.Path) -> list[RankedRecord]:
    """All records of a source file, in the file's order (a folded group stands where its first pair stood).

    The format is recognised from the first row. Raises UserError for a missing or empty file, a torn line (with its
    number), a format that is none of `FORMATS`, a field that is missing or ill-typed, and an id used twice.
    """
    path = epath.Path(path)
    rows = read_rows(path)
    first = rows[0]
    format_ = next((known for known in FORMATS if known.matches(first.data)), None)
    if format_ is None:
        known = "; ".join(f"{f.name} ({f.fields})" for f in FORMATS)
        raise UserError(f"{first.where}: unknown format, fields {shown(sorted(first.data))}; understood are: {known}")
    records = format_.read(rows)
    _check_ids(records, path)
    return records


def _check_ids(records: list[RankedRecord], path: epath.Path) -> None:
    seen: dict[str, int] = {}
    for number, record in enumerate(records, start=1):
        if record.id in seen:
            twice = f"by records {seen[record.id]} and {number}"
            raise UserError(f"{path}: id {record.id!r} is used twice, {twice}; give every record its own")
        seen[record.id] = number
