"""What a policy is asked for one document: texts, media and options. The harness's processes import this file, too."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from mmrlhf_jax import strict_json
from mmrlhf_jax.places import IMAGE_TAG, VIDEO_TAG


@dataclasses.dataclass(frozen=True)
class Medium:
    """A picture or a video.

    Attributes:
        kind: what it is.
        digest: of its content.
        data: the file of a picture; None of a medium that is not needed again.
        path: of a video, which is read when its turn comes.
    """

    kind: Literal["image", "video"]
    digest: str
    data: bytes | None = None
    path: str | None = None

    @property
    def name(self) -> str:
        """The name of the small picture of it that is kept for the page."""
        return f"{self.digest}.jpg"


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked for a document.

    Attributes:
        document: its id in the task.
        texts: the n + 1 texts around n media; the first n are "" where all media come first.
        media: in order.
        options: `max_new_tokens`; `temperature`, which is 0; `video_frames` of a video; `until`, texts that end an answer, if
            there are any.
    """

    document: str
    texts: tuple[str, ...]
    media: tuple[Medium, ...]
    options: Mapping[str, Any]

    @property
    def key(self) -> str:
        """What tells this request from every other one."""
        return key_of(self.texts, [(each.kind, each.digest) for each in self.media], self.options)

    @property
    def prompt(self) -> str:
        """The texts as one, with tags in the places of media inside it."""
        if not any(self.texts[:-1]):
            return self.texts[-1]
        tags = [IMAGE_TAG if each.kind == "image" else VIDEO_TAG for each in self.media]
        return self.texts[0] + "".join(tag + text for tag, text in zip(tags, self.texts[1:], strict=True))

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the small pictures of its media."""
        return tuple(each.name for each in self.media)


@dataclasses.dataclass(frozen=True)
class DocumentRequest:
    """A document of a task: its request, or why there is none.

    Attributes:
        document: its id.
        request: what a policy is asked; its media have no data if `answered`.
        answered: whether this very request has an answer.
        missing: why nothing can be asked.
        content: a digest of the document in its data set, where its answer is scored by its number there.
    """

    document: str
    request: Request | None = None
    answered: bool = False
    missing: str | None = None
    content: str | None = None


def key_of(texts: Sequence[str], media: Sequence[tuple[str, str]], options: Mapping[str, Any]) -> str:
    """A digest of texts, of kinds and digests of media, and of options."""
    content = [list(texts), [list(each) for each in media], dict(options)]
    return hashlib.sha256(strict_json.dumps(content, sort_keys=True).encode()).hexdigest()
