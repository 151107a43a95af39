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
    return next((name for name in ORIGINAL_TEMPLATES if written_template(name) == template), None)


def written_template(name: str) -> str:
    """The original code's template of this name, as Jinja text."""
    return chat_template(*ORIGINAL_TEMPLATES[name], inside=True)


def chat_template(system: str | None = None, end: str = "<|im_end|>\n", *, inside: bool = False) -> str:
    """The Jinja chat template whose messages end with `end`. `system` is the system message of conversations that have none.

    Each medium is followed by a line break. With `inside`, the media of a message that has one behind a text are not: the
    original code puts them into the places of their tags. Without arguments it is the template of transformers' converter.
    """
    opening, look, line = "", "", "\n"
    if system is not None:
        opening = f"{{% if loop.first and message['role'] != 'system' %}}<|im_start|>system\n{system}{end}{{% endif %}}"
    if inside:
        look = (
            "{% set seen = namespace(text=false, inside=false) %}{% for part in message['content'] %}"
            "{% if part['type'] == 'text' %}{% set seen.text = true %}{% elif seen.text %}{% set seen.inside = true %}"
            "{% endif %}{% endfor %}"
        )
        line = "{{ '' if seen.inside else '\\n' }}"
    return (
        "{% for message in messages %}" + opening + "<|im_start|>{{ message['role'] }}\n"
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
        + look
        + "{% for part in message['content'] %}"
        + "{% if part['type'] == 'image' %}<IMG_CONTEXT>"
        + line
        + "{% elif part['type'] == 'video' %}<video>"
        + line
        + "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
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
        named, own = config.get("template"), str(tokenizer.chat_template or "")
        if isinstance(named, str) and named in ORIGINAL_TEMPLATES and not any(tag in own for tag in MEDIA_TAGS):
            tokenizer.chat_template = written_template(named)


def processor_files(config: InternVLConfig) -> dict[str, dict[str, Any]]:
    """Image, video and joint processor configs by the names that transformers and vLLM look for."""
    vision, geometry = config.vision, config.geometry
    pixels, whose = pixel_settings(vision), {"processor_class": "InternVLProcessor"}
    image = {"image_processor_type": "GotOcr2ImageProcessor", "crop_to_patches": True}
    image |= {"min_patches": geometry.min_tiles, "max_patches": geometry.max_tiles}
    if not geometry.thumbnail:  # transformers' processor does not know the key and always adds one; this project reads it
        image["use_thumbnail"] = False
    return {
        "preprocessor_config.json": whose | image | pixels,
        "video_preprocessor_config.json": whose | {"video_processor_type": "InternVLVideoProcessor"} | pixels,
        "processor_config.json": whose | {"image_seq_length": geometry.features},
    }
