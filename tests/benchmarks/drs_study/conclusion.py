"""What follows from a study, in words: of Dynamic Reward Scaling first, then of the other objectives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from mmrlhf_jax.pages.parts import signed
from mmrlhf_jax.progress import counted
from tests.benchmarks.drs_study.analysis import FEWEST_SEEDS, Difference, Key
from tests.benchmarks.drs_study.forest import level_name
from tests.benchmarks.drs_study.variants import VARIANTS

if TYPE_CHECKING:
    from tests.benchmarks.drs_study.report import Findings


def conclusion(found: Findings) -> list[str]:
    """The sentences of it, each about one question."""
    if found.sizes.seeds < FEWEST_SEEDS:
        return [f"A study of {found.sizes.seeds} seeds cannot say which differences hold; it shows how the whole one looks."]
    if not found.decides:
        return [
            f"{len(found.seeds)} of {found.sizes.seeds} seeds are complete. What holds is said when all of them are; the"
            " intervals show how large differences may be."
        ]
    scaled = {key: d for key, d in found.differences["right"].items() if VARIANTS[key[1]].largest is not None}
    others = {key: d for key, d in found.differences["right"].items() if key not in scaled}
    return [
        f"Dynamic Reward Scaling against plain DPO with β .1, in the share of right answers: {_holding(scaled)}.",
        f"Against DPO with the largest β of each for all pairs: {_holding(found.to_largest)}.",
        f"The other objectives against plain DPO with β .1: {_holding(others)}.",
        _resolution(found.differences["right"]),
    ]


def _holding(differences: Mapping[Key, Difference]) -> str:
    """Which of the differences hold, better ones first."""
    said = [
        f"{VARIANTS[name].title} at {level_name(level)} {signed(100 * d.value, 1)} points"
        for (level, name), d in sorted(differences.items(), key=lambda item: -item[1].value)
        if d.holds
    ]
    settings, levels = len({name for _, name in differences}), len({level for level, _ in differences})
    compared = f"{counted(settings, 'setting')} at {counted(levels, 'level')}"
    holding = f"these hold: {'; '.join(said)}" if said else "none holds"
    return f"of {len(differences)} differences ({compared}) {holding}"


def _resolution(differences: Mapping[Key, Difference]) -> str:
    """How large a difference must be to hold, where that can be told at all: not for answers that are all alike."""
    needed = [d.needed for d in differences.values() if np.isfinite(d.needed)]
    if not needed:
        return "No answer differs between two objectives."
    low, middle, high = (100 * float(x) for x in np.quantile(needed, [0, 0.5, 1]))
    return (
        f"To hold among {len(differences)} comparisons, a difference between this many answers and seeds must be about"
        f" {middle:.1f} points (the median; from {low:.1f} to {high:.1f}), so that smaller effects can be there unseen."
    )
