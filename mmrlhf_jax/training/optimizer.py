"""AdamW or Muon with linear warm-up and cosine decay, gradients clipped by their global norm, bad steps skipped (`guard`)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from mmrlhf_jax import config
from mmrlhf_jax.models.parameters import is_vector
from mmrlhf_jax.training.guard import guarded


def learning_rate_schedule(settings: config.Optimizer, steps: int) -> optax.Schedule:
    """Learning rate by step: linear from 0 over `warmup_ratio` of the run, then cosine (or constant) to the end."""
    warmup = round(settings.warmup_ratio * steps)
    peak = settings.learning_rate
    if settings.schedule == "constant":
        after = optax.constant_schedule(peak)
    else:
        after = optax.cosine_decay_schedule(peak, max(steps - warmup, 1), alpha=settings.final_fraction)
    # Warm-up counts from 1, so that the first step has a positive rate (transformers' scheduler starts at 0).
    return optax.join_schedules([lambda step: peak * (step + 1) / (warmup + 1), after], [warmup])


def learning_rate_at(settings: config.Optimizer, steps: int, step: int) -> float:
    """`learning_rate_schedule` at one step, computed on the host: logging must not queue device work behind a running step."""
    warmup = round(settings.warmup_ratio * steps)
    peak = settings.learning_rate
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    if settings.schedule == "constant":
        return peak
    decaying = max(steps - warmup, 1)
    cosine = (1 + math.cos(math.pi * min(step - warmup, decaying) / decaying)) / 2
    return peak * ((1 - settings.final_fraction) * cosine + settings.final_fraction)


def make_optimizer(
    settings: config.Optimizer, steps: int, parts: Mapping[str, str], guard: config.Guard | None = None
) -> optax.GradientTransformationExtraArgs:
    """The optax transformation; its `update` takes the loss as `value`. All parts share one schedule, scaled to each part's
    peak rate (`settings.part_rates`); `parts` are those of the model (`Family.parts`)."""
    chain = optax.chain(
        optax.clip_by_global_norm(settings.max_grad_norm),
        direction(settings),
        optax.add_decayed_weights(settings.weight_decay, mask=decays),
        scale_by_part({part: rate / settings.learning_rate for part, rate in settings.part_rates.items()}, parts),
        optax.scale_by_learning_rate(learning_rate_schedule(settings, steps)),
    )
    return guarded(chain, guard or config.Guard())


def direction(settings: config.Optimizer) -> optax.GradientTransformation:
    """The update direction: Adam's, or with `algorithm: muon` Muon's for the layers' matrices, scaled by 0.2 * sqrt(max(in,
    out)) to the RMS that Adam's updates usually have (arXiv 2502.16982, section 2.2)."""
    mu_dtype = jnp.dtype(settings.mu_dtype)
    adam = optax.scale_by_adam(b1=settings.beta1, b2=settings.beta2, eps=settings.eps, mu_dtype=mu_dtype)
    if settings.algorithm == "adamw":
        return adam
    stacked = optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=2)
    muon = optax.chain(
        optax.contrib.scale_by_muon(
            weight_dimension_numbers=lambda params: jax.tree.map(lambda _: stacked, params),
            mu_dtype=mu_dtype,
        ),
        optax.stateless(lambda updates, _: jax.tree.map(lambda u: 0.2 * max(u.shape[1:]) ** 0.5 * u, updates)),
        optax.scale((settings.matrix_learning_rate or settings.learning_rate) / settings.learning_rate),
    )
    return optax.partition({"muon": muon, "adam": adam}, algorithms)


def algorithms(params):
    """A tree of names: "muon" for the kernels [L, in, out] of stacked layers (`layers.stack`), else "adam" (embeddings, heads,
    biases, norms)."""

    def algorithm(path, param) -> str:
        return "muon" if "kernel" in map(_name, path) and param.ndim == 3 else "adam"

    return jax.tree_util.tree_map_with_path(algorithm, params)


def scale_by_part(factors: Mapping[str, float], parts: Mapping[str, str]) -> optax.GradientTransformation:
    """Multiply the updates of the named parts (keys of `config.Trains`); `parts` are those of the model (`Family.parts`)."""

    def factor(path) -> float:
        return factors.get(parts[_name(path[0])], 1.0)

    return optax.stateless(
        lambda updates, _: jax.tree_util.tree_map_with_path(lambda path, u: u * jnp.asarray(factor(path), u.dtype), updates)
    )


def decays(params):
    """A tree of bools: True for matrices and embeddings, False for biases and scales (as in transformers' Trainer) and for
    single learnt vectors (`parameters.vector`)."""

    def is_parameter(x) -> bool:
        return isinstance(x, nnx.Variable)

    def decay(param):
        return jax.tree.map(lambda _: not (is_parameter(param) and is_vector(param)), param)

    return jax.tree.map(decay, params, is_leaf=is_parameter)


def _name(key) -> str:
    return str(getattr(key, "key", getattr(key, "name", key)))
