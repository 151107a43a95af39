"""Reads chat messages inside rows: `{"role", "content"}`, with content as text or as a list of typed parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from mmrlhf_jax.data.sources.fields import Media, check_is_no_picture
from mmrlhf_jax.data.sources.unread import check_message
from mmrlhf_jax.errors import UserError, shown
from mmrlhf_jax.places import IMAGE_TAG, TAG, VIDEO_TAG, WrongMedia

Messages = list[dict[str, Any]]

_KINDS = {"image": IMAGE_TAG, "image_url": IMAGE_TAG, "video": VIDEO_TAG, "video_url": VIDEO_TAG}
_PATH_FIELDS = ("image", "image_url", "video", "video_url", "path", "url", "base64", "bytes")
# Fields that are part of an answer for some programs, and that are not read here.
_BESIDE_CONTENT = ("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking")


class MediaPart(NamedTuple):
    """A medium between the texts of a message. With `path` None its path is listed beside the messages."""

    tag: str
    path: str | None


def message_text(value: Any, role: str, field: str, where: str) -> str:
    """The text of a string, or of a list with exactly one message of `role`. UserError for media inside it."""
    if isinstance(value, str):
        return value
    parts = _parts(_only_message(value, role, field, (), where), field, (), where)
    if any(isinstance(part, MediaPart) for part in parts):
        raise WrongMedia(f"{where}: field {field!r} has media inside an answer; only the user's message may have them")
    return _joined(parts)


def read_prompt(value: Any, field: str, media: Media, where: str) -> tuple[str, Media]:
    """(text of the one user message, media); a medium inside the text becomes a tag.

    `media` are those listed beside the messages; parts without a path refer to them, in order. Raises UserError if parts and
    listed media do not match.
    """
    if isinstance(value, str):
        return value, media
    listed = [*media[0], *filter(None, [media[1]])]
    parts = _parts(_only_message(value, "user", field, listed, where), field, listed, where)
    found = [part for part in parts if isinstance(part, MediaPart)]
    if not found:
        return _joined(parts), media
    texts = [part for part in parts if isinstance(part, str)]
    if tag := next((match for text in texts if (match := TAG.search(text))), None):
        raise WrongMedia(
            f"{where}: field {field!r} has the tag {tag[0]} in its text, beside parts that are media; keep one of them"
        )
    media = _fill(found, media, field, where)
    is_first = all(isinstance(part, MediaPart) for part in parts[: len(found)])
    return _joined(texts if is_first else parts), media


def _only_message(value: Any, role: str, field: str, listed: Sequence[str], where: str) -> Any:
    """The content of a list's only message. `listed` are the paths of the media beside it. UserError if there is not exactly
    one message, or if it has a field that must be read but is not."""
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise UserError(f"{where}: field {field!r} must be a string or a list of messages, found {shown(value)}")
    roles = [message.get("role") for message in value]
    if roles != [role]:
        raise UserError(f"{where}: field {field!r} must be one {role} message (one turn), found roles {shown(roles)}")
    message = value[0]
    if unread := next((name for name in _BESIDE_CONTENT if message.get(name)), None):
        raise UserError(f"{where}: a message of {field!r} has {unread!r}, which is not read: {shown(message[unread])}")
    check_message({name: inner for name, inner in message.items() if name != "content"}, listed, where)
    return message.get("content")


def _parts(content: Any, field: str, listed: Sequence[str], where: str) -> list[str | MediaPart]:
    if isinstance(content, str):
        return [content]
    if not isinstance(content, list) or not content:
        raise UserError(f"{where}: a message of {field!r} must have text content, found {shown(content)}")
    return [_part(part, field, listed, where) for part in content]


def _part(part: Any, field: str, listed: Sequence[str], where: str) -> str | MediaPart:
    if not isinstance(part, dict):
        raise UserError(f"{where}: field {field!r}: message content must be a string or a list of objects, found {shown(part)}")
    kind = part.get("type") or ("text" if isinstance(part.get("text"), str) else None)
    paths = [part[name] for name in _PATH_FIELDS if part.get(name) not in (None, "", [])]
    for path in paths:
        check_is_no_picture(path, field, where)
    is_text = kind == "text" and isinstance(part.get("text"), str) and not paths
    if not is_text and (not isinstance(kind, str) or kind not in _KINDS or part.get("text")):
        raise UserError(f"{where}: a part of {field!r} must be a text, an image or a video, found {shown(part)}")
    if not paths:
        check_message({name: inner for name, inner in part.items() if name != "text"}, listed, where)
    if is_text:
        return part["text"]
    path = paths[0] if paths else None
    if isinstance(path, dict) and isinstance(path.get("path"), str) and not path.get("bytes"):
        path = path["path"]
    if len(paths) > 1 or not isinstance(path, str | None):
        raise WrongMedia(
            f"{where}: media inside messages must be image paths or a video's, found {shown(part)};"
            " list them in 'images' or 'video'"
        )
    return MediaPart(_KINDS[kind], path)


def _fill(parts: list[MediaPart], media: Media, field: str, where: str) -> Media:
    """The media of the parts, in the order of the parts."""
    tags = {part.tag for part in parts}
    images, video = media
    kind, listed = ("image", list(images)) if tags == {IMAGE_TAG} else ("video", [] if video is None else [video])
    if len(tags) > 1 or (images if kind == "video" else video):
        raise WrongMedia(f"{where}: has both images and a video; keep one of the fields 'images' and 'video'")
    empty = sum(part.path is None for part in parts)
    named = [part.path for part in parts if part.path is not None]
    if not empty and listed in ([], named):
        filled = named
    elif empty != len(listed):
        beside = f"'images' has {len(listed)} paths" if kind == "image" else f"'video' names {len(listed)}"
        rest = f" for them; the parts with paths of their own name {shown(named)}" if named else ""
        raise WrongMedia(f"{where}: the {field} has {empty} {kind} parts, but {beside}{rest}")
    else:
        rest = iter(listed)
        filled = [next(rest) if part.path is None else part.path for part in parts]
    if kind == "image":
        return tuple(filled), None
    if len(filled) != 1:
        raise WrongMedia(f"{where}: the {field} has {len(filled)} video parts; a record has one video")
    return (), filled[0]


def _joined(parts: list[str | MediaPart]) -> str:
    """The parts as one text, with a tag for every medium and a newline between two adjacent texts."""
    text = ""
    for number, part in enumerate(parts):
        follows_text = number > 0 and isinstance(parts[number - 1], str)
        text += part.tag if isinstance(part, MediaPart) else "\n" * follows_text + part
    return text
