"""Prompts that are made on access, and which of them an engine can answer."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from mmrlhf_jax.data.images import decode_image
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.inference.engine import Engine
from mmrlhf_jax.inference.prompts import Asked, Prompt, make_tree


class Prompts(Sequence[Prompt]):
    """The prompts that `make` makes of these numbers, each when it is accessed, since its media are read then."""

    def __init__(self, make: Callable[[int], Prompt], numbers: Sequence[int]):
        self._make, self._numbers = make, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, place: int) -> Prompt:
        return self._make(self._numbers[place])


def sound_and_refused(
    engine: Engine, read: Callable[[int], Sequence[Prompt]], numbers: Sequence[int], asked: Asked
) -> tuple[list[int], dict[int, str]]:
    """(the numbers that the engine can answer, why it cannot answer the others). `read` gives the prompts about one example."""
    reasons = {number: _refusal(engine, functools.partial(read, number), asked) for number in numbers}
    refused = {number: reason for number, reason in reasons.items() if reason is not None}
    return [number for number in numbers if number not in refused], refused


def _refusal(engine: Engine, read: Callable[[], Sequence[Prompt]], asked: Asked) -> str | None:
    """Why the engine cannot answer the prompts about one example: broken media, or too many tokens. None if it can."""
    try:
        prompts = read()
        example = prompts[0].example
        for data in (*example.images, *example.frames):
            decode_image(data, f"record {example.record.id!r}")
        make_tree(prompts, engine.encoder("answer"), asked)
    except UserError as error:
        return str(error)
    return None
