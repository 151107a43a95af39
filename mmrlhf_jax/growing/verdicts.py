"""People's verdicts on answers: what one person says of one record, checked against the record, and the order of several.

A person rates every answer from 1 to 5, or says that it is the same as the one above. Only the order of the ratings counts.
"""

from __future__ import annotations

import dataclasses
import datetime
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mmrlhf_jax.data.digests import prompt_digest, text_digest
from mmrlhf_jax.errors import UserError, shown
from mmrlhf_jax.records import RankedRecord, is_blank

LEVELS = (1, 2, 3, 4, 5)
EMPTY = "(empty answer)"  # shown in the place of an answer without any visible character


class Rated(NamedTuple):
    """An answer as a verdict file has it: what it was, and what the person says. `text` is what was shown; None: not in the
    file."""

    digest: str
    text: str | None
    rating: int | None
    same_as_above: bool


@dataclasses.dataclass(frozen=True)
class Said:
    """One person's judgement of one record, as a file has it. `answers` are in the order in which they were shown. `where` (the
    file, and the place in it) begins messages. `skipped`: the person did not want to judge it."""

    where: str
    record: str
    prompt: str | None  # digest
    answers: tuple[Rated, ...]
    who: str
    when: str | None
    tool: str
    reason: str = ""
    skipped: bool = False


class Unfinished(Exception):
    """A verdict that cannot be used, because the person has not come to an end with it. The message says what is missing."""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """One person's ratings of a record's answers, by the digests of their texts."""

    who: str
    when: str
    tool: str
    ratings: Mapping[str, int]
    reason: str = ""

    @property
    def person(self) -> tuple[str, str]:
        """Who it is by. Case and spaces make no other person of a name; the names of two tools have nothing to do with each
        other."""
        return " ".join(unicodedata.normalize("NFC", self.who).split()).casefold(), self.tool

    def says_as(self, other: Verdict) -> bool:
        """Whether both are the same in all but their time and the spelling of the name."""
        return dataclasses.replace(self, when=other.when, who=other.who) == other

    def to_json(self) -> dict[str, Any]:
        found = dataclasses.asdict(self)
        return found if self.reason else {name: value for name, value in found.items() if name != "reason"}


def shown_text(text: str) -> str:
    """An answer as people see it."""
    return EMPTY if is_blank(text) else text


def digests_of(record: RankedRecord) -> list[str]:
    """The digests of the record's different answers, in the order of the first ones."""
    return list(dict.fromkeys(text_digest(response.text) for response in record.responses))


def checked(said: Said, record: RankedRecord, now: str) -> Verdict:
    """What a person says of this record. `now` is the time of verdicts that have none.

    UserError if it was said of another prompt or other answers. Unfinished if not all answers are rated.
    """
    where = f"{said.where}: record {said.record!r}"
    if said.prompt is not None and said.prompt != prompt_digest(record):
        raise UserError(f"{where}: is about another prompt; its text was changed after the export")
    if said.skipped:
        raise Unfinished(f"{said.who} skipped it")
    texts = {text_digest(response.text): shown_text(response.text) for response in record.responses}
    for number, answer in enumerate(said.answers, 1):
        if answer.digest not in texts:
            named = shown(answer.text or answer.digest)
            raise UserError(f"{where}: answer {number} ({named}) is none of this record; was it exported from here?")
        if answer.text is not None and answer.text != texts[answer.digest]:
            raise UserError(f"{where}: the text of answer {number} was edited; restore it, or take this record out of the file")
    rated = [answer.digest for answer in said.answers]
    if len(set(rated)) < len(rated):
        raise UserError(f"{where}: an answer stands there twice")
    if missing := len(texts) - len(rated):
        raise Unfinished(f"{missing} of {len(texts)} answers are not there")
    return Verdict(said.who, _time(said.when, where) or now, said.tool, _ratings(said.answers), said.reason.strip())


def _ratings(answers: Sequence[Rated]) -> dict[str, int]:
    found: dict[str, int] = {}
    above = None
    for number, answer in enumerate(answers, 1):
        if answer.same_as_above:
            if above is None:
                raise Unfinished("the first answer has none above")
            if answer.rating not in (None, above):
                raise Unfinished(f"answer {number} is the same as the one above, and has another rating")
        elif answer.rating is None:
            raise Unfinished(f"answer {number} is not rated")
        above = above if answer.same_as_above else answer.rating
        found[answer.digest] = above
    return found


def rating_of(value: Any, where: str) -> int | None:
    """A rating as a file has it; None for none, which some tools write as 0. UserError for what is no rating."""
    if value is None or (value == 0 and not isinstance(value, bool)):
        return None
    if isinstance(value, bool) or value not in LEVELS:
        raise UserError(f"{where}: a rating must be a whole number from 1 to 5, found {shown(value)}")
    return int(value)


def _time(value: str | None, where: str) -> str | None:
    """In one form, so that times can be compared as text."""
    if value is None:
        return None
    try:
        return in_utc(datetime.datetime.fromisoformat(value))
    except (ValueError, TypeError, OverflowError):
        raise UserError(f"{where}: the time {shown(value)} is not in the form of ISO 8601") from None


def in_utc(time: datetime.datetime) -> str:
    """Seconds are enough. A time without a zone is taken for UTC."""
    zoned = time if time.tzinfo else time.replace(tzinfo=datetime.UTC)
    return zoned.astimezone(datetime.UTC).isoformat(timespec="seconds")


def agreed_ranks(verdicts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """Digest -> rank (1 is best) of the same answers, by majority.

    Of two answers the one is better that more than half of the people rate higher. Answers stand in the order of how many
    others they are better than, less how many are better than they (Copeland's rule), and those with equal numbers tie. One
    person's order, and one that more than half of the people share, comes out as it is.
    """
    answers = list(verdicts[0])
    points = dict.fromkeys(answers, 0)
    for one in answers:
        for other in answers:
            points[one] += 2 * sum(ratings[one] > ratings[other] for ratings in verdicts) > len(verdicts)
            points[one] -= 2 * sum(ratings[one] < ratings[other] for ratings in verdicts) > len(verdicts)
    levels = sorted(set(points.values()), reverse=True)
    return {answer: 1 + levels.index(points[answer]) for answer in answers}
