"""Draws of pairs of a batch without replacement, whose noise neither mesh, packing nor layout changes.

The pairs with the largest sums of log-weight and Gumbel noise are such a draw. The noise of a pair depends on its two responses
alone, so that a pair has it wherever it lies in a batch, and in whichever row. Copies of a pair in one batch (a set's weight in
a mixture may be above 1, and a batch may span two epochs) therefore have the same noise: they are drawn together, or left out
together, but for those of which only some find room. Log-weights of a model's outputs are rounded otherwise on another mesh,
and with them pairs whose sums are close may change places (`docs/exactness.md`).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from mmrlhf_jax.objectives.pairs import PerPair

# Part of the identity of a run that draws pairs: whoever changes what a key draws changes it, so that no run goes on with other
# draws.
METHOD = "by their responses"


def pair_noise(key: PRNGKeyArray, response_ids: Int[Array, "B R"], pairs: Int[Array, "B P 2"]) -> Float[Array, "B P"]:
    """Standard Gumbel noise of each pair, from `key` and the numbers of its two responses in the data set (`response_ids`, of
    any value in unused slots)."""
    ids = jax.vmap(lambda row, index: row.at[index].get(mode="clip"))(response_ids, pairs).astype(jnp.uint32)

    def noise(pair: Int[Array, "2"]) -> Float[Array, ""]:
        return jax.random.gumbel(jax.random.fold_in(jax.random.fold_in(key, pair[0]), pair[1]))

    return jax.vmap(jax.vmap(noise))(ids)


def drawn_pairs(
    noise: PerPair, log_weights: PerPair, used: Bool[Array, "*pairs"], counts: Int[np.ndarray, "N+1"]
) -> Bool[Array, "*pairs"]:
    """The drawn pairs: of n used ones `counts[n]`, with `counts` for every n up to the number of slots.

    Log-weights may be so low that their exponentials are 0 in float32: their order still counts. Pairs whose log-weight is NaN
    are drawn first, so that what is computed of the draw shows it.
    """
    sums = jnp.maximum(log_weights + noise, jnp.finfo(jnp.float32).min)
    sums = jnp.where(used, jnp.where(jnp.isnan(sums), jnp.inf, sums), -jnp.inf).ravel()
    order = jnp.argsort(-sums)
    count = jnp.asarray(counts)[jnp.sum(used)]  # n is known only on the device
    last = order[jnp.maximum(count - 1, 0)]
    # The sort is stable: of equal sums the first come first. Ranks would be simpler, but XLA makes scatters of them.
    before = (sums > sums[last]) | ((sums == sums[last]) & (jnp.arange(sums.size) <= last))
    return used & before.reshape(used.shape) & (count > 0)
