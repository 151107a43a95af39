"""The answers of a policy, each stored when it is made: answers/TASK.jsonl, and answers/TASK.host-0001.jsonl and so on where
several hosts answer.

A line is `{"document", "key", "prompt", "media", "options", "answer", "finish_reason"}`. An answer is found again by the key of
its request, so that one to another prompt, other media or other options is never taken for it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from etils import epath

from mmrlhf_jax import strict_json
from mmrlhf_jax.files import exists, matching, read_bytes
from mmrlhf_jax.growing_file import GrowingFile
from mmrlhf_jax.progress import counted, say
from mmrlhf_jax.suite.request import Request
from mmrlhf_jax.suite.results import Document

FOLDER = "answers"  # in a run's directory


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a policy answered to a request.

    Attributes:
        document, key, prompt, media, options: of the request; `media` are names of the small pictures.
        answer: the text, which may be "".
        finish_reason: "stop", "length" for a text that was cut off, or what a server says.
    """

    document: str
    key: str
    prompt: str
    media: tuple[str, ...]
    options: Mapping[str, Any]
    answer: str
    finish_reason: str

    @staticmethod
    def to(request: Request, answer: str, finish_reason: str) -> Answer:
        return Answer(request.document, request.key, request.prompt, request.names, request.options, answer, finish_reason)


@dataclasses.dataclass(frozen=True)
class Answered:
    """What was answered of a task.

    Attributes:
        answers: document -> its answer, to what is asked now.
        unanswered: document -> why it has no answer.
        contents: document -> the digest of its content when it was asked, if that is known.
    """

    answers: Mapping[str, Answer]
    unanswered: Mapping[str, str] = dataclasses.field(default_factory=dict)
    contents: Mapping[str, str] = dataclasses.field(default_factory=dict)


def answers_path(directory: epath.PathLike, task: str, process: int = 0) -> epath.Path:
    """The file of a task's answers in a run's directory, of one of several processes."""
    return epath.Path(directory) / FOLDER / f"{task}{f'.host-{process:04d}' if process else ''}.jsonl"


def stored(directory: epath.PathLike, task: str) -> dict[str, dict[str, Answer]]:
    """The answers of all processes: document -> key of a request -> its answer.

    A document has several if it was asked otherwise before, with another picture, say: which one counts is for the caller to
    say, by the key of what is asked now. Lines that are not whole, as a kill leaves one, are left out, which is said.
    """
    found: dict[str, dict[str, Answer]] = {}
    for path in [answers_path(directory, task), *matching(epath.Path(directory) / FOLDER, f"{task}.host-*.jsonl")]:
        for answer in _read(path)[0] if exists(path) else ():
            found.setdefault(answer.document, {})[answer.key] = answer
    return found


class AnswerFile:
    """A task's file of answers, for one process, which alone writes it. Each answer is on disk when `add` returns."""

    def __init__(self, directory: epath.PathLike, task: str, process: int = 0):
        self._path, self._file = answers_path(directory, task, process), None

    def __enter__(self) -> AnswerFile:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, answer: Answer) -> None:
        """Store an answer."""
        if self._file is None:
            before = _read(self._path)[1] if exists(self._path) else ""
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = GrowingFile(self._path, before)
        self._file.write(_line(answer))


def _line(answer: Answer) -> str:
    return strict_json.dumps(dataclasses.asdict(answer), where=f"document {answer.document}", ensure_ascii=False) + "\n"


def _read(path: epath.Path) -> tuple[list[Answer], str]:
    """(the answers of a file, its text without lines that are not whole)."""
    found, kept, spoilt = [], [], 0
    for line in read_bytes(path).split(b"\n"):
        answer = _answer(line)
        if answer is not None:
            found.append(answer)
            kept.append(line.decode() + "\n")
        spoilt += answer is None and bool(line)
    if spoilt:
        are = "is" if spoilt == 1 else "are"
        say(f"{path}: {counted(spoilt, 'line')} {are} not whole, as after a kill; what lacks its answer is answered anew")
    return found, "".join(kept)


def _answer(line: bytes) -> Answer | None:
    """The answer of a line; None if it is not whole. A damaged byte is no other character, which a replacement would be."""
    try:
        row = strict_json.loads(line.decode())
        answer = Answer(**row | {"media": tuple(row["media"])})
    except (ValueError, TypeError, LookupError):
        return None
    texts = (answer.document, answer.key, answer.prompt, answer.answer, answer.finish_reason, *answer.media)
    return answer if all(isinstance(text, str) for text in texts) and isinstance(answer.options, dict) else None


def document_of(name: str, answer: Answer | None, **fields: Any) -> Document:
    """The document of this id. `fields` are those of `Document` that the answer does not say, or says wrongly."""
    said = {
        "cluster": cluster_of(name, answer),
        "prompt": answer.prompt if answer else "",
        "media": answer.media if answer else (),
        "answer": answer.answer if answer else None,
        "reference": None,
        "values": {},
    }
    return Document(id=name, **said | fields)


def cluster_of(name: str, answer: Answer | None) -> str:
    """The cluster of a document: its pictures or video, as of all others that show the same."""
    return (" ".join(answer.media) if answer else "") or name
