"""What a process of the harness is told."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

from PIL import UnidentifiedImageError

from mmrlhf_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Job:
    """A task of the harness, and what is to be done with it.

    Attributes:
        doing: `ask` gives the requests of the documents, `score` the metrics of answers.
        task: the harness's name of it.
        folder: for files of this process alone.
        log: the file for what the harness prints.
        environment: variables that are set before the task's code is imported.
        new_tokens: the limit of an answer.
        until: whether the harness's stop strings end an answer.
        video_frames: how many frames of a video the policy sees.
        limit: only the first of the documents, so many; None: all.
        data: a user's own file of documents, or a folder of such files; None: the hub's, or its local cache.
        columns: what the documents must have, if they are from a user's file: column -> what it holds.
        files: the files that documents name, relative to HF_HOME, with a column of the document in braces.
        share: (number of this process, number of processes) among which documents are divided; `ask` alone.
        answered: document -> keys of the requests that have an answer; their media are not sent. `ask` alone.
        answers: a file of JSON lines with `document`, `answer`, `prompt`, `media` (names) and `content` (the digest of the
            document when it was asked, or null); `score` alone.
        rows: row -> keys of the harness's results, whose sum it is; `score` alone.
        corrected: whether answers are read as they are meant where the harness compares their whole text (`corrected.py`);
            `score` alone.
    """

    doing: Literal["ask", "score"]
    task: str
    folder: str
    log: str
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    new_tokens: int = 1024
    until: bool = False
    video_frames: int = 32
    limit: int | None = None
    data: str | None = None
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    files: Sequence[str] = ()
    share: Sequence[int] = (0, 1)
    answered: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    answers: str | None = None
    rows: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    corrected: bool = False


def reason_of(error: BaseException) -> str:
    """An error as one line; of the harness's code with its type."""
    if isinstance(error, UnidentifiedImageError):  # it names the object that was read, in the place of a file
        return "a picture is none that can be read"
    text = " ".join(str(error).split())
    return text if text and isinstance(error, SystemExit | UserError) else f"{type(error).__name__}: {text}".removesuffix(": ")
