"""Checks that apply to the rows of every format: tags match the media, and no unread field holds media.

A format reads the fields that it knows. Unknown fields are kept unchanged, unless they hold images, a video or sound that the
record would then lack (`img_path`, `rejected_images`, `videos` beside images), which is an error.
"""

from __future__ import annotations

import dataclasses
import functools
import posixpath
import re
from collections.abc import Iterator, Sequence
from pathlib import PureWindowsPath
from typing import Any

from mmrlhf_jax.data.sources.embedded import MEDIA_KINDS, is_inline
from mmrlhf_jax.data.sources.one_prompt import check_one_prompt
from mmrlhf_jax.data.sources.rows import Format, Row
from mmrlhf_jax.errors import shown
from mmrlhf_jax.places import WrongMedia, find_places
from mmrlhf_jax.records import RankedRecord

_IMAGE_TYPES = {"jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "heic", "avif"}
_VIDEO_TYPES = {"avi", "mov", "mkv", "webm", "mpeg", "mpg"}  # `_words` writes mp4 and m4v as "video", mp3 and m4a as "audio"
_SOUND_TYPES = {"wav", "flac", "ogg"}
_IMAGE_WORDS = _IMAGE_TYPES | set(
    ["image", "img", "picture", "pic", "photo", "photograph", "screenshot", "thumbnail", "pixel", "visual"]
)
_VIDEO_WORDS = {"video", "vid", "clip", "movie", "frame"} | _VIDEO_TYPES
_OTHER_WORDS = {"audio", "sound", "speech", "voice", "media", "medium", "multimedia"} | _SOUND_TYPES
_WORDS = _IMAGE_WORDS | _VIDEO_WORDS | _OTHER_WORDS
# Words with other meanings as well; in a field with only these words, not every text is a path.
_AMBIGUOUS = {"sound", "speech", "voice", "medium", "movie", "pixel", "visual", "tiff", "tif", "mov"}
_NO_PATHS = {"none", "null", "nan", "n/a", "na", "no", "yes", "true", "false"}
# Words of fields about a medium: the URL in `image_license_url` is not that of an image.
_ABOUT = {"license", "licence", "copyright", "credit", "attribution", "author", "owner", "page", "homepage"}
# Words of fields that hold text, which may be the name of a file (as the answer to a question).
_TEXTS = {"answer", "solution", "truth", "text", "title"}
# Words of fields that hold the location of a medium.
_PLACES = {"path", "url", "uri", "file", "filename", "filepath", "dir", "directory", "folder", "root"}
# Words that may follow the name of a medium without changing what is meant: `image_path`, `img_url`, `video_file`.
_SAME = _PLACES | {"data", "byte", "encoded", "link", "list", "value", "name", "info", "metadata"}
# Words of fields with a second name of media that were read: their URL, or the publisher's name for them.
_SECOND_NAME = _SAME | set(["id", "ids", "coco", "local", "relative", "full", "absolute"])
# The same, but only together with a word of _PLACES or "link"; `source_image` alone may be another image.
_ORIGIN = {"source", "src", "original", "origin"}
_JOINED = re.compile(
    "(image|img|picture|photo|video|frame|audio)s?(?=path|url|uri|file|data|bytes|list|name|dir|folder|root)", re.IGNORECASE
)
_SUFFIX = re.compile(
    r"[^./\\]\.(jpe?g|jfif|png|webp|bmp|gif|tiff?|tga|ppm|hei[cf]|avif|svg|dcm"
    r"|mp4|avi|mov|mkv|webm|m4v|mpe?g|wmv|flv|wav|mp3|flac|ogg|m4a)$",
    re.IGNORECASE,
)
_ADDRESS = re.compile(r"^([a-z][a-z0-9+.-]{1,9}://|data:(image|video|audio)/)", re.IGNORECASE)
# The form of `parquet.py`'s names of embedded media.
_INSIDE_PARQUET = re.compile(r"\.parquet/\d+/", re.IGNORECASE)
_DEPTH = 6  # nesting depth of objects that are checked


def checked(format_: Format) -> Format:
    """The format with a `parse` that also refuses rows with two prompts, tags that do not match, or unread media."""
    return dataclasses.replace(format_, parse=functools.partial(_parse_and_check, format_.parse))


def _parse_and_check(parse: Any, row: Row) -> Any:
    parsed = parse(row)
    read = getattr(parsed, "record", parsed)
    check_one_prompt(read, row)
    check_media_understood(read, row.where)
    return parsed


def check_media_understood(row: Any, where: str) -> None:
    """Raises WrongMedia for tags that do not match the media, and for media in unread fields.

    `row` is a record or a row of pairs: anything with `id`, `prompt`, `images`, `video` and `extra`.
    """
    where = where if row.id is None else f"{where} (record {shown(row.id)})"
    if getattr(row, "media_places", None) is None:
        find_places(row.prompt, len(row.images), int(row.video is not None), where)
    fields = [("", row.extra)]
    if isinstance(row, RankedRecord):
        fields += [(f"response {number}, ", response.extra) for number, response in enumerate(row.responses)]
    has_media = bool(row.images) or row.video is not None
    for place, extra in fields:
        for name, value in _unread(extra, has_media, _DEPTH):
            if place or not _names_what_was_read(name, value, row):
                raise _not_read(f"{where}: {place}", name, value, _read_media(row))


def check_message(fields: dict[str, Any], listed: Sequence[str], where: str) -> None:
    """Raises WrongMedia for media in the fields of a message, or of a part of one, that are not `listed` beside it."""
    for name, value in _unread(fields, False, _DEPTH):
        if not all(path in listed for path in (value if isinstance(value, list) else [value])):
            raise _not_read(f"{where}: a message's ", name, value)


def _not_read(where: str, name: str, value: Any, read: str = "") -> WrongMedia:
    return WrongMedia(
        f"{where}field {shown(name)} seems to hold media ({shown(value, 60)}), which are not read under this name{read}; media"
        " are read from the row's 'images', 'image' or 'video': move it there, or remove it"
    )


def _unread(fields: Any, has_media: bool, depth: int) -> Iterator[tuple[str, Any]]:
    """Yield (name, value) of fields, at any depth, whose name is that of media and whose value looks like a path, URL or
    content.

    In a row without any media, a field of any name counts if its value is the name of an image, video or sound file.
    """
    if isinstance(fields, list) and depth:
        for item in fields:
            yield from _unread(item, has_media, depth - 1)
    if not isinstance(fields, dict) or not depth:
        return
    for name, value in fields.items():
        if name == "mixed_up_image":  # in MM-RLHF's files, an image that does not belong to the question nor to the record
            continue
        if name == "bytes" and isinstance(value, str) and _is_inside_parquet(value):  # `kind` beside it is checked instead
            continue
        words = _words(name)
        is_medium = words & _WORDS and _is_media(value, is_plain=_is_plain(words)) and not _leads_elsewhere(words, value)
        is_file = _is_content(value) or (not words & _TEXTS and _names_a_file(value))
        if is_medium or (is_file and not has_media):
            yield name, value
        else:
            yield from _unread(value, has_media, depth - 1)


@functools.lru_cache(maxsize=4096)
def _words(name: str) -> frozenset[str]:
    """The words of a field's name, in lower case and singular: `imgPath` gives {"img", "path"}. Digits are separate words."""
    name = re.sub("base64|b64", "_encoded_", str(name)[:200], flags=re.IGNORECASE)
    name = re.sub("mp4|m4v", "_video_", re.sub("mp3|m4a", "_audio_", name, flags=re.IGNORECASE), flags=re.IGNORECASE)
    name = _JOINED.sub(r"\1_", name)  # `imagepath`
    found = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)
    return frozenset(word.rstrip("s") if len(word) > 3 else word for word in map(str.lower, found))


def _is_plain(words: frozenset[str]) -> bool:
    """Whether the words only say that a field holds media or their location."""
    known = _WORDS | _SAME | {"rejected", "chosen"}
    return bool(words & (_WORDS - _AMBIGUOUS | _PLACES)) and all(word in known or word.isdigit() for word in words)


def _is_media(value: Any, is_plain: bool) -> bool:
    """Whether a value is a path, URL or content of media. In a field with a plain media name (`_is_plain`), any text without
    spaces is."""
    match value:
        case bytes():
            return bool(value)
        case str():
            text = value.strip()
            looks = _SUFFIX.search(_without_query(text)[-10:]) or _ADDRESS.match(text[:40])
            may_be = is_plain and text.lower() not in _NO_PATHS and not re.search(r"\s", text[:500])
            return bool(text) and bool(may_be or (looks and "\n" not in text[:500]))
        case list():
            return any(_is_media(item, is_plain) for item in value[:100])
        case dict():
            return any(_is_media(inner, True) for name, inner in value.items() if _holds(name))
    return False


def _holds(name: Any) -> bool:
    """Whether a field of an object about a medium holds the medium or its path: `path`, `file_name`, `value`."""
    return (words := _words(name)) <= _SAME | {"src"} and bool(words)


def _is_content(value: Any) -> bool:
    """Whether a value is the content of an image, video or sound: base64, or bytes in a parquet file."""
    if isinstance(value, list):
        return any(map(_is_content, value[:100]))
    if isinstance(value, dict):
        return isinstance(value.get("bytes"), str) and value.get("kind") in MEDIA_KINDS
    if not isinstance(value, str):
        return False
    is_text = value.startswith("data:") and not _ADDRESS.match(value[:40])  # "data: see below"
    return _is_inside_parquet(value) or (is_inline(value) and not is_text)


def _is_inside_parquet(text: str) -> bool:
    return _INSIDE_PARQUET.search(text[:4000]) is not None


def _leads_elsewhere(words: frozenset[str], value: Any) -> bool:
    """Whether a value is the URL of something about a medium (its license, for example) and not of the medium."""
    is_address = isinstance(value, str) and value.strip().lower().startswith(("http://", "https://"))
    return bool(words & _ABOUT) and is_address and not _names_a_file(value)


def _names_a_file(value: Any) -> bool:
    """Whether a text, or one in a list, is the name of an image, video or sound file, and nothing else."""
    if isinstance(value, list):
        return any(map(_names_a_file, value[:100]))
    if not isinstance(value, str) or re.search(r"\s", value[:500].strip()):
        return False
    return bool(_SUFFIX.search(_without_query(value.strip())[-10:]))


def _without_query(text: str) -> str:
    """A URL without query and fragment: `https://host/a.jpg` for `https://host/a.jpg?w=3`."""
    return re.split("[?#]", text[:4000], maxsplit=1)[0] if _ADDRESS.match(text[:40]) else text


def _names_what_was_read(name: str, value: Any, row: Any) -> bool:
    """Whether the field only repeats the media that were read, with the same paths or with another name for each."""
    words = _words(name)
    kind, read = (_IMAGE_WORDS, list(row.images)) if row.images else (_VIDEO_WORDS, [row.video])
    if (value if isinstance(value, list) else [value]) == read:
        return True
    allowed = kind | _SECOND_NAME | (_ORIGIN if words & (_PLACES | {"link"}) else set())
    values = list(_leaves(value))
    if read == [None] or len(values) != len(read) or not words & _SECOND_NAME or not words <= allowed:
        return False
    return all(map(_may_be_the_same, values, read))


def _leaves(value: Any) -> Iterator[Any]:
    """Yield the values in a field: of a list its items', of an object those of its fields that hold a medium or path."""
    if isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, dict):
        yield from (inner for name, inner in value.items() if _holds(name))
    else:
        yield value


def _may_be_the_same(other: Any, read: str) -> bool:
    """Whether `other` can be a second name of the file `read`: it is a URL or absolute path, or has the same file name."""
    if _is_inside_parquet(read):  # embedded media have no file name to compare
        return True
    if not isinstance(other, str):
        return False
    other = other.strip()
    if _ADDRESS.match(other[:40]) or posixpath.isabs(other) or PureWindowsPath(other).anchor:
        return True
    one, two = (posixpath.basename(path.replace("\\", "/").rstrip("/")) for path in (other, read))
    return one == two or (_stem(one) == two) or (one == _stem(two))


def _stem(name: str) -> str:
    return _SUFFIX.sub(lambda found: found[0][0], name)


def _read_media(row: Any) -> str:
    if not row.images and row.video is None:
        return ""
    return f", beside {len(row.images)} images that are" if row.images else ", beside a video that is"
