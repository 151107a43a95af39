"""Questions to a judge, each asked once: what was replied is stored, and what failed has its reason."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

from mmrlhf_jax.errors import UserError, shown
from mmrlhf_jax.inference.endpoint import Text
from mmrlhf_jax.progress import Progress, say
from mmrlhf_jax.suite.judges.judge import Judge
from mmrlhf_jax.suite.judges.question import Question
from mmrlhf_jax.suite.judges.verdicts import Verdicts

Read = TypeVar("Read")

# Why a document is missing: few reasons, which are counted. What exactly a server said is printed, once for each reason.
NO_JUDGE = "no judge was given (--judge)"
NO_JUDGE_OF_ATTACKS = "the judge of attacks was not given again (--attack-judge)"
FAILED = "a call of the judge failed"
SILENT = "the judge wrote nothing"
GONE = "the judge cannot be reached"
NOT_READ = "the judge's reply cannot be read"


class NotJudged(Exception):
    """There is no verdict, or none that can be read. The message is the reason."""


class NotRead(NotJudged):
    """A reply is not what was asked for."""

    def __init__(self) -> None:
        super().__init__(NOT_READ)


class Reply(NamedTuple):
    """What became of a question: the judge's text, or why there is none."""

    text: str | None
    failure: str | None = None


class Judging:
    """A judge, and a file of its verdicts. Without a judge nothing is asked; `name` is then that of one whose verdicts count,
    and `without` is why there is no other verdict.

    A question that failed is not asked again by this object, but by the next run. If the judge cannot be reached at all,
    nothing more is asked, and everything that has no verdict yet fails for that reason.
    """

    def __init__(self, judge: Judge | None, verdicts: Verdicts, name: str | None = None, without: str = NO_JUDGE):
        self._judge, self._verdicts, self._name, self._without = judge, verdicts, name, without
        self._failures: dict[str, str] = {}
        self._gone: str | None = None
        self._said: set[str] = set()

    def reply(self, question: Question) -> Reply | None:
        """What became of a question; None: it was not asked yet."""
        if self.name is None:
            return Reply(None, self._without)
        key = question.key(self.name)
        if (text := self._verdicts.find(key)) is not None:
            return Reply(text)
        if self._judge is None:
            return Reply(None, self._without)
        failure = self._failures.get(key, self._gone)
        return None if failure is None else Reply(None, failure)

    @property
    def name(self) -> str | None:
        """Of the judge; None if nobody judges. UserError if it is not known, because the judge's server cannot be asked
        for it."""
        if self._judge is None:
            return self._name
        if self._judge.name is None:
            self._judge.identify()
        return self._judge.name

    def ask(self, questions: Iterable[Question], doing: str | None = None) -> None:
        """Ask what has neither a verdict nor a failure yet. `doing` is shown with the progress."""
        if self._judge is None:
            return
        missing = {each.key(self.name): each for each in questions if self.reply(each) is None}
        asked = list(missing.items())
        progress = None if doing is None or not asked else Progress(doing, len(asked))
        for number, text in self._replies([question for _, question in asked]):
            _, question = asked[number]
            if progress is not None:
                progress.update()
            if text.error is not None:
                self._fail(question, FAILED, text.error)
            elif not text.text.strip():
                self._fail(question, SILENT, "")
            else:
                self._verdicts.add(question, self.name, text.text)

    def note_unread(self, questions: Iterable[Question]) -> None:
        """Note that the replies to these questions, of one document, cannot be read. The first one is printed, and all are
        asked for again by a run with --judge-again."""
        new = [question for question in questions if self._verdicts.note_unread(question.key(self.name))]
        if new and NOT_READ not in self._said:
            self._said.add(NOT_READ)
            reply = self._verdicts.find(new[0].key(self.name))
            where = f"{self._verdicts.path}: document {new[0].document}"
            say(f"{where}: {NOT_READ}: {shown(reply)}; --judge-again asks for such replies again")

    def _fail(self, question: Question, reason: str, detail: str) -> None:
        self._failures[question.key(self.name)] = reason
        if reason not in self._said:
            self._said.add(reason)
            say(f"judge {self.name}: document {question.document}: {reason}{detail and f' ({detail})'}")

    def _replies(self, questions: Sequence[Question]) -> Iterator[tuple[int, Text]]:
        try:
            yield from self._judge.replies(questions)
        except UserError as error:
            self._gone = GONE
            say(f"{GONE} ({error}); what it has not judged yet is missing, and the same command asks again")


def known(found: Read | None) -> Read:
    """What a reader has found in a reply. NotRead if it has found nothing."""
    if found is None:
        raise NotRead
    return found


def read(reply: Reply | None, reader: Callable[[str], Read]) -> Read:
    """What a reader makes of a reply. NotJudged, with the reason, if the call failed, or if it is not what was asked for."""
    if reply is None:
        raise NotJudged("the judge was not asked")
    if reply.text is None:
        raise NotJudged(reply.failure)
    return known(reader(reply.text))
