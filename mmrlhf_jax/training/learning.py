"""Which parts of a model learn in an experiment: as a whole, or through adapters alone."""

from __future__ import annotations

import dataclasses

from mmrlhf_jax import config
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.models.family import ModelConfig
from mmrlhf_jax.models.registry import family_of, parts_of


@dataclasses.dataclass(frozen=True)
class Learning:
    """The parts (keys of `trains`) that a model has and that learn: all weights of those in `whole`, only the adapters of those
    in `adapted`."""

    whole: tuple[str, ...]
    adapted: tuple[str, ...]

    def __contains__(self, part: str) -> bool:
        return part in self.whole or part in self.adapted

    @property
    def through_language_model(self) -> bool:
        """Whether gradients flow through the language model: something in it or below it learns."""
        return any(part != "reward_head" for part in (*self.whole, *self.adapted))

    @property
    def through_media(self) -> bool:
        """Whether gradients flow to the features of media: something that makes them learns."""
        return any(part not in ("language_model", "reward_head") for part in (*self.whole, *self.adapted))


def learning_of(experiment: config.Experiment, model: ModelConfig) -> Learning:
    """What learns of a model with these sizes, in the order of `trains`. A part that the model lacks does not learn, even if
    `trains` says so, because `trains` has the same defaults for all families."""
    there, lora = parts_of(model).values(), experiment.lora
    learns = [part for part, learns in experiment.trains if learns and part in there]
    adapted = lora.parts if lora else ()
    return Learning(tuple(p for p in learns if p not in adapted), tuple(p for p in learns if p in adapted))


def check_learning(experiment: config.Experiment, model: ModelConfig) -> None:
    """UserError if the experiment's learning does not fit a model with these sizes: nothing that the objective depends on
    learns, a part has a learning rate but the model lacks it, or a part learns as a whole although the reference is the model
    without its adapters."""
    learning, there = learning_of(experiment, model), list(dict.fromkeys(parts_of(model).values()))
    title = family_of(model).title
    usable = [part for part in there if part != "reward_head" or experiment.objective.scores]
    if not any(part in learning for part in usable):
        raise UserError(
            f"trains: of the parts of this {title} model that the objective depends on none learns; set one of"
            f" {', '.join(usable)} to true"
        )
    for part in experiment.optimizer.part_rates:
        if part not in there:
            raise UserError(
                f"optimizer.part_rates names {part}, which this {title} model does not have; it has {', '.join(there)}"
            )
    # A head that only the checkpoint has (`model.reward_head` is null) is not used by such an objective.
    whole = [part for part in learning.whole if part != "reward_head" or experiment.model.reward_head is not None]
    if experiment.objective.reference == "adapter_base" and whole:
        named = ", ".join(f"trains.{part}: false" for part in whole)
        raise UserError(f"reference adapter_base needs every part that learns to do so through lora; set {named}")
