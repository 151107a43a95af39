"""MMRB2's two published forms say the same; pictures stand where they stood, and those inside answers are counted."""

from __future__ import annotations

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mmrlhf_jax.data.examples import SourceExamples
from mmrlhf_jax.data.sources import read_records, read_source
from mmrlhf_jax.errors import UserError

PAIR = {
    "id": "blink_7_x_y",
    "prompt_source": "blink",
    "prompt_content": [["text", "Is"], ["image", "input_images/a.png"], ["text", "like <image>"], ["image", "b.png"]],
    "prompt_metadata": {"id": "val_7"},
    "response_a": {"model_name": "x", "response_content": [["text", "Yes."]]},
    "response_b": {"model_name": "y", "response_content": [["text", "See"], ["image", "c.png"], ["text", "No."]]},
    "chosen": "B",
}


def write(tmp_path, *pairs, name="reasoning.json"):
    path = tmp_path / name
    path.write_text(json.dumps({"pairs": list(pairs)}))
    return path


def test_pictures_stand_between_the_texts_of_the_prompt(tmp_path):
    (record,) = read_records(write(tmp_path, PAIR))
    assert record.prompt_text() == ("Is\n", "\nlike <image>\n", "")  # a tag in a text is text
    assert record.images == ("input_images/a.png", "b.png") and record.source == "blink"
    assert record.extra["prompt_metadata"] == {"id": "val_7"} and record.extra["benchmark"] == "MMRB2"


def test_the_chosen_answer_comes_first_and_its_pictures_are_counted(tmp_path):
    source = read_source(write(tmp_path, PAIR, PAIR | {"id": "other", "response_b": PAIR["response_a"], "chosen": "a"}))
    chosen, rejected = source.records[0].responses
    assert (chosen.text, chosen.rank, chosen.model) == ("See\n[picture]\nNo.", 1, "y")
    assert (rejected.text, rejected.rank, rejected.model) == ("Yes.", 2, "x")
    assert chosen.extra == {"inserted_pictures": 1} and rejected.extra == {}
    assert source.notes[0].endswith("1 of 2 pairs have pictures inside an answer, which models here do not see")


def test_pictures_before_all_text_need_no_tags(tmp_path):
    content = [["image", "a.png"], ["image", "b.png"], ["text", "Which <image>?"]]
    (record,) = read_records(write(tmp_path, PAIR | {"prompt_content": content}))
    assert record.prompt_text() == "Which <image>?" and record.images == ("a.png", "b.png")


def picture(colour: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (colour, 0, 0)).save(file, "PNG")
    return file.getvalue()


def test_the_hubs_parquet_holds_its_pictures_at_the_places_in_the_text(tmp_path):
    cell = lambda *colours: [{"bytes": picture(colour), "path": None} for colour in colours]
    row = {"pair_id": "p", "prompt_source": "blink", "prompt_text": "Is <image_1> like <image_2>?", "prompt_images": cell(1, 2)}
    row |= {"response_a_text": "Yes.", "response_a_images": [], "response_a_model": "x"}
    row |= {"response_b_text": "See <image_1>. No.", "response_b_images": cell(3), "response_b_model": "y"}
    row |= {"chosen": "b", "prompt_metadata": json.dumps({"id": "val_7"}), "human_annotations": ""}
    path = tmp_path / "test-00000-of-00001.parquet"
    pq.write_table(pa.Table.from_pylist([row]), path)
    (example,) = SourceExamples(path)
    assert example.record.prompt_text() == ("Is\n", "\nlike\n", "\n?") and example.images == (picture(1), picture(2))
    assert [(one.text, one.model) for one in example.record.responses] == [("See\n[picture]\n. No.", "y"), ("Yes.", "x")]
    assert example.record.extra["prompt_metadata"] == {"id": "val_7"}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"chosen": "C"}, "field 'chosen' must be A or B, found 'C'"),
        ({"chosen": None}, "field 'chosen' must be A or B, found None"),
        ({"prompt_content": []}, "field 'prompt_content' must list"),
        ({"prompt_content": [["video", "a.mp4"]]}, "found ['video', 'a.mp4']"),
        ({"response_a": "Yes."}, "field 'response_a' must be an object with 'response_content', found 'Yes.'"),
        ({"response_b": {"response_content": [["text", 3]]}}, "field 'response_b.response_content' must list"),
        ({"response_a": {"response_content": [["text", "A"]], "model_name": 3}}, "the model of 'response_a' must be a string"),
        ({"id": None}, "field 'id' is missing"),
        ({"prompt_source": 3}, "field 'prompt_source' must be a string"),
        ({"prompt_text": "Is <image_1>?", "prompt_images": []}, "has 1 places for 0 pictures"),
        ({"prompt_text": 3}, "must be a text and a list of pictures"),
    ],
)
def test_wrong_rows_are_named(tmp_path, change, expected):
    with pytest.raises(UserError) as error:
        read_records(write(tmp_path, PAIR, PAIR | {"id": "second"} | change))
    assert "[1]" in str(error.value) and expected in str(error.value)


def test_a_file_of_pairs_with_other_keys_is_no_list_of_records(tmp_path):
    path = tmp_path / "reasoning.json"
    path.write_text(json.dumps({"pairs": [PAIR], "version": 1}))
    with pytest.raises(UserError, match="expected a JSON list of records"):
        read_records(path)
