"""Where the media of a prompt stand inside its text.

A tag in a prompt (`<image>`, `<video>`) is the place of one medium: `Compare <image> with <image>.` has two pictures, in the
order of the record's `images`. A prompt without tags has its media before the text, where the chat template puts them. Tags and
media are counted: as many tags as media, or none. Rows of MM-RLHF write `<image>` for a video as well.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from mmrlhf_jax.errors import UserError, shown

IMAGE_TAG, VIDEO_TAG = "<image>", "<video>"
TAG = re.compile("<(?:image|video|audio)>")
# What other programs write in the place of media. Here it is text.
FOREIGN_TAG = re.compile(
    r"<\|(?:image|video|audio|vision)[a-z0-9_]*\|>"
    r"|<(?!(?-i:image|video|audio)>)\s*(?:image|img|video|audio)[ _-]?(?:\d*|context|here|placeholder|token|pad)\s*/?>"
    r"|<im_patch>",
    re.IGNORECASE,
)

# A prompt as chat templates take it: the text after all media, or the n + 1 texts around n media.
PromptText = str | tuple[str, ...]


class WrongMedia(UserError):
    """Tags and media that do not fit each other, or media that are named where no reader looks for them."""


def find_places(prompt: str, images: int, videos: int, where: str) -> tuple[int, ...]:
    """The characters of `prompt` at which its media stand; none where the media stand before the text.

    Raises WrongMedia, opened by `where`, for tags that are not those of the record's media.
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
    """The field `media_places`: a tag begins at each of these characters, any other tag is text. Raises WrongMedia if not."""
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
    """The texts around the tags at `places`; the prompt itself where there are none."""
    if not places:
        return prompt
    ends = [TAG.match(prompt, place).end() for place in places]
    return tuple(prompt[start:stop] for start, stop in zip([0, *ends], [*places, len(prompt)], strict=True))


def without_tags(prompt: str, where: str) -> str:
    """The prompt without any tag, for media that stand before the text. WrongMedia where what is left spells another tag."""
    if not TAG.search(prompt):
        return prompt
    rest = TAG.sub("", prompt)
    if tag := TAG.search(rest):
        raise WrongMedia(f"{where}: the prompt has a tag inside a tag: {tag[0]} is left when tags are taken out")
    return rest.strip()


def with_leading_tags_left_out(prompt: str) -> str:
    """The prompt without tags that all stand before its text, which is where the template puts media by itself."""
    rest = re.sub(rf"^(?:\s*{TAG.pattern})+", "", prompt)
    return prompt if TAG.search(rest) or rest == prompt else rest.strip()
