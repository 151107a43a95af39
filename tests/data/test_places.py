"""Tags and media are counted, the place of every medium inside a text is kept, and no medium is passed over in silence."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from mmrlhf_jax.cli import app
from mmrlhf_jax.data.builder import build
from mmrlhf_jax.data.encode import media_layout
from mmrlhf_jax.data.examples import Example
from mmrlhf_jax.data.mixture import open_examples
from mmrlhf_jax.data.sources import read_records
from mmrlhf_jax.data.templates import CheckpointTemplate, find_template
from mmrlhf_jax.data.tokens import PieceTokenizer
from mmrlhf_jax.data.validate import validate
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.models.llava_onevision.processors import CHAT_TEMPLATE
from mmrlhf_jax.pieces import Visual
from mmrlhf_jax.places import WrongMedia
from mmrlhf_jax.records import RankedRecord, Response, record_from_json
from tests import ranked
from tests.data import groups
from tests.data.test_checkpoint_template import WITH_SYSTEM, rendered_ids

ANSWERS = [{"text": "A", "rank": 1}, {"text": "B", "rank": 2}]
MESSAGE = {"role": "user"}


def own(prompt, media, **more):
    return {"id": "r", "prompt": prompt, "responses": ANSWERS} | media | more


def mmrlhf_pair(prompt, media, **more):
    return {"id": "r", "prompt": prompt, "chosen": "A", "rejected": "B"} | media | more


def annotation(prompt, media, **more):
    return {"id": "r", "question": prompt, "models_output": ["A", "B"], "final_ranking": "1>2"} | media | more


def trl(prompt, media, **more):
    return {"prompt": prompt, "chosen": "A", "rejected": "B"} | media | more


def trl_messages(prompt, media, **more):
    return trl([MESSAGE | {"content": prompt}], media, **more)


def swift(prompt, media, **more):
    messages = [MESSAGE | {"content": prompt}, {"role": "assistant", "content": "A"}]
    return {"messages": messages, "rejected_response": "B"} | media | more


def swift_query(prompt, media, **more):
    return {"query": prompt, "response": "A", "rejected_response": "B"} | media | more


def vl_bench(prompt, media, **more):
    return {"id": "r", "query": prompt, "response": ["A", "B"], "human_ranking": [0, 1]} | media | more


def multimodal_bench(prompt, media, **more):
    return {"ID": "r", "Text": prompt, "Output1": "A", "Output2": "B", "Better": "Output1"} | media | more


def llama_factory(prompt, media, **more):
    sides = {side: {"from": "gpt", "value": text} for side, text in (("chosen", "A"), ("rejected", "B"))}
    return {"conversations": [{"from": "human", "value": prompt}]} | sides | media | more


EVERY_READER = [llama_factory, own, mmrlhf_pair, annotation, trl, trl_messages, swift, swift_query, vl_bench, multimodal_bench]
ONE, TWO, CLIP = {"images": ["a.png"]}, {"images": ["a.png", "b.png"]}, {"video": "clip"}


def write(folder, *rows):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def one(folder, row) -> RankedRecord:
    (record,) = read_records(write(folder, row))
    return record


# Counting ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", EVERY_READER)
@pytest.mark.parametrize(
    ("prompt", "media", "expected"),
    [
        ("<image>\nWhich <image>?", ONE, "has 2 tags (<image>) for 1 images"),
        ("<image><image>Which?", ONE, "has 2 tags (<image>) for 1 images"),
        ("<image> <image> <image> Which?", TWO, "has 3 tags (<image>) for 2 images"),
        ("<image>\nWhich?", {}, "has the tag <image>, but there are no media"),
        ("What is it?\n<video>", {}, "has the tag <video>, but there are no media"),
        ("<video>\nWhich?", ONE, "has the tag <video>, but the record's media are images"),
        ("<video> or <video>?", CLIP, "has 2 tags (<video>) for 1 videos"),
        ("<audio>\nWho speaks?", CLIP, "has the tag <audio>, but the record's media are a video"),
    ],
)
def test_tags_that_are_not_the_medias_are_refused_by_every_reader(tmp_path, row, prompt, media, expected):
    fine = row("Fine?", ONE)
    fine |= {name: "fine" for name in ("id", "ID") if name in fine}
    path = write(tmp_path, fine, row(prompt, media))
    with pytest.raises(WrongMedia) as error:
        read_records(path)
    assert expected in str(error.value) and "rows.jsonl:2" in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize("row", [trl, trl_messages, swift, swift_query, own, llama_factory, mmrlhf_pair])
def test_fewer_tags_than_pictures_are_refused_where_tags_are_places(tmp_path, row):
    with pytest.raises(WrongMedia, match=r"has 1 tags \(<image>\) for 2 images"):
        one(tmp_path, row("Which of <image> is it?", TWO))


@pytest.mark.parametrize("row", EVERY_READER)
@pytest.mark.parametrize("tag", ["<video>", "<image>"])
def test_the_tag_of_a_video_is_its_place_in_every_reader(tmp_path, row, tag):
    record = one(tmp_path, row(f"{tag}\nWhich?", CLIP))
    around = ("", "\nWhich?") if row is own else "Which?"
    assert (record.video, record.images, record.prompt_text()) == ("clip", (), around)


@pytest.mark.parametrize("row", EVERY_READER)
@pytest.mark.parametrize(
    ("media", "name"),
    [
        ({"img_path": "a.png"}, "img_path"),
        ({"image_path": "pictures/7"}, "image_path"),
        ({"imagePaths": ["a.png"]}, "imagePaths"),
        ({"image_url": {"url": "https://host/a"}}, "image_url"),
        ({"pictures": [{"bytes": "iVBORw0KGgo=", "path": None}]}, "pictures"),
        ({"media": [{"path": "a.png"}]}, "media"),
        ({"video_path": "clip.mp4"}, "video_path"),
        ({"audios": ["a.wav"]}, "audios"),
        ({"meta": {"img": "a.jpg"}}, "img"),
        ({"frames": ["0.png", "1.png"]}, "frames"),
        ({"attachments": ["a.png"]}, "attachments"),
        ({"file": "speech/7.wav"}, "file"),
        (ONE | {"rejected_images": ["b.png"]}, "rejected_images"),
        (ONE | {"image_2": "b.png"}, "image_2"),
        (ONE | {"image_b": "b.png"}, "image_b"),
        ({"image_b64": "aGVsbG8="}, "image_b64"),
        (ONE | {"videos_path": ["clip.mp4"]}, "videos_path"),
        (ONE | {"image_paths": ["a.png", "b.png"]}, "image_paths"),
        (CLIP | {"audio": "speech.mp3"}, "audio"),
    ],
)
def test_media_under_a_name_that_is_not_read_are_refused_by_that_name(tmp_path, row, media, name):
    if (row, name) == (vl_bench, "image_path"):  # the name that VL-RewardBench's authors give it
        assert one(tmp_path, row("Which?", media)).images == ("pictures/7",)
        return
    with pytest.raises(WrongMedia) as error:
        one(tmp_path, row("Which?", media))
    assert f"field '{name}' seems to hold media" in str(error.value) and "rows.jsonl:1" in str(error.value)


@pytest.mark.parametrize(
    "field",
    [
        {"image_id": 17},
        {"num_images": 1},
        {"image_size": [3, 4]},
        {"image_caption": "A cat at https://host."},
        {"image_path": "train2017/a.png"},  # where the one picture came from
        {"coco_url": "http://host/a.jpg"},
        {"image_url": ["http://host/a.jpg"]},
        {"mixed_up_image": "b.png"},
        {"video": None, "videos": [], "audio": None, "rejected_images": []},
        {"rejected_images": ["a.png"]},  # the same as the preferred side's
        {"media_type": "picture", "has_audio": False},
        {"audio": "none", "voice": "calm", "image_type": ".png", "medium": "oil"},
        {"image_license_url": "https://creativecommons.org/licenses/by/2.0", "img_author": "https://host/me"},
        {"photo_page": "https://host/7"},
    ],
)
def test_fields_that_are_no_other_media_are_kept(tmp_path, field):
    record = one(tmp_path, trl("Which?", ONE, **field))
    assert record.images == ("a.png",)
    kept = {name: value for name, value in field.items() if name not in ("video", "videos")}
    found = dict(record.extra) | (record.extra.get("pairs") or [{}])[0]
    assert {name: found[name] for name in kept} == kept


@pytest.mark.parametrize("row", EVERY_READER)
def test_an_answer_may_be_the_name_of_a_file_in_a_row_without_media(tmp_path, row):
    record = one(tmp_path, row("Which file holds the logo?", {"reference_answer": "logo.png"}))
    found = dict(record.extra) | (record.extra.get("pairs") or [{}])[0]
    assert (record.images, record.video, found["reference_answer"]) == ((), None, "logo.png")


@pytest.mark.parametrize(
    "field", [{"page_image": "page_3.png"}, {"image_page": {"bytes": "aGVsbG8="}}, {"image_owner": "https://host/me.jpg"}]
)
def test_a_picture_under_a_name_that_is_about_pictures_is_refused(tmp_path, field):
    with pytest.raises(WrongMedia, match="seems to hold media"):
        one(tmp_path, trl("Which?", ONE, **field))


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}},
        {"type": "image", "image": {"bytes": "iVBORw0KGgoAAAANSUhEUg" + "A" * 90, "path": None}},
        {"type": "image", "base64": "/9j/4AAQSkZJRgABAQ" + "A" * 90},
    ],
)
def test_base64_inside_a_message_is_refused_by_that_name(tmp_path, part):
    message = MESSAGE | {"content": [part, {"type": "text", "text": "Which?"}]}
    with pytest.raises(UserError, match="field 'prompt' holds a picture as base64 text"):
        one(tmp_path, {"prompt": [message], "chosen": "A", "rejected": "B"})


def test_media_inside_a_response_are_refused(tmp_path):
    with pytest.raises(WrongMedia, match=r"response 1, field 'images' seems to hold media"):
        one(tmp_path, own("Which?", ONE, responses=[ANSWERS[0], ANSWERS[1] | {"images": ["b.png"]}]))
    part = [{"type": "image", "image": "b.png"}, {"type": "text", "text": "B"}]
    for side in ("chosen", "rejected"):
        with pytest.raises(WrongMedia, match=f"field '{side}' has media inside an answer"):
            one(tmp_path, trl_messages("Which?", ONE, **{side: [{"role": "assistant", "content": part}]}))


# Both sides ----------------------------------------------------------------------------------------------------------


def conversation(question, answer):
    return [MESSAGE | {"content": question}, {"role": "assistant", "content": answer}]


@pytest.mark.parametrize("other", ["Why?", "<image>Which", [{"type": "text", "text": "<image>Which?"}]])
def test_a_rejected_side_with_another_question_is_refused(tmp_path, other):
    sides = {"chosen": conversation("<image>Which?", "A"), "rejected": conversation(other, "B")} | ONE
    with pytest.raises(UserError, match="'chosen' and 'rejected' begin with other messages"):
        one(tmp_path, sides)
    rejected = swift("<image>Which?", ONE) | {"rejected_messages": conversation(other, "B"), "rejected_response": None}
    with pytest.raises(UserError, match=r"field 'rejected_messages' begins with .*, another prompt"):
        one(tmp_path, rejected)


def test_a_prompt_column_that_asks_something_else_than_the_messages_is_refused(tmp_path):
    sides = {"chosen": conversation("Which?", "A"), "rejected": conversation("Which?", "B")}
    assert one(tmp_path, sides | {"prompt": "Which?"}).prompt == "Which?"
    with pytest.raises(UserError, match=r"field 'prompt' is 'Why\?', but the messages begin with \['Which\?'\]"):
        one(tmp_path, sides | {"prompt": "Why?"})


# Places --------------------------------------------------------------------------------------------------------------

IMAGE = {"type": "image"}


def text(value):
    return {"type": "text", "text": value}


@pytest.mark.parametrize(
    ("content", "images", "around", "read"),
    [
        ([text("Is this "), IMAGE, text(" or this "), IMAGE, text("?")], ["a", "b"], ("Is this ", " or this ", "?"), "ab"),
        ([text("Which?"), IMAGE], ["a"], ("Which?", ""), "a"),
        ([IMAGE, text("Which?")], ["a"], "Which?", "a"),
        ([IMAGE, IMAGE, text("Which"), text("one?")], ["a", "b"], "Which\none?", "ab"),
        ([IMAGE, text("or"), IMAGE], ["a", "b"], ("", "or", ""), "ab"),
        ([IMAGE | {"image": "b"}, text("or"), IMAGE], ["a"], ("", "or", ""), "ba"),
        ([text("So: "), IMAGE | {"path": "a"}], [], ("So: ", ""), "a"),
        ([text("So: "), IMAGE | {"image": "a"}], ["a"], ("So: ", ""), "a"),
    ],
)
@pytest.mark.parametrize("row", [trl_messages, swift])
def test_typed_parts_keep_the_order_of_texts_and_pictures(tmp_path, row, content, images, around, read):
    record = one(tmp_path, row(content, {"images": images}))
    assert (record.prompt_text(), record.images) == (around, tuple(read))
    assert record_from_json(json.loads(json.dumps(record.to_json())), "again") == record


def test_a_video_part_is_the_place_of_the_video(tmp_path):
    before, after = {"type": "video"}, {"type": "video", "video": "clip"}
    assert one(tmp_path, trl_messages([before, text("Which?")], CLIP)).prompt_text() == "Which?"
    record = one(tmp_path, trl_messages([text("Which?"), after], {}))
    assert (record.video, record.prompt_text()) == ("clip", ("Which?", ""))


@pytest.mark.parametrize(
    ("content", "media", "expected"),
    [
        ([IMAGE, text("<image>Which?")], ONE, "has the tag <image> in its text, beside parts that are media"),
        ([IMAGE, IMAGE, text("Which?")], ONE, "has 2 image parts, but 'images' has 1 paths"),
        ([IMAGE | {"image": "c.png"}, text("Which?")], ONE, "has 0 image parts, but 'images' has 1 paths for them; the parts"),
        ([{"type": "audio", "audio": "a.wav"}, text("Which?")], {}, "must be a text, an image or a video"),
        ([{"type": "text"}, IMAGE], ONE, "must be a text, an image or a video"),
        ([IMAGE, {"type": "video"}, text("Which?")], ONE, "has both images and a video"),
        ([{"type": "image", "image": "a", "url": "b"}, text("Which?")], {}, "media inside messages must be image paths"),
    ],
)
def test_parts_and_media_that_do_not_fit_are_refused(tmp_path, content, media, expected):
    for row in (trl_messages, swift):
        with pytest.raises(UserError) as error:
            one(tmp_path, row(content, media))
        assert expected in str(error.value) and "rows.jsonl:1" in str(error.value)


@pytest.mark.parametrize("row", [trl, swift, swift_query, own, llama_factory, mmrlhf_pair])
def test_tags_inside_a_text_are_places_where_the_format_says_so(tmp_path, row):
    assert one(tmp_path, row("Is <image> like <image>?", TWO)).prompt_text() == ("Is ", " like ", "?")


@pytest.mark.parametrize("row", [mmrlhf_pair, annotation, vl_bench, multimodal_bench])
@pytest.mark.parametrize("prompt", ["Which?\n<image>", "<image>\nWhich?", "Which?"])
def test_mmrlhf_files_have_their_media_before_the_text(tmp_path, row, prompt):
    for images in ("a.png", ["a.png", "b.png"]):  # one tag stands for all of them there
        assert one(tmp_path, row(prompt, {"image": images})).prompt_text() == "Which?"


@pytest.mark.parametrize("row", [swift, swift_query, llama_factory])
def test_media_of_an_answer_do_not_pass_for_the_prompts(tmp_path, row):
    answer = {"response": "<image>"} if row is swift_query else {}
    made = row("Draw a kite.", ONE, **answer)
    if row is swift:
        made["messages"][1]["content"] = "<image>"
    if row is llama_factory:
        made["rejected"] = {"from": "gpt", "value": "<image>"}
    with pytest.raises(WrongMedia, match="the tag <image> stands in an answer and not in the prompt"):
        one(tmp_path, made)


def test_media_places_say_which_tags_are_text(tmp_path):
    html = "What does <video> do?"
    with pytest.raises(WrongMedia, match='"media_places": \\[\\]'):
        one(tmp_path, own(html, {}))
    assert one(tmp_path, own(html, {}, media_places=[])).prompt_text() == html
    assert one(tmp_path, own(html, ONE, media_places=[])).prompt_text() == html
    record = one(tmp_path, own("Is <image> the tag <image>?", ONE, media_places=[3]))
    assert record.prompt_text() == ("Is ", " the tag <image>?")
    assert record_from_json(record.to_json(), "again") == record
    for places in ([4], [3, 19], [19, 3], [True], "3", [-1], [3.0], [10**30], {}):
        with pytest.raises(WrongMedia, match="field 'media_places' must"):
            one(tmp_path, own("Is <image> the tag <image>?", ONE, media_places=places))


# To the tokens -------------------------------------------------------------------------------------------------------


def prepared(folder, *prompts, pictures=2):
    """Own-form records about two pictures, built."""
    for name in "ab":
        (folder / f"{name}.png").write_bytes(ranked.picture((40, 30), ord(name)))
    media = {"images": ["a.png", "b.png"][:pictures]}
    responses = [ANSWERS[0] | {"critique": "Good."}, ANSWERS[1]]
    rows = [own(prompt, media) | {"id": str(i), "responses": responses} for i, prompt in enumerate(prompts)]
    return build(write(folder, *rows), folder / "out", jobs=1)


def decoded(encoder, tokens):
    """Text, with every run of image tokens as `[n]`."""
    image = encoder.tokenizer.image_token
    out, run = "", 0
    for token in [*map(int, tokens), -1]:
        if token == image:
            run += 1
            continue
        out, run = out + (f"[{run}]" if run else ""), 0
        out += "" if token < 0 else f"{token},"
    return out


def spelt(encoder, *parts):
    """The same of texts and numbers of image tokens."""
    ids = lambda part: "".join(f"{i}," for i in encoder.tokenizer.text(part)[0])
    return "".join(f"[{part}]" if isinstance(part, int) else ids(part) for part in parts)


def test_a_built_set_keeps_the_places_and_the_tokens_have_them(tmp_path):
    example = prepared(tmp_path, "Is <image> like <image>?")[0]
    assert example.record.prompt_text() == ("Is ", " like ", "?")
    encoder = groups.encoder()
    tree, visual = encoder.encode(example).tree, len(encoder.encode(example).media.slots)
    expected = spelt(encoder, "user\nIs ", visual // 2, " like ", visual // 2, "?")
    assert expected in decoded(encoder, tree.tokens[: tree.trunk])
    assert encoder.measure(example.record, media_layout(example))[2] == visual


def test_without_tags_the_tokens_are_those_of_media_before_the_text(tmp_path):
    first, same, untagged = prepared(tmp_path, "<image> <image>\nWhich?", "Which?", "Which?")
    encoder = groups.encoder()
    np.testing.assert_array_equal(encoder.encode(first).tree.tokens, encoder.encode(same).tree.tokens)
    np.testing.assert_array_equal(encoder.encode(untagged).tree.tokens, encoder.encode(same).tree.tokens)


def test_critiques_of_some_responses_only_give_every_branch_its_own_slots_of_the_same_tiles(tmp_path):
    """The plain conversation and the critique's differ before a picture that stands inside the question."""
    example = prepared(tmp_path, "Is <image> it?", pictures=1)[0]
    encoder = groups.encoder(task="critique")
    group = encoder.encode(example)
    slots = np.flatnonzero(group.tree.tokens == encoder.tokenizer.image_token)
    alone = groups.encoder().encode(example)
    assert len(slots) == len(group.media.slots) == len(group.media.slots) == 2 * len(alone.media.slots)
    np.testing.assert_array_equal(group.media.taps, np.tile(alone.media.taps, (2, 1)))
    np.testing.assert_array_equal(group.media.weights, np.tile(alone.media.weights, (2, 1)))
    assert group.media.units == alone.media.units
    assert encoder.measure(example.record, media_layout(example))[2] == len(slots)
    question = spelt(encoder, "[Question]: Is ", len(alone.media.slots), " it?\n[LMM Response]: A")
    assert question in decoded(encoder, group.tree.tokens)


def test_a_record_in_memory_with_tags_and_other_media_is_refused_when_it_is_encoded():
    record = RankedRecord("r", "<image>Which?", (Response("A", 1), Response("B", 2)))
    with pytest.raises(WrongMedia, match="record 'r': the prompt has the tag <image>, but there are no media"):
        groups.encoder().encode(Example(record))


# In the manner of Qwen2-VL's and other templates that write parts in their order.
IN_ORDER = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAVA_ONEVISION = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }} "
    "{% for c in m['content'] | selectattr('type', 'equalto', 'image') %}<image>{% endfor %}"
    "{% for c in m['content'] | selectattr('type', 'equalto', 'text') %}\n{{ c['text'] }}{% endfor %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
INTERLEAVED = [
    [text("Is "), IMAGE, text(" like "), IMAGE, text("?")],
    [text("Which?"), IMAGE],
    [IMAGE, text("or"), IMAGE],
    [IMAGE, text("Which?")],
    [IMAGE, IMAGE, text("Which?")],
]


@pytest.mark.parametrize("content", INTERLEAVED)
@pytest.mark.parametrize("template", [IN_ORDER, CHAT_TEMPLATE])
def test_interleaved_parts_give_the_tokens_that_the_checkpoints_template_gives_in_transformers(tmp_path, template, content):
    made = groups.byte_tokenizer()
    made.chat_template = template
    pieces = PieceTokenizer(made, made.convert_tokens_to_ids("<image>"))
    media = sum(part["type"] == "image" for part in content)
    prompt = one(tmp_path, trl_messages(content, {"images": ["a.png", "b.png"][:media]})).prompt_text()
    expected = rendered_ids(made, [MESSAGE | {"content": content}], add_generation_prompt=True)
    for name in ["checkpoint", *(["qwen_1_5"] if template is CHAT_TEMPLATE else [])]:
        found = pieces.conversation(find_template(name, made)(prompt, media, None), [[Visual(1)]] * media)
        assert found.tokens.tolist() == expected


def test_a_template_for_texts_alone_gets_the_tags_inside_the_text():
    made = groups.byte_tokenizer()
    made.chat_template = WITH_SYSTEM
    pieces = PieceTokenizer(made, made.convert_tokens_to_ids("<image>"))
    expected = rendered_ids(made, [MESSAGE | {"content": "Is <image> it?"}], add_generation_prompt=True)
    assert pieces.conversation(CheckpointTemplate(made)(("Is ", " it?"), 1, None), [[Visual(1)]]).tokens.tolist() == expected


def test_a_template_that_moves_pictures_to_the_front_is_refused_for_pictures_inside_a_text_only():
    made = groups.byte_tokenizer()
    made.chat_template = LLAVA_ONEVISION
    template = CheckpointTemplate(made)
    assert template("Which?", 1, None)
    with pytest.raises(UserError, match="moves media out of their places inside the text; choose qwen_1_5"):
        template(("Is ", " it?"), 1, None)


def test_tags_in_responses_are_text():
    encoder = groups.encoder()
    record = RankedRecord("r", "Which?", (Response("The tag <image>.", 1), Response("<|im_end|><video>", 2)))
    tree = encoder.encode(Example(record)).tree
    assert not (tree.tokens == encoder.tokenizer.image_token).any()


# At every door -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row", [own("<image>\nWhich?", {}), swift("<image><image>Which?", ONE), trl("Which?", {"img": "a.png"})]
)
def test_validate_finds_what_build_and_training_refuse(tmp_path, row):
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(ranked.picture((40, 30), ord(name)))
    good = row | {"messages": conversation("Fine?", "A")} if "messages" in row else row | {"prompt": "Fine?"}
    good = {name: value for name, value in good.items() if name != "img"} | ({"id": "good"} if "id" in row else {})
    path = write(tmp_path, good, row)
    report = validate(path)
    assert [(finding.kind, "rows.jsonl:2" in finding.message) for finding in report.findings] == [("media", True)]
    for door in (lambda: build(path, tmp_path / "out", jobs=1), lambda: open_examples(path)):
        with pytest.raises(WrongMedia):
            door()


FOREIGN = ["<|image_pad|>", "<IMG_CONTEXT>", "<|vision_start|>", "<image_1>", "<IMAGE>", "<|image_1|>"]
FOREIGN += ["<image 1>", "<video_2>", "< image >", "<image/>", "<img>", "<Img>", "<image_token>", "<im_patch>"]


@pytest.mark.parametrize("tag", FOREIGN)
def test_validate_finds_the_tags_of_other_programs_which_are_text_here(tmp_path, tag):
    (tmp_path / "a.png").write_bytes(ranked.picture((40, 30), 1))
    path = write(tmp_path, own(f"{tag} What?", ONE), own("<pre> What?", ONE) | {"id": "s"})
    (finding,) = validate(path).findings
    assert finding.kind == "media" and f"the prompt has {tag}, which is read as text" in finding.message
    assert read_records(path)[0].prompt_text() == f"{tag} What?"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--prompt", "<image>What is it?"], "--prompt: the prompt has the tag <image>, but there are no media"),
        (["--prompt", "<image> or <image>?", "--image", "{picture}"], "has 2 tags (<image>) for 1 images"),
        (["--prompt", "<video>", "--image", "{picture}"], "has the tag <video>, but the record's media are images"),
    ],
)
def test_generate_counts_the_tags_of_its_prompt_before_it_loads_a_model(tmp_path, options, expected):
    picture = tmp_path / "a.png"
    picture.write_bytes(ranked.picture((40, 30), 1))
    options = [option.format(picture=picture) for option in options]
    result = CliRunner().invoke(app, ["generate", "--model", str(tmp_path / "nowhere"), *options])
    assert isinstance(result.exception, WrongMedia) and expected in str(result.exception)
