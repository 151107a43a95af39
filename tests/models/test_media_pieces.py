"""The tokens around a medium are of the medium, so that every template has them: families of patches."""

from __future__ import annotations

import pytest

from mmrlhf_jax.data.encode import make_encoder
from mmrlhf_jax.data.examples import Layout
from mmrlhf_jax.data.templates import find_template
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.huggingface.checkpoint import read_sizes
from mmrlhf_jax.huggingface.tokenizer import load_tokenizer
from mmrlhf_jax.models import registry
from mmrlhf_jax.models.patch_family import PatchFamily
from mmrlhf_jax.models.patch_processors import END, IMAGE_TOKEN, START, VIDEO_TOKEN
from mmrlhf_jax.records import RankedRecord, Response
from tests.families import FAMILIES, WITH_VIDEOS
from tests.prompts import every_frame

PATCHED = [name for name in FAMILIES if isinstance(registry.family(name), PatchFamily)]
SIZES = [(50, 20), (25, 100)]


@pytest.fixture(params=PATCHED)
def place(request, tmp_path):
    """(a family's name, a checkpoint's sizes, its tokenizer)"""
    directory = FAMILIES[request.param].checkpoint(tmp_path)
    return request.param, read_sizes(directory), load_tokenizer(directory)


def written(encoder, layout: Layout) -> str:
    """A conversation about these media, with a token's name for every token."""
    media = tuple(f"{number}" for number in range(len(layout.images)))
    record = RankedRecord("one", "What is it?", (Response("A kite."),), media, "clip" if layout.video else None)
    (conversation,) = encoder.conversations(record, encoder.plans(record, layout))
    return encoder.tokenizer.tokenizer.decode(conversation.tokens, skip_special_tokens=False)


@pytest.mark.parametrize("template", ["qwen_1_5", "upstream_train", "checkpoint"])
def test_every_template_has_the_tokens_around_pictures(place, template):
    _, model, tokenizer = place
    counts = [plan.tokens for plan in model.geometry.plans(SIZES)]
    text = written(make_encoder(tokenizer, model, template), Layout(tuple(SIZES)))
    each = [f"{START}{IMAGE_TOKEN * count}{END}" for count in counts]
    between, behind = ("", "") if template == "checkpoint" else (" ", {"qwen_1_5": "\n", "upstream_train": "\n\n"}[template])
    assert f"<|im_start|>user\n{between.join(each)}{behind}What is it?<|im_end|>" in text
    assert (text.count(START), text.count(END), text.count(IMAGE_TOKEN)) == (2, 2, sum(counts))
    if template == "checkpoint":
        content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "What is it?"}]
        rendered = tokenizer.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
        for filled in each:
            rendered = rendered.replace(f"{START}{IMAGE_TOKEN}{END}", filled, 1)
        assert text.startswith(rendered)


@pytest.mark.parametrize("template", ["qwen_1_5", "upstream_train", "checkpoint"])
def test_every_template_has_the_tokens_around_a_video(place, template):
    family, model, tokenizer = place
    if family not in WITH_VIDEOS:
        pytest.skip("a family without videos")
    video = every_frame(5, (40, 60))
    (plan,) = model.geometry.plans([], video)
    text = written(make_encoder(tokenizer, model, template), Layout((), video))
    assert text.count(START) == text.count(END) >= 1 and text.count(IMAGE_TOKEN) == plan.tokens
    assert text.split(END)[0].endswith(START + IMAGE_TOKEN * (plan.tokens // text.count(START)))


@pytest.mark.parametrize("medium", [IMAGE_TOKEN, f"{START}{IMAGE_TOKEN}", f"{IMAGE_TOKEN}\n{END}"])
def test_a_chat_template_without_the_tokens_around_a_medium_is_refused(place, medium):
    family, _, tokenizer = place
    tokenizer.chat_template = tokenizer.chat_template.replace(f"{START}{IMAGE_TOKEN}{END}", medium.replace("\n", ""))
    template = find_template("checkpoint", tokenizer, registry.family(family).media_tags)
    assert template("Why?", 0, "So.")
    with pytest.raises(UserError, match=r"writes .* where this model's media are <\|vision_start\|><\|image_pad\|>") as refused:
        template("Why?", 1, "So.")
    assert "\n" not in str(refused.value)


def test_no_text_becomes_a_token_of_media(place):
    _, model, tokenizer = place
    encoder = make_encoder(tokenizer, model)
    named = {tokenizer.convert_tokens_to_ids(token) for token in (START, END, IMAGE_TOKEN, VIDEO_TOKEN)}
    assert named <= encoder.tokenizer.media_ids
