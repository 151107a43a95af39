"""The places of media inside a prompt's text.

A tag in a prompt (`<image>`, `<video>`) is the place of one medium: `Compare <image> with <image>.` has two images, in the
order of the record's `images`. If a prompt has no tags, the chat template puts all media before the text. There must be as many
tags as media, or none. MM-RLHF's rows use `<image>` for a video as well.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from mmrlhf_jax.errors import UserError, shown

IMAGE_TAG, VIDEO_TAG = "<image>", "<video>"
TAG = re.compile("<(?:image|video|audio)>")
# Tags that other programs use for media. Here they are plain text.
FOREIGN_TAG = re.compile(
    r"<\|(?:image|video|audio|vision)[a-z0-9_]*\|>"
    r"|<(?!(?-i:image|video|audio)>)\s*(?:image|img|video|audio)[ _-]?(?:\d*|context|here|placeholder|token|pad)\s*/?>"
    r"|<im_patch>",
    re.IGNORECASE,
)

# A prompt for a chat template: the text that follows all media, or the n + 1 texts around n media.
PromptText = str | tuple[str, ...]


class WrongMedia(UserError):
    """Tags and media do not match, or a field that is not read holds media."""


def find_places(prompt: str, images: int, videos: int, where: str) -> tuple[int, ...]:
    """The offsets of the tags in `prompt`; empty if the media come before the text.

    Raises WrongMedia, which begins with `where`, for tags that do not match the media.
    """
    found = list(TAG.finditer(prompt))
    if not found:
        return ()
    names = [match[0] for match in found]
    known = [IMAGE_TAG] if images else [VIDEO_TAG, IMAGE_TAG] if videos else []
    if not images + videos:
        raise WrongMedia(
            f"{where}: the prompt has the tag {names[0]}, but there are no media; name its file, or (where the tag is meant as"
            ' text) write the record in the project\'s own form with "media_places": []'
        )
    if unlike := [name for name in names if name not in known]:
        there = "images" if images else "a video"
        raise WrongMedia(f"{where}: the prompt has the tag {unlike[0]}, but the record's media are {there}")
    if len(names) != images + videos:
        kind = "images" if images else "videos"
        raise WrongMedia(
            f"{where}: the prompt has {len(names)} tags ({', '.join(dict.fromkeys(names))}) for {images + videos} {kind};"
            " give one tag per medium, or none"
        )
    return tuple(match.start() for match in found)


def check_places(places: Any, prompt: str, media: int, where: str) -> tuple[int, ...]:
    """The value of the field `media_places`: offsets of tags in the prompt; all other tags are text. Raises WrongMedia if it is
    invalid."""
    tags = {match.start() for match in TAG.finditer(prompt)}
    if not isinstance(places, list) or not all(isinstance(place, int) and not isinstance(place, bool) for place in places):
        raise WrongMedia(f"{where}: field 'media_places' must be a list of character numbers, found {shown(places)}")
    if sorted(set(places)) != places or not tags.issuperset(places) or len(places) not in (0, media):
        raise WrongMedia(
            f"{where}: field 'media_places' must give, in ascending order, where the prompt has the tags of its {media} media,"
            f" or be empty; found {shown(places)}"
        )
    return tuple(places)


def split_at(prompt: str, places: Sequence[int]) -> PromptText:
    """The texts around the tags at `places`; the prompt itself if there are none."""
    if not places:
        return prompt
    ends = [TAG.match(prompt, place).end() for place in places]
    return tuple(prompt[start:stop] for start, stop in zip([0, *ends], [*places, len(prompt)], strict=True))


def without_tags(prompt: str, where: str) -> str:
    """The prompt without tags, for media that come before the text. WrongMedia if removing them creates another tag."""
    if not TAG.search(prompt):
        return prompt
    rest = TAG.sub("", prompt)
    if tag := TAG.search(rest):
        raise WrongMedia(f"{where}: the prompt has a tag inside a tag: {tag[0]} is left when tags are taken out")
    return rest.strip()


def with_leading_tags_left_out(prompt: str) -> str:
    """The prompt without its tags if all of them come before the text, where the template puts media anyway; else unchanged."""
    rest = re.sub(rf"^(?:\s*{TAG.pattern})+", "", prompt)
    return prompt if TAG.search(rest) or rest == prompt else rest.strip()
