"""From values per response to values per pair; no other module uses a pair's indices.

A row holds R response slots and P pair slots. `pairs: int32[B, P, 2]` are (chosen, rejected) indices into R, and
`pair_weights: float32[B, P]` is 0 for an unused slot. Gathered values are zeros in unused slots, so that the responses at their
indices enter neither loss nor gradient.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mmrlhf_jax.objectives.logprobs import sum_by_response

# One number per pair slot: [B, P] from rows, [N] from a flat batch.
PerPair = Float[Array, "*pairs"]


class PairLogps(NamedTuple):
    """Summed log-probs of both sides of each pair under policy and reference, and their lengths in target tokens."""

    policy_chosen: PerPair
    policy_rejected: PerPair
    reference_chosen: PerPair
    reference_rejected: PerPair
    chosen_lengths: PerPair
    rejected_lengths: PerPair

    @property
    def chosen_logratios(self) -> PerPair:
        """s⁺ = log π(y⁺) − log π_ref(y⁺)."""
        return self.policy_chosen - self.reference_chosen

    @property
    def rejected_logratios(self) -> PerPair:
        """s⁻ = log π(y⁻) − log π_ref(y⁻)."""
        return self.policy_rejected - self.reference_rejected

    @property
    def implicit_margins(self) -> PerPair:
        """M = s⁺ − s⁻: the margin of the implicit rewards, without β."""
        return self.chosen_logratios - self.rejected_logratios


def gather_pairs(
    values: Float[Array, "B R"], pairs: Int[Array, "B P 2"], pair_weights: Float[Array, "B P"]
) -> tuple[Float[Array, "B P"], Float[Array, "B P"]]:
    """(chosen, rejected) values of each pair, in at least float32; zeros in unused slots."""
    values = values.astype(jnp.promote_types(values.dtype, jnp.float32))
    gathered = jax.vmap(lambda row, index: row.at[index].get(mode="clip"))(values, pairs)
    gathered = jnp.where(pair_weights[..., None] != 0, gathered, 0)
    return gathered[..., 0], gathered[..., 1]


def pair_logps(
    policy_logps: Float[Array, "B R"],
    reference_logps: Float[Array, "B R"],
    lengths: Float[Array, "B R"],
    pairs: Int[Array, "B P 2"],
    pair_weights: Float[Array, "B P"],
) -> PairLogps:
    """Per-pair log-probs from per-response sums; `lengths` count target tokens. The reference gets no gradient."""
    reference_logps = jax.lax.stop_gradient(reference_logps)
    sides = [gather_pairs(x, pairs, pair_weights) for x in (policy_logps, reference_logps, lengths)]
    return PairLogps(*(side for both in sides for side in both))


def length_desensitized_pair_logps(
    policy_token_logps: Float[Array, "B M"],
    reference_token_logps: Float[Array, "B M"],
    responses: Int[Array, "B M"],
    count: int,
    pairs: Int[Array, "B P 2"],
    pair_weights: Float[Array, "B P"],
    ld_alpha: float,
) -> PairLogps:
    """Per-pair log-probs in which tokens beyond the length of the pair's shorter response have weight `ld_alpha` (LD-DPO, as in
    TRL).

    It takes log-probs per target, because a response's weighted sum differs from pair to pair. `responses` gives for each
    target its response, of R = `count` (R = unused); a response's targets are in the order of its text. With `ld_alpha` 1 the
    result is that of `pair_logps`. The returned lengths are full lengths, as in TRL.
    """
    lengths = sum_by_response(jnp.ones_like(responses, jnp.float32), responses, count)
    chosen_lengths, rejected_lengths = gather_pairs(lengths, pairs, pair_weights)
    shared = jnp.minimum(chosen_lengths, rejected_lengths)
    # float32[B, P, M]: weight of each target in each pair. XLA fuses it into the sums and does not store it.
    positions = _positions_in_response(responses, count)
    discount = jnp.where(positions[:, None, :] < shared[:, :, None], 1.0, ld_alpha)
    used = pair_weights[:, :, None] != 0
    members = [used & (responses[:, None, :] == pairs[:, :, side, None]) for side in (0, 1)]

    def sums(token_logps: Float[Array, "B M"]) -> list[Float[Array, "B P"]]:
        token_logps = token_logps.astype(jnp.promote_types(token_logps.dtype, jnp.float32))[:, None, :]
        return [jnp.sum(jnp.where(member, token_logps * discount, 0), axis=-1) for member in members]

    reference_token_logps = jax.lax.stop_gradient(reference_token_logps)
    return PairLogps(*sums(policy_token_logps), *sums(reference_token_logps), chosen_lengths, rejected_lengths)


def _positions_in_response(responses: Int[Array, "B M"], count: int) -> Int[Array, "B M"]:
    """The index of each target among its response's targets: 0, 1, 2, …"""
    member = jax.nn.one_hot(responses, count + 1, dtype=jnp.int32)
    return jnp.take_along_axis(jnp.cumsum(member, axis=1), responses[..., None], axis=-1)[..., 0] - 1
