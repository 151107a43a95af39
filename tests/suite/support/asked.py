"""A source of requests and a policy for tests of a run, without the harness and without a model."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from PIL import Image

from mmrlhf_jax.inference.jobs import Share
from mmrlhf_jax.progress import Progress
from mmrlhf_jax.suite.answers import Answer, stored
from mmrlhf_jax.suite.policy import PolicyAnswer
from mmrlhf_jax.suite.request import DocumentRequest, Medium, Request
from mmrlhf_jax.suite.task import Data, Row, Task, TaskFailed

OPTIONS = {"max_new_tokens": 4, "temperature": 0.0}


def task(name: str, documents: int = 4, judge: str = "none") -> Task:
    row = Row(name, name.upper(), ("exact_match",), "ocr", factor=100.0)
    return Task(name, name, Data("owner/set", None, "test", documents), (row,), "image", judge, 4, {"image": "image"})


def png(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (12, 9), (number % 256, number // 256, 7)).save(file, "PNG")
    return file.getvalue()


def only(directory, task: str) -> dict[str, Answer]:
    """The answers of a run's directory, of which every document has one."""
    return {document: answer for document, by_key in stored(directory, task).items() for (answer,) in [by_key.values()]}


class Documents:
    """A source of `Data.documents` requests per task. `missing` documents have a reason; `failing` tasks fail after so many.
    `version` is a part of every prompt."""

    def __init__(self, missing: Mapping[tuple[str, str], str] | None = None, failing: Mapping[str, int] | None = None):
        self.missing, self.failing = missing or {}, failing or {}
        self.asked: list[tuple[str, str]] = []
        self.version = 1

    def expected(self, task: Task) -> int | None:
        return task.data.documents

    def made_with(self, task: Task) -> dict[str, Any]:
        return {"version": self.version}

    @contextlib.contextmanager
    def ask(self, task: Task, answered: Mapping[str, Collection[str]], share: Share) -> Iterator[_Asking]:
        self.asked.append((task.name, f"{share.process}"))
        yield _Asking(self, task, answered, share)


class _Asking:
    def __init__(self, source: Documents, task: Task, answered: Mapping[str, Collection[str]], share: Share):
        self._source, self._task, self._answered, self._share = source, task, answered, share
        self.documents = task.data.documents

    def requests(self) -> Iterator[DocumentRequest]:
        for number in range(self._share.process, self.documents, self._share.count):
            name = f"{number}"
            if self._source.failing.get(self._task.name) == number:
                raise TaskFailed("it is out of order")
            if (reason := self._source.missing.get((self._task.name, name))) is not None:
                yield DocumentRequest(name, missing=reason)
                continue
            text = f"{self._task.name} {name}, version {self._source.version}"
            request = Request(name, ("", text), (Medium("image", f"{number:064x}", png(number)),), OPTIONS)
            yield DocumentRequest(
                name, request, answered=request.key in self._answered.get(name, ()), content=f"{self._source.version}"
            )


class Parrot:
    """A policy that says its prompt again. `refuse(request)` gives the reason why it does not; `after` is called after each."""

    def __init__(
        self, refuse: Callable[[Request], str | None] = lambda request: None, after: Callable[[], None] = lambda: None
    ):
        self.said: list[str] = []
        self._refuse, self._after = refuse, after
        self.made_with = {"model": "parrot"}

    def answers(self, requests, progress: Progress) -> Iterator[tuple[Request, PolicyAnswer]]:
        for request in requests:
            progress.update()
            reason = self._refuse(request)
            self.said.append(request.prompt)
            yield request, PolicyAnswer(f"you said: {request.prompt}") if reason is None else PolicyAnswer(error=reason)
            self._after()
