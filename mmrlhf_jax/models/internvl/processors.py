"""What transformers and vLLM need beside an InternVL model's weights: media tokens, chat template, processor files.

Reference: transformers `convert_internvl_weights_to_hf.py` and `processing_internvl.py`; OpenGVLab `conversation.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mmrlhf_jax.models.image_processor import pixel_settings
from mmrlhf_jax.models.internvl.geometry import IMAGE_END, IMAGE_START
from mmrlhf_jax.models.internvl.original import IMAGE_TOKEN, is_original
from mmrlhf_jax.models.media_tokens import check_media_tokens

if TYPE_CHECKING:
    from mmrlhf_jax.models.internvl.config import InternVLConfig

VIDEO_TOKEN = "<video>"
# The tags that chat templates write in the place of a medium: that of transformers' current processor, and older ones.
MEDIA_TAGS = (IMAGE_TOKEN, "<image>", VIDEO_TOKEN)
# The attributes by which transformers' processor gets media tokens from its tokenizer.
NAMED_TOKENS = {
    "start_image_token": IMAGE_START,
    "end_image_token": IMAGE_END,
    "context_image_token": IMAGE_TOKEN,
    "video_token": VIDEO_TOKEN,
}
# The original code's own templates, by the `template` of config.json: the system message, and what ends every message.
ORIGINAL_TEMPLATES = {
    "internvl2_5": (
        "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。",
        "<|im_end|>\n",
    ),
    "Hermes-2": (
        "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。",
        "<|im_end|>",
    ),
}
ORIGINAL_DEFAULT = "internvl2_5"  # for a chat template that is none of these


def original_template(template: str | None) -> str | None:
    """The name of the original code's template that writes conversations as this Jinja text does; None if there is none."""
    return next((name for name, parts in ORIGINAL_TEMPLATES.items() if chat_template(*parts) == template), None)


def chat_template(system: str | None = None, end: str = "<|im_end|>\n") -> str:
    """The Jinja chat template whose messages end with `end`. `system` is the system message of conversations that have none.

    Without arguments it is the template that transformers' converter writes.
    """
    opening = ""
    if system is not None:
        opening = f"{{% if loop.first and message['role'] != 'system' %}}<|im_start|>system\n{system}{end}{{% endif %}}"
    return (
        "{% for message in messages %}" + opening + "<|im_start|>{{ message['role'] }}\n"
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}<IMG_CONTEXT>\n{% elif part['type'] == 'video' %}<video>\n"
        "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
        + end
        + "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


def prepare_tokenizer(tokenizer: Any, config: Mapping[str, Any], where: str) -> None:
    """Add to a tokenizer of the original naming what is defined in the original code: the chat template that config.json names,
    unless the directory has one with media tags, and the names of the media tokens.

    UserError if a media token is missing, or if `<IMG_CONTEXT>` is not the config's image token.
    """
    vocabulary = tokenizer.get_vocab()
    needed, stated = (IMAGE_START, IMAGE_END, IMAGE_TOKEN), config.get("image_token_id")
    check_media_tokens(vocabulary, needed, IMAGE_TOKEN, stated, where, kind="an InternVL tokenizer")
    if is_original(config):
        tokenizer.init_kwargs.update(NAMED_TOKENS)  # `save_pretrained` writes them
        named, own = ORIGINAL_TEMPLATES.get(config.get("template")), str(tokenizer.chat_template or "")
        if named is not None and not any(tag in own for tag in MEDIA_TAGS):
            tokenizer.chat_template = chat_template(*named)


def processor_files(config: InternVLConfig) -> dict[str, dict[str, Any]]:
    """Image, video and joint processor configs by the names that transformers and vLLM look for."""
    vision, geometry = config.vision, config.geometry
    pixels, whose = pixel_settings(vision), {"processor_class": "InternVLProcessor"}
    image = {"image_processor_type": "GotOcr2ImageProcessor", "crop_to_patches": True}
    image |= {"min_patches": geometry.min_tiles, "max_patches": geometry.max_tiles}
    return {
        "preprocessor_config.json": whose | image | pixels,
        "video_preprocessor_config.json": whose | {"video_processor_type": "InternVLVideoProcessor"} | pixels,
        "processor_config.json": whose | {"image_seq_length": geometry.features},
    }
