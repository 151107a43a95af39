"""What is known of the margins δ of strictly ordered pairs: their sizes, whether they can be trusted, and β(δ) of them.

δ is the reward of the better-ranked response minus that of the worse-ranked one. How often it agrees with the rank stands
beside what a calibrated Bradley–Terry reward model would reach: P(right) = σ(|δ|). Margins are kept record by record, because
the pairs of a record share responses and are no independent trials.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmrlhf_jax import config
from mmrlhf_jax.data.pair_margins import margins_of_pairs
from mmrlhf_jax.dynamic_scaling import Scale, median_k
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.intervals import share_interval
from mmrlhf_jax.records import RankedRecord

BINS = 10  # of the reliability table
QUANTILES = {"5": 0.05, "25": 0.25, "50": 0.5, "75": 0.75, "95": 0.95}
BARS = 40  # of the histogram of δ
BETA_BARS = 20
# A β that is nearer to an end of its range than so much of the rise counts as at that end. If more than GATE of the pairs are
# at the two ends, β only switches between two values.
NEAR, GATE = 0.02, 0.9

ByRecord = Sequence[np.ndarray]  # floats[pairs] for every record; an array of one dimension is of records of one pair each


def margins_of(records: Sequence[RankedRecord], source: str = "rewards") -> list[np.ndarray]:
    """For every record float64[pairs]: δ of its strictly ordered pairs, from the responses' rewards or ("stored") from the
    numbers stored with the pairs; NaN = none."""
    return [margins_of_pairs(record, record.pairs(), source) for record in records]


def every_pair(margins: ByRecord) -> np.ndarray:
    """float64[pairs]: the margins of all records, one after the other."""
    return np.concatenate([np.zeros(0), *(np.ravel(each) for each in margins)])


def without_reward(records: Sequence[RankedRecord]) -> int:
    """The number of responses that have no reward."""
    return sum(response.reward is None for record in records for response in record.responses)


def scale_of(objective: config.Preference, margins: ByRecord, where: str) -> Scale:
    """The scale of an objective of mode `margin`; `k: median` is set by `margins`. UserError, which begins with `where`, if
    they have none."""
    scaling = objective.scaling
    k = median_k(every_pair(margins), f"{where}: k: median").k if scaling.k == "median" else scaling.k
    return Scale(objective.beta, scaling.w, k, scaling.negative_margins)


def settled_scale(objective: config.Preference) -> Scale:
    """The scale of an objective of mode `margin` that has a number for k, as a run's `config.yaml`. UserError if it has
    none."""
    if objective.from_data:
        raise UserError("objective.scaling.k: median is no number yet; give the k that the run has in its config.yaml")
    return scale_of(objective, [], "objective.scaling")


def summarise(margins: ByRecord, scale: Scale | None, *, unrewarded: int = 0) -> dict[str, Any]:
    """The summary, as JSON. Margins that are NaN or infinite are counted and left out. Without a `scale` it says nothing of β.

    `unrewarded` is the number of responses without reward. A tie (δ = 0) counts half where a share of right pairs is given.
    """
    every = every_pair(margins)
    finite = every[np.isfinite(every)]
    found = {
        "pairs": len(finite),
        "missing": int(np.isnan(every).sum()),
        "not_finite": int(np.isinf(every).sum()),
        "responses_without_reward": unrewarded,
        "scale": None if scale is None else _scale(scale, finite),
    }
    if not len(finite):
        return found
    sizes, learnt = np.abs(finite), finite
    if scale is not None and scale.negative_margins == "drop":
        learnt = finite[finite >= 0]
    return found | {
        **_agreement(finite),
        "quantiles": {name: float(np.quantile(sizes, q)) for name, q in QUANTILES.items()} | {"max": float(sizes.max())},
        "reliability": reliability(margins),
        "histogram": _histogram(learnt) if len(learnt) else None,
        "beta": None if scale is None else _betas(learnt, scale),
    }


def _scale(scale: Scale, margins: np.ndarray) -> dict[str, Any]:
    """`by_median`: k is that of the median of these margins, whether it was asked for by that name or as a number."""
    k = _median_k(margins)
    by_median = k is not None and math.isclose(scale.k, k, rel_tol=1e-6)
    return scale._asdict() | {"lowest": scale.lowest, "highest": scale.highest, "by_median": by_median}


def _agreement(margins: np.ndarray) -> dict[str, Any]:
    """How many of the pairs, one or more, are ordered as their ranks."""
    pairs, right, ties = len(margins), int((margins > 0).sum()), int((margins == 0).sum())
    return {"right": right, "ties": ties, "share_right": (right + ties / 2) / pairs}


def reliability(margins: ByRecord, bins: int = BINS) -> list[dict[str, Any]]:
    """At most `bins` bins of |δ| with nearly equal numbers of pairs: agreement with the rank (exact counts, share with 95 %
    interval), and `calibrated`, the mean of σ(|δ|). Equal |δ| are always in the same bin. Margins that are not finite are left
    out. The interval takes records as trials, not pairs."""
    every, records = every_pair(margins), np.repeat(np.arange(len(margins)), [np.size(each) for each in margins])
    kept = np.isfinite(every)
    every, records = every[kept], records[kept]
    order = np.argsort(np.abs(every), kind="stable")
    every, records = every[order], records[order]
    sizes = np.abs(every)
    cuts = [len(sizes) * i // bins for i in range(bins)]
    starts = sorted({int(np.searchsorted(sizes, sizes[cut], side="left")) for cut in cuts})
    found = []
    for start, end in zip(starts, [*starts[1:], len(sizes)], strict=True):
        inside = sizes[start:end]
        found.append(
            {"low": float(inside[0]), "high": float(inside[-1]), "mean": float(inside.mean()), "pairs": len(inside)}
            | _agreement(every[start:end])
            | {
                "interval": list(_interval(every[start:end], records[start:end])),
                "calibrated": float(np.mean(1 / (1 + np.exp(-inside)))),
            }
        )
    return found


def _interval(margins: np.ndarray, records: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of the share of right pairs. `records` (int[pairs]) are the numbers of the pairs' records."""
    _, places = np.unique(records, return_inverse=True)
    return share_interval(np.bincount(places, (np.sign(margins) + 1) / 2), np.bincount(places))


def _histogram(margins: np.ndarray) -> dict[str, Any]:
    """Counts of δ in intervals of equal width. The first and last also count the few pairs that lie `beyond`, so that one that
    is far away does not press the others into one interval."""
    low, high = np.quantile(margins, [0.002, 0.998]) if len(margins) >= 1000 else (margins.min(), margins.max())
    beyond = int(((margins < low) | (margins > high)).sum())
    if low == high:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, BARS + 1)
    counts, _ = np.histogram(np.clip(margins, low, high), edges)
    return {"edges": edges.tolist(), "counts": counts.tolist(), "beyond": beyond}


def _betas(margins: np.ndarray, scale: Scale) -> dict[str, Any] | None:
    """β of the `margins` of pairs in the loss: the shares that are near the ends of its range, and a histogram; None if all
    have the same β, or if there is no pair."""
    if not scale.varies or not len(margins):
        return None
    floor, ceiling = _at_ends(margins, scale)
    edges = np.linspace(scale.lowest, scale.highest, BETA_BARS + 1)
    counts, _ = np.histogram(np.clip(scale.betas(margins), scale.lowest, scale.highest), edges)
    return {
        "pairs": len(margins),
        "at_floor": floor,
        "at_ceiling": ceiling,
        "is_gate": floor + ceiling > GATE,
        "not_above_0": float(np.mean(margins <= 0)),
        "rises_over": [scale.margin_at((scale.lowest - scale.beta) / scale.rise + NEAR), scale.margin_at(1 - NEAR)],
        "with_median_k": _with_median_k(margins, scale),
        "edges": edges.tolist(),
        "counts": counts.tolist(),
    }


def _at_ends(margins: np.ndarray, scale: Scale) -> tuple[float, float]:
    """The shares of the pairs whose β is near its lowest and near its highest."""
    betas, near = scale.betas(margins), NEAR * scale.rise
    return float(np.mean(betas - scale.lowest <= near)), float(np.mean(scale.highest - betas <= near))


def _with_median_k(margins: np.ndarray, scale: Scale) -> dict[str, float] | None:
    """The k of `k: median`, and the share `at_ends` of the pairs that would be near either end; None if there is no such k."""
    k = _median_k(margins)
    return None if k is None else {"k": k, "at_ends": sum(_at_ends(margins, scale._replace(k=k)))}


def _median_k(margins: np.ndarray) -> float | None:
    try:
        return median_k(margins, "").k
    except UserError:
        return None
