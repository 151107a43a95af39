"""Short comments that people wrote about responses, and the prompt that asks for the full critique that each stands for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from mmrlhf_jax.errors import UserError, shown
from mmrlhf_jax.records import RankedRecord, Response, is_blank

# MM-RLHF, arXiv 2502.10391, Table 7; do not edit it.
EXPANSION_PROMPT = (
    "You will receive an image-related question, an answer, and a comment provided by a human expert for the answer. Your task"
    " is to expand the human comment comprehensively while retaining its strengths and weaknesses, making it more"
    " professional, and logically rigorous. Focus only on expanding the comment and do not answer the question. Ensure the"
    " expanded comment is strictly based on the provided human comment and avoids any speculation or uncertain content."
    " [Question:] {question} [Answer:] {answer} [Human Comment for the answer:] {reason} Expanded Comment:"
)

ENHANCED = "enhanced_critique"  # the field of a response that has the full critique
FAILED = "expansion_error"  # or the reason why there is none


class Comment(NamedTuple):
    """A comment on response `place` of a record."""

    place: int
    text: str


def expansion_prompt(record: RankedRecord, comment: Comment) -> str:
    """The paper's prompt for one comment. Tags for media are not part of the question."""
    parts, question = EXPANSION_PROMPT, record.prompt_text()
    texts = {
        "{question}": question if isinstance(question, str) else "".join(question),
        "{answer}": record.responses[comment.place].text,
        "{reason}": comment.text,
    }
    made = ""
    for name, text in texts.items():  # one after the other, because a text may spell the name of another
        before, _, parts = parts.partition(name)
        made += before + text
    return made + parts


def comments_of(record: RankedRecord, field: str) -> Iterator[Comment]:
    """The comments in this field of the responses that are not blank. UserError for a field that holds no text."""
    for place, response in enumerate(record.responses):
        text = _text(_value(response, field), f"record {shown(record.id)}, response {place}: {field}")
        if not is_blank(text):
            yield Comment(place, text)


def pending(record: RankedRecord, field: str) -> list[Comment]:
    """The comments of responses that have no full critique yet."""
    return [comment for comment in comments_of(record, field) if not is_expanded(record.responses[comment.place])]


def is_expanded(response: Response) -> bool:
    """Whether a response has a full critique."""
    found = response.extra.get(ENHANCED)
    return isinstance(found, str) and not is_blank(found)


def _value(response: Response, field: str) -> Any:
    return response.critique if field == "critique" else response.extra.get(field)


def _text(value: Any, where: str) -> str:
    """A comment's text; of several (a list, or one for each score by its name) all of them."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, list):
        return "\n".join(filter(None, (_text(each, where) for each in value)))
    if isinstance(value, dict):
        texts = {name: _text(each, where) for name, each in value.items()}
        return "\n".join(f"{name}: {text}" for name, text in texts.items() if text)
    raise UserError(f"{where} must be text, a list of texts, or an object of texts, found {shown(value)}")
