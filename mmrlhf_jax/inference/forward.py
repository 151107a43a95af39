"""The forward pass of a row batch: log-probs of its targets, rewards of its responses."""

from __future__ import annotations

import jax.numpy as jnp

from mmrlhf_jax.data.rows import RowBatch
from mmrlhf_jax.models.vision_language import VisionLanguage
from mmrlhf_jax.objectives import Outputs, sum_by_response, target_logps


def forward(model: VisionLanguage, batch: RowBatch, *, chunk: int) -> Outputs:
    """Compute a row batch's outputs: log-probs (of the targets only), and rewards at the responses' last tokens, which are 0
    for unused responses and without a reward head."""
    hidden = model(batch.tokens, batch.positions, batch.visible_until, batch.media)
    vocabulary = model.language.vocabulary()
    targets = target_logps(hidden, vocabulary.kernel, batch.targets, batch.predictors, adapter=vocabulary.adapter, chunk=chunk)
    count = batch.ends.shape[1]
    sums = [sum_by_response(values, batch.responses, count) for values in targets]
    if model.config.reward_head is None:
        rewards = jnp.zeros(batch.ends.shape, jnp.float32)
    else:
        ends = jnp.minimum(batch.ends, batch.tokens.shape[1] - 1)
        rewards = model.reward_head(jnp.take_along_axis(hidden, ends[..., None], axis=1))
        rewards = jnp.where(batch.ends < batch.tokens.shape[1], rewards, 0)
    return Outputs(*sums, rewards, targets.logps)
