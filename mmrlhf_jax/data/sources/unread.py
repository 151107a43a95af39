"""What every reader's rows go through: tags and media that fit each other, and no media under a name that nobody reads.

A format reads the fields that it knows. A field that it does not know is kept as it came, unless it holds pictures, a video or
sound that the record would then be without (`img_path`, `rejected_images`, `videos` beside images): that is an error.
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
# Words that mean something else as well: under them alone not every text is a path.
_AMBIGUOUS = {"sound", "speech", "voice", "medium", "movie", "pixel", "visual", "tiff", "tif", "mov"}
_NO_PATHS = {"none", "null", "nan", "n/a", "na", "no", "yes", "true", "false"}
# Words by which a field says something about a medium: an address in `image_license_url` leads elsewhere.
_ABOUT = {"license", "licence", "copyright", "credit", "attribution", "author", "owner", "page", "homepage"}
# Words of fields that hold text; to some questions the answer is the name of a file.
_TEXTS = {"answer", "solution", "truth", "text", "title"}
# Words of a field that says where a medium lies.
_PLACES = {"path", "url", "uri", "file", "filename", "filepath", "dir", "directory", "folder", "root"}
# Words that leave the name of a medium the name of one: `image_path`, `img_url`, `video_file`, `image_name`.
_SAME = _PLACES | {"data", "byte", "encoded", "link", "list", "value", "name", "info", "metadata"}
# Words of a second name of what was read already: where it was fetched from, or how its publisher calls it.
_SECOND_NAME = _SAME | set(["id", "ids", "coco", "local", "relative", "full", "absolute"])
# The same, beside a word that says that the field leads there; `source_image` alone may be another picture.
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
# How `parquet.py` names what it holds inside: it keeps objects of bytes and a path for pictures, videos and sound.
_INSIDE_PARQUET = re.compile(r"\.parquet/\d+/", re.IGNORECASE)
_DEPTH = 6  # of objects inside each other


def checked(format_: Format) -> Format:
    """The format with a `parse` that refuses rows whose tags and media are not understood, and those with two prompts."""
    return dataclasses.replace(format_, parse=functools.partial(_parse_and_check, format_.parse))


def _parse_and_check(parse: Any, row: Row) -> Any:
    parsed = parse(row)
    read = getattr(parsed, "record", parsed)
    check_one_prompt(read, row)
    check_media_understood(read, row.where)
    return parsed


def check_media_understood(row: Any, where: str) -> None:
    """Raises WrongMedia for tags that are not those of the media, and for media among the fields that are not read.

    `row` is a record, or a row of pairs: anything with `id`, `prompt`, `images`, `video` and `extra`.
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
    """Raises WrongMedia for media among the fields of a message, or of a part of one, other than those `listed` beside it."""
    for name, value in _unread(fields, False, _DEPTH):
        if not all(path in listed for path in (value if isinstance(value, list) else [value])):
            raise _not_read(f"{where}: a message's ", name, value)


def _not_read(where: str, name: str, value: Any, read: str = "") -> WrongMedia:
    return WrongMedia(
        f"{where}field {shown(name)} seems to hold media ({shown(value, 60)}), which are not read under this name{read}; media"
        " are read from the row's 'images', 'image' or 'video': move it there, or remove it"
    )


def _unread(fields: Any, has_media: bool, depth: int) -> Iterator[tuple[str, Any]]:
    """(name, value) of fields, at any depth, that are called like media and hold what media are named by.

    In a row without any media, a field of any name may be theirs that names a file of a picture, a video or sound.
    """
    if isinstance(fields, list) and depth:
        for item in fields:
            yield from _unread(item, has_media, depth - 1)
    if not isinstance(fields, dict) or not depth:
        return
    for name, value in fields.items():
        if name == "mixed_up_image":  # MM-RLHF's picture that does not belong to the question: no part of the record
            continue
        if name == "bytes" and isinstance(value, str) and _is_inside_parquet(value):  # what they are, `kind` says
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
    """`imgPath` and `Image_paths2` as {"img", "path"} and {"image", "path"}; digits are words of their own."""
    name = re.sub("base64|b64", "_encoded_", str(name)[:200], flags=re.IGNORECASE)
    name = re.sub("mp4|m4v", "_video_", re.sub("mp3|m4a", "_audio_", name, flags=re.IGNORECASE), flags=re.IGNORECASE)
    name = _JOINED.sub(r"\1_", name)  # `imagepath`
    found = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)
    return frozenset(word.rstrip("s") if len(word) > 3 else word for word in map(str.lower, found))


def _is_plain(words: frozenset[str]) -> bool:
    """Whether the words say nothing but that a field holds media, or where they lie."""
    known = _WORDS | _SAME | {"rejected", "chosen"}
    return bool(words & (_WORDS - _AMBIGUOUS | _PLACES)) and all(word in known or word.isdigit() for word in words)


def _is_media(value: Any, is_plain: bool) -> bool:
    """Whether a value names or holds media. Under a plain name of media any text without spaces does."""
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
    """Whether a field of an object about a medium holds it: `path`, `file_name`, `value`."""
    return (words := _words(name)) <= _SAME | {"src"} and bool(words)


def _is_content(value: Any) -> bool:
    """Whether a value is a picture, a video or sound itself: base64 of it, or bytes of a parquet file."""
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
    """Whether a value is the address of something about a medium, not of a medium."""
    is_address = isinstance(value, str) and value.strip().lower().startswith(("http://", "https://"))
    return bool(words & _ABOUT) and is_address and not _names_a_file(value)


def _names_a_file(value: Any) -> bool:
    """Whether a text, or one of a list, is but the name of a picture, a video or sound."""
    if isinstance(value, list):
        return any(map(_names_a_file, value[:100]))
    if not isinstance(value, str) or re.search(r"\s", value[:500].strip()):
        return False
    return bool(_SUFFIX.search(_without_query(value.strip())[-10:]))


def _without_query(text: str) -> str:
    """An address without what follows the name of its file: `https://host/a.jpg?w=3`."""
    return re.split("[?#]", text[:4000], maxsplit=1)[0] if _ADDRESS.match(text[:40]) else text


def _names_what_was_read(name: str, value: Any, row: Any) -> bool:
    """Whether the field is but another name of the media that were read: the same paths, or another for each of them."""
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
    """What a field names: a text, or those of a list, or of an object's fields that hold it."""
    if isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, dict):
        yield from (inner for name, inner in value.items() if _holds(name))
    else:
        yield value


def _may_be_the_same(other: Any, read: str) -> bool:
    """Whether a second name can be that of a file that was read: it leads elsewhere, or ends in the same name."""
    if _is_inside_parquet(read):  # it has no name of its own
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
