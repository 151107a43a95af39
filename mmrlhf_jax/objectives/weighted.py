"""Reductions that are exact under gradient accumulation, because numerators and denominators are kept apart.

A mean of the pieces' means is not the mean of the batch. So losses and metrics are `WeightedSum`s whose `weight` depends only
on the batch (pair weights, token counts), never on the parameters. The train step first sums the weights of all pieces, and
then divides every piece's total by that sum.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float


class WeightedSum(NamedTuple):
    """Σ wᵢ·xᵢ and Σ wᵢ, both float32[]."""

    total: Float[Array, ""]
    weight: Float[Array, ""]

    @property
    def mean(self) -> Float[Array, ""]:
        """The weighted mean; 0 if the weight is 0."""
        return divide(self.total, self.weight)

    def merge(self, other: WeightedSum) -> WeightedSum:
        return WeightedSum(self.total + other.total, self.weight + other.weight)


class Minimum(NamedTuple):
    """The smallest value so far; +inf if there was none."""

    value: Float[Array, ""]

    def merge(self, other: Minimum) -> Minimum:
        return Minimum(jnp.minimum(self.value, other.value))


class Maximum(NamedTuple):
    """The largest value so far; -inf if there was none."""

    value: Float[Array, ""]

    def merge(self, other: Maximum) -> Maximum:
        return Maximum(jnp.maximum(self.value, other.value))


class Histogram(NamedTuple):
    """Weight per bin, and the bins' edges."""

    weights: Float[Array, "N"]
    edges: Float[Array, "N+1"]

    def merge(self, other: Histogram) -> Histogram:
        return Histogram(self.weights + other.weights, self.edges)


Metric = WeightedSum | Minimum | Maximum | Histogram
BINS = 20  # of every histogram


def weighted_sum(values: Float[Array, "*n"], weights: Float[Array, "*n"]) -> WeightedSum:
    """Σ wᵢ·xᵢ and Σ wᵢ of `values` and `weights` of the same shape. Values of weight 0 are ignored, even NaN or infinity."""
    return WeightedSum(jnp.sum(jnp.where(weights != 0, values, 0) * weights), jnp.sum(weights))


def minimum(values: Float[Array, "*n"], weights: Float[Array, "*n"]) -> Minimum:
    """The smallest of the values whose weight is not 0."""
    return Minimum(jnp.min(values, initial=jnp.inf, where=weights != 0))


def maximum(values: Float[Array, "*n"], weights: Float[Array, "*n"]) -> Maximum:
    """The largest of the values whose weight is not 0."""
    return Maximum(jnp.max(values, initial=-jnp.inf, where=weights != 0))


def histogram(values: Float[Array, "*n"], weights: Float[Array, "*n"], low: float, high: float) -> Histogram:
    """Weights in `BINS` equal bins from `low` to `high`; values outside are counted in the first or last bin."""
    edges = jnp.linspace(low, high, BINS + 1)
    bins = jnp.clip(jnp.searchsorted(edges, values.ravel(), side="right") - 1, 0, BINS - 1)
    return Histogram(jnp.zeros(BINS, jnp.float32).at[bins].add(weights.ravel()), edges)


def divide(total: Float[Array, "*n"], weight: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """total / weight; where the weight is 0, the result and its gradient are 0."""
    return jnp.where(weight != 0, total, 0) / jnp.where(weight != 0, weight, 1)


def mix(
    terms: Mapping[str, WeightedSum],
    coefficients: Mapping[str, float],
    denominators: Mapping[str, Float[Array, ""]] | None = None,
) -> Float[Array, ""]:
    """Total loss: Σ coefficients[k] · terms[k].total / denominators[k]. Terms without a coefficient are left out.

    `denominators` are the weights of the whole accumulated batch; by default each term is divided by its own weight. As weights
    never depend on the parameters, evaluating the terms on zeros gives them without a forward pass.
    """
    total = jnp.float32(0)
    for name, coefficient in coefficients.items():
        weight = terms[name].weight if denominators is None else denominators[name]
        total += coefficient * divide(terms[name].total, weight)
    return total


def merge(first: Mapping[str, Metric], second: Mapping[str, Metric]) -> dict[str, Metric]:
    """The metrics of two pieces of a batch together. Both must have the same names."""
    return {name: metric.merge(second[name]) for name, metric in first.items()}


def summary(metrics: Mapping[str, Metric]) -> dict[str, Float[Array, "*n"]]:
    """The figures to log: one number per metric; for a histogram the share of each bin, and its edges as `<name>_edges`."""
    figures = {}
    for name, metric in metrics.items():
        match metric:
            case WeightedSum():
                figures[name] = metric.mean
            case Histogram():
                figures[name] = divide(metric.weights, jnp.broadcast_to(metric.weights.sum(), metric.weights.shape))
                figures[f"{name}_edges"] = metric.edges
            case _:
                figures[name] = metric.value
    return figures
