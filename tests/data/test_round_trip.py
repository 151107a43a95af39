"""What a reader gives is what is stored of it: no unknown field of a row, or of an answer, passes for a known one."""

import copy
import json
import random

import pytest

from mmrlhf_jax.data.sources import read_records, read_source
from mmrlhf_jax.records import Response, record_from_json
from tests.data.test_mutated_rows import CASES, FIRST, inside, mutate, places

KNOWN = {
    "text": "other", "rank": 7, "scores": {"ethics": 1.0}, "critique": "other", "critiques": ["other"], "reward": 9.5,
    "model": "other", "source": "other", "responses": ["other"], "media_places": [], "pairs": [{"chosen": 1, "rejected": 0}],
    "original_rank": 8, "original_text": "older",
}  # fmt: skip
BLANK = {"critiques": ["", " "], "critique": "\u200b", "original_critique": "x", "rank": None, "source": "s"}
MAPPINGS = ("scores", "annotations", "text")  # objects whose names are the data's own


def check_round_trip(path, rows):
    """How many records are read, all of which are read back from what is stored of them."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    records = read_source(path, lambda error: None).records
    for record in records:
        assert record_from_json(json.loads(json.dumps(record.to_json())), "stored") == record
    return len(records)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("fields", [KNOWN, BLANK])
def test_an_unknown_field_with_the_name_of_a_known_one_does_not_pass_for_it_in_any_format(tmp_path, name, fields):
    """Each name, in each object of a row of every format: one at a time, and all at once."""
    rng = random.Random(0)
    rows = [FIRST.get(name) or CASES[name][0](rng, 99)]
    for number in range(12):
        sound = CASES[name][0](rng, number)
        objects = [path for path in places(sound) if isinstance(inside(sound, path), dict) and path[-1] not in MAPPINGS]
        objects.append(())
        at_once = {one: value for one, value in fields.items() if one != "responses"}  # by which our own form is known
        for group in (at_once, *({one: fields[one]} for one in fields)):
            row = copy.deepcopy(sound)
            for path in objects:
                inside(row, path).update({one: value for one, value in group.items() if one not in inside(row, path)})
            rows.append(row | {key: f"{len(rows)}" for key in ("id", "ID", "idx") if key in row})
    assert check_round_trip(tmp_path / "rows.jsonl", rows) > len(rows) // 3


@pytest.mark.parametrize("name", CASES)
def test_whatever_is_read_of_mutated_rows_is_read_back_from_what_is_stored(tmp_path, name):
    rng = random.Random(1)
    rows = [CASES[name][0](rng, number) for number in range(150)]
    rows = [FIRST.get(name) or rows[0], *(mutate(row, rng, []) for row in rows[1:])]
    assert check_round_trip(tmp_path / "rows.jsonl", rows) > 30


def test_vlfeedbacks_own_rank_and_text_do_not_become_the_answers(tmp_path):
    rated = [
        {"response": text, "annotations": {"Helpfulness": {"Rating": rating}}} for text, rating in (("A", "5"), ("B", "1"))
    ]
    own = [{"rank": 2, "text": "OTHER", "reward": 3, "scores": [1], "critique": 4, "critiques": ["c"]}, {"rank": 1}]
    completions = [one | fields for one, fields in zip(rated, own, strict=True)]
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"id": "1", "prompt": "Which?", "image": "a.png", "completions": completions}))
    (record,) = read_records(path)
    stored = record_from_json(record.to_json(), "stored")
    assert [(r.text, r.rank, r.reward, r.critique) for r in stored.responses] == [("A", 1, None, None), ("B", 2, None, None)]
    assert stored.responses[0].extra["original_rank"] == 2 and stored.responses[1].extra["original_rank"] == 1


def test_several_critiques_stay_with_the_one_that_teaches_and_give_none_to_an_answer_without():
    kept = Response("A", critique="good", extra={"critiques": ["good", "fine"]})
    assert kept.extra == {"critiques": ["good", "fine"]}
    assert Response("A", extra={"critiques": ["good"]}).extra == {"original_critiques": ["good"]}


def test_a_column_that_names_a_side_does_not_change_which_answer_a_pairs_fields_are_of(tmp_path):
    row = {"id": "x", "query": "Which?", "response": "A", "images": []}
    rows = [row | {"rejected_response": text, "chosen": n, "rejected": n, "pairs": n} for n, text in enumerate("BC", 5)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    (record,) = read_records(path)
    own = {"original_chosen": 5, "original_rejected": 5, "pairs": 5}
    assert record.extra["pairs"][0] == {"chosen": 0, "rejected": 1} | own
