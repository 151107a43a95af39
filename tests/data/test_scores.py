"""Score files: a reward comes back to the prompt, media and text that it was made of, and to nothing else."""

from __future__ import annotations

import dataclasses
import json
import random
import re

import numpy as np
import pytest

from mmrlhf_jax import config
from mmrlhf_jax.data.builder import build
from mmrlhf_jax.data.built_examples import LAYOUTS_FILE, RECORDS_FILE
from mmrlhf_jax.data.mixture import open_examples
from mmrlhf_jax.data.rewarded import scored_records, with_rewards
from mmrlhf_jax.data.scores import read_scores, score_line, score_lines, with_critiques
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.files import write_json_lines
from mmrlhf_jax.tasks import open_held_out_examples, open_training_examples, task_of
from tests import ranked

RANKS, IMAGES = [(1, 2), (1, 2, 3), (2, 1), (1, 2)], [[(40, 30)], [], [(30, 30), (20, 20)], [(33, 20)]]


@pytest.fixture
def source(tmp_path):
    """Records without rewards of their own; the last one is about a folder of frames."""
    path = ranked.write(tmp_path / "data", RANKS, IMAGES)
    (tmp_path / "data" / "frames").mkdir()
    for number in range(5):
        (tmp_path / "data" / "frames" / f"{number}.png").write_bytes(ranked.picture((20, 20), number))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[3] = {"video": "frames"} | {key: value for key, value in rows[3].items() if key != "images"}
    for row in rows:
        for response in row["responses"]:
            del response["reward"]
    return rewrite(path, rows)


def rewrite(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def changed(path, change):
    """The source with what `change` makes of its rows."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return rewrite(path, change(rows) or rows)


def reward(record, place: int) -> float:
    return len(record.responses[place].text) / 8


def scored(examples):
    """What a critic makes of them."""
    for record in examples.records:
        made = [dataclasses.replace(r, reward=reward(record, i), critique="So.") for i, r in enumerate(record.responses)]
        yield record.replace_responses(made)


def score(examples, out):
    write_json_lines(out, score_lines(examples, scored(examples)))
    return out


def rewards(examples):
    """Of examples, or of scored records."""
    records = examples.records if hasattr(examples, "records") else [each.record for each in examples]
    return [[response.reward for response in record.responses] for record in records]


def expected(examples):
    return [[reward(record, i) for i in range(len(record.responses))] for record in examples.records]


# The same content, wherever it lies ----------------------------------------------------------------------------------


def test_the_contract_of_a_line_stands(source, tmp_path):
    (line, *_) = map(json.loads, score(open_examples(source), tmp_path / "scores.jsonl").read_text().splitlines())
    assert line["id"] == "group-0" and [r["critique"] for r in line["responses"]] == ["So."] * 2
    assert all(isinstance(r["reward"], float) for r in line["responses"])


def test_what_was_scored_as_a_source_is_trained_as_a_built_set_and_the_reverse(source, tmp_path, capsys):
    examples, built = open_examples(source), build(source, tmp_path / "built")
    for one, other in ((examples, built), (built, examples), (built, open_examples(tmp_path / "built"))):
        found = with_rewards(other, score(one, tmp_path / "scores.jsonl"), "data")
        assert rewards(found) == expected(examples)
    assert "scores.jsonl" not in capsys.readouterr().err  # nothing is missing, nothing is too much, all is checked


def test_a_set_may_be_moved_and_its_files_renamed(source, tmp_path):
    out = score(open_examples(source), tmp_path / "scores.jsonl")
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    for name in ("0_0.png", "2_0.png", "2_1.png"):
        (tmp_path / "elsewhere" / name).rename(tmp_path / "elsewhere" / f"new_{name}")
    (tmp_path / "elsewhere" / "frames").rename(tmp_path / "elsewhere" / "video")
    path = tmp_path / "elsewhere" / "records.jsonl"
    path.write_text(path.read_text().replace('"0_', '"new_0_').replace('"2_', '"new_2_').replace('"frames"', '"video"'))
    assert rewards(with_rewards(open_examples(path), out, "data")) == expected(open_examples(path))


def test_other_frames_of_the_same_video_are_joined_by_its_name(source, tmp_path):
    out = score(open_examples(source, video_frames=32), tmp_path / "scores.jsonl")
    assert rewards(with_rewards(open_examples(source, video_frames=3), out, "data"))[3][0] is not None
    changed(source, lambda rows: rows[3].update(video="other"))
    (source.parent / "frames").rename(source.parent / "other")
    with pytest.raises(UserError, match="record 'group-3' was scored with other media"):
        with_rewards(open_examples(source, video_frames=3), out, "data")


def test_a_set_of_an_earlier_build_is_joined_by_the_names_of_its_media(source, tmp_path):
    build(source, tmp_path / "built")
    layouts = tmp_path / "built" / LAYOUTS_FILE
    rows = [json.loads(line) for line in layouts.read_text().splitlines()]
    rewrite(layouts, [{key: value for key, value in row.items() if key != "content"} for row in rows])
    metadata = tmp_path / "built" / "metadata.json"
    metadata.write_text(json.dumps({key: value for key, value in json.loads(metadata.read_text()).items() if key != "files"}))
    examples = open_examples(tmp_path / "built")
    out = score(open_examples(source), tmp_path / "scores.jsonl")
    assert rewards(with_rewards(examples, out, "data")) == expected(examples)


def test_parts_of_a_set_and_several_sets_are_joined(source, tmp_path):
    out = score(open_examples(source), tmp_path / "scores.jsonl")
    part = open_examples(source).part([2, 3])
    assert rewards(with_rewards(part, out, "data")) == expected(part)
    other = ranked.write(tmp_path / "more", [(1, 2)], [[(50, 50)]], seed=9)
    changed(other, lambda rows: rows[0].update(id="other"))
    mixed = open_examples([str(source), str(other)])
    assert rewards(with_rewards(mixed, score(mixed, tmp_path / "mixed.jsonl"), "data")) == expected(mixed)


def test_sets_of_equal_ids_are_told_apart(source, tmp_path):
    other = ranked.write(tmp_path / "more", RANKS, [[]] * 4, seed=9)
    mixed = open_examples([str(source), str(other)])
    assert rewards(with_rewards(mixed, score(mixed, tmp_path / "mixed.jsonl"), "data")) == expected(mixed)
    alone = score(open_examples(other), tmp_path / "alone.jsonl")
    with pytest.raises(UserError, match="record 'group-0' was scored with another prompt"):
        with_rewards(mixed, alone, "data")


def test_images_inside_a_parquet_file_are_joined_by_their_content(tmp_path):
    """Their names are the file's and its rows'."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [
        {"id": f"r{i}", "prompt": "Which?", "chosen": "A", "rejected": "B", "images": [{"bytes": ranked.picture((9, 9), i)}]}
        for i in range(2)
    ]
    for name, order in (("a", rows), ("b", rows[::-1])):
        parquet.write_table(pyarrow.Table.from_pylist(order), tmp_path / f"{name}.parquet")
    out = score(open_examples(tmp_path / "a.parquet"), tmp_path / "scores.jsonl")
    for examples in (open_examples(tmp_path / "b.parquet"), build(tmp_path / "b.parquet", tmp_path / "built")):
        assert rewards(with_rewards(examples, out, "data")) == expected(examples)
    rows[0]["images"], rows[1]["images"] = rows[1]["images"], rows[0]["images"]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "c.parquet")
    with pytest.raises(UserError, match="record 'r0' was scored with other media"):
        with_rewards(open_examples(tmp_path / "c.parquet"), out, "data")


@pytest.mark.parametrize("change", ["text", "order", "a line less", "a line more"])
@pytest.mark.parametrize("name", [RECORDS_FILE, LAYOUTS_FILE])
def test_records_and_layouts_of_a_built_set_are_those_of_its_shards(source, tmp_path, name, change):
    """They are joined by the number of the line: edited ones would change ranks behind the back of every cache."""
    build(source, tmp_path / "built")
    path = tmp_path / "built" / name
    lines = path.read_text().splitlines(keepends=True)
    edited = {"text": ["{}\n", *lines[1:]], "order": lines[::-1], "a line less": lines[:-1], "a line more": [*lines, lines[0]]}
    path.write_text("".join(edited[change]))
    examples = open_examples(tmp_path / "built")
    with pytest.raises(UserError, match=rf"{name}: is not as the build wrote it.*build it again"):
        examples.records if name == RECORDS_FILE else examples.layout(0)


# Other content -------------------------------------------------------------------------------------------------------


def other_text(rows):
    rows[1]["responses"][2]["text"] += " Indeed."


def other_order(rows):
    rows[1]["responses"].reverse()


def other_prompt(rows):
    rows[0]["prompt"] += "?"


def exchanged_pictures(rows):
    rows[2]["images"].reverse()


def a_picture_more(rows):
    rows[0]["images"] *= 2


def no_picture(rows):
    rows[0]["images"] = []


def one_response_less(rows):
    rows[1]["responses"].pop()


def exchanged_ids(rows):
    rows[0]["id"], rows[2]["id"] = rows[2]["id"], rows[0]["id"]


CHANGES = [
    (other_text, "'group-1' was scored with another text as response 2"),
    (other_order, "'group-1' was scored with its responses in another order"),
    (other_prompt, "'group-0' was scored with another prompt"),
    (exchanged_pictures, "'group-2' was scored with other media"),
    (a_picture_more, "'group-0' was scored with other media"),
    (no_picture, "'group-0' was scored with other media"),
    (one_response_less, "'group-1' has 3 scores for 2 responses"),
    (exchanged_ids, "'group-2' was scored with another prompt"),
]


@pytest.mark.parametrize("builds", [False, True], ids=["source", "built"])
@pytest.mark.parametrize(("change", "message"), CHANGES, ids=[change.__name__ for change, _ in CHANGES])
def test_a_record_that_is_not_what_was_scored_is_refused_with_what_differs(source, tmp_path, change, message, builds):
    out = score(open_examples(source), tmp_path / "scores.jsonl")
    changed(source, change)
    examples = build(source, tmp_path / "built") if builds else open_examples(source)
    with pytest.raises(UserError) as error:
        with_rewards(examples, out, "data")
    assert message in str(error.value) and "scores.jsonl, line" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["0_0.png", "frames/3.png"])
@pytest.mark.parametrize("builds", [False, True], ids=["source", "built"])
def test_another_picture_under_the_same_name_is_other_media(source, tmp_path, name, builds):
    out = score(open_examples(source), tmp_path / "scores.jsonl")
    (source.parent / name).write_bytes(ranked.picture((40, 30), 77))
    examples = build(source, tmp_path / "built") if builds else open_examples(source)
    with pytest.raises(UserError, match="was scored with other media"):
        with_rewards(examples, out, "data")


def test_of_many_records_each_gets_its_own(source, tmp_path):
    """Whatever the order of the lines."""
    examples = open_examples(source)
    lines = list(score_lines(examples, scored(examples)))
    random.Random(3).shuffle(lines)
    write_json_lines(tmp_path / "scores.jsonl", lines)
    assert rewards(with_rewards(examples, tmp_path / "scores.jsonl", "data")) == expected(examples)


# Files that people write ---------------------------------------------------------------------------------------------


def by_hand(path, lines):
    return rewrite(path, lines)


def test_lines_without_digests_are_read_and_counted_in_one_line(source, tmp_path, capsys):
    examples = open_examples(source)
    lines = list(score_lines(examples, scored(examples)))
    for line in lines[:2]:
        line.pop("digests")
    lines[2]["responses"] = [{"reward": made["reward"]} for made in lines[2]["responses"]]
    out = by_hand(tmp_path / "scores.jsonl", lines)
    assert rewards(with_rewards(examples, out, "data")) == expected(examples)
    said = [line for line in capsys.readouterr().err.splitlines() if "scores.jsonl" in line]
    assert len(said) == 1 and "3 of 4 lines do not say what was scored" in said[0]


def test_a_line_that_says_a_part_is_checked_in_that_part(source, tmp_path):
    examples = open_examples(source)
    lines = list(score_lines(examples, scored(examples)))
    for line in lines:
        line.pop("digests")
    out = by_hand(tmp_path / "scores.jsonl", lines)
    changed(source, other_text)
    with pytest.raises(UserError, match="another text as response 2"):
        with_rewards(open_examples(source), out, "data")


def test_what_has_no_counterpart_is_counted(source, tmp_path, capsys):
    out = score(open_examples(source), tmp_path / "scores.jsonl")
    changed(source, lambda rows: [*rows[1:], rows[1] | {"id": "new"}])
    found = with_rewards(open_examples(source), out, "my data")
    assert rewards(found)[-1] == [None] * 3
    said = capsys.readouterr().err
    assert "has no line for 1 of 4 records of my data (the first is 'new'" in said
    assert "1 of 4 lines are of no record of my data (one is 'group-0'), and not used" in said


def test_a_file_of_other_records_is_refused(source, tmp_path):
    out = score(open_examples(source), tmp_path / "scores.jsonl")
    changed(source, lambda rows: [row | {"id": f"x{row['id']}"} for row in rows])
    with pytest.raises(UserError, match=r"none of its 4 lines is of a record of my data"):
        with_rewards(open_examples(source), out, "my data")


LINE = '{"id": "a", "responses": [{"reward": %s}, {"reward": 1}]}'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *((LINE % number, r"line 2: record 'a'.*responses?\W+0.*finite number") for number in ("NaN", "-Infinity", "1e999")),
        *((LINE % number, "line 2: record 'a', response 0: reward must be a finite") for number in ("1e39", '"nan"', "true")),
        *(
            (LINE % number, "line 2: record 'a', response 0: reward must be a finite")
            for number in ("null", "[]", "1" + "0" * 39)
        ),
        *(
            (
                f'{{"id": "a", "responses": [{{"reward": 1, "{field}": "\\ud800"}}]}}',
                f"record 'a': field 'responses.0.{field}' holds",
            )
            for field in ("critique", "note")
        ),
        ('{"id": "a", "id": "b", "responses": [{"reward": 1}]}', "line 2: field 'id' stands twice"),
        ('{"id": "a"}', "line 2: expected"),
        ('{"responses": []}', "line 2: expected"),
        ('{"id": "a", "responses": [1]}', "line 2: expected"),
        ('["a"]', "line 2: expected"),
        ('{"id": "a", ', "line 2: not JSON"),
        (LINE % 1 + "x", "line 2: not JSON"),
        ("\x80", "line 2: not JSON"),
        ('{"id": "a", "responses": [{"reward": 1, "digest": 3}]}', "response 0: digest must be text, found 3"),
        ('{"id": "a", "responses": [{"reward": 1, "critique": 3}]}', "response 0: critique must be text, found 3"),
        ('{"id": "a", "responses": [{"reward": 1}], "digests": [1]}', "digests must have the keys prompt, media"),
        ('{"id": "a", "responses": [{"reward": 1}], "digests": {"prompt": 1}}', "prompt must be text, found 1"),
        ('{"id": "0", "responses": [{"reward": 1}]}', r"line 2: id '0' stands in .*line 1 already"),
        ('{"id": 0, "responses": [{"reward": 1}]}', r"line 2: id '0' stands in .*line 1 already"),
    ],
)
def test_a_line_that_is_none_is_named(tmp_path, text, message):
    path = tmp_path / "scores.jsonl"
    path.write_bytes(b'{"id": "0", "responses": [{"reward": 1}]}\n' + text.encode("latin-1") + b"\n")
    with pytest.raises(UserError, match=message) as error:
        read_scores(path)
    assert "scores.jsonl, line" in str(error.value) and "\n" not in str(error.value)


# Held-out data -------------------------------------------------------------------------------------------------------


@pytest.fixture
def held_out(tmp_path):
    """Records of the same ids as the training data's, and other content."""
    path = ranked.write(tmp_path / "held", RANKS[:2], [[(25, 25)], []], seed=5)
    return changed(path, lambda rows: [r.pop("reward") for row in rows for r in row["responses"]] and None)


def test_held_out_records_take_no_rewards_of_training_records_of_the_same_id(source, held_out, tmp_path, capsys):
    out = score(open_examples(source), tmp_path / "scores.jsonl")
    data = config.Data(path=str(source), rewards=str(out), held_out=str(held_out))
    assert rewards(open_training_examples(data, task_of(config.Preference()))) == expected(open_examples(source))
    assert rewards(open_held_out_examples(data, task_of(config.Preference()))) == [[None] * 2, [None] * 3]
    said = capsys.readouterr().err
    assert "2 of 2 records have responses without a reward" in said and "set data.held_out_rewards" in said


def test_held_out_records_take_their_own_rewards(source, held_out, tmp_path):
    out, own = score(open_examples(source), tmp_path / "a.jsonl"), score(open_examples(held_out), tmp_path / "b.jsonl")
    data = config.Data(path=str(source), rewards=str(out), held_out=str(held_out), held_out_rewards=str(own))
    assert rewards(open_held_out_examples(data, task_of(config.Preference()))) == expected(open_examples(held_out))
    with pytest.raises(UserError, match=r"a\.jsonl, line 1: record 'group-0' was scored with another prompt"):
        open_held_out_examples(data.model_copy(update={"held_out_rewards": str(out)}), task_of(config.Preference()))


def test_rewards_of_held_out_data_that_is_not_there_are_refused():
    with pytest.raises(ValueError, match="held_out_rewards is given, but no held_out data"):
        config.Data(path="a", held_out_rewards="b")


def test_rewards_that_no_objective_reads_are_said(source, tmp_path, capsys):
    out = score(open_examples(source), tmp_path / "scores.jsonl")
    fixed = config.Preference(scaling=config.Scaling(mode="fixed"))
    open_training_examples(config.Data(path=str(source), rewards=str(out)), task_of(fixed))
    assert "scores.jsonl is not read" in capsys.readouterr().err


def test_a_model_whose_reward_is_not_finite_is_named_with_the_record(source):
    from mmrlhf_jax.inference import critic

    class Broken:
        def score_responses(self, examples, task):
            return [{"rewards": np.where(np.arange(len(record.responses)) == 1, np.nan, 0)} for record in examples.records]

    with pytest.raises(UserError, match="record 'group-0', response 1: the model's reward is nan"):
        critic.score(Broken(), open_examples(source), critique="given")


# For evaluations: every record, or why it has no scores -----------------------------------------------------------------


def refuse(line, reason: str):
    """The line with a reason in the place of rewards."""
    for response in line["responses"]:
        response |= {"reward": None, "critique": None, "error": reason}


def test_scored_records_have_the_files_rewards_and_critiques_or_the_reason(source, tmp_path, capsys):
    examples = open_examples(changed(source, lambda rows: [row["responses"][0].update(reward=7) for row in rows] and None))
    lines = list(score_lines(examples, scored(examples)))
    refuse(lines[1], "it is too long")
    found = scored_records(examples, rewrite(tmp_path / "scores.jsonl", lines[:3]), "data")
    assert [rewards(found[place : place + 1]) for place in (0, 2)] == [[each] for each in expected(examples)[::2]]
    assert found[0].record.responses[0].critique == "So." and found[0].reason is None
    assert found[1].reason == "it is too long" and "'group-3' has no line in" in found[3].reason
    assert {one.reward for place in (1, 3) for one in found[place].record.responses} == {None}  # the data's own are not taken
    said = capsys.readouterr().err
    assert "has no line for 1 of 4 records" in said and "these are not scored" in said
    assert "3 of 7 responses, in 1 records, have no reward (the first is of 'group-1': it is too long)" in said


def test_where_media_are_not_there_their_names_are_compared(source, tmp_path, capsys):
    examples = open_examples(source)
    lines = list(score_lines(examples, scored(examples)))
    path = rewrite(tmp_path / "scores.jsonl", lines)
    (source.parent / "0_0.png").unlink()
    again = open_examples(source)
    assert all(each.reason is None for each in scored_records(again, path, "data"))
    assert "the media of 1 of 4 records of data cannot be read; their names were compared" in capsys.readouterr().err
    lines[0]["digests"]["media"] = "other"
    with pytest.raises(UserError, match="'group-0' was scored with other media"):
        scored_records(again, rewrite(path, lines), "data")


def test_several_critiques_come_back_with_their_rewards_and_their_mean(source, tmp_path):
    examples = open_examples(source)
    three = [(" ", 1.0), ("b", 2.0), ("c", 6.0)]  # a model may write nothing
    lines = []
    for index, record in enumerate(examples.records):
        made = record.replace_responses([with_critiques(response, three) for response in record.responses])
        lines.append(score_line(examples, index, made, samples=[three] * len(record.responses)))
    rewrite(tmp_path / "as written.jsonl", lines)
    for line in lines:
        for response in line["responses"]:
            del response["critique"]
    for path in (tmp_path / "as written.jsonl", rewrite(tmp_path / "without the first.jsonl", lines)):
        for each in scored_records(examples, path, "data"):
            assert {(one.reward, one.critique) for one in each.record.responses} == {(3.0, "b")}
            assert each.samples == (tuple(three),) * len(each.record.responses)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"critiques": [{"text": "a", "reward": 1}, {"text": "b", "reward": 2}]}, "response 0: its reward 7 is not the mean"),
        ({"critiques": [{"text": "a", "reward": float("inf")}]}, "finite number, found Infinity"),
        ({"critiques": ["a"]}, "response 0: critiques must list objects with text and reward, found ['a']"),
        ({"critiques": "a"}, "response 0: critiques must list objects with text and reward, found 'a'"),
        ({"critiques": [{"text": "a"}]}, "critique 0: reward must be a finite number"),
        ({"critiques": [{"reward": 1}]}, "critiques must list objects with text and reward"),
        ({"truncated": "yes"}, "response 0: truncated must be true or false, found 'yes'"),
        ({"error": "too long"}, "response 0: reward stands beside an error ('too long'); keep one of the two"),
    ],
)
def test_responses_of_a_line_that_contradict_themselves_are_refused(tmp_path, change, message):
    path = rewrite(tmp_path / "scores.jsonl", [{"id": "1", "responses": [{"reward": 7} | change]}])
    with pytest.raises(UserError, match=re.escape(message)):
        read_scores(path)
