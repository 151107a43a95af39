"""A pass over all groups: each is in one row, a long one sets the size of its own rows alone, and what fits none is refused."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from mmrlhf_jax.data.encode import GroupEncoder
from mmrlhf_jax.data.mixture import open_examples
from mmrlhf_jax.data.scored_rows import check_lengths, scored_rows
from mmrlhf_jax.data.tokens import PieceTokenizer
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.models.llava_onevision.geometry import VisionGeometry
from tests import tiny

GEOMETRY = VisionGeometry(tiny.SIDE, 7, pinpoints=((tiny.SIDE, tiny.SIDE),), max_patches=9)


def encoder():
    return GroupEncoder(PieceTokenizer(tiny.tokenizer(), tiny.IMAGE_TOKEN), GEOMETRY, "qwen_1_5")


def write(path, lengths):
    """One record per number: a response of so many bytes, which are as many tokens, and one of five."""
    rows = [
        {"id": f"r{i}", "prompt": "Well?", "responses": [{"text": "x" * n, "rank": 1}, {"text": "short", "rank": 2}]}
        for i, n in enumerate(lengths)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return open_examples(path)


def places(parts):
    return sorted(int(g) for rows in parts for t in range(rows.count(1)) for g in rows.groups(t))


@pytest.mark.parametrize(("long", "where"), [([3000], [7]), ([2500, 4000], [0, 19])])
def test_a_few_long_records_do_not_set_the_size_of_the_others_rows(tmp_path, long, where):
    lengths = [40] * 20
    for place, length in zip(where, long, strict=True):
        lengths[place] = length
    ordinary, longer = parts = scored_rows(write(tmp_path / "records.jsonl", lengths), encoder())
    assert places(parts) == list(range(20))
    assert sorted(int(g) for t in range(longer.count(1)) for g in longer.groups(t)) == where
    alone = scored_rows(write(tmp_path / "others.jsonl", [40] * 20), encoder())
    assert len(alone) == 1 and ordinary.budget == alone[0].budget
    assert ordinary.budget.slots <= 512 < longer.budget.slots


def test_sets_of_like_lengths_have_rows_of_one_size_and_share_their_programs(tmp_path):
    rng = np.random.default_rng(0)
    budgets = set()
    for piece in range(3):
        (rows,) = scored_rows(write(tmp_path / f"{piece}.jsonl", rng.integers(150, 200, 30).tolist()), encoder())
        budgets.add(rows.budget)
    assert len(budgets) == 1


@pytest.mark.parametrize(
    ("lengths", "slots", "said"),
    [
        ([40, 900, 40, 1000], 512, r"2 of 4 records need more than 512 slots; 'r1' needs 9\d\d: give as many by --slots"),
        ([9000], 8192, r"1 of 1 records need more than 8192 slots; 'r0' needs 90\d\d"),
    ],
)
def test_a_record_that_exceeds_the_slots_is_refused_by_its_id(tmp_path, lengths, slots, said):
    examples = write(tmp_path / "records.jsonl", lengths)
    for refuse in (scored_rows, check_lengths):
        with pytest.raises(UserError, match=said):
            refuse(examples, encoder(), slots)
    parts = scored_rows(examples, encoder(), 2 * max(lengths))
    assert places(parts) == list(range(len(lengths)))
    assert all(dataclasses.astuple(rows.budget)[0] <= 2 * max(lengths) + 127 for rows in parts)
