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


def processor_files(config: PatchModelConfig, processor_class: str, image_processor: str) -> dict[str, dict[str, Any]]:
    """The image processor's config, by the name that transformers and vLLM look for, with the names of both classes there."""
    vision, geometry = config.vision, config.geometry
    return {
        "preprocessor_config.json": {
            "processor_class": processor_class,
            "image_processor_type": image_processor,
            **PREPROCESSING,
            "do_convert_rgb": True,
            "image_mean": list(vision.image_mean),
            "image_std": list(vision.image_std),
            "rescale_factor": vision.rescale,
            "patch_size": vision.patch_size,
            "merge_size": vision.merge,
            "temporal_patch_size": vision.frames,
            # Both spellings, because programs read one or the other.
            "min_pixels": geometry.min_pixels,
            "max_pixels": geometry.max_pixels,
            "size": {"shortest_edge": geometry.min_pixels, "longest_edge": geometry.max_pixels},
        },
    }
