"""Prompts that a model is to answer may lack responses; nothing else may."""

from __future__ import annotations

import json

import pytest

from mmrlhf_jax.data.mixture import MixedExamples, open_examples
from mmrlhf_jax.errors import UserError
from tests import ranked

QUESTION = {"id": "q", "prompt": "Why?"}


def written(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("responses", [{}, {"responses": []}, {"responses": None}, {"responses": [{"text": "So."}]}])
def test_a_prompt_needs_no_responses_where_it_is_to_be_answered(tmp_path, responses):
    path = written(tmp_path / "a.jsonl", QUESTION | responses, {"id": "other", "prompt": "How?"})
    records = open_examples(path, prompts=True).records
    assert [record.prompt for record in records] == ["Why?", "How?"]
    assert [response.text for record in records for response in record.responses] == ["So."] * bool(responses.get("responses"))
    with pytest.raises(UserError, match="needs at least one response"):
        open_examples(path)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": "Why?"}, "'id' must be"),
        (QUESTION | {"prompt": 3}, "'prompt' must be"),
        (QUESTION | {"responses": "So."}, "'responses' must be"),
        (QUESTION | {"prompt": "<image> Why?"}, "<image>"),
        (QUESTION | {"picture": "kite.png"}, "seems to hold media"),
        ({"id": "q", "text": "Why?"}, "unknown format"),
    ],
)
def test_a_prompt_is_checked_like_any_record(tmp_path, row, says):
    with pytest.raises(UserError, match=says):
        open_examples(written(tmp_path / "a.jsonl", row), prompts=True)


def test_sets_of_prompts_and_of_other_forms_mix(tmp_path):
    path = ranked.write(tmp_path, [(1, 2)], [[(8, 6)]])
    pairs = {"id": "p", "prompt": [{"role": "user", "content": "Who?"}]}
    pairs |= {name: [{"role": "assistant", "content": name}] for name in ("chosen", "rejected")}
    sets = [str(path), str(written(tmp_path / "a.jsonl", QUESTION)), str(written(tmp_path / "b.jsonl", pairs))]
    found = open_examples(sets, prompts=True)
    assert isinstance(found, MixedExamples)
    assert [len(record.responses) for record in found.records] == [2, 0, 2]
