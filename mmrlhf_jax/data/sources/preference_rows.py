"""TRL / Hugging Face preference rows: `prompt`, `chosen`, `rejected` as strings or as lists of messages, and `images`.

Rows with an id are folded by it like MM-RLHF's pairs; a row without one is a group of two. If there is no prompt, it is, as in
TRL, the messages that `chosen` and `rejected` both begin with. Only one turn is allowed: a system message or an earlier turn is
an error, because a record's prompt is one user text.
"""

from __future__ import annotations

from typing import Any

from mmrlhf_jax.data.sources.chat import Messages, message_text, read_prompt
from mmrlhf_jax.data.sources.fields import pop_media
from mmrlhf_jax.data.sources.folding import PairRow, fold, pair_row
from mmrlhf_jax.data.sources.rows import Format, Row
from mmrlhf_jax.errors import UserError, shown


def _parse(row: Row) -> PairRow:
    data, where = dict(row.data), row.where
    media = pop_media(data, where)
    prompt, chosen, rejected = (data.pop(name, None) for name in ("prompt", "chosen", "rejected"))
    if isinstance(chosen, list) and isinstance(rejected, list) and not isinstance(prompt, list):
        prompt, chosen, rejected = _split(prompt, chosen, rejected, where)
    if not isinstance(prompt, str | list):
        raise UserError(f"{where}: field 'prompt' must be a string or a list of messages, found {shown(prompt)}")
    prompt, media = read_prompt(prompt, "prompt", media, where)
    chosen, rejected = (
        message_text(chosen, "assistant", "chosen", where),
        message_text(rejected, "assistant", "rejected", where),
    )
    return pair_row(data, where, media, prompt, chosen, rejected)


def _split(prompt: Any, chosen: Messages, rejected: Messages, where: str) -> tuple[Any, Messages, Messages]:
    """(prompt, chosen, rejected) of two conversations. TRL's implicit prompt is the messages that both begin with.

    A `prompt` beside whole conversations must repeat their beginning, else the row has two prompts (UserError).
    """
    shared = _shared_length(chosen, rejected)
    if not shared and prompt is not None and len(chosen) == len(rejected) == 1:
        return prompt, chosen, rejected
    if len(chosen) > 1 and len(rejected) > 1 and chosen[:-1] != rejected[:-1]:
        raise UserError(f"{where}: 'chosen' and 'rejected' begin with other messages; both sides must answer the same prompt")
    questions = [message.get("content") if isinstance(message, dict) else message for message in chosen[:shared]]
    if prompt is not None and (not isinstance(prompt, str) or [prompt.strip()] != [_plain(question) for question in questions]):
        raise UserError(
            f"{where}: field 'prompt' is {shown(prompt)}, but the messages begin with {shown(questions)}; keep one of them"
        )
    return chosen[:shared], chosen[shared:], rejected[shared:]


def _plain(content: Any) -> Any:
    """The text of a message's content, without its media."""
    if isinstance(content, list):
        content = "\n".join(part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str))
    return content.strip() if isinstance(content, str) else content


def _shared_length(chosen: Messages, rejected: Messages) -> int:
    """The number of messages that both begin with, at most all but the last of each."""
    longest = min(len(chosen), len(rejected)) - 1
    return next((n for n in range(longest) if chosen[n] != rejected[n]), longest)


FORMAT = Format(
    "TRL / Hugging Face preference rows",
    "prompt, chosen, rejected (strings or messages), images",
    lambda row: "chosen" in row and "rejected" in row,
    _parse,
    fold,
    row="pair",
)
