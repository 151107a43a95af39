"""Rewards to a ranking with ties: who is better by more than the critic can tell, and who is not."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import numpy as np

from mmrlhf_jax.errors import UserError

AGREEMENT = 0.9
LEAST_PAIRS = 50  # human pairs with at least the margin, without which an agreement says nothing


def ranks(rewards: Sequence[float], errors: Sequence[float | None], tie: float, z: float = 1.0) -> list[int]:
    """Ranks from 1, the best. In the order of rewards, neighbours tie that are equal, nearer than `tie`, or nearer than `z`
    standard errors of their difference. `errors` are the standard errors of the rewards, which are means over several
    critiques; None: of one.

    Ties are passed on: of three neighbours that tie pairwise, the first and the last have the same rank as well.
    """
    order = sorted(range(len(rewards)), key=lambda index: -rewards[index])
    found = [1] * len(rewards)
    for place in range(1, len(order)):
        better, worse = order[place - 1], order[place]
        near = max(tie, z * difference_error(errors[better], errors[worse]))
        margin = rewards[better] - rewards[worse]
        found[worse] = found[better] if margin < near or margin == 0 else found[better] + 1
    return found


def standard_error(rewards: Sequence[float]) -> float | None:
    """Of the mean of a response's rewards; None of a single one."""
    return statistics.stdev(rewards) / math.sqrt(len(rewards)) if len(rewards) > 1 else None


def difference_error(first: float | None, second: float | None) -> float:
    """The standard error of a difference; 0 if one of the errors is not known."""
    return 0.0 if first is None or second is None else math.sqrt(first**2 + second**2)


def never_first(found: Sequence[int], flagged: Sequence[bool]) -> list[int]:
    """The ranks with flagged responses below the best one that is not flagged; all others keep their order and their ties."""
    sound = [rank for rank, bad in zip(found, flagged, strict=True) if not bad]
    if not sound:
        raise ValueError("every response is flagged")
    keys = [(max(rank, min(sound)), 1) if bad and rank <= min(sound) else (rank, 0) for rank, bad in zip(found, flagged)]
    levels = sorted(set(keys))
    return [1 + levels.index(key) for key in keys]


def calibrated_tie(margins: Sequence[float], agrees: Sequence[bool]) -> tuple[float, float, int]:
    """(the smallest margin from which on the critic agrees with people, the agreement there, pairs there).

    `margins[i]` is the critic's margin of a pair that people have ordered, `agrees[i]` whether its order is theirs. At the
    margin found, and at every larger one that enough pairs have, at least AGREEMENT of the pairs agree. UserError if there is
    none.
    """
    size = np.abs(np.asarray(margins, float))
    right = np.asarray(agrees, bool)
    order = np.argsort(-size, kind="stable")
    counts = np.arange(1, len(order) + 1)
    share = np.cumsum(right[order]) / counts
    # Pairs of one margin belong together: only the last of each says how many agree.
    last = np.append(np.diff(size[order]) != 0, True) if len(order) else np.zeros(0, bool)
    found = None
    for place in np.flatnonzero(last & (counts >= LEAST_PAIRS)):
        if share[place] < AGREEMENT:
            break
        found = int(place)
    if found is None:
        raise UserError(
            f"on {len(order)} human pairs the critic agrees in less than {AGREEMENT:.0%} at every margin that {LEAST_PAIRS}"
            " pairs have; give --tie, more pairs, or a better critic"
        )
    return float(size[order][found]), float(share[found]), int(counts[found])
