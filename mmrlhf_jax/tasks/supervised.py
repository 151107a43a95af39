"""Supervised fine-tuning on the learnt responses: all of them, or the best one of each group (`data.learn`)."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpy as np

from mmrlhf_jax import config
from mmrlhf_jax.data.encode import GroupEncoder
from mmrlhf_jax.data.index import GroupIndex, keep_groups
from mmrlhf_jax.data.rows import RowBatch
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.objectives import Outputs, WeightedSum, target_counts, weighted_sum
from mmrlhf_jax.tasks.task import Statistics, Task, Terms


class SupervisedTask(Task):
    """Token mean of the negative log-prob over the learnt responses."""

    settings: config.Supervised

    def check_examples(self, examples, named: str) -> None:
        """Nothing to check: every record has a response, and every response can be learnt."""

    def judged_groups(self, index: GroupIndex, examples, data: config.Data, named: str) -> GroupIndex:
        if data.learn != "best":
            return index
        ranked = [any(response.rank is not None for response in examples.records[g].responses) for g in index.groups]
        if not any(ranked):
            raise UserError(f"{named}: no response has a rank, so that none is the best; rank them, or set data.learn: all")
        return keep_groups(index, np.asarray(ranked), "no response has a rank, so that none is the best", examples)

    def check_learnable(self, index: GroupIndex, examples, encoder: GroupEncoder, data: config.Data, named: str) -> None:
        """Nothing to check: groups without a response to learn have been left out."""

    @property
    def coefficients(self) -> Mapping[str, float]:
        return {"sft": 1.0}

    def terms(
        self,
        outputs: Outputs,
        batch: RowBatch,
        key: jax.Array,
        reference: Outputs | None = None,
        statistics: Statistics | None = None,
    ) -> Terms:
        weights, lengths = batch.response_weights, target_counts(batch.responses, batch.ends.shape[1])
        tokens = weighted_sum(lengths, weights).total
        sums = {"sft": WeightedSum(weighted_sum(-outputs.logps, weights).total, tokens)}
        correct = weighted_sum(jax.lax.stop_gradient(outputs.correct), weights).total
        entropy = weighted_sum(jax.lax.stop_gradient(outputs.entropy), weights).total
        return sums, {"mean_token_accuracy": WeightedSum(correct, tokens), "entropy": WeightedSum(entropy, tokens)}

    def describe(self) -> tuple[str, str]:
        return "a supervised policy", ""
