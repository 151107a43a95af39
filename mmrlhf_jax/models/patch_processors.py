"""What transformers and vLLM need beside the weights of a model of patches: media tokens, chat template, processor files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mmrlhf_jax.models.image_processor import PREPROCESSING
from mmrlhf_jax.models.media_tokens import check_media_tokens

if TYPE_CHECKING:
    from mmrlhf_jax.models.patch_config import PatchModelConfig

IMAGE_TOKEN, VIDEO_TOKEN = "<|image_pad|>", "<|video_pad|>"
START, END = "<|vision_start|>", "<|vision_end|>"
MEDIA_TOKENS = (START, END, IMAGE_TOKEN, VIDEO_TOKEN)
MEDIA_TAGS = (f"{START}{IMAGE_TOKEN}{END}", f"{START}{VIDEO_TOKEN}{END}")  # how chat templates write a medium

_SYSTEM = (
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
)
_TEMPLATE = (
    "{% for message in messages %}SYSTEM<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Conversations as the published templates write them, with a default system message or without.
CHAT_TEMPLATE = _TEMPLATE.replace("SYSTEM", _SYSTEM)
BARE_CHAT_TEMPLATE = _TEMPLATE.replace("SYSTEM", "")


def prepare_tokenizer(tokenizer: Any, config: Mapping[str, Any], where: str, *, title: str) -> None:
    """UserError if a media token is missing, or if `<|image_pad|>` is not the config's image token."""
    needed, stated = (START, END, IMAGE_TOKEN), config.get("image_token_id")
    check_media_tokens(tokenizer.get_vocab(), needed, IMAGE_TOKEN, stated, where, kind=f"a {title} tokenizer")


def processor_files(
    config: PatchModelConfig, processor_class: str, image_processor: str, video_processor: str
) -> dict[str, dict[str, Any]]:
    """The configs of the image processor and the video processor, by the names that transformers and vLLM look for, with the
    names of the classes there."""
    vision, geometry = config.vision, config.geometry
    shared = {
        "processor_class": processor_class,
        **PREPROCESSING,
        "do_convert_rgb": True,
        "image_mean": list(vision.image_mean),
        "image_std": list(vision.image_std),
        "rescale_factor": vision.rescale,
        "patch_size": vision.patch_size,
        "merge_size": vision.merge,
        "temporal_patch_size": vision.frames,
    }
    images = {"image_processor_type": image_processor} | _limits(geometry.min_pixels, geometry.max_pixels)
    videos = {"video_processor_type": video_processor}
    videos |= _limits(geometry.video_min_pixels, geometry.video_max_pixels)
    return {"preprocessor_config.json": shared | images, "video_preprocessor_config.json": shared | videos}


def _limits(least: int, most: int) -> dict[str, Any]:
    """Limits of an area in both spellings, because programs read one or the other."""
    return {"min_pixels": least, "max_pixels": most, "size": {"shortest_edge": least, "longest_edge": most}}
