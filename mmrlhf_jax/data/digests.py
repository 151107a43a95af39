"""Digests of a record's prompt, media and responses. Stored with results (scores), they show whether the record is the same."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from mmrlhf_jax import strict_json
from mmrlhf_jax.records import RankedRecord

LENGTH = 16  # hexadecimal digits


def digest(*parts: bytes) -> str:
    """The first LENGTH hexadecimal digits of a SHA-256 over the parts."""
    found = hashlib.sha256()
    for part in (b"%d" % len(parts), *parts):  # each part with its length, so that different splits give different digests
        found.update(b"%d:" % len(part) + part)
    return found.hexdigest()[:LENGTH]


def text_digest(text: str) -> str:
    return digest(text.encode("utf-8", "surrogatepass"))


def prompt_digest(record: RankedRecord) -> str:
    """A digest of the prompt's text, including the places of media in it."""
    return text_digest(strict_json.dumps(record.prompt_text()))


def media_names(record: RankedRecord) -> str:
    """A digest of the media's paths, for media whose content is not known."""
    return digest(*(path.encode("utf-8", "surrogatepass") for path in (*record.images, record.video or "")))


def media_content(record: RankedRecord, files: Sequence[bytes], frame_folder: bool) -> str:
    """The text KIND:DIGEST for an example's files. KIND is "images", "video", or for a folder of frames "N frames":
    only the sampled frames are digested, so that only samples of the same size can be compared."""
    kind = "images" if record.video is None else f"{len(files)} frames" if frame_folder else "video"
    return f"{kind}:{digest(*files)}"


def comparable(one: str | None, other: str | None) -> bool:
    """Whether two results of `media_content` are known and of the same kind."""
    return one is not None and other is not None and one.partition(":")[0] == other.partition(":")[0]
