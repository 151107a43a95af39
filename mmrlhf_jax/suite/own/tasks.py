"""The tasks that are asked and graded here, in a run: their documents to be answered, and their answers to be graded."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.inference.jobs import Share
from mmrlhf_jax.suite import resampling
from mmrlhf_jax.suite.answers import Answer, Answered, document_of
from mmrlhf_jax.suite.judges.judging import Judging, NotJudged, NotRead, read
from mmrlhf_jax.suite.judges.question import Question
from mmrlhf_jax.suite.local import Local, expected_documents, source_of
from mmrlhf_jax.suite.own import documents
from mmrlhf_jax.suite.own.documents import Entry
from mmrlhf_jax.suite.own.grader import Graded, Grader, Mode
from mmrlhf_jax.suite.own.registry import grader_of
from mmrlhf_jax.suite.reasons import BEYOND_LIMIT, NOT_ANSWERED, OTHER_REQUEST
from mmrlhf_jax.suite.request import DocumentRequest, Medium, Request
from mmrlhf_jax.suite.results import Document, Figure, Results
from mmrlhf_jax.suite.task import Row, Task, TaskFailed

METRICS = "mmrlhf_jax 1"  # whose they are; the number rises when a metric gives another value for the same answers
NO_VALUE = "no answer has a value"


class OwnTasks:
    """Tasks with own metrics. `local`: task -> a user's own documents. `limit`: the most documents of a task; None: all.

    `classifier`: whether the judge of attacks is HarmBench's, which takes a prompt of its own.
    """

    def __init__(
        self, local: Mapping[str, Local], mode: Mode = "corrected", *, limit: int | None = None, classifier: bool = False
    ):
        self._local, self._limit, self._mode, self._classifier = local, limit, mode, classifier
        self._last: tuple[str, list[Entry]] = ("", [])  # of one task alone, since they hold pictures

    def made_with(self, task: Task) -> dict[str, Any]:
        """What the requests of a task depend on."""
        local = self._local.get(task.name)
        data = local and local.fingerprint(task)
        return self._options(task) | {"limit": self._limit, "source": source_of(local), "data": data}

    def expected(self, task: Task) -> int | None:
        """About how many documents a task has; None if that is not known."""
        return expected_documents(task, self._local.get(task.name), self._limit)

    def settings(self, task: Task) -> dict[str, Any]:
        """What answers and figures of a task depend on besides model, documents and judge."""
        attacks = {"classifier": self._classifier} if self._grader(task).attacks else {}
        return self._options(task) | {"mode": self._mode} | attacks

    def metrics_of(self, task: Task) -> str:
        return METRICS

    @contextlib.contextmanager
    def ask(self, task: Task, answered: Mapping[str, Collection[str]], share: Share) -> Iterator[OwnRequests]:
        """The documents of a share. `answered`: document -> keys of the requests that have an answer. TaskFailed if the data
        cannot be read."""
        yield OwnRequests(self._used(task), self._grader(task), self._options(task), answered, share)

    def score(self, task: Task, answered: Answered, judging: Judging) -> Results:
        """The results of a task. A document is told by its request. TaskFailed if the data cannot be read."""
        entries, grader, answers = self._used(task), self._grader(task), answered.answers
        missing = {str(number): each.missing for number, each in enumerate(entries) if each.missing is not None}
        missing |= answered.unanswered
        for number, entry in enumerate(entries):
            if (name := str(number)) in missing:
                continue
            if name not in answers:
                missing[name] = NOT_ANSWERED
            elif answers[name].key != _request(name, entry, grader, self._options(task)).key:
                missing[name] = OTHER_REQUEST
        graded, unread = _graded(task, entries, answers, grader, judging, missing)
        missing |= unread
        found = [
            _document(task, str(number), entry, answers.get(str(number)), grader, graded.get(str(number)), missing)
            for number, entry in enumerate(entries)
        ]
        left_out = len(self._all(task)) - len(entries)
        judge = {"judge": judging.name} if task.judge != "none" else {}
        return Results(
            task.name,
            METRICS,
            self.settings(task) | judge,
            {row.name: _figure(row, found) for row in task.rows},
            tuple(found),
            {BEYOND_LIMIT: left_out} if left_out else {},
        )

    def _options(self, task: Task) -> dict[str, Any]:
        """How a request is answered."""
        return {"max_new_tokens": task.new_tokens, "temperature": 0.0}

    def _grader(self, task: Task) -> Grader:
        return grader_of(task.name, self._mode, classifier=self._classifier)

    def _used(self, task: Task) -> Sequence[Entry]:
        """The documents up to the limit."""
        return self._all(task)[: self._limit]

    def _all(self, task: Task) -> list[Entry]:
        if self._last[0] != task.name:
            try:
                self._last = task.name, documents.read(task, self._local.get(task.name), self._grader(task))
            except UserError as error:
                raise TaskFailed(str(error)) from None
        return self._last[1]


@dataclasses.dataclass(frozen=True)
class OwnRequests:
    """A task's documents, while a share of them is asked."""

    entries: Sequence[Entry]
    grader: Grader
    options: Mapping[str, Any]
    answered: Mapping[str, Collection[str]]
    share: Share

    @property
    def documents(self) -> int:
        """How many there are, of all shares."""
        return len(self.entries)

    def requests(self) -> Iterator[DocumentRequest]:
        """Yield what is asked for every document of the share."""
        for number in range(self.share.process, len(self.entries), self.share.count):
            name, entry = str(number), self.entries[number]
            if entry.missing is not None:
                yield DocumentRequest(name, missing=entry.missing)
                continue
            request = _request(name, entry, self.grader, self.options)
            yield DocumentRequest(name, request, answered=request.key in self.answered.get(name, ()))


def _request(name: str, entry: Entry, grader: Grader, options: Mapping[str, Any]) -> Request:
    """What is asked about a document that has its picture."""
    data = entry.columns[documents.PICTURE]
    picture = Medium("image", hashlib.sha256(data).hexdigest(), data)
    return Request(name, ("", grader.prompt(entry.columns)), (picture,), options)


def _graded(
    task: Task,
    entries: Sequence[Entry],
    answers: Mapping[str, Answer],
    grader: Grader,
    judging: Judging,
    missing: Mapping[str, str],
) -> tuple[dict[str, Graded], dict[str, str]]:
    """(document -> what its answer gives, document -> why that cannot be said)."""
    questions: dict[str, tuple[Question, ...]] = {}
    unread: dict[str, str] = {}
    for number, entry in enumerate(entries):
        if (name := str(number)) not in missing:
            try:
                questions[name] = grader.questions(name, entry.columns, answers[name].answer)
            except UserError as error:  # a picture that a judge cannot be shown
                unread[name] = str(error)
    judging.ask((question for each in questions.values() for question in each), f"{task.name}: judging")
    graded: dict[str, Graded] = {}
    for name, asked in questions.items():
        try:
            replies = [read(judging.reply(question), str) for question in asked]
            graded[name] = grader.grade(entries[int(name)].columns, answers[name].answer, replies)
        except NotJudged as error:
            unread[name] = str(error)
            if isinstance(error, NotRead):
                judging.note_unread(asked)
    return graded, unread


def _document(
    task: Task,
    name: str,
    entry: Entry,
    answer: Answer | None,
    grader: Grader,
    graded: Graded | None,
    missing: Mapping[str, str],
) -> Document:
    values, weights = {}, {}
    for row in task.rows if graded is not None else ():
        (metric,) = row.metrics
        value = graded.values[metric]
        values[row.name] = None if value is None else row.scaled(value)
        if metric in graded.weights:
            weights[row.name] = graded.weights[metric]
    reference = None if grader.reference is None else entry.columns[grader.reference]
    return document_of(
        name,
        answer,
        prompt=grader.prompt(entry.columns),
        reference=", ".join(reference) if isinstance(reference, list) else reference,
        values=values,
        missing=missing.get(name),
        weights=weights,
    )


def _figure(row: Row, found: Sequence[Document]) -> Figure:
    """The figure of a row with its draws, or the most frequent reason why there is none."""
    estimate = resampling.estimate(row, found)
    if estimate is None:
        reasons = Counter(each.missing for each in found if each.missing is not None)
        return Figure(None, reasons.most_common(1)[0][0] if reasons else NO_VALUE)
    return Figure(estimate.value, draws=None if estimate.draws is None else tuple(estimate.draws.tolist()))
