"""TRL / Hugging Face preference rows: `prompt`, `chosen`, `rejected` as strings or as lists of messages, and `images`.

Rows that carry an id are folded by it like MM-RLHF's pairs; a row without one is a group of two. A prompt that is not
given is, as in TRL, the messages that `chosen` and `rejected` begin with. One turn only: a system message or an earlier
turn is an error, because a record's prompt is one user text.
"""

from __future__ import annotations

from mmrlhf_jax.data.sources.chat import Messages, message_parts, message_text
from mmrlhf_jax.data.sources.fields import pop_media
from mmrlhf_jax.data.sources.folding import PairRow, fold, pair_row
from mmrlhf_jax.data.sources.rows import Format, Row, shown
from mmrlhf_jax.errors import UserError


def _parse(row: Row) -> PairRow:
    data, where = dict(row.data), row.where
    images, video = pop_media(data, where)
    prompt, chosen, rejected = (data.pop(name, None) for name in ("prompt", "chosen", "rejected"))
    if isinstance(chosen, list) and isinstance(rejected, list) and not isinstance(prompt, list):
        # TRL's implicit prompt. A plain `prompt` column beside whole conversations only repeats what they begin with.
        shared = _shared_length(chosen, rejected)
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    if isinstance(prompt, list):
        images = images + _check_media_parts(prompt, images, where)
        prompt = message_text(prompt, "user", "prompt", where)
    if not isinstance(prompt, str):
        raise UserError(f"{where}: field 'prompt' must be a string or a list of messages, found {shown(prompt)}")
    chosen, rejected = (
        message_text(chosen, "assistant", "chosen", where),
        message_text(rejected, "assistant", "rejected", where),
    )
    return pair_row(data, where, (images, video), prompt, chosen, rejected)


def _shared_length(chosen: Messages, rejected: Messages) -> int:
    """Messages at the front of both, at most all but the last of each."""
    longest = min(len(chosen), len(rejected)) - 1
    return next((n for n in range(longest) if chosen[n] != rejected[n]), longest)


def _check_media_parts(prompt: Messages, images: tuple[str, ...], where: str) -> tuple[str, ...]:
    """Paths that stand inside the prompt's image parts. Parts without one stand for the images listed beside them."""
    parts = [part for part in message_parts(prompt, where) if part.get("type") in ("image", "image_url", "video")]
    named = [part[part["type"]] for part in parts if part.get(part["type"])]
    if not all(isinstance(path, str) for path in named) or any(part["type"] == "video" for part in parts):
        raise UserError(f"{where}: media inside messages must be image paths; list them in 'images', or 'video'")
    placeholders = len(parts) - len(named)
    if placeholders and placeholders != len(images):
        raise UserError(f"{where}: the prompt has {placeholders} image parts, but 'images' has {len(images)} paths")
    return tuple(named)


FORMAT = Format(
    "TRL / Hugging Face preference rows",
    "prompt, chosen, rejected (strings or messages), images",
    lambda row: "chosen" in row and "rejected" in row,
    _parse,
    fold,
    row="pair",
)
