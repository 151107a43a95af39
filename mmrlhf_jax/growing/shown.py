"""What people see of a record: its question, its media as small pictures, and its answers without who wrote them."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from mmrlhf_jax.data.digests import text_digest
from mmrlhf_jax.data.examples import Example
from mmrlhf_jax.growing.review import Entry
from mmrlhf_jax.growing.verdicts import shown_text
from mmrlhf_jax.pages.small_pictures import small_pictures
from mmrlhf_jax.progress import Progress
from mmrlhf_jax.records import RankedRecord

LEVELS = ("bad", "poor", "acceptable", "good", "excellent")
SAME = "same as above"
GUIDELINES = (
    "Rate every answer from 1 (bad: wrong, or of no use) to 5 (excellent). What counts is the order: give an answer a higher"
    f" rating than another one if it is better, and mark it as “{SAME}” (or give it the same rating) if neither is better. Look"
    " at the picture first: an answer that says what is not there is worse than one that says less. A sentence on why is"
    " welcome, but not needed."
)


class ShownAnswer(NamedTuple):
    """`digest` is that of the answer itself, `text` what is shown of it."""

    digest: str
    text: str


class Shown(NamedTuple):
    """A record in the queue, as people see it. `prompt` is the digest of its question; `pictures` are data URLs."""

    id: str
    question: str
    prompt: str
    pictures: tuple[str, ...]
    answers: tuple[ShownAnswer, ...]


def shown_all(examples, entries: Sequence[Entry]) -> Iterator[Shown]:
    """The entries' records, in their order. UserError for media that cannot be read."""
    places = {record.id: index for index, record in enumerate(examples.records)}
    progress = Progress("preparing records for review", len(entries))
    for entry in entries:
        yield _shown(examples[places[entry.id]], entry)
        progress.update()


def _shown(example: Example, entry: Entry) -> Shown:
    record = example.record
    texts = {text_digest(response.text): shown_text(response.text) for response in record.responses}
    pictures = tuple(f"data:image/jpeg;base64,{base64.b64encode(each.jpeg).decode()}" for each in small_pictures(example))
    answers = tuple(ShownAnswer(digest, texts[digest]) for digest in entry.answers)
    return Shown(record.id, question_of(record), entry.prompt, pictures, answers)


def question_of(record: RankedRecord) -> str:
    """The prompt as people read it: a medium inside the text is named in its place."""
    texts = record.prompt_text()
    if isinstance(texts, str):
        return texts.strip()
    named = ["[the video]"] if record.video is not None else [f"[picture {number}]" for number in range(1, len(texts))]
    return "".join(part for pair in zip(texts, [*named, ""], strict=True) for part in pair).strip()
