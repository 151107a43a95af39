"""Hostile input: every kind has a stated outcome, and mutated records either read well or end in one clear line."""

from __future__ import annotations

import copy
import io
import json
import math
import random
import struct
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mmrlhf_jax.data.builder import build
from mmrlhf_jax.data.checks import check_record
from mmrlhf_jax.data.encode import media_layout
from mmrlhf_jax.data.examples import Layout
from mmrlhf_jax.data.images import decode_image
from mmrlhf_jax.data.media import resolve_media
from mmrlhf_jax.data.scores import read_scores
from mmrlhf_jax.data.sources import FORMATS, read_records
from mmrlhf_jax.data.sources.rankings import check_ranking
from mmrlhf_jax.data.sources.rows import Row
from mmrlhf_jax.data.stats import estimated_encoder
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.files import write_json_lines
from mmrlhf_jax.quickstart.captions import caption_records
from mmrlhf_jax.quickstart.scenes import sample_scene
from mmrlhf_jax.records import record_from_json
from tests import ranked
from tests.data import groups

RESPONSES = [{"text": "A kite.", "rank": 1}, {"text": "A bird.", "rank": 2}]
RECORD = {"id": "r", "images": ["a.png"], "prompt": "What is it?", "responses": RESPONSES}


@pytest.fixture
def built(tmp_path):
    """Builds one record with changes, beside a good picture; gives what the user would see or the example."""

    def built(content=None, name="a.png", **fields):
        folder = tmp_path / "source"
        folder.mkdir()
        if content is not None:
            (folder / name).write_bytes(content)
        path = folder / "rows.jsonl"
        path.write_text(json.dumps(RECORD | fields) + "\n")
        return build(path, tmp_path / "out", jobs=1)[0]

    return built


def refused(built, expected, *arguments, **fields):
    with pytest.raises(UserError, match=expected) as error:
        built(*arguments, **fields)
    assert "\n" not in str(error.value) and "record 'r'" in str(error.value)


# Pictures ------------------------------------------------------------------------------------------------------------


def bomb() -> bytes:
    """A PNG of 60,000 x 60,000 pixels in a few bytes."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def animation() -> bytes:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (bomb(), r"image 'a\.png': the image (has more than|is 60,000 x 60,000)"),
        (ranked.picture((60, 60), 0)[:2000], r"image 'a\.png': the image is truncated or broken"),
        (b"", r"image 'a\.png': the image file is empty"),
        (b"<html>404</html>", r"image 'a\.png': not an image that can be read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", r"image 'a\.png': not an image that can be read"),
        (animation(), r"image 'a\.png': the GIF file holds 2 frames"),
        (None, r"media file 'a\.png' does not exist under"),
    ],
    ids=["bomb", "truncated", "empty", "html", "postscript", "animation", "missing"],
)
def test_a_picture_that_cannot_be_trained_on_is_refused_by_name(built, content, expected):
    refused(built, expected, content)


def test_a_mislabelled_picture_is_read_by_its_contents(built):
    file = io.BytesIO()
    Image.new("RGB", (9, 7), "red").save(file, "JPEG")
    example = built(file.getvalue())  # a JPEG named .png
    assert decode_image(example.images[0], "").size == (9, 7)


@pytest.mark.parametrize("path", ["../secret.png", "/etc/passwd", "a/../../secret.png", "http://x/y.png", "C:\\x.png", "\0"])
def test_paths_out_of_the_media_root_are_refused(built, tmp_path, path):
    (tmp_path / "secret.png").write_bytes(ranked.picture((4, 4), 0))
    refused(built, "media path .* (leaves the media root|must be relative)", ranked.picture((4, 4), 0), images=[path])


def test_a_link_out_of_the_media_root_is_refused(built, tmp_path):
    (tmp_path / "secret.png").write_bytes(ranked.picture((4, 4), 0))
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(UserError, match="leaves the media root"):
        resolve_media(tmp_path / "source", "a.png", "here")


# Texts and structure -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [groups.HOSTILE, "<image>", "<|endoftext|>", "", " \n", "\0", "\u2028\u202e", "a" * 999])
def test_any_text_is_kept_as_it_is_and_adds_no_control_token(built, text):
    answers = [{"text": text, "rank": 1, "critique": text}, {"text": text + ".", "rank": 2}]
    example = built(ranked.picture((30, 30), 0), prompt=text, responses=answers)
    assert example.record.prompt == text and example.record.responses[0].text == text
    for task in ("answer", "critique"):
        encoder = groups.encoder(task=task)
        assert control_tokens(encoder, example.record) == control_tokens(encoder, record_from_json(RECORD, "")) or text == ""
        size = encoder.measure(example.record, media_layout(example))
        assert size[2] == (encoder.encode(example).tree.tokens == encoder.tokenizer.image_token).sum()


def test_a_response_of_a_megabyte_is_stored_and_measured_and_left_to_the_policy_for_rows(built):
    text = "large " * 200_000
    record = built(ranked.picture((30, 30), 0), responses=[{"text": text, "rank": 1}, RESPONSES[1]]).record
    assert record.responses[0].text == text
    assert estimated_encoder().measure(record, Layout(((30, 30),)))[0] > 200_000
    assert [kind for kind, _ in check_record(record)] == ["text"]


def control_tokens(encoder, record) -> list[int]:
    """How many control tokens each conversation has."""
    control = list(encoder.tokenizer.tokenizer.get_added_vocab().values())
    plans = encoder.geometry.plans([(30, 30)] * len(record.images))
    conversations = [encoder.conversation(record, response, plans) for response in record.responses]
    return [int(np.isin(conversation.tokens, control).sum()) for conversation in conversations]


def test_one_response_and_all_ties_are_kept_and_give_no_pair(tmp_path):
    for responses in (RESPONSES[:1], [RESPONSES[0], RESPONSES[1] | {"rank": 1}]):
        path = tmp_path / "rows.jsonl"
        path.write_text(json.dumps(RECORD | {"responses": responses}))
        (record,) = read_records(path)
        assert record.pairs() == []


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (json.dumps(RECORD | {"responses": []}), "needs at least one response"),
        (json.dumps(RECORD) + "\n" + json.dumps(RECORD), "id 'r' is used twice"),
        (
            json.dumps(RECORD | {"responses": [RESPONSES[0] | {"scores": {"ethics": math.nan}}]}),
            r"'responses\.0\.scores\.ethics' must be a finite number, found NaN",
        ),
        (json.dumps(RECORD | {"responses": [RESPONSES[0] | {"reward": math.inf}]}), "finite number"),
        (json.dumps(RECORD).encode() + b"\xff", "not valid UTF-8"),
        ('{"id": "r", "prompt": "\\ud800", "responses": ["a"]}', "not valid UTF-8"),
        ('{"id": ' + "[" * 200_000, "nested too deeply"),
        (json.dumps(RECORD | {"responses": [RESPONSES[0] | {"reward": 10**400}]}), "an integer of 401 digits"),
        ('{"id": "r", "prompt": "p", "responses": ["a"], "x": ' + "1" * 9999 + "}", "an integer of 9999 digits"),
    ],
    ids=[
        "no response",
        "duplicate id",
        "NaN score",
        "infinite reward",
        "invalid UTF-8",
        "lone surrogate",
        "deep",
        "huge",
        "endless",
    ],
)
def test_records_that_mean_nothing_are_refused_by_place(tmp_path, content, expected):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=expected) as error:
        read_records(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 2000


@pytest.mark.parametrize(
    "field", [None, 3, "x", [1], [{"a": 1}], [{"chosen": [], "rejected": 1}], [{"chosen": 0, "rejected": 1, "ls_factor": "z"}]]
)
def test_a_field_named_pairs_that_means_something_else_is_kept_and_gives_no_margins(built, field):
    example = built(ranked.picture((30, 30), 0), pairs=field)
    assert example.record.extra["pairs"] == field
    assert np.isnan(groups.encoder().encode(example).pair_margins).all()


@pytest.mark.parametrize("name", ["999/images/0", "0/nope", "0/prompt", "0/images/7", "0/images", "0/images/0"])
def test_a_path_that_names_no_image_of_a_parquet_file_is_refused(tmp_path, name):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    row = {"prompt": "p", "chosen": "a", "rejected": "b", "images": [f"rows.parquet/{name}"]}
    parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "rows.parquet")
    with pytest.raises(UserError, match=r"record 'row-1': media file .* cannot be read \(the file holds no such image\)"):
        build(tmp_path / "rows.parquet", tmp_path / "out", jobs=1)


def test_a_parquet_file_whose_text_is_no_utf_8_is_refused(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    wrong = pyarrow.Array.from_buffers(pyarrow.string(), 1, pyarrow.array([b"\xff"], pyarrow.binary()).buffers())
    parquet.write_table(pyarrow.table({"prompt": wrong, "chosen": ["a"], "rejected": ["b"]}), tmp_path / "rows.parquet")
    with pytest.raises(UserError, match=r"rows\.parquet: a column of text is not valid UTF-8"):
        read_records(tmp_path / "rows.parquet")


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85"])
def test_a_line_separator_inside_a_text_ends_no_line_of_what_is_read_back(tmp_path, separator):
    """Unicode calls these line ends, and JSON leaves them as they are: scores with critiques, and records with captions."""
    critique = f"good{separator}bad"
    row = {"id": "r", "responses": [{"reward": 1.5, "critique": critique}]}
    write_json_lines(tmp_path / "scores.jsonl", [row, row | {"id": "s"}])
    (tmp_path / "scores.jsonl").write_text((tmp_path / "scores.jsonl").read_text() + "\n")  # an empty line
    scores = read_scores(tmp_path / "scores.jsonl")
    assert list(scores) == ["r", "s"] and (scores["s"].rewards, scores["s"].critiques) == ((1.5,), (critique,))
    scene = sample_scene(random.Random(0))
    write_json_lines(tmp_path / "records.jsonl", [RECORD | {"id": "r-0", "scene": scene.key, "source": critique}])
    for path in caption_records(tmp_path / "records.jsonl", seed=0):
        assert json.loads(path.read_text())["source"] == critique


@pytest.mark.parametrize("number", [f"1{'0' * 400}", f"1{'0' * 9999}", "1e999", "nan", "-1", "[" * 200_000])
@pytest.mark.parametrize("ranking", ["[{}, 2, 3]", "[[{}], [2, 3]]", "{}>2=3", "{}"])
def test_a_ranking_of_absurd_numbers_or_depth_is_refused_with_its_value(ranking, number):
    value = ranking.format(number)
    with pytest.raises(UserError, match=r"^here: field 'final_ranking' is '") as error:
        check_ranking(value, 3, "here")
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize("depth", [500, 5000])
def test_a_ranking_of_lists_nested_hundreds_or_thousands_deep_is_refused(depth):
    text, value = "[" * depth + "1" + "]" * depth, 1
    for _ in range(depth):
        value = [value]
    for ranking, shown in ((text, r"'\[\["), (value, r"(\[\[|a list nested too deeply)")):
        with pytest.raises(UserError, match=rf"^here: field .final_ranking. is {shown}"):
            check_ranking(ranking, 3, "here")


# Fuzz ----------------------------------------------------------------------------------------------------------------

MESSAGES = [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": "A"}]
GOOD_ROWS = [
    RECORD | {"source": "s", "video": None},
    {
        "id": "a",
        "question": "<image>Which?",
        "image": "a.png",
        "models_output": ["w", "x", "y"],
        "faithfulness": [5, 1, 3],
        "helpfulness": [4, 2, 3],
        "ethical": [5, 5, 5],
        "final_ranking": [1, 3, 2],
        "score_reasons": ["good", "bad", ""],
    },
    {
        "id": "p",
        "image": ["a.png"],
        "prompt": "Which?",
        "chosen": "A",
        "rejected": "B",
        "chosen_reason": "so",
        "ls_factor": 1.0,
    },
    {"prompt": MESSAGES[:1], "chosen": MESSAGES[1:], "rejected": MESSAGES[1:], "images": ["a.png"]},
    {"messages": MESSAGES, "rejected_response": "B", "images": ["a.png"], "videos": []},
    {"query": "Which?", "response": "A", "rejected_response": "B", "history": [], "system": ""},
    {"id": "v", "query": "Which?", "response": ["A", "B"], "human_ranking": [0, 1], "image": "a.png", "models": ["m", "n"]},
    {"ID": "m", "Text": "Which?", "Image": "a.png", "Output1": "A", "Output2": "B", "Better": "Output2", "Category": "vqa"},
]
VALUES = [
    None, True, 0, -1, 3, 10**30, 1e308, math.nan, math.inf, "", " ", "A", "1>2=3", "<image>", groups.HOSTILE, "\0", "\ue000",
    [], [[]], [None], ["A", 3], [1, 1, 1], [3, 1, 2], {}, {"bytes": "x"}, {"path": "../../etc/passwd"}, {"type": "image"},
    f"[1{'0' * 400}, 2, 3]", f"[1{'0' * 9999}, 2, 3]", "[" * 200_000, f"{'[' * 5000}1{']' * 5000}",
    {"role": "user", "content": [{"type": "video"}]}, "/etc/passwd", "../a.png", "a/./../a.png", "C:\\a", "file:///a",
]  # fmt: skip


def mutate(value, rng: random.Random):
    """A copy with one thing changed somewhere: a value exchanged, a key or item removed, doubled or moved."""
    value = copy.deepcopy(value)
    parent, key = None, None
    here = value
    while isinstance(here, (dict, list)) and here and (parent is None or rng.random() < 0.6):
        parent, key = here, rng.choice(list(here) if isinstance(here, dict) else range(len(here)))
        here = here[key]
    match rng.randrange(5):
        case 0:
            del parent[key]
        case 1 if isinstance(parent, list):
            parent.insert(key, copy.deepcopy(here))
        case 2:
            other = rng.choice([*GOOD_ROWS[rng.randrange(len(GOOD_ROWS))].items()])
            value[other[0]] = copy.deepcopy(other[1])
        case _:
            parent[key] = copy.deepcopy(rng.choice(VALUES))
    return value


def check_reading(rows: list[dict]) -> int:
    """Parse each row and join all: UserErrors of one line, or records that hold to their promises. Returns records read."""
    format_ = next((known for known in FORMATS if known.matches(rows[0])), None)
    if format_ is None:
        return 0
    parsed = []
    for number, row in enumerate(rows):
        try:
            parsed.append(format_.parse(Row(f"f:{number}", row)))
        except UserError as error:
            assert "\n" not in str(error) and f"f:{number}" in str(error)
    try:
        records = format_.join(parsed)
    except UserError as error:
        assert "\n" not in str(error)
        return 0
    for record in records:
        assert record.id and record.responses
        stored = json.dumps(record.to_json())  # as text: an unknown field may hold NaN, which equals nothing
        assert json.dumps(record_from_json(json.loads(stored), "again").to_json()) == stored
        ranks = [response.rank for response in record.responses]
        assert all(ranks[chosen] < ranks[rejected] for chosen, rejected in record.pairs())
        list(check_record(record))
    return len(records)


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, len(GOOD_ROWS) - 1), st.integers(0, 2**32))
def test_mutated_records_read_well_or_end_in_one_line(base, seed):
    """120 files of 20 records, each changed in one to three places: 2,400 in all."""
    rng, rows = random.Random(seed), []
    for number in range(20):
        row = GOOD_ROWS[base]
        for _ in range(rng.randint(1, 3)):
            row = mutate(row, rng) if row else row
        name = "ID" if "ID" in row else "id"
        rows.append(row | {name: f"{number}"} if rng.random() < 0.8 and isinstance(row, dict) else row)
    check_reading(rows)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, len(GOOD_ROWS) - 1), st.integers(0, 2**32))
def test_damaged_files_read_well_or_end_in_one_line(tmp_path_factory, base, seed):
    """60 files of 20 lines with bytes exchanged, removed and inserted anywhere, read strictly and tolerantly."""
    rng = random.Random(seed)
    rows = [GOOD_ROWS[base] | {"ID" if "ID" in GOOD_ROWS[base] else "id": str(i)} for i in range(20)]
    data = bytearray("\n".join(map(json.dumps, rows)).encode())
    for _ in range(rng.randint(1, 12)):
        at = rng.randrange(len(data))
        match rng.randrange(3):
            case 0:
                data[at] = rng.randrange(256)
            case 1:
                del data[at : at + rng.randint(1, 40)]
            case 2:
                data[at:at] = bytes(rng.randrange(256) for _ in range(rng.randint(1, 4)))
    path = tmp_path_factory.mktemp("damaged") / "rows.jsonl"
    path.write_bytes(data)
    found: list[UserError] = []
    try:
        tolerant = read_records(path, found.append)
    except UserError as error:  # nothing in it could be read, or not even its format be told
        found.append(error)
        tolerant = []
    assert all("\n" not in str(error) for error in found)
    try:
        assert read_records(path) == tolerant and not found
    except UserError as error:
        assert "\n" not in str(error) and found


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(["..", ".", "a", "b", "", "~", "a.png", "\\", "C:", "link"]), min_size=1, max_size=7))
def test_no_path_leads_out_of_the_media_root(tmp_path_factory, parts):
    root = tmp_path_factory.getbasetemp() / "root"
    if not root.exists():
        (root / "a" / "b").mkdir(parents=True)
        (root / "link").symlink_to(root.parent)
    try:
        found = resolve_media(root, "/".join(parts), "here")
    except UserError:
        return
    assert str(root.resolve()) in str(found.resolve())
