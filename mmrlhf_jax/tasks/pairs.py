"""The common base of tasks that learn from ordered pairs of responses."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmrlhf_jax import config
from mmrlhf_jax.data.encode import GroupEncoder
from mmrlhf_jax.data.index import GroupIndex, keep_groups
from mmrlhf_jax.data.rows import Budget, RowBatch
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.objectives import WeightedSum, gather_pairs, weighted_sum
from mmrlhf_jax.records import RankedRecord
from mmrlhf_jax.tasks.task import Task


class PairTask(Task):
    """A task whose loss compares the responses of strictly ordered pairs."""

    learns_pairs = True

    def check_examples(self, examples, named: str) -> None:
        if not any(record.pairs() for record in examples.records):
            raise UserError(f"{named}: no group has a strictly ordered pair (of different ranks); there is nothing to prefer")

    def learnt_groups(self, index: GroupIndex, examples, data: config.Data, named: str) -> GroupIndex:
        has_pairs = index.sizes[:, Budget.names().index("pairs")] > 0
        index = keep_groups(index, has_pairs, "no strictly ordered pair", examples)
        if not len(index.groups):
            raise UserError(f"{named}: no group has a strictly ordered pair; there is nothing to prefer")
        return index

    def check_learnable(self, index: GroupIndex, examples, encoder: GroupEncoder, data: config.Data, named: str) -> None:
        records = [examples.records[g] for g in index.groups]
        if not any(record.pairs() for record in records):
            raise UserError(
                f"{named}: none of the {len(records)} groups that are left ({len(index.dropped)} are left out) has a strictly"
                " ordered pair; there is nothing to prefer. Raise batch.slots, or set another data.over_budget"
            )
        self.check_weights(records, encoder, data, named)

    def check_weights(self, records: list[RankedRecord], encoder: GroupEncoder, data: config.Data, named: str) -> None:
        """UserError if no pair of these records has a weight in the loss; pairs and terms without a weight are reported."""


def reward_margins(batch: RowBatch) -> Float[Array, "B P"]:
    """δ = r⁺ − r⁻ of the batch's stored rewards; 0 if either of them is missing (NaN). A difference beyond the range of float32
    becomes its largest number, so that β(δ) with k = 0 is β and not 0·∞."""
    chosen, rejected = gather_pairs(jnp.nan_to_num(batch.rewards), batch.pairs, batch.pair_weights)
    # `nan_to_num` makes a missing reward 0, so pairs with only one reward are masked here.
    missing = gather_pairs(jnp.isnan(batch.rewards).astype(jnp.float32), batch.pairs, batch.pair_weights)
    return jnp.where(missing[0] + missing[1] > 0, 0, jnp.nan_to_num(chosen - rejected))


def side_mean(sums: Float[Array, "B R"], lengths: Float[Array, "B R"], batch: RowBatch) -> WeightedSum:
    """The mean per target token, over both sides of every pair, of the per-response sums `sums`. No gradient."""
    found = [
        sum(weighted_sum(side, batch.pair_weights).total for side in gather_pairs(x, batch.pairs, batch.pair_weights))
        for x in (jax.lax.stop_gradient(sums), lengths)
    ]
    return WeightedSum(*found)
