"""An experiment: all of its sections, the checks between them, and reading it from a file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import pydantic
from etils import epath

from mmrlhf_jax import sections
from mmrlhf_jax.config.data import DATA_PLACES, Data, DataSet
from mmrlhf_jax.config.learning import Guard, Lora, Optimizer, Trains
from mmrlhf_jax.config.model import Model
from mmrlhf_jax.config.objective import Objective
from mmrlhf_jax.config.run import Batch, Run
from mmrlhf_jax.files import is_remote
from mmrlhf_jax.hub_id import is_hub_id
from mmrlhf_jax.sections import Section


def _check_something_learns(objective: Objective, data: Data, trains: Trains) -> None:
    """ValueError if no term of the loss has a weight, or if no part that a term depends on learns."""
    if (why := objective.lacks_weights(data)) is not None:
        raise ValueError(f"objective: {why}")
    parts = [part for part, learns in trains if learns and (part != "reward_head" or objective.scores)]
    if not parts:
        unused = " but reward_head, at which this objective does not look" if trains.reward_head else ""
        raise ValueError(f"trains: every part is false{unused}, so that nothing would be learnt; set one to true")


class Experiment(Section):
    """All settings of an experiment. The validator checks what concerns several sections; what also depends on the parts of
    the model is checked by `training.learning`."""

    model: Model
    data: Data
    objective: Objective
    trains: Trains = Trains()
    lora: Lora | None = None
    optimizer: Optimizer = Optimizer()
    guard: Guard = Guard()
    batch: Batch = Batch()
    run: Run

    @pydantic.model_validator(mode="after")
    def _consistent(self):
        if self.objective.needs_reward_head and self.model.reward_head is None:
            raise ValueError(f"objective {self.objective.kind} needs model.reward_head (tanh is the released one)")
        if self.batch.accumulation not in (None, 1) and self.objective.looks_at_batch:
            raise ValueError(
                f"{self.objective.looks_at_batch} looks at the whole batch, of which accumulation shows it a piece at a time;"
                " set batch.accumulation: 1"
            )
        _check_something_learns(self.objective, self.data, self.trains)
        for part in self.optimizer.part_rates:
            if not getattr(self.trains, part):
                raise ValueError(f"optimizer.part_rates names {part}, which does not learn; set trains.{part}: true")
        adapted = self.lora.parts if self.lora else ()
        for part in adapted:
            if not getattr(self.trains, part):
                raise ValueError(f"lora.parts names {part}, which does not learn; set trains.{part}: true")
        if "reward_head" in adapted and not self.objective.scores:
            raise ValueError("lora.parts names reward_head, but no term of this objective looks at scores; leave it out")
        if self.lora and "head" in (self.lora.layers or ()) and not self.objective.writes(self.data):
            raise ValueError("lora.layers names head, but no term of this objective looks at words; leave it out")
        if self.objective.reference == "adapter_base" and not adapted:
            raise ValueError("reference adapter_base needs every part that learns to do so through lora; set lora")
        return self


def with_absolute_paths(experiment: Experiment) -> Experiment:
    """The experiment with absolute paths, so that a run's stored configuration is valid from any directory. Hub ids and remote
    paths (gs://) are unchanged."""

    def absolute(path: str | None) -> str | None:
        return path if path is None or is_remote(path) else os.path.abspath(path)

    data, model = experiment.data, experiment.model.path
    parts = [
        part.model_copy(update={"path": absolute(part.path), "media_root": absolute(part.media_root)})
        if isinstance(part, DataSet)
        else absolute(part)
        for part in ([data.path] if isinstance(data.path, str) else data.path)
    ]
    places = {name: absolute(getattr(data, name)) for name in DATA_PLACES}
    places["path"] = parts[0] if isinstance(data.path, str) else tuple(parts)
    return experiment.model_copy(
        update={
            "model": experiment.model.model_copy(update={"path": model if is_hub_id(model) else absolute(model)}),
            "data": data.model_copy(update=places),
            "run": experiment.run.model_copy(update={"directory": absolute(experiment.run.directory)}),
        }
    )


def load_experiment(path: epath.PathLike, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment, its base, and `a.b=c` overrides. Raises UserError that names the file and key."""
    return sections.validate(Experiment, read_experiment(path, overrides), str(path))


def read_experiment(path: epath.PathLike, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The keys and values of an experiment with base and overrides merged, before validation."""
    return sections.override(Experiment, sections.read_with_base(Experiment, epath.Path(path)), overrides)
