"""AdamW with linear warm-up and cosine decay, gradients clipped by their global norm."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from mmrlhf_jax.config import Optimizer


def learning_rate_schedule(config: Optimizer, steps: int) -> optax.Schedule:
    """Learning rate by step: linear from 0 over `warmup_ratio` of the run, then cosine (or constant) to the end."""
    warmup = round(config.warmup_ratio * steps)
    peak = config.learning_rate
    if config.schedule == "constant":
        after = optax.constant_schedule(peak)
    else:
        after = optax.cosine_decay_schedule(peak, max(steps - warmup, 1), alpha=config.final_fraction)
    # Warm-up counts from 1, so that the first step already moves (transformers' scheduler starts at 0).
    return optax.join_schedules([lambda step: peak * (step + 1) / (warmup + 1), after], [warmup])


def make_optimizer(config: Optimizer, steps: int) -> optax.GradientTransformation:
    return optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm),
        optax.adamw(
            learning_rate_schedule(config, steps),
            b1=config.beta1,
            b2=config.beta2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=decays,
            mu_dtype=jnp.dtype(config.mu_dtype),
        ),
    )


def decays(params):
    """True for what weight decay acts on: matrices and embeddings, not biases and norm scales (as transformers' Trainer)."""

    def is_matrix(path, _) -> bool:
        names = {str(getattr(key, "key", getattr(key, "name", key))) for key in path}
        return not names & {"bias", "scale", "newline"}

    return jax.tree_util.tree_map_with_path(is_matrix, params)
