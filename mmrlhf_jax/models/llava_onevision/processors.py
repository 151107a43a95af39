"""What transformers and vLLM need beside a LLaVA-OneVision model's weights: media tokens, chat template, processor files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mmrlhf_jax.errors import UserError

if TYPE_CHECKING:
    from mmrlhf_jax.models.llava_onevision.config import LlavaOnevisionConfig

IMAGE_TOKEN, VIDEO_TOKEN = "<image>", "<video>"

# The same conversation as `qwen_1_5`, in the Jinja of tokenizers, for whoever uses an exported model with transformers.
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% set media = message['content'] | selectattr('type', 'in', ['image', 'video']) | list %}"
    "{% if message['content'][:media | length] == media %}"  # all before the text, or inside it
    "{% for part in media %}<{{ part['type'] }}>{{ '\n' if loop.last else ' ' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{% else %}"
    "{% for part in message['content'] if part['type'] == 'text' or part in media %}"
    "{{ part['text'] if part['type'] == 'text' else '<' + part['type'] + '>' }}{% endfor %}{% endif %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def prepare_tokenizer(tokenizer: Any, config: Mapping[str, Any], where: str, is_original: bool) -> None:
    """Add the media tokens that tokenizers of the original naming lack.

    UserError where `<image>` is missing or is not the config's image token.
    """
    from transformers import AddedToken  # not above: importing it takes seconds

    if is_original and IMAGE_TOKEN not in tokenizer.get_vocab():
        added = [AddedToken(token, special=True, normalized=False) for token in (IMAGE_TOKEN, VIDEO_TOKEN)]
        tokenizer.add_tokens(added, special_tokens=True)
    vocabulary = tokenizer.get_vocab()
    if IMAGE_TOKEN not in vocabulary:
        raise UserError(f"{where}: the tokenizer has no {IMAGE_TOKEN} token; it is not a LLaVA-OneVision tokenizer")
    expected = config.get("image_token_id", config.get("image_token_index", vocabulary[IMAGE_TOKEN]))
    if vocabulary[IMAGE_TOKEN] != expected:
        found = f"{IMAGE_TOKEN} is token {vocabulary[IMAGE_TOKEN]} of the tokenizer, but config says {expected}"
        raise UserError(f"{where}: {found}; tokenizer and model do not belong together")


def processor_files(config: LlavaOnevisionConfig) -> dict[str, dict[str, Any]]:
    """Image, video and joint processor configs by the names that transformers and vLLM look for."""
    vision, geometry = config.vision, config.geometry
    whose = {"processor_class": "LlavaOnevisionProcessor"}
    pixels = {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(vision.image_mean),
        "image_std": list(vision.image_std),
        "resample": 3,  # bicubic
        "rescale_factor": vision.rescale,
        "size": {"height": vision.image_size, "width": vision.image_size},
    }
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
