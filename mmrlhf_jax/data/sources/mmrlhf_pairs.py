"""MM-RLHF `dpo_pairs.jsonl` and RewardBench files: one strictly ordered pair per row, folded back into groups."""

from __future__ import annotations

from typing import Any

from mmrlhf_jax.data.sources.fields import (
    media_before_text,
    media_in_place,
    open_record,
    pop_media,
    pop_optional_text,
    pop_text,
)
from mmrlhf_jax.data.sources.folding import PairRow, fold, pop_tie
from mmrlhf_jax.data.sources.rows import Format, Row


def _parse(row: Row) -> PairRow:
    data, record_id, where = open_record(row, "; the pairs of one prompt share an id")
    # MM-RLHF's own files use `image`, with all media before the text. In files that use `images`, tags are the media's places.
    place = media_in_place if data.get("images") else media_before_text
    images, video = media = pop_media(data, where)
    return PairRow(
        where=row.where,
        id=record_id,
        images=images,
        video=video,
        prompt=place(pop_text(data, "prompt", where), media, where),
        chosen=pop_text(data, "chosen", where),
        rejected=pop_text(data, "rejected", where),
        chosen_reason=pop_optional_text(data, "chosen_reason", where),
        rejected_reason=pop_optional_text(data, "rejected_reason", where),
        is_tie=pop_tie(data, where),
        source=pop_optional_text(data, "source", where),
        extra=data,
    )


def _matches(row: dict[str, Any]) -> bool:
    has_all = all(name in row for name in ("prompt", "chosen", "rejected")) and row.get("id") is not None
    return has_all and isinstance(row["chosen"], str)


FORMAT = Format(
    "MM-RLHF dpo_pairs.jsonl or RewardBench pairs",
    "id, image|video, prompt, chosen, rejected, chosen_reason, rejected_reason",
    _matches,
    _parse,
    fold,
    row="pair",
)
