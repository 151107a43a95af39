"""The turns of a conversation, as chat templates take them."""

from __future__ import annotations

from typing import Literal, NamedTuple

from mmrlhf_jax.places import PromptText


class Turn(NamedTuple):
    """A message: the text that follows its media, or the texts around them."""

    role: Literal["system", "user", "assistant"]
    prompt: PromptText
    media: int = 0
