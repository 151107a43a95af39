"""What is asked of a lane: trees of texts to write, and what comes of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from typing import Literal

import numpy as np

from mmrlhf_jax.inference.sampling import GREEDY, Sampling
from mmrlhf_jax.models.media import Media

# stop: a stop token or string; length: the number of new tokens that was allowed; cancelled: nobody waits for it any more;
# failed: the model's logits are not finite, so that no further token can be chosen.
Reason = Literal["stop", "length", "cancelled", "failed"]


@dataclasses.dataclass(frozen=True)
class Branch:
    """A text to write behind a trunk.

    Attributes:
        tokens: int32[n], n >= 1: the prompt behind the trunk.
        position: of its first token; the others follow it, on all axes of positions.
        most: the number of new tokens that are allowed; 0: nothing is written, and the reward of the prompt is computed.
        stops: tokens that end the text.
        sampling, sample: how tokens are chosen, and the number of this sample among those of the same request.
        scored: the tokens behind the trunk of the conversation whose reward is wanted, given the new tokens without the one
            that ended them; None: no reward.
        top: whether the log-probs of the likeliest tokens are wanted at every place.
        closing: the most tokens that `scored` adds behind the new ones.
    """

    tokens: np.ndarray
    position: int
    most: int
    stops: frozenset[int] = frozenset()
    sampling: Sampling = GREEDY
    sample: int = 0
    scored: Callable[[list[int]], np.ndarray] | None = None
    top: bool = False
    closing: int = 0

    @property
    def length(self) -> int:
        """Slots of a branch that it may need. The last new token has none, unless something follows it."""
        last = self.scored is None and self.most > 0
        return len(self.tokens) + self.most + self.closing - last


@dataclasses.dataclass(frozen=True)
class Tree:
    """Branches with a common trunk.

    Attributes:
        tokens, positions: int32[n] and int32[n] or int32[n, 3]: the trunk's.
        branches: what is written behind it.
        visual: int32[v]: the trunk's slots that media fill.
        media: makes the media, with slots, taps and weights of these; called when the trunk's turn comes. None: no media.
        key: equal for trunks with equal tokens and media, whose keys may then be used again; None: never.
    """

    tokens: np.ndarray
    positions: np.ndarray
    branches: Sequence[Branch]
    visual: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int32))
    media: Callable[[], Media] | None = None
    key: Hashable = None


@dataclasses.dataclass
class Written:
    """The text of one branch, as it grows.

    Attributes:
        tokens: the new tokens, with the stop token that ended them.
        logps: of each of them, before temperature and filters.
        top: of each, (log-probs, tokens) of the likeliest, if asked for.
        reason: why it ended; None: it has not.
        done: whether nothing more comes: it has ended, and its reward is there.
        reward: of the scored conversation; None: none is wanted, or it did not fit.
        cached: tokens of its trunk that were in the cache before.
    """

    tokens: list[int] = dataclasses.field(default_factory=list)
    logps: list[float] = dataclasses.field(default_factory=list)
    top: list[tuple[np.ndarray, np.ndarray]] = dataclasses.field(default_factory=list)
    reason: Reason | None = None
    done: bool = False
    reward: float | None = None
    cached: int = 0
