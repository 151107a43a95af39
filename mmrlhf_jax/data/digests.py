"""Digests of what a record asks, shows and answers, by which what was made of a record comes back to it, and to no other."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from mmrlhf_jax import strict_json
from mmrlhf_jax.records import RankedRecord

LENGTH = 16  # hexadecimal digits


def digest(*parts: bytes) -> str:
    found = hashlib.sha256()
    for part in (b"%d" % len(parts), *parts):  # lengths first, so that no two contents run together alike
        found.update(b"%d:" % len(part) + part)
    return found.hexdigest()[:LENGTH]


def text_digest(text: str) -> str:
    return digest(text.encode("utf-8", "surrogatepass"))


def prompt_digest(record: RankedRecord) -> str:
    """Of the text, and of where the media stand in it."""
    return text_digest(strict_json.dumps(record.prompt_text()))


def media_names(record: RankedRecord) -> str:
    """A digest of the paths, for media whose content is not known."""
    return digest(*(path.encode("utf-8", "surrogatepass") for path in (*record.images, record.video or "")))


def media_content(record: RankedRecord, files: Sequence[bytes], frame_folder: bool) -> str:
    """A digest of the files that an example is read from. Of a folder of frames these are as many as are sampled, so that only
    samples of one size can be compared: what stands before the colon says what was digested."""
    kind = "images" if record.video is None else f"{len(files)} frames" if frame_folder else "video"
    return f"{kind}:{digest(*files)}"


def comparable(one: str | None, other: str | None) -> bool:
    """Whether two contents were digested in the same way."""
    return one is not None and other is not None and one.partition(":")[0] == other.partition(":")[0]
