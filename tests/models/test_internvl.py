"""What is InternVL's own: its configs in both namings, its sizes, its tiles and tokens, its prompts."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from mmrlhf_jax.data.encode import make_encoder
from mmrlhf_jax.data.examples import Example, Layout
from mmrlhf_jax.data.rows import Budget
from mmrlhf_jax.data.templates import find_template
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.huggingface import export
from mmrlhf_jax.huggingface.checkpoint import read_sizes
from mmrlhf_jax.huggingface.export import export_checkpoint
from mmrlhf_jax.huggingface.model_config import read_config
from mmrlhf_jax.huggingface.tokenizer import load_tokenizer
from mmrlhf_jax.inference.engine import Engine, Prompt
from mmrlhf_jax.inference.prompts import prompt_trees
from mmrlhf_jax.models.internvl.geometry import TileGeometry
from mmrlhf_jax.models.internvl.original import CODE_FILES
from mmrlhf_jax.models.internvl.processors import ORIGINAL_TEMPLATES, written_template
from mmrlhf_jax.models.registry import family, published_config
from mmrlhf_jax.models.video import VideoLayout
from mmrlhf_jax.pieces import Special, Text, Visual
from mmrlhf_jax.records import RankedRecord, Response
from mmrlhf_jax.sharding.mesh import make_mesh, use_mesh
from tests.families import internvl

GEOMETRY = TileGeometry(28, 7)
PUBLISHED = TileGeometry(448, 14)


def stated(directory, change=lambda raw: raw, **checkpoint):
    """A directory whose config.json is changed after it was written."""
    directory = internvl.checkpoint(directory, **checkpoint)
    raw = change(json.loads((directory / "config.json").read_text()))
    (directory / "config.json").write_text(json.dumps(raw))
    return directory


def refusal(directory) -> str:
    with pytest.raises(UserError) as error:
        read_config(directory)
    message = str(error.value)
    assert message.startswith(str(directory)) and "\n" not in message
    return message.removeprefix(str(directory))


# Configs


def test_both_namings_state_the_same_model(tmp_path):
    tower = {"use_qk_norm": True, "attention_bias": False, "norm_type": "rms_norm"}
    raw = internvl.config(vision=tower, vision_feature_layer=-2)
    hf, original = (read_config(internvl.checkpoint(tmp_path / n, raw, naming=n)) for n in ("hf", "original"))
    assert hf == original
    assert (hf.vision.feature_layers, hf.vision.qk_norm_eps, hf.vision.norm) == (2, 1e-6, "rms_norm")


@pytest.mark.parametrize("shape", internvl.SHAPES)
@pytest.mark.parametrize("start", ["hf", "original"])
def test_a_model_keeps_its_sizes_on_the_way_to_the_other_naming_and_back(tmp_path, start, shape):
    raw = internvl.config(**internvl.SHAPES[shape] | {"projector_hidden_act": "gelu"})
    raw["vision_config"]["layer_norm_eps"] = 1e-6
    source = internvl.checkpoint(tmp_path / "in", raw, naming=start)
    other = "original" if start == "hf" else "hf"
    export_checkpoint(source, tmp_path / "other", naming=other)
    export_checkpoint(tmp_path / "other", tmp_path / "back", naming=start)
    assert read_sizes(source) == read_sizes(tmp_path / "other") == read_sizes(tmp_path / "back")


@pytest.mark.parametrize(
    ("change", "message"),
    [({"projector_hidden_act": "gelu_pytorch_tanh"}, "one projector"), ({"vision": {"layer_norm_eps": 1e-5}}, "one epsilon")],
    ids=str,
)
def test_what_the_original_naming_cannot_say_is_refused_at_once(tmp_path, monkeypatch, caplog, change, message):
    raw = internvl.config(**{"vision": {"use_qk_norm": True}} | change)
    raw["vision_config"]["use_qk_norm"] = True
    monkeypatch.setattr(export, "write_tensors", lambda *_: pytest.fail("weights were written"))
    with pytest.raises(UserError, match=f"{message}.*leave --naming at hf"):
        export_checkpoint(internvl.checkpoint(tmp_path / "in", raw), tmp_path / "out", naming="original")
    assert not (tmp_path / "out").exists() and not caplog.text


def test_absent_keys_mean_the_defaults_of_the_classes_that_read_them(tmp_path):
    """transformers' tower is the 300M one of 448 pixels; the original class's is the 6B one, with at most 6 tiles and none by
    default."""
    few = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 1, "num_key_value_heads": 2, "vocab_size": 300}
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf/config.json").write_text(json.dumps({"model_type": "internvl", "text_config": few}))
    found = read_config(tmp_path / "hf")
    tower = found.vision
    assert (tower.hidden_size, tower.layers, tower.heads, tower.image_size, tower.patch_size) == (1024, 24, 16, 448, 14)
    assert tower.norm == "layer_norm" and not tower.attention_bias
    assert found.geometry == PUBLISHED and found.text.tied and found.image_token == 151667
    assert found.vision.image_mean == (0.485, 0.456, 0.406)
    (tmp_path / "original").mkdir()
    raw = {"model_type": "internvl_chat", "ps_version": "v2", "llm_config": few, "vision_config": {"image_size": 448}}
    (tmp_path / "original/config.json").write_text(json.dumps(raw))
    found = read_config(tmp_path / "original")
    tower = (found.vision.hidden_size, found.vision.layers, found.vision.heads, found.vision.intermediate_size)
    assert tower == (3200, 48, 25, 12800) and found.vision.norm == "rms_norm" and found.vision.qk_norm_eps == 1e-6
    assert (found.geometry.max_tiles, found.geometry.thumbnail, found.text.tied) == (1, False, False)
    (tmp_path / "original/config.json").write_text(json.dumps(raw | {"dynamic_image_size": True, "use_thumbnail": True}))
    assert read_config(tmp_path / "original").geometry == dataclasses.replace(PUBLISHED, max_tiles=6)


def test_an_image_is_cut_though_the_file_says_crop_to_patches_false_and_by_the_limits_that_it_names(tmp_path):
    directory = internvl.checkpoint(tmp_path)
    processor = internvl.image_processor(internvl.config())
    assert processor["crop_to_patches"] is False
    (directory / "preprocessor_config.json").write_text(json.dumps(processor | {"max_patches": 6, "min_patches": 2}))
    geometry = read_config(directory).geometry
    assert (geometry.min_tiles, geometry.max_tiles) == (2, 6)
    assert [plan.tiles for plan in geometry.plans([(30, 200)])] == [7]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_thumbnail": "no"}, "the image processor: use_thumbnail must be true or false, found 'no'"),
        ({"max_patches": 0}, "the image processor: max_patches must be a whole number of at least 1, found 0"),
        ({"min_patches": 3, "max_patches": 2}, "the image processor: min_patches 3 is more than max_patches 2"),
    ],
    ids=str,
)
def test_limits_of_tiles_are_blamed_on_their_file(tmp_path, change, message):
    directory = internvl.checkpoint(tmp_path)
    path = directory / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert refusal(directory).startswith(f"/preprocessor_config.json: {message}")


def test_what_the_image_processors_file_leaves_out_is_its_class_default(tmp_path):
    directory = internvl.checkpoint(tmp_path)
    path = directory / "preprocessor_config.json"
    path.write_text(json.dumps({"image_processor_type": "GotOcr2ImageProcessor", "size": {"height": 28, "width": 28}}))
    assert read_config(directory).vision.image_mean == (0.48145466, 0.4578275, 0.40821073)
    path.write_text(json.dumps({"image_processor_type": "GotOcr2ImageProcessor"}))
    assert "size {'height': 384, 'width': 384} is not 28, that of config.json's vision tower" in refusal(directory)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_config": {"model_type": "llama"}}, "text_config.model_type is 'llama'"),
        ({"text_config": {"model_type": "qwen3"}}, "text_config.model_type is 'qwen3'"),
        ({"vision_config": {"model_type": "siglip_vision_model"}}, "InternVL has an InternViT tower"),
        ({"vision_config": {"use_mean_pooling": False}}, "use_mean_pooling false is not supported"),
        ({"vision_config": {"image_size": [28, 56]}}, "image_size [28, 56] is not one number or two equal ones"),
        ({"vision_config": {"norm_type": "batch_norm"}}, "norm_type must be one of"),
        ({"vision_config": {"patch_size": [4, 4]}}, "no multiple of patch_size 4 x 2 merged patches"),
        ({"downsample_ratio": 0.4}, "downsample_ratio 0.4 is not 1/2"),
        ({"vision_feature_select_strategy": "full"}, "InternVL drops the class token"),
        ({"vision_feature_layer": [-1, -2]}, "several layers are not supported"),
    ],
    ids=str,
)
def test_what_this_project_cannot_run_is_refused_in_one_line(tmp_path, change, message):
    def changed(raw):
        return raw | {key: {**raw[key], **value} if isinstance(value, dict) else value for key, value in change.items()}

    assert message in refusal(stated(tmp_path, changed))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"llm_config": {"architectures": ["InternLM2ForCausalLM"]}}, "the language model is InternLM2ForCausalLM"),
        ({"llm_config": {"architectures": ["Phi3ForCausalLM"]}}, "the language model is Phi3ForCausalLM"),
        ({"llm_config": {"architectures": ["Qwen3ForCausalLM"]}}, "the language model is Qwen3ForCausalLM"),
        ({"ps_version": "v1"}, "ps_version 'v1' transposes"),
        ({"use_llm_lora": 128}, "use_llm_lora 128 is not supported"),
        ({"force_image_size": 56}, "force_image_size 56 is not the tower's image_size 28"),
    ],
    ids=str,
)
def test_so_it_is_in_the_original_naming(tmp_path, change, message):
    def changed(raw):
        return raw | {key: {**raw[key], **value} if isinstance(value, dict) else value for key, value in change.items()}

    assert message in refusal(stated(tmp_path, changed, naming="original"))


def test_the_original_image_token_is_the_tokenizers_or_the_published_one(tmp_path):
    directory = internvl.checkpoint(tmp_path / "with", naming="original")
    assert read_config(directory).image_token == internvl.IMAGE_TOKEN
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (directory / name).unlink()
    (directory / "added_tokens.json").write_text(json.dumps({"<IMG_CONTEXT>": 263}))
    assert read_config(directory).image_token == 263
    (directory / "added_tokens.json").unlink()
    assert read_config(directory).image_token == 266 - 7


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("added_tokens.json", {"<IMG_CONTEXT>": "261"}, "<IMG_CONTEXT> must be a whole number of at least 0, found '261'"),
        ("added_tokens.json", {"<IMG_CONTEXT>": -1}, "<IMG_CONTEXT> must be a whole number of at least 0, found -1"),
        ("tokenizer_config.json", {"added_tokens_decoder": ["<img>"]}, "added_tokens_decoder must be an object"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"7": "<img>"}}, "added_tokens_decoder: 7 must be an object"),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"x": {"content": "<IMG_CONTEXT>"}}},
            "added_tokens_decoder: <IMG_CONTEXT> has the key 'x', which is no token's number",
        ),
        ("tokenizer.json", {"added_tokens": {"<img>": 1}}, "added_tokens must be a list of objects"),
        ("tokenizer.json", {"added_tokens": ["<img>"]}, "added_tokens[0] must be an object, found '<img>'"),
        ("tokenizer.json", {"added_tokens": [{"content": "<IMG_CONTEXT>"}]}, "added_tokens[0]: id must be a whole number"),
    ],
    ids=str,
)
def test_a_tokenizer_file_that_names_the_image_token_otherwise_is_blamed(tmp_path, name, content, message):
    directory = internvl.checkpoint(tmp_path, naming="original", with_tokenizer=False)
    (directory / name).write_text(json.dumps(content))
    found = refusal(directory)
    assert found.startswith(f"/{name}: ") and message in found


def test_a_config_without_a_tower_is_one_of_448_pixels_and_unlike_its_image_processor(tmp_path):
    found = refusal(stated(tmp_path, lambda raw: raw | {"vision_config": None}))
    assert "is not 448, that of config.json's vision tower" in found


def test_dynamic_rotary_embeddings_need_a_factor_as_in_transformers(tmp_path):
    raw = internvl.config(text={"rope_scaling": {"rope_type": "dynamic"}})
    found = refusal(internvl.checkpoint(tmp_path, raw))
    assert found == "/config.json: text_config: rope_scaling: factor must be a positive, finite number, found None"


def test_dynamic_rotary_embeddings_are_plain_as_far_as_the_model_was_made_for(tmp_path):
    raw = internvl.config(text={"max_position_embeddings": 64})
    assert read_config(internvl.checkpoint(tmp_path / "dynamic", raw)).text.max_positions == 64
    raw["text_config"].pop("rope_scaling")
    assert read_config(internvl.checkpoint(tmp_path / "plain", raw)).text.max_positions is None


@pytest.mark.long
def test_a_longer_conversation_is_refused_by_its_record_but_a_tree_may_be_longer(tmp_path):
    """Before anything is scored or generated. Measuring accepts it, so that over-budget policies can act on it."""
    directory = internvl.checkpoint(tmp_path / "model", internvl.config(text={"max_position_embeddings": 96}))
    engine = Engine.load(str(directory), batch=1, mesh=make_mesh({}, jax.devices()[:1]))
    encoder = engine.encoder("answer")
    fits = RankedRecord("fits", "Why?", tuple(Response(letter * 40) for letter in "abc"))
    size = encoder.measure(fits, Layout())
    assert size[Budget.names().index("slots")] > 96
    long = RankedRecord("long", "Why?", (Response("So."), Response("o" * 90)))
    assert encoder.measure(long, Layout())[Budget.names().index("targets")] > 90
    with pytest.raises(UserError, match=r"record 'long': a conversation of 1\d\d tokens exceeds the 96 positions.* dynamic"):
        encoder.encode(Example(long))
    prompt = Prompt(Example(fits))
    tree = prompt_trees([prompt], encoder, engine.asked(1))[0].tree
    length = len(tree.tokens) + len(tree.branches[0].tokens)
    assert len(engine.generate_tokens([prompt], max_new_tokens=96 - length)[0]) <= 96 - length
    with pytest.raises(UserError, match=rf"record 'fits': a prompt of {length} tokens with {97 - length} new tokens exceeds"):
        engine.generate_tokens([prompt], max_new_tokens=97 - length)
    # A reward is read behind the new tokens, where the template closes the conversation.
    with pytest.raises(UserError, match=r"record 'fits': a prompt of .* new tokens exceeds"):
        engine.write([prompt], engine.asked(96 - length, rewarded=lambda *_: None))


@pytest.mark.parametrize("stated_tying", [None, True, False])
@pytest.mark.parametrize("head", [True, False])
def test_the_outer_config_decides_tying_and_where_it_is_silent_the_stored_head_does(tmp_path, stated_tying, head):
    """As transformers 5 reads it: absent means tied, unless another projection is stored."""

    def changed(raw):
        raw["text_config"]["tie_word_embeddings"] = True  # counts for nothing
        outer = {} if stated_tying is None else {"tie_word_embeddings": stated_tying}
        return {key: value for key, value in raw.items() if key != "tie_word_embeddings"} | outer

    raw = internvl.config(text={"tie_word_embeddings": not head})
    directory = stated(tmp_path, changed, raw=raw)
    if stated_tying is False and not head:
        assert not read_config(directory).text.tied
    else:
        assert read_sizes(directory).text.tied == (not head)


# Sizes

PARAMETERS = {  # of the published models, in millions, as their cards count them
    "OpenGVLab/InternVL2-1B": 938,
    "OpenGVLab/InternVL2_5-1B-MPO": 938,
    "OpenGVLab/InternVL3-1B-hf": 938,
    "OpenGVLab/InternVL3-2B": 2089,
    "OpenGVLab/InternVL2_5-4B": 3713,
    "OpenGVLab/InternVL3-8B-hf": 7944,
    "OpenGVLab/InternVL3-14B-Instruct": 15117,
    "OpenGVLab/InternVL3-38B": 38388,
    "OpenGVLab/InternVL3-78B": 78408,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_models_have_the_parameters_of_their_cards(name):
    config = published_config(name)
    with use_mesh(make_mesh({}, jax.devices()[:1])):
        model = nnx.eval_shape(lambda: family("internvl").model()(config, rngs=nnx.Rngs(0)))
    count = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(model)))
    assert count == pytest.approx(PARAMETERS[name] * 1e6, rel=1e-3)


@pytest.mark.parametrize("name", ["OpenGVLab/InternVL2-2B", "OpenGVLab/InternVL2_5-8B", "InternVL3-9B", "InternVL3_5-8B"])
def test_models_with_other_language_models_are_not_among_them(name):
    assert published_config(name) is None


# Tiles and tokens


@pytest.mark.parametrize(
    ("size", "tokens"), [((480, 640), 3328), ((336, 500), 1792), ((1080, 1920), 2304), ((32, 32), 256), ((448, 448), 256)]
)
def test_an_image_has_256_tokens_a_tile(size, tokens):
    (plan,) = PUBLISHED.plans([size])
    assert plan.tokens == tokens == 256 * plan.tiles
    assert plan.pieces == (Special("<img>"), Visual(tokens), Special("</img>"))
    np.testing.assert_array_equal(plan.taps[:, 0], np.arange(tokens))
    assert (plan.weights == 1).all()


def test_every_image_of_a_prompt_has_tiles_of_its_own():
    plans = PUBLISHED.plans([(480, 640), (1080, 1920), (32, 32)])
    assert [plan.tiles for plan in plans] == [13, 9, 1]


def test_a_video_is_numbered_frames_in_lines():
    (plan,) = GEOMETRY.plans([], VideoLayout(3))
    frame = (Special("<img>"), Visual(4), Special("</img>"))
    texts = (Text("Frame1: "), Text("\nFrame2: "), Text("\nFrame3: "))
    assert plan.pieces == tuple(piece for text in texts for piece in (text, *frame))
    assert (plan.tiles, plan.tokens) == (3, 12)


def test_a_limit_on_tiles_shrinks_the_grid_of_every_image_alike():
    sizes = [(480, 640), (1080, 1920)]  # 13 and 9 tiles
    limits = PUBLISHED.smaller_media(sizes)
    assert limits == sorted(limits, reverse=True) and limits[0] < 22 and limits[-1] == 2
    for limit in limits:
        plans = PUBLISHED.plans(sizes, None, limit)
        assert sum(plan.tiles for plan in plans) == limit
    assert [plan.tiles for plan in PUBLISHED.plans(sizes, None, 8)] == [1, 3]  # of up to 7 tiles, 1 x 1 and 2 x 1 are nearest
    assert [plan.tiles for plan in PUBLISHED.plans(sizes, None, 1)] == [1, 1]


def test_what_is_cut_is_what_was_planned():
    images = [Image.new("RGB", (200, 30)), Image.new("RGB", (41, 90))]
    for limit in (0, 3, 8):
        plans = GEOMETRY.plans([(30, 200), (90, 41)], None, limit)
        assert len(GEOMETRY.cut_images(images, limit)) == sum(plan.tiles for plan in plans)
    assert GEOMETRY.cut_images([]).shape == (0, 28, 28, 3)
    assert GEOMETRY.cut_frames(images).shape == (2, 28, 28, 3)
    assert PUBLISHED.smaller_media([], VideoLayout(4)) == [3, 2, 1] and GEOMETRY.plans([], VideoLayout(4), 2)[0].tiles == 2


# Prompts

MESSAGES = {
    "one image": ("What is this?", [(28, 28)]),
    "two images": ("Compare them.", [(30, 200), (28, 28)]),
    "images inside": (("Is ", " like ", "?"), [(28, 28), (60, 28)]),
    "text": ("Why is the sky blue?", []),
}


def as_processor_writes(rendered: str, plans, tokens_per_tile: int, frames: int = 0) -> str:
    """The text that transformers' `InternVLProcessor` makes of a rendered template; the class itself needs torchvision."""
    from transformers.models.internvl.processing_internvl import InternVLProcessor

    marks = {"start_image_token": "<img>", "end_image_token": "</img>", "image_token": "<IMG_CONTEXT>"}
    processor = SimpleNamespace(**marks, image_seq_length=tokens_per_tile)
    if frames:
        video = {"pixel_values_videos": [np.zeros((frames, 1))]}
        return rendered.replace("<video>", InternVLProcessor.replace_video_token(processor, video, 0))
    head, *rest = rendered.split("<IMG_CONTEXT>")
    tiles = {"num_patches": [plan.tiles for plan in plans]}
    return head + "".join(
        InternVLProcessor.replace_image_token(processor, tiles, number) + part for number, part in enumerate(rest)
    )


@pytest.mark.parametrize("name", MESSAGES)
def test_the_default_template_is_the_checkpoints_and_a_prompt_has_the_tokens_of_transformers(tmp_path, name):
    directory = internvl.checkpoint(tmp_path)
    config, tokenizer = read_config(directory), load_tokenizer(directory)
    prompt, sizes = MESSAGES[name]
    encoder = make_encoder(tokenizer, config)
    assert encoder.template == "checkpoint"
    plans = config.geometry.plans(sizes)
    pieces = find_template(encoder.template, tokenizer, encoder.tokenizer.media_tags)(prompt, len(plans), None)
    found = encoder.tokens(pieces, plans)
    content = [{"type": "image"}] * len(sizes) + [{"type": "text", "text": prompt}]
    if not isinstance(prompt, str):
        content = [{"type": "text", "text": prompt[0]}]
        for text in prompt[1:]:
            content += [{"type": "image"}, {"type": "text", "text": text}]
    messages = [{"role": "user", "content": content}]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    text = as_processor_writes(rendered, plans, config.geometry.features)
    tokenizer.backend_tokenizer.encode_special_tokens = False
    np.testing.assert_array_equal(found.tokens, tokenizer(text, add_special_tokens=False).input_ids)
    assert found.is_visual.sum() == sum(plan.tokens for plan in plans) == (found.tokens == config.image_token).sum()


def test_so_has_one_about_a_video(tmp_path):
    directory = internvl.checkpoint(tmp_path)
    config, tokenizer = read_config(directory), load_tokenizer(directory)
    encoder = make_encoder(tokenizer, config)
    plans = config.geometry.plans([], VideoLayout(3))
    pieces = find_template("checkpoint", tokenizer, encoder.tokenizer.media_tags)("What happens?", 1, None)
    messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "What happens?"}]}]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    found = encoder.tokens(pieces, plans)
    tokenizer.backend_tokenizer.encode_special_tokens = False
    text = as_processor_writes(rendered, plans, config.geometry.features, frames=3)
    np.testing.assert_array_equal(found.tokens, tokenizer(text, add_special_tokens=False).input_ids)


def test_templates_of_the_older_converter_are_read_as_well(tmp_path):
    """They write `<image>` for an image, which no token is named after."""
    directory = internvl.checkpoint(tmp_path)
    tokenizer = load_tokenizer(directory)
    tags = family("internvl").media_tags
    new = find_template("checkpoint", tokenizer, tags)("Why?", 2, "So.")
    tokenizer.chat_template = tokenizer.chat_template.replace("<IMG_CONTEXT>", "<image>")
    assert find_template("checkpoint", tokenizer, tags)("Why?", 2, "So.") == new


@pytest.mark.parametrize("name", ORIGINAL_TEMPLATES)
def test_an_original_checkpoints_template_is_the_one_that_its_config_names(tmp_path, name):
    """The template of its tokenizer, if it has one, is the language model's and knows no images."""
    directory = stated(tmp_path, lambda raw: raw | {"template": name}, naming="original")
    plain = "{% for message in messages %}{{ message['role'] + message['content'] }}{% endfor %}"
    (directory / "chat_template.jinja").write_text(plain)
    tokenizer = load_tokenizer(directory)
    system, end = ORIGINAL_TEMPLATES[name]
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Why?"}]}]
    found = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    user = "<|im_start|>user\n<IMG_CONTEXT>\nWhy?"
    assert found == f"<|im_start|>system\n{system}{end}{user}{end}<|im_start|>assistant\n"
    export_checkpoint(directory, tmp_path / "hf")
    assert load_tokenizer(tmp_path / "hf").chat_template == tokenizer.chat_template == written_template(name)
    export_checkpoint(tmp_path / "hf", tmp_path / "back", naming="original")
    back = json.loads((tmp_path / "back" / "config.json").read_text())
    assert back["template"] == name and back["auto_map"]["AutoModel"] == "modeling_internvl_chat.InternVLChatModel"


def original_prompt(question: str, images: int) -> str:
    """The question as `chat` of OpenGVLab's `modeling_internvl_chat.py` has it, before tags become tokens.

    Tags stay where the question has them; without any, they open it. (Of several images without a tag `chat` places one; its
    callers write a line for each.)
    """
    return question if "<image>" in question else "<image>\n" * images + question


@pytest.mark.parametrize(
    ("prompt", "question", "images"),
    [
        ("Why?", "Why?", 1),
        ("Why?", "Why?", 2),
        ("Why?", "Why?", 0),
        (("Is ", " like ", "?"), "Is <image> like <image>?", 2),
        (("Describe ", ""), "Describe <image>", 1),
        (("", " is what ", " is not."), "<image> is what <image> is not.", 2),
        (("Image-1: ", "\nImage-2: ", "\nCompare them."), "Image-1: <image>\nImage-2: <image>\nCompare them.", 2),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ORIGINAL_TEMPLATES)
def test_images_inside_a_prompt_of_an_original_checkpoint_have_no_lines_of_their_own(tmp_path, name, prompt, question, images):
    directory = stated(tmp_path, lambda raw: raw | {"template": name}, naming="original")
    (directory / "chat_template.jinja").unlink()
    config, tokenizer = read_config(directory), load_tokenizer(directory)
    encoder = make_encoder(tokenizer, config)
    plans = config.geometry.plans([(28, 28)] * images)
    pieces = find_template("checkpoint", tokenizer, encoder.tokenizer.media_tags)(prompt, images, None)
    system, end = ORIGINAL_TEMPLATES[name]
    picture = "<img>" + "<IMG_CONTEXT>" * 4 + "</img>"
    wanted = (
        f"<|im_start|>system\n{system}{end}<|im_start|>user\n{original_prompt(question, images)}{end}<|im_start|>assistant\n"
    )
    assert tokenizer.decode(encoder.tokens(pieces, plans).tokens) == wanted.replace("<image>", picture)


@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize("thumbnail", [True, False])
@pytest.mark.parametrize("most", [1, 6])
def test_tiles_and_thumbnail_survive_an_export_and_the_way_back(tmp_path, caplog, dynamic, thumbnail, most):
    settings = {"dynamic_image_size": dynamic, "use_thumbnail": thumbnail, "max_dynamic_patch": most, "min_dynamic_patch": 1}
    source = stated(tmp_path / "in", lambda raw: raw | settings, naming="original")
    wanted = read_config(source).geometry
    assert (wanted.max_tiles, wanted.thumbnail) == (most if dynamic else 1, thumbnail)
    export_checkpoint(source, tmp_path / "hf")
    assert read_config(tmp_path / "hf").geometry == wanted
    assert ("transformers adds a thumbnail" in caplog.text) == (wanted.max_tiles > 1 and not thumbnail)
    export_checkpoint(tmp_path / "hf", tmp_path / "back", naming="original")
    assert read_config(tmp_path / "back").geometry == wanted
    export_checkpoint(tmp_path / "hf", tmp_path / "again")
    assert read_config(tmp_path / "again").geometry == wanted


@pytest.mark.parametrize("older", ["default", "dynamic"])
def test_of_two_kinds_of_rope_the_one_under_the_older_key_counts_as_in_transformers(tmp_path, older):
    transformers = pytest.importorskip("transformers")
    kinds = {"default": {"rope_type": "default"}, "dynamic": {"rope_type": "dynamic", "factor": 2.0}}
    newer = next(kind for kind in kinds if kind != older)
    raw = internvl.config()
    raw["text_config"]["rope_scaling"] = dict(kinds[older])
    raw["text_config"]["rope_parameters"] = {**kinds[newer], "rope_theta": 1e6}
    source = internvl.checkpoint(tmp_path / "in", raw)
    theirs = transformers.AutoConfig.from_pretrained(source).text_config.rope_parameters["rope_type"]
    export_checkpoint(source, tmp_path / "out", naming="original")
    for directory in (source, tmp_path / "out"):
        assert (read_config(directory).text.max_positions is not None) == (older == "dynamic") == (theirs == "dynamic")


@pytest.mark.parametrize(
    "change", [{"rescale_factor": 1 / 127.5}, {"image_mean": [0.5] * 3}, {"image_std": [0.5] * 3}, {}], ids=str
)
def test_pixels_that_the_original_code_computes_otherwise_are_reported(tmp_path, caplog, change):
    source = internvl.checkpoint(tmp_path / "in")
    path = source / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    export_checkpoint(source, tmp_path / "out", naming="original")
    assert ("the original code normalises pixels as ImageNet's" in caplog.text) == bool(change)


def test_a_chat_template_that_the_original_code_does_not_have_is_reported(tmp_path, caplog):
    source = internvl.checkpoint(tmp_path / "hf")
    export_checkpoint(source, tmp_path / "original", naming="original")
    assert f"the chat template of {source} is none of the original code's" in caplog.text
    assert json.loads((tmp_path / "original" / "config.json").read_text())["template"] == "internvl2_5"
    caplog.clear()
    (source / "chat_template.jinja").write_text(written_template("Hermes-2"))
    export_checkpoint(source, tmp_path / "known", naming="original")
    assert "chat template" not in caplog.text


def test_an_export_keeps_the_original_codes_files_or_lists_those_that_it_needs(tmp_path, caplog):
    source = internvl.checkpoint(tmp_path / "in", naming="original")
    for name in CODE_FILES[1:]:
        (source / name).write_text(f"# {name}")
    export_checkpoint(source, tmp_path / "out", naming="original")
    assert sorted(path.name for path in (tmp_path / "out").glob("*.py")) == sorted(CODE_FILES[1:])
    assert (
        f"AutoModel needs the original code beside these weights, and {source} does not have it ({CODE_FILES[0]})"
        in caplog.text
    )
    caplog.clear()
    export_checkpoint(source, tmp_path / "hf")
    assert not list((tmp_path / "hf").glob("*.py")) and "original code" not in caplog.text
    export_checkpoint(tmp_path / "hf", tmp_path / "back", naming="original")
    assert ", ".join(CODE_FILES) in caplog.text


def test_a_directory_without_a_template_is_exported_with_the_converters(tmp_path):
    directory = internvl.checkpoint(tmp_path / "in")
    (directory / "chat_template.jinja").unlink()
    export_checkpoint(directory, tmp_path / "out")
    found = load_tokenizer(tmp_path / "out")
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "image"}]}]
    converters = internvl.tokenizer()
    for generation in (True, False):
        render = {"tokenize": False, "add_generation_prompt": generation}
        assert found.apply_chat_template(messages, **render) == converters.apply_chat_template(messages, **render)


def test_a_converted_tokenizer_has_what_transformers_processor_asks_for(tmp_path):
    from transformers import AutoTokenizer

    directory = internvl.checkpoint(tmp_path / "in", naming="original")
    config = json.loads((directory / "tokenizer_config.json").read_text())
    named = ("start_image_token", "end_image_token", "context_image_token", "video_token")
    (directory / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in config.items() if k not in named}))
    export_checkpoint(directory, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert [getattr(tokenizer, name) for name in named] == ["<img>", "</img>", "<IMG_CONTEXT>", "<video>"]
    assert tokenizer.context_image_token_id == internvl.IMAGE_TOKEN


def test_a_published_original_directory_is_read_without_running_its_code(tmp_path, caplog):
    """It has classes of its own in files beside it, and a tokenizer in the files of Qwen2's."""
    from transformers.utils import logging

    logging.enable_propagation()
    classes = {
        "AutoConfig": "configuration_internvl_chat.InternVLChatConfig",
        "AutoModel": "modeling_internvl_chat.InternVLChatModel",
    }
    directory = stated(tmp_path, lambda raw: raw | {"auto_map": classes}, naming="original", with_tokenizer=False)
    (directory / "configuration_internvl_chat.py").write_text("raise RuntimeError")
    tokenizer = internvl.tokenizer()
    vocabulary, added = tokenizer.get_vocab(), tokenizer.get_added_vocab()
    text = {token: number for token, number in vocabulary.items() if token not in added}
    (directory / "vocab.json").write_text(json.dumps(text))
    (directory / "merges.txt").write_text("#version: 0.2\n")
    (directory / "added_tokens.json").write_text(json.dumps(added))
    special = {str(number): {"content": token, "special": True} for token, number in added.items()}
    config = {"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": special, "eos_token": "<|im_end|>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    found = load_tokenizer(directory)
    assert found.get_vocab() == vocabulary and found.convert_tokens_to_ids("<IMG_CONTEXT>") == internvl.IMAGE_TOKEN
    assert (
        found("Why <img>?", add_special_tokens=False).input_ids == tokenizer("Why <img>?", add_special_tokens=False).input_ids
    )
    assert not [record for record in caplog.records if "model of type" in record.getMessage()]
    assert read_config(directory).image_token == internvl.IMAGE_TOKEN
    export_checkpoint(directory, tmp_path / "hf")
    assert load_tokenizer(tmp_path / "hf").get_vocab() == vocabulary


def test_a_video_tag_without_an_embedding_is_no_fault_of_the_tokenizer(tmp_path):
    """Frames always take its place; the published tokenizers have it behind the model's last token."""
    directory = internvl.checkpoint(tmp_path, internvl.config(text={"vocab_size": 262}))
    load_tokenizer(directory)
    directory = internvl.checkpoint(tmp_path, internvl.config(text={"vocab_size": 261}))
    with pytest.raises(UserError, match="embeddings for 261 tokens"):
        load_tokenizer(directory)
