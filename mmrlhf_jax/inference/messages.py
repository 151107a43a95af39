"""Prompts with media as messages of OpenAI's protocol, in the form that vLLM and SGLang take."""

from __future__ import annotations

import base64
import functools
import io
from typing import Any

from PIL import ExifTags, Image

from mmrlhf_jax.data.examples import Example
from mmrlhf_jax.data.images import decode_image
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.places import PromptText

# Formats and modes that every server decodes as `decode_image` does. Others are sent as PNG of the pixels that it gives.
_FORMATS, _MODES = ("JPEG", "PNG", "WEBP", "GIF", "BMP"), ("RGB", "L")


def user_message(prompt: PromptText, example: Example) -> list[dict[str, Any]]:
    """The message that asks `prompt` about the example's media: they come first, or in their places inside the text; a video
    is sent as its frames (vLLM's `video/jpeg`). UserError for media that cannot be read."""
    where = f"record {example.record.id!r}"
    if example.frames:
        frames = [_sent(data, f"{where}, frame {i}")[1] for i, data in enumerate(example.frames)]
        media = [{"type": "video_url", "video_url": {"url": f"data:video/jpeg;base64,{','.join(frames)}"}}]
    else:
        sent = [_sent(data, f"{where}, image {i}") for i, data in enumerate(example.images)]
        media = [{"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{code}"}} for kind, code in sent]
    if isinstance(prompt, str):
        content = [*media, _text(prompt)]
    else:
        content = [_text(prompt[0])] if prompt[0] else []
        for medium, after in zip(media, prompt[1:], strict=True):
            content += [medium, _text(after)] if after else [medium]
    return [{"role": "user", "content": content}]


def _text(value: str) -> dict[str, str]:
    return {"type": "text", "text": value}


def _sent(data: bytes, where: str) -> tuple[str, str]:
    """(kind, base64) of a picture."""
    try:
        return _encoded(data)
    except UserError as error:
        raise UserError(f"{where}{error}") from None


@functools.lru_cache(maxsize=32)  # the requests of a group follow each other, with the same pictures
def _encoded(data: bytes) -> tuple[str, str]:
    kind = _plain_kind(data)
    if kind is None:
        file = io.BytesIO()
        decode_image(data, "").save(file, "PNG")
        kind, data = "png", file.getvalue()
    return kind, base64.b64encode(data).decode()


def _plain_kind(data: bytes) -> str | None:
    """The kind of a picture that is sent as it is; None for one that lies on its side, is transparent, or is of a rare kind."""
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            upright = image.getexif().get(ExifTags.Base.Orientation, 1) == 1
            opaque = image.mode in _MODES and "transparency" not in image.info
            return image.format.lower() if upright and opaque and image.format in _FORMATS else None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None  # `decode_image` says what is wrong with it
