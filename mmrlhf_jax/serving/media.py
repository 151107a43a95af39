"""Pictures and frames of a request, from data URLs alone: nothing is fetched, and nothing is read from this machine's files."""

from __future__ import annotations

import base64
import binascii
import io

from PIL import Image

from mmrlhf_jax.data.images import MAX_SIDE, image_size
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.serving.errors import ApiError
from mmrlhf_jax.serving.limits import Limits

PICTURES = ("image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp")
_ALIASES = {"image/jpg": "image/jpeg"}  # made of a file's name by many clients
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")  # whatever a request calls them; no other reader is tried
MOST_KIND = 80  # characters of a type that a message repeats
FRAMES = "video/jpeg"  # vLLM's form: base64 JPEG frames, separated by commas


def picture(url: str, limits: Limits, param: str) -> bytes:
    """The bytes of a picture's data URL. ApiError for anything else, and for a picture that is too large or cannot be read."""
    kind, payload = _data_url(url, param)
    if kind not in PICTURES:
        raise ApiError(415, f"{param}: {kind!r} is not one of {', '.join(PICTURES)}", param=param)
    return _checked(_decoded(payload, param), limits, param)


def frames(url: str, limits: Limits, param: str) -> list[bytes]:
    """The frames of a video's data URL. They are counted before they are taken apart."""
    kind, payload = _data_url(url, param)
    if kind != FRAMES:
        raise ApiError(
            415, f"{param}: {kind!r} is not {FRAMES!r}; send frames as data:{FRAMES};base64,FRAME,FRAME,...", param=param
        )
    count = payload.count(",") + 1
    if count > limits.frames:
        raise ApiError(400, f"{param}: {count} frames; at most {limits.frames} are allowed", param=param)
    return [_checked(_decoded(each, param), limits, param) for each in payload.split(",")]


def check_together(media: list[bytes], limits: Limits, param: str) -> None:
    """ApiError if all pictures of a request together are too large when they are decoded."""
    size = sum(3 * height * width for height, width in (image_size(data, param) for data in media))
    if size > limits.decoded:
        raise ApiError(413, f"{param}: the pictures of this request have {size} bytes decoded; {limits.decoded} are allowed")


def unreadable(param: str) -> ApiError:
    """What a picture is refused with that is broken, without the decoder's own words."""
    return ApiError(422, f"{param}: the picture cannot be read; it must be whole, and a still image", param=param)


def _data_url(url: str, param: str) -> tuple[str, str]:
    if not url.startswith("data:"):
        scheme = url.split(":", 1)[0][:16]
        raise ApiError(400, f"{param}: only data URLs are accepted (data:image/png;base64,...), not {scheme!r}", param=param)
    head, comma, payload = url[len("data:") :].partition(",")
    kind, _, encoding = head.partition(";")
    kind = kind[:MOST_KIND].lower()
    if not comma or encoding != "base64":
        raise ApiError(400, f"{param}: a data URL has the form data:TYPE;base64,CONTENT", param=param)
    return _ALIASES.get(kind, kind), payload


def _decoded(payload: str, param: str) -> bytes:
    try:
        return base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError):
        reason = "the content is not base64; send it in the standard alphabet, padded, without spaces and line breaks"
        raise ApiError(422, f"{param}: {reason}", param=param) from None


def _checked(data: bytes, limits: Limits, param: str) -> bytes:
    """The data of a picture whose header can be read and whose size is allowed."""
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            width, height = image.size
    except Exception:  # decoders raise various types on invalid data
        raise unreadable(param) from None
    if width * height > limits.pixels or max(width, height) > MAX_SIDE:
        most = f"at most {limits.pixels}, and {MAX_SIDE} a side, are allowed"
        raise ApiError(413, f"{param}: {width} x {height} pixels; {most}", param=param)
    try:
        image_size(data, param)
    except UserError:
        raise unreadable(param) from None
    return data
