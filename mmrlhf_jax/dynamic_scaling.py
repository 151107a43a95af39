"""Dynamic Reward Scaling on the host, in float64: β(δ), and the k that suits the margins δ of a data set."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.finite import LARGEST, LEAST_NORMAL

MIN_BETA = 1e-3  # lower bound of the released code; with β ≤ 0 the loss would prefer the rejected response
ROUNDING = 2.0**-24  # half of the distance from 1 to the next number of float32
MAX_EXPONENT = 80.0  # keeps exp finite in float32; at this exponent β(δ) of a negative δ has long reached MIN_BETA


class Scale(NamedTuple):
    """The settings of β(δ) = β·(1 + w·(1 − exp(−k·max(δ, 0)))) (arXiv 2502.10391), as those of `config.Scaling`."""

    beta: float
    w: float
    k: float
    negative_margins: str = "clamp"

    @property
    def rise(self) -> float:
        """How much larger than at δ = 0 β can become."""
        return self.w * self.beta if self.k else 0.0

    @property
    def lowest(self) -> float:
        """The least β that a pair can have."""
        return min(MIN_BETA, self.beta) if self.negative_margins == "unclamped" and self.rise else self.beta

    @property
    def highest(self) -> float:
        return self.beta + self.rise

    @property
    def varies(self) -> bool:
        """Whether float32, in which devices compute, can tell the highest β from the lowest."""
        return self.highest - self.lowest > ROUNDING * self.highest

    def margin_at(self, share: float) -> float:
        """The δ at which β lies above that of δ = 0 by this share (below 1) of `rise`; k is not 0."""
        return -math.log1p(-share) / self.k

    def betas(self, margins: np.ndarray) -> np.ndarray:
        """float64[*margins]: β of every margin, as `objectives.reward_scaling.margin`."""
        margins = np.asarray(margins, np.float64)
        if self.negative_margins != "unclamped":
            return self.beta * (1 - self.w * np.expm1(-self.k * np.maximum(margins, 0)))
        exponents = np.minimum(-self.k * margins, MAX_EXPONENT)
        return np.maximum(self.beta * (1 - self.w * np.expm1(exponents)), min(MIN_BETA, self.beta))


class MedianK(NamedTuple):
    """`k` = ln 2 / `median`, the median of `positive` margins above 0."""

    k: float
    median: float
    positive: int


def median_k(margins: np.ndarray, where: str) -> MedianK:
    """The k at which the median of the positive margins gives half of the rise of β: 1 − exp(−k·median) = 1/2.

    `margins` are floats of any shape; those that are not above 0 (NaN included) do not count. UserError, which begins with
    `where`, if none is positive, or if float32 cannot hold k.
    """
    positive = np.asarray(margins, np.float64)
    positive = positive[positive > 0]
    if not len(positive):
        raise UserError(
            f"{where}: none of {np.size(margins)} margins is positive, so that there is no median to set k by; give k as a"
            " number, or look whether ranks or rewards are the wrong way round"
        )
    median = float(np.median(positive))
    k = math.log(2) / median
    if not LEAST_NORMAL <= k <= LARGEST:
        raise UserError(f"{where}: the median of {len(positive)} positive margins, {median:g}, has no k in float32")
    return MedianK(k, median, len(positive))
