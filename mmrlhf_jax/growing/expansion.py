"""Full critiques from the short comments that people wrote: the targets of MM-RLHF's reward model (arXiv 2502.10391, 3.1).

A record gets them beside the comments, so that training takes one or the other (`data.critiques`).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from mmrlhf_jax.data.digests import text_digest
from mmrlhf_jax.data.examples import Example, SourceExamples, dump_record
from mmrlhf_jax.errors import UserError, shown
from mmrlhf_jax.growing.comments import ENHANCED, EXPANSION_PROMPT, FAILED, Comment, expansion_prompt, is_expanded, pending
from mmrlhf_jax.growing.directory import Line, json_lines
from mmrlhf_jax.growing.media import MediaFolder
from mmrlhf_jax.growing.writers import Answer, Writer
from mmrlhf_jax.progress import say
from mmrlhf_jax.records import RankedRecord, Response, is_blank, record_from_json

BY = "enhanced_by"  # the field of a response that says who wrote its full critique


@dataclasses.dataclass(frozen=True)
class Expansion:
    """Which comments of which data are expanded: those in `field` of the responses; `with_media` shows the writer the pictures
    or the video as well."""

    examples: Any
    field: str
    with_media: bool = False

    def check(self) -> None:
        """UserError if there is nothing to expand, or if a field holds no text."""
        examples = self.examples
        if examples.weights is not None and any(weight != 1 for weight in examples.weights):
            raise UserError("the data is a mixture, whose weights records cannot hold; expand its sets one by one")
        if self.count:
            return
        if any(is_expanded(response) for record in examples.records for response in record.responses):
            raise UserError(f"every comment has its {ENHANCED} already")
        raise UserError(
            f"no response has a comment in its field {self.field!r}; --field names another one, `mmrlhf data show` lists them"
        )

    @functools.cached_property
    def count(self) -> int:
        """The number of comments to expand."""
        return sum(len(pending(record, self.field)) for record in self.examples.records)

    def keyed(self, root: epath.Path | None) -> Any:
        """What the lines are made of: records alone if neither the writer nor the result has any use for their media, which
        need not be there then. `root` is that of `media_root`."""
        return self.examples if self.with_media or root is None else Records(self.examples.records)

    def job(self, writer: Writer) -> str:
        """What the lines depend on besides the data."""
        return f"expand {self.field} {self.with_media} {writer.job} {EXPANSION_PROMPT}"

    def lines(self, indices: Sequence[int], writer: Writer, media: MediaFolder | None) -> Iterator[tuple[int, Line]]:
        """Yield (index, record with the full critiques of its comments) of these examples as they are finished.

        Those in which something failed come last, so that a pass that is continued asks for them again. UserError if all
        comments of the data fail.
        """
        asked = _Asked(self, indices)
        found: dict[int, dict[int, Answer]] = {index: {} for index in indices}
        left = {index: len(pending(self.examples.records[index], self.field)) for index in indices}
        failed = []
        for index in indices:
            if not left[index]:
                yield index, self._line(index, {}, writer, media)
        for number, answer in writer.answers(asked):
            index, comment = asked.where(number)
            found[index][comment.place] = _checked(answer, writer.most)
            left[index] -= 1
            if left[index]:
                continue
            if any(each.error is not None for each in found[index].values()):
                failed.append(index)
            else:
                yield index, self._line(index, found[index], writer, media)
        errors = [each.error for answers in found.values() for each in answers.values()]
        if None not in errors and len(errors) == self.count:
            raise UserError(f"{writer.origin['model']} expands none of {self.count} comments ({errors[0]})")
        for index in failed:
            yield index, self._line(index, found[index], writer, media)

    def prompt(self, index: int, comment: Comment) -> Example:
        """What the writer is asked about a comment."""
        record = self.examples.records[index]
        asked = RankedRecord(record.id, expansion_prompt(record, comment), record.responses, media_places=())
        if not self.with_media:
            return Example(asked)
        example = self.examples[index]
        return dataclasses.replace(example, record=dataclasses.replace(asked, images=record.images, video=record.video))

    def _line(self, index: int, answers: Mapping[int, Answer], writer: Writer, media: MediaFolder | None) -> Line:
        record = self.examples.records[index] if media is None else media.keep(self.examples[index])
        responses = [
            _with_answer(response, answers[place], writer) if place in answers else response
            for place, response in enumerate(record.responses)
        ]
        return record.replace_responses(responses).to_json()


class Records:
    """Records without their media."""

    def __init__(self, records: Sequence[RankedRecord]):
        self.records = records
        self.fingerprint = hashlib.sha256("\n".join(map(dump_record, records)).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.records)


class _Asked(Sequence[Example]):
    """The prompts about all comments of some records; media are read on access."""

    def __init__(self, expansion: Expansion, indices: Sequence[int]):
        self._expansion, records = expansion, expansion.examples.records
        self._where = [(index, comment) for index in indices for comment in pending(records[index], expansion.field)]

    def __len__(self) -> int:
        return len(self._where)

    def where(self, number: int) -> tuple[int, Comment]:
        """(index of the record, comment) of a prompt."""
        return self._where[number]

    def __getitem__(self, number: int) -> Example:
        return self._expansion.prompt(*self._where[number])


def _checked(answer: Answer, most: int) -> Answer:
    """The answer; an error in the place of a text that is no whole critique, since a model would learn it as it is."""
    if answer.error is None and answer.is_cut:
        return Answer(error=f"cut off at {most} new tokens (--max-new-tokens)")
    if answer.error is None and is_blank(answer.text):
        return Answer(error="nothing was written")
    return answer


def _with_answer(response: Response, answer: Answer, writer: Writer) -> Response:
    """The response with its full critique and who wrote it, or with the reason why it has none."""
    extra = {name: value for name, value in response.extra.items() if name not in (ENHANCED, FAILED, BY)}
    if answer.error is not None:
        return dataclasses.replace(response, extra=extra | {FAILED: answer.error})
    by = writer.origin | {"prompt": text_digest(EXPANSION_PROMPT)}
    return dataclasses.replace(response, extra=extra | {ENHANCED: answer.text.strip(), BY: by})


def is_line(record: RankedRecord, line: Any) -> bool:
    """Whether a stored line is this record with its responses, and a full critique or a reason where one was asked for."""
    own = [response.text for response in record.responses]
    return line["id"] == record.id and [response["text"] for response in line["responses"]] == own


def media_root(examples) -> epath.Path | None:
    """The folder that all media paths of the records are relative to; None if there are media that are no files below one."""
    if not isinstance(examples, SourceExamples):
        return None
    with_media = [number for number, record in enumerate(examples.records) if record.images or record.video is not None]
    return None if any(map(examples.is_embedded, with_media)) else examples.media_root


def report(out: epath.PathLike, examples, field: str) -> None:
    """Say what became of the comments, and how the result trains. `examples` is the data before."""
    records = [record_from_json(line, f"{out}") for line in json_lines(epath.Path(out))]
    pairs = [
        (a, b) for x, y in zip(examples.records, records, strict=True) for a, b in zip(x.responses, y.responses, strict=True)
    ]
    before = sum(is_expanded(a) for a, _ in pairs)
    made = sum(is_expanded(b) for _, b in pairs) - before
    failed = [
        (record.id, place, response.extra[FAILED])
        for record in records
        for place, response in enumerate(record.responses)
        if FAILED in response.extra
    ]
    say(f"{out}: {made} comments of {len(pairs)} responses were expanded (`--set data.critiques={ENHANCED}` trains on them)")
    if before:
        say(f"{out}: {before} responses had their {ENHANCED} before, which was kept")
    if without := len(pairs) - before - made - len(failed):
        say(f"{out}: {without} responses have no comment in {field!r}")
    if failed:
        record_id, place, reason = failed[0]
        say(
            f"{out}: {len(failed)} comments were not expanded (the first is of record {shown(record_id)}, response {place}:"
            f" {reason}); `mmrlhf expand --data {out}` asks for these alone"
        )


def say_media_root(out: epath.PathLike, examples, root: epath.Path | None) -> None:
    """Say where the media of the result are, unless they are beside it."""
    if root is None:
        say(f"{out}: its media were copied beside it")
    elif any(record.images or record.video is not None for record in examples.records) and root != epath.Path(out).parent:
        say(f"{out}: its media are where they were; train it with `--set data.media_root={root}`")
