"""What transformers and vLLM need beside a LLaVA-OneVision model's weights: media tokens, chat template, processor files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mmrlhf_jax.models.image_processor import pixel_settings
from mmrlhf_jax.models.media_tokens import check_media_tokens

if TYPE_CHECKING:
    from mmrlhf_jax.models.llava_onevision.config import LlavaOnevisionConfig

IMAGE_TOKEN, VIDEO_TOKEN = "<image>", "<video>"

# The same conversation as `qwen_1_5`, in the Jinja of tokenizers, for users of an exported model in transformers.
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% set media = message['content'] | selectattr('type', 'in', ['image', 'video']) | list %}"
    "{% if message['content'][:media | length] == media %}"  # media that all precede the text, or media inside it
    "{% for part in media %}<{{ part['type'] }}>{{ '\n' if loop.last else ' ' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{% else %}"
    "{% for part in message['content'] if part['type'] == 'text' or part in media %}"
    "{{ part['text'] if part['type'] == 'text' else '<' + part['type'] + '>' }}{% endfor %}{% endif %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def prepare_tokenizer(tokenizer: Any, config: Mapping[str, Any], where: str, is_original: bool) -> None:
    """Add the media tokens that tokenizers of the original naming lack.

    UserError if `<image>` is missing or is not the config's image token.
    """
    from transformers import AddedToken  # not above: importing it takes seconds

    if is_original and IMAGE_TOKEN not in tokenizer.get_vocab():
        added = [AddedToken(token, special=True, normalized=False) for token in (IMAGE_TOKEN, VIDEO_TOKEN)]
        tokenizer.add_tokens(added, special_tokens=True)
    newer, older = config.get("image_token_id"), config.get("image_token_index")
    stated, kind = older if newer is None else newer, "a LLaVA-OneVision tokenizer"
    check_media_tokens(tokenizer.get_vocab(), (IMAGE_TOKEN,), IMAGE_TOKEN, stated, where, kind=kind)


def processor_files(config: LlavaOnevisionConfig) -> dict[str, dict[str, Any]]:
    """Image, video and joint processor configs by the names that transformers and vLLM look for."""
    vision, geometry = config.vision, config.geometry
    pixels, whose = pixel_settings(vision), {"processor_class": "LlavaOnevisionProcessor"}
    image = {"image_processor_type": "LlavaOnevisionImageProcessor", "do_pad": True}
    image["image_grid_pinpoints"] = [list(pinpoint) for pinpoint in geometry.pinpoints]
    video = {"video_processor_type": "LlavaOnevisionVideoProcessor"}
    joint = {
        "num_image_tokens": vision.patches,
        "vision_feature_select_strategy": "full",
        "vision_aspect_ratio": f"anyres_max_{geometry.max_patches}" if geometry.max_patches else "anyres",
        "image_token": IMAGE_TOKEN,
        "video_token": VIDEO_TOKEN,
    }
    return {
        "preprocessor_config.json": whose | image | pixels,
        "video_preprocessor_config.json": whose | video | pixels,
        "processor_config.json": whose | joint,
    }
