"""Pictures in the messages that the harness writes to its judge, as every server reads them.

WildVision writes `data:image/jpeg;base64, ` and then a PNG (lmms-eval 0.7.3, `tasks/wild_vision_bench/utils.py`). Servers, also
`mmrlhf serve`, refuse the space, or believe the wrong type.
"""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image


def with_sound_pictures(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The messages, with the URLs of their pictures written anew. What holds no picture stays as it is, so that the judge says
    what is wrong with it."""
    return [
        {**message, "content": [_part(part) for part in content]}
        if isinstance(content := message.get("content"), list)
        else dict(message)
        for message in messages
    ]


def _part(part: Any) -> Any:
    shown = part.get("image_url") if isinstance(part, dict) else None
    if isinstance(shown, dict) and isinstance(shown.get("url"), str):
        return {**part, "image_url": {**shown, "url": sound_url(shown["url"])}}
    return part


def sound_url(url: str) -> str:
    """A picture's data URL with the type of its content and without white space; any other URL as it is."""
    head, comma, payload = url.partition(",")
    if not (comma and head.lstrip().lower().startswith("data:") and ";base64" in head.lower()):
        return url
    try:
        content = base64.b64decode("".join(payload.split()), validate=True)
        with Image.open(io.BytesIO(content)) as image:
            kind = image.get_format_mimetype()
    except (binascii.Error, ValueError, OSError, Image.DecompressionBombError):  # no base64, or no picture
        return url
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
