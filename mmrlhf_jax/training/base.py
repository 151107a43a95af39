"""The model that a run starts from."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import optax
from flax import nnx

from mmrlhf_jax import config
from mmrlhf_jax.huggingface.checkpoint import open_model
from mmrlhf_jax.huggingface.hub import local_directory
from mmrlhf_jax.huggingface.load import load_opened
from mmrlhf_jax.models.family import ModelConfig
from mmrlhf_jax.models.lora import with_reduce_dtype
from mmrlhf_jax.models.registry import family_of
from mmrlhf_jax.models.vision_language import VisionLanguage
from mmrlhf_jax.progress import say
from mmrlhf_jax.sharding.agreement import together
from mmrlhf_jax.training.learning import check_learning
from mmrlhf_jax.training.optimizer import make_optimizer
from mmrlhf_jax.training.state import precision_line, split_model, stored_dtype, with_adapters


class Base(NamedTuple):
    """The model before the first step, split into graph, trained and frozen parameters, and the optimizer of the trained
    ones."""

    sizes: ModelConfig
    graphdef: nnx.GraphDef
    params: nnx.State
    frozen: nnx.State
    tx: optax.GradientTransformationExtraArgs


def split_base(experiment: config.Experiment, mesh, steps: int) -> Base:
    """Load the base model and split it; `steps` (the run's length) sets the learning rate schedule of the optimizer."""
    model = load_base(experiment, mesh)
    parts = family_of(model.config).parts
    graphdef, params, frozen = split_model(model, experiment.trains, experiment.lora)
    say(precision_line(params, frozen, experiment.model.dtype))
    return Base(model.config, graphdef, params, frozen, make_optimizer(experiment.optimizer, steps, parts, experiment.guard))


def load_base(experiment: config.Experiment, mesh) -> VisionLanguage:
    """Load the model that the experiment starts from. Adapters, and a reward head that the checkpoint lacks, are initialised
    from `run.seed`. UserError if the experiment's learning does not fit the model (`check_learning`)."""
    settings = experiment.model
    opened = together(lambda: open_model(local_directory(settings.path), settings.reward_head))
    check_learning(experiment, opened.config)
    model = load_opened(
        opened,
        mesh=mesh,
        dtype=jnp.dtype(settings.dtype),
        param_dtype=stored_dtype(opened.family.parts, settings, experiment.trains, experiment.lora),
        remat=settings.remat,
        attention=settings.attention,
        seed=experiment.run.seed,
    )
    return with_reduce_dtype(with_adapters(model, experiment.lora, experiment.run.seed), settings.reduce_dtype)
