"""Whether a server reads a prompt as this project does: the tokens that both make of one are compared before a pass begins."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

from mmrlhf_jax.data.encode import GroupEncoder
from mmrlhf_jax.data.tokens import Conversation
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.inference.endpoint import Endpoint, Request, Text
from mmrlhf_jax.progress import say
from mmrlhf_jax.records import RankedRecord

# Records of one form (pictures, a video, text alone) that are tried until the server takes one.
CANDIDATES = 3
MEDIUM = -1  # in the place of all tokens of a medium
_CONTEXT = 6  # tokens shown around a difference


def check_tokens(endpoint: Endpoint, requests: Sequence[tuple[Request, Conversation]], encoder: GroupEncoder) -> bool:
    """Ask a server for the tokens of prompts, of each form one, and compare them with ours, media collapsed.

    Each request is given with our tokens of it. True if all forms are equal, False if one cannot be checked, which is said.
    UserError for a difference, and for a server that takes none of the prompts.
    """
    by_form: dict[tuple[int, bool], list[tuple[Request, Conversation]]] = {}
    for request, own in requests:
        by_form.setdefault(form_of(request.example.record), []).append((request, own))
    found = [_first_that_is_taken(endpoint, same[:CANDIDATES]) for same in by_form.values()]
    for request, _, text in found:
        if text.error is not None:
            say(f"{endpoint.url}: {endpoint.model} refuses record {request.example.record.id!r} ({text.error})")
    if any(text.error is None and text.prompt_ids is None for *_, text in found):
        say(
            f"{endpoint.url}: whether its chat template is ours cannot be checked, because it does not say which tokens it"
            " reads (vLLM does, asked by return_token_ids)"
        )
    if found and all(text.error is not None for *_, text in found):
        reason = found[0][-1].error
        raise UserError(f"{endpoint.url}: {endpoint.model} takes none of the prompts that were tried ({reason})")
    for request, own, text in found:
        if text.prompt_ids is not None:
            _compare(text.prompt_ids, own, encoder, f"{endpoint.url}: record {request.example.record.id!r}")
    return all(text.prompt_ids is not None for *_, text in found)


def _first_that_is_taken(
    endpoint: Endpoint, same: Sequence[tuple[Request, Conversation]]
) -> tuple[Request, Conversation, Text]:
    """The first of these requests that the server answers, else the last one, with our tokens of it and the server's reply."""
    for number, (request, own) in enumerate(same, 1):
        text = _ask(endpoint, request)
        if text.error is None or number == len(same):
            return request, own, text
    raise ValueError("no request")


def form_of(record: RankedRecord) -> tuple[int, bool]:
    """Of prompts of one form a chat template makes the same: 0, 1 or more images, or a video."""
    return min(len(record.images), 2), record.video is not None


def first_of_each_form(records: Sequence[RankedRecord]) -> list[int]:
    """The indices of the first CANDIDATES records of each form."""
    found: dict[tuple[int, bool], list[int]] = {}
    for index, record in enumerate(records):
        same = found.setdefault(form_of(record), [])
        if len(same) < CANDIDATES:
            same.append(index)
    return sorted(index for same in found.values() for index in same)


def _ask(endpoint: Endpoint, request: Request) -> Text:
    """One token of an answer, with the tokens of the prompt from a server that can say them."""
    ((_, found),) = endpoint.texts([dataclasses.replace(request, most=1, prompt_ids=True)])
    if found.error is not None:  # it may be that it does not know the field
        ((_, found),) = endpoint.texts([dataclasses.replace(request, most=1)])
    return found


def _compare(theirs: Sequence[int], own: Conversation, encoder: GroupEncoder, where: str) -> None:
    media, tokenizer = encoder.tokenizer.media_ids, encoder.tokenizer.tokenizer
    ours = own.tokens.tolist()
    there, here = collapsed(theirs, media), collapsed(ours, media)
    if there != here:
        place = next((i for i, (a, b) in enumerate(zip(there, here, strict=False)) if a != b), min(len(there), len(here)))
        shown = [
            repr(tokenizer.decode([token for token in side[max(0, place - _CONTEXT) : place + _CONTEXT] if token != MEDIUM]))
            for side in (there, here)
        ]
        raise UserError(
            f"{where}: its server reads other tokens than this model: from token {place} on {shown[0]} there, {shown[1]} here;"
            " serve a model with the chat template that `mmrlhf export` writes, or choose another --template"
        )
    counts = [sum(token in media for token in side) for side in (theirs, ours)]
    if counts[0] != counts[1] and counts[0] > there.count(MEDIUM):
        say(f"{where}: its media are {counts[0]} tokens there and {counts[1]} here: the server prepares them in another way")


def collapsed(tokens: Sequence[int], media: Collection[int]) -> list[int]:
    """The tokens with MEDIUM in the place of every run of `media` tokens."""
    found: list[int] = []
    for token in tokens:
        if token not in media:
            found.append(token)
        elif not found or found[-1] != MEDIUM:
            found.append(MEDIUM)
    return found
