"""What an experiment learns from, and is judged by."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from mmrlhf_jax.config.values import Count, Positive
from mmrlhf_jax.sections import Integer, PathName, Section


class DataSet(Section):
    """One set of several. `weight`: how often an epoch passes over it (0.5: every group every other epoch).

    `sampling_strategy` is MM-RLHF's: all, or first, end or random with a count or a share, as in random:1000 or first:20%.
    """

    path: PathName
    media_root: PathName | None = None
    weight: Positive = 1.0
    sampling_strategy: str = "all"


OverBudget = Literal["error", "drop", "fewer_tiles", "cut_longest"]


class Data(Section):
    """`path`: a ranked source file, a directory that `mmrlhf data build` wrote, MM-RLHF's mixture file (YAML), or a list.

    `template`: `checkpoint` is the chat template that the model came with; null means the default of the model's family.
    `over_budget`: what becomes of a group that exceeds the row budget, or several policies in the order of trying:
    fewer_tiles, cut_longest (response), drop, error.

    `pairs`: all strictly ordered ones, the extreme one, or `at_most: n` of a group (n alone means the same).
    `critiques` names the field of a response that its critique is taken from; null leaves critiques out, for a reward
    model of scores alone.
    `rewards` is a file that `mmrlhf score` wrote of the training data, `held_out_rewards` one of the held-out data.
    """

    path: PathName | Annotated[tuple[PathName | DataSet, ...], Field(min_length=1)]
    media_root: PathName | None = None
    template: Literal["qwen_1_5", "upstream_train", "checkpoint"] | None = None
    pairs: Literal["all", "extreme"] | Count = "all"
    weighting: Literal["pair", "group"] = "pair"
    learn: Literal["all", "best"] = "all"
    critiques: str | None = "critique"
    rewards: PathName | None = None
    held_out: PathName | None = None
    held_out_rewards: PathName | None = None
    over_budget: Annotated[tuple[OverBudget, ...], Field(min_length=1)] = ("error",)
    video_frames: Count = 32
    workers: Annotated[Integer, Field(ge=0)] = 0

    @pydantic.model_validator(mode="after")
    def _held_out(self):
        if self.held_out_rewards is not None and self.held_out is None:
            raise ValueError("held_out_rewards is given, but no held_out data")
        return self

    @property
    def paths(self) -> list[str]:
        parts = (self.path,) if isinstance(self.path, str) else self.path
        return [part if isinstance(part, str) else part.path for part in parts]

    @property
    def named(self) -> str:
        """The path or paths, for messages."""
        return ", ".join(self.paths)

    @pydantic.field_validator("over_budget", mode="before")
    @classmethod
    def _one_or_several(cls, policies: Any) -> Any:
        return (policies,) if isinstance(policies, str) else policies

    @pydantic.field_validator("pairs", mode="before")
    @classmethod
    def _at_most(cls, pairs: Any) -> Any:
        return pairs["at_most"] if isinstance(pairs, dict) and list(pairs) == ["at_most"] else pairs


# The keys of `data` that name a file or a folder, beside `path`.
DATA_PLACES = ("media_root", "rewards", "held_out", "held_out_rewards")
