"""A row that holds two prompts is refused by both of their names, whichever format it is in; one prompt twice is fine."""

import json

import pytest

from mmrlhf_jax.data.sources import read_records
from mmrlhf_jax.errors import UserError


def user(text):
    return [{"role": "user", "content": text}]


def human(text):
    return [{"from": "human", "value": text}]


PAIR = {"chosen": "A", "rejected": "B"}
SWIFT = {"response": "A", "rejected_response": "B"}
TURN = [*user("Which?"), {"role": "assistant", "content": "A"}]
ANSWERS = [{"text": "A", "rank": 1}, {"text": "B", "rank": 2}]
INSIDE = {"question": "Which?", "chosen": "A", "rejected": "B"}

# A row, the field that its prompt is read from, and another field that is called like a prompt.
ROWS = [
    (PAIR | {"prompt": "Which?"}, "prompt", "instruction"),
    (PAIR | {"prompt": user("Which?")}, "prompt", "messages"),
    (PAIR | {"prompt": "Which?"}, "prompt", "Text"),
    (PAIR | {"prompt": "Which?"}, "prompt", "input"),
    ({side: [*user("Which?"), {"role": "assistant", "content": side}] for side in PAIR}, "chosen", "Question"),
    (PAIR | {"id": "p", "prompt": "Which?"}, "prompt", "query"),
    (PAIR | {"question": "Which?"}, "question", "instruction"),
    (PAIR | {"question": "Which?"}, "question", "conversations"),
    (PAIR | {"instruction": "Which?"}, "instruction", "query"),
    (PAIR | {"conversations": human("Which?")}, "conversations", "messages"),
    (SWIFT | {"query": "Which?"}, "query", "prompt"),
    (SWIFT | {"query": "Which?"}, "query", "question"),
    (SWIFT | {"question": "Which?"}, "question", "prompt"),
    ({"messages": TURN, "rejected_response": "B"}, "messages", "query"),
    ({"id": "o", "prompt": "Which?", "responses": ANSWERS}, "prompt", "question"),
    ({"id": "a", "question": "Which?", "models_output": ["A", "B"], "final_ranking": "1>2"}, "question", "prompt"),
    ({"id": "f", "image": "a.png", "prompt": "Which?", "completions": [{"response": "A"}]}, "prompt", "conversations"),
    ({"id": "v", "query": "Which?", "response": ["A", "B"], "human_ranking": [0, 1]}, "query", "prompt"),
    ({"ID": "m", "Text": "Which?", "Output1": "A", "Output2": "B", "Better": "Output1"}, "Text", "question"),
    ({"text": INSIDE, "idx": 1}, "text", "Prompt"),
    (PAIR | {"question": "Which?"}, "question", "prompt"),
    ({"text": json.dumps(INSIDE), "idx": 1}, "text", "query"),
]


def spellings(name, text):
    match name:
        case "messages":
            return [user(text), [*user(text), {"role": "assistant", "content": "A"}], user([{"type": "text", "text": text}])]
        case "conversations":
            return [human(text), [*human(text), {"from": "gpt", "value": "A"}]]
    return [text, user(text)]


@pytest.fixture
def read(tmp_path):
    def read(row):
        (tmp_path / "rows.jsonl").write_text(json.dumps(row))
        return read_records(tmp_path / "rows.jsonl")

    return read


@pytest.mark.parametrize(("row", "name", "other"), ROWS)
def test_two_prompts_that_differ_are_refused_by_both_names(read, row, name, other):
    for value in spellings(other, "What else?"):
        with pytest.raises(UserError) as error:
            read(row | {other: value})
        text = str(error.value)
        assert f"two prompts, field '{name}' ('Which?') and field '{other}' ('What else?')" in text and "rows.jsonl:1" in text
        assert "\n" not in text and ("id" not in row or f"record '{row['id']}'" in text)


@pytest.mark.parametrize(("row", "name", "other"), ROWS)
def test_one_prompt_twice_is_read_and_so_is_a_field_without_text(read, row, name, other):
    for value in [*spellings(other, "<image>\n Which? "), "", None, [], 7]:
        if other in ("messages", "conversations") and "instruction" not in row and value in ("", 7) and "chosen" in row:
            continue  # such a row is of another format, whose prompt is missing
        (record,) = read(row | {other: value, "image": "a.png"})
        assert record.prompt == "Which?"
