"""Takes the fields that several formats share (id, media, text) out of a row, and checks them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mmrlhf_jax.data.sources.embedded import is_inline
from mmrlhf_jax.data.sources.rows import Row
from mmrlhf_jax.errors import UserError, shown
from mmrlhf_jax.places import TAG, WrongMedia, find_places, with_leading_tags_left_out, without_tags

Media = tuple[tuple[str, ...], str | None]  # paths of images, path of a video


def pop_id(data: dict[str, Any], where: str) -> str | None:
    """The row's id as a string; None if it has none. UserError if it is neither a non-empty string nor an integer."""
    value = data.pop("id", None)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if value is not None and (not isinstance(value, str) or not value):
        raise UserError(f"{where}: field 'id' must be a non-empty string, found {shown(value)}")
    return value


def open_record(row: Row, why: str = "") -> tuple[dict[str, Any], str, str]:
    """(fields without the id, id, beginning of error messages). UserError if the id is missing; `why` is appended to it."""
    data = dict(row.data)
    record_id = pop_id(data, row.where)
    if record_id is None:
        raise UserError(f"{row.where}: field 'id' is missing{why}")
    return data, record_id, f"{row.where} (record {shown(record_id)})"


def take_image_from(data: dict[str, Any], name: str, read: Callable[[Any], Any] = lambda path: path) -> None:
    """If the row has neither `image` nor `images`, set `image` to `read` of the field `name`."""
    if _is_absent(data.get("image")) and _is_absent(data.get("images")):
        data["image"] = read(data.pop(name, None))


def has_video(data: dict[str, Any]) -> bool:
    return not (_is_absent(data.get("video")) and _is_absent(data.get("videos")))


def pop_media(data: dict[str, Any], where: str) -> Media:
    """(paths from `image` or `images`, the path from `video` or `videos` or None). Null, "" and [] mean absent. WrongMedia for
    contradicting fields."""
    images = _paths(data.pop("images", None), where, "images")
    if image := _paths(data.pop("image", None), where, "image"):
        if images:
            raise WrongMedia(f"{where}: has both 'image' and 'images'; keep one of them")
        images = image
    video = _pop_video(data, where)
    if images and video:
        raise WrongMedia(f"{where}: has both images and a video; keep one of the fields 'images' and 'video'")
    return images, video


def _pop_video(data: dict[str, Any], where: str) -> str | None:
    video, videos = data.pop("video", None), data.pop("videos", None)
    check_is_no_picture(video, "video", where)
    if not isinstance(video, str | None):
        raise UserError(f"{where}: field 'video' must be a path, found {shown(video)}")
    videos = [] if _is_absent(videos) else videos if isinstance(videos, list) else [videos]
    if len(videos) > 1 or not all(isinstance(path, str) and path for path in videos):
        raise UserError(f"{where}: field 'videos' must list one path, found {shown(videos)}")
    if video and videos and videos != [video]:
        raise WrongMedia(f"{where}: fields 'video' and 'videos' name different videos, {shown(video)} and {shown(videos)}")
    return video or (videos[0] if videos else None)


def check_is_path(path: str, name: str, where: str) -> None:
    """UserError if a path is actually an inline image (base64)."""
    if is_inline(path):
        raise UserError(
            f"{where}: field {name!r} holds a picture as base64 text ({shown(path, 32)}), not a path; write it to a file, or"
            " write parquet with the bytes"
        )


def check_is_no_picture(value: Any, name: str, where: str) -> None:
    """UserError if a text, or a text among an object's values, is an inline image (base64)."""
    for text in value.values() if isinstance(value, dict) else [value]:
        if isinstance(text, str):
            check_is_path(text, name, where)


def pop_text(data: dict[str, Any], name: str, where: str) -> str:
    """A required string field. UserError if it is missing or no string."""
    value = data.pop(name, None)
    if not isinstance(value, str):
        raise UserError(f"{where}: field {name!r} must be a string, found {shown(value)}")
    return value


def pop_optional_text(data: dict[str, Any], name: str, where: str) -> str | None:
    """An optional string field; None if it is absent, null or empty. UserError if it is no string."""
    value = data.pop(name, None)
    if not isinstance(value, str | None):
        raise UserError(f"{where}: field {name!r} must be a string, found {shown(value)}")
    return value or None


def media_before_text(prompt: str, media: Media, where: str) -> str:
    """The prompt without tags, as in MM-RLHF's code, which puts all media before the text wherever the tags are. There may be
    no tag, one tag for all media, or one per medium.

    Raises WrongMedia for any other number of tags, and for tags without media.
    """
    images, video = media
    if len(TAG.findall(prompt)) == 1 and len(images) > 1:
        images = images[:1]
    find_places(prompt, len(images), int(video is not None), where)
    return without_tags(prompt, where)


def check_answers(prompt: str, media: Media, answers: Sequence[str], where: str) -> None:
    """WrongMedia if an answer has tags and the prompt has none, because the media then belong to the answer."""
    if media != ((), None) and not TAG.search(prompt) and (tag := next(filter(None, map(TAG.search, answers)), None)):
        raise WrongMedia(f"{where}: the tag {tag[0]} stands in an answer and not in the prompt; media are read in prompts only")


def media_in_place(prompt: str, media: Media, where: str) -> str:
    """The prompt with tags for media inside its text; tags at its beginning are removed. WrongMedia if tags and media do not
    match."""
    images, video = media
    find_places(prompt, len(images), int(video is not None), where)
    return with_leading_tags_left_out(prompt)


def _paths(value: Any, where: str, name: str) -> tuple[str, ...]:
    if _is_absent(value):
        return ()
    paths = []
    for item in value if isinstance(value, list) else [value]:
        check_is_no_picture(item, name, where)
        is_cell = isinstance(item, dict) and not item.get("bytes")  # Hugging Face's: {"bytes": null, "path": ...}
        path = item.get("path") if is_cell else item
        if not isinstance(path, str) or not path:
            raise UserError(
                f"{where}: field {name!r} must hold paths, found {shown(item)}; write embedded images to files first"
            )
        paths.append(path)
    return tuple(paths)


def _is_absent(value: Any) -> bool:
    """Whether a value is null, "" or []. (0 and false are not absent, but of a wrong type.)"""
    return value is None or (isinstance(value, str | list) and not value)
