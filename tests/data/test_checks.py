"""Critiques that say nothing are none at every door, and `train` and `data build` say what `data validate` would find."""

from __future__ import annotations

import collections
import json

import pytest

from mmrlhf_jax import config
from mmrlhf_jax.commands.data import build
from mmrlhf_jax.data.built_examples import BuiltExamples
from mmrlhf_jax.data.checks import summarise_findings
from mmrlhf_jax.data.mixture import open_examples
from mmrlhf_jax.data.overlay import with_critiques
from mmrlhf_jax.data.scores import score_lines
from mmrlhf_jax.data.sources import read_records
from mmrlhf_jax.data.validate import validate
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.inference import critic
from mmrlhf_jax.inference.requests import Written
from mmrlhf_jax.places import WrongMedia
from mmrlhf_jax.records import RankedRecord, Response, record_from_json
from mmrlhf_jax.tasks import open_held_out_examples, open_training_examples, task_of
from tests.data import groups

BLANKS = ["", " ", "\n\t", "\u00a0\u2003", "\u200b\ufeff", "\u2028", "\0"]


def write(folder, *rows):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("blank", BLANKS)
def test_a_critique_that_says_nothing_is_none_in_every_format_that_has_critiques(tmp_path, blank):
    pair = {"id": "r", "prompt": "p", "chosen": "A", "rejected": "B", "chosen_reason": blank, "rejected_reason": "poor"}
    annotation = {
        "id": "r",
        "question": "p",
        "models_output": ["A", "B"],
        "score_reasons": [blank, "poor"],
        "final_ranking": "1>2",
    }
    own = {
        "id": "r",
        "prompt": "p",
        "responses": [{"text": "A", "rank": 1, "critique": blank}, {"text": "B", "critique": "poor"}],
    }
    several = own | {"responses": [{"text": "A", "critiques": [blank, blank]}, {"text": "B", "critiques": [blank, "poor"]}]}
    for row in (pair, annotation, own, several):
        (record,) = read_records(write(tmp_path, row))
        assert [response.critique for response in record.responses] == [None, "poor"]
        (again,) = read_records(write(tmp_path, record.to_json()))
        assert again == record
    assert record_from_json(own, "here").responses[0].critique is None


@pytest.mark.parametrize("blank", BLANKS)
def test_a_chosen_field_of_blank_critiques_is_a_field_of_none(tmp_path, blank):
    rows = {"id": "r", "prompt": "p", "responses": [{"text": "A", "teacher": blank}, {"text": "B", "teacher": "good"}]}
    changed = with_critiques(open_examples(write(tmp_path, rows)), "teacher", "SOURCE")
    assert [response.critique for response in changed.records[0].responses] == [None, "good"]
    rows["responses"][1]["teacher"] = blank
    with pytest.raises(UserError, match=r"SOURCE: data\.critiques: no response has a field 'teacher'"):
        with_critiques(open_examples(write(tmp_path, rows)), "teacher", "SOURCE")


@pytest.mark.parametrize(("teacher", "said"), [(5, "5"), (["x" * 5000], r"\['xxx")])
def test_a_critique_that_is_no_text_is_named_with_its_file(tmp_path, teacher, said):
    path = write(tmp_path, {"id": "r", "prompt": "p", "responses": [{"text": "A", "teacher": teacher}, {"text": "B"}]})
    data = config.Data(path=str(path), held_out=str(path), critiques="teacher")
    for opened in (open_training_examples, open_held_out_examples):
        with pytest.raises(
            UserError, match=rf"{path}: record 'r': data.critiques: field 'teacher' must be .* found {said}"
        ) as error:
            opened(data, task_of(config.RewardModel()))
        assert len(str(error.value)) < 400


@pytest.mark.parametrize("blank", BLANKS)
def test_a_written_critique_that_says_nothing_is_none_and_scored_as_none(tmp_path, blank):
    class Mute:
        """An engine whose texts are blank, and whose lanes have no room for their rewards."""

        def encoder(self, task):
            return None

        def asked(self, most, **settings):
            return None

        def decode(self, tokens):
            return blank

        def write_each(self, prompts, asked, description):
            return ((number, [Written(reason="stop", done=True)]) for number in range(len(prompts)))

        def score_responses(self, examples, task):
            assert all(response.critique is None for record in examples.records for response in record.responses)
            return [{"rewards": [0.0] * len(record.responses)} for record in examples.records]

    row = {"id": "r", "prompt": "p", "responses": [{"text": "A", "critique": "old"}, {"text": "B"}]}
    (line,) = score_lines(examples := open_examples(write(tmp_path, row)), critic.score(Mute(), examples))
    assert [(made["reward"], made["critique"]) for made in line["responses"]] == [(0.0, None)] * 2


def test_a_response_without_a_critique_and_one_with_a_blank_one_have_the_same_conversation():
    encoder = groups.encoder(task="critique")
    record = RankedRecord("r", "p", (Response("A"), Response("A", critique=" ")))
    first, second = (encoder.conversation(record, response, []) for response in record.responses)
    assert first.tokens.tolist() == second.tokens.tolist() and not second.is_target.any()


GOOD = {"id": "good", "prompt": "p", "responses": [{"text": "A", "rank": 1}, {"text": "B", "rank": 2}]}
EMPTY = GOOD | {"id": "empty", "responses": [{"text": "A", "rank": 1}, {"text": "\u200b", "rank": 2}]}
TWICE = GOOD | {"id": "twice", "responses": [{"text": "A", "rank": 1}, {"text": "B", "rank": 2}, {"text": "A", "rank": 3}]}
HALF = GOOD | {"id": "half", "responses": [{"text": "A", "rank": 1}, {"text": "B"}]}


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([GOOD, EMPTY], "1 of 2 records have something wrong (text 1); the first is record 'empty': response 1 is empty;"),
        ([GOOD, TWICE], "(ranks 1); the first is record 'twice': the same text has the ranks 1 and 3;"),
        ([EMPTY, TWICE, HALF, GOOD], "3 of 4 records have something wrong (ranks 2, text 1); the first is record 'empty'"),
    ],
)
def test_training_and_build_say_in_one_line_what_validate_finds(tmp_path, capsys, rows, expected):
    path = write(tmp_path, *rows)
    doors = {
        "train": lambda: open_training_examples(config.Data(path=str(path)), task_of(config.Supervised())),
        "held out": lambda: open_held_out_examples(config.Data(path="x", held_out=str(path)), task_of(config.Supervised())),
        "build": lambda: build(str(path), str(tmp_path / "out"), None, 8, 1, None, "error"),
    }
    for name, door in doors.items():
        door()
        said = [line for line in capsys.readouterr().err.splitlines() if "something wrong" in line]
        assert len(said) == 1 and expected in said[0] and str(path) in said[0], name
    kinds = collections.Counter(finding.kind for finding in validate(path).findings)
    assert f"({', '.join(f'{kind} {count}' for kind, count in kinds.most_common())})" in expected
    assert BuiltExamples(tmp_path / "out").records == read_records(path)


def test_nothing_is_said_about_sound_data(tmp_path, capsys):
    open_training_examples(config.Data(path=str(write(tmp_path, GOOD))), task_of(config.Supervised()))
    assert "something wrong" not in capsys.readouterr().err


def test_tags_of_records_that_no_reader_checked_are_an_error():
    """As a set that an earlier version built may have them."""
    record = RankedRecord("r", "<image>What?", (Response("A", 1), Response("B", 2)))
    with pytest.raises(WrongMedia, match=r"set: record 'r': the prompt has the tag <image>"):
        summarise_findings([record], "set")


CONTEXTS = [{"system": "You are a poet."}, {"history": [["Hello.", "Hi."]]}, {"tools": [{"name": "zoom"}]}]


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("question", [{"prompt": "Why?"}, {"question": "Why?"}, {"prompt": "Why?", "id": "r"}])
def test_what_is_not_read_of_a_prompt_is_said(tmp_path, question, context):
    ((name, value),) = context.items()
    pair = question | {"chosen": "A", "rejected": "B"}
    other = {"id": "s"} if "id" in pair else {}  # rows of one file have ids, or have none
    path = write(tmp_path, pair | context, pair | other | {name: type(value)()})
    (finding,) = validate(path).findings
    assert finding.kind == "prompt" and f"field '{name}' (" in finding.message and "is not read as part" in finding.message
    assert "1 of 2 records have something wrong (prompt 1)" in summarise_findings(read_records(path), str(path))
