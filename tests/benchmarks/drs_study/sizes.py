"""How large a study is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from tests.benchmarks.drs_study.variants import SMALL, VARIANTS

FIRST_SEED = 1


class Sizes(NamedTuple):
    """Attributes:
    scenes: by split, with one question each.
    levels: shares of wrong pairs.
    seeds: number of seeds; each has annotators, a reward model and policies of its own.
    variants: keys of `VARIANTS`.
    reward_steps: of a reward model's training, of 12 rows.
    policy_steps: of a policy's training, of 8 rows.
    """

    scenes: Mapping[str, int]
    levels: tuple[float, ...]
    seeds: int
    variants: tuple[str, ...]
    reward_steps: int
    policy_steps: int

    def cells(self) -> list[tuple[float, int]]:
        """(level, seed), seed by seed, so that a study that is stopped early has all levels."""
        return [(level, FIRST_SEED + seed) for seed in range(self.seeds) for level in self.levels]


WHOLE = Sizes({"train": 3000, "preference": 900, "held_out": 500}, (0.0, 0.15, 0.3), 5, tuple(VARIANTS), 300, 150)
SMALL_STUDY = Sizes({"train": 3000, "preference": 300, "held_out": 120}, (0.0, 0.3), 2, SMALL, 100, 40)
