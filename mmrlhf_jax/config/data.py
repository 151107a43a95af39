"""The section `data` of an experiment: training data and held-out data."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from mmrlhf_jax.config.values import Count, Positive
from mmrlhf_jax.sections import Section
from mmrlhf_jax.setting_types import Integer, PathName


class DataSet(Section):
    """One set of a mixture. `weight` is how often an epoch contains each of its groups (0.5: in every other epoch).

    `sampling_strategy` is MM-RLHF's: all, or first, end or random with a count or a share, such as random:1000 or first:20%.
    """

    path: PathName
    media_root: PathName | None = None
    weight: Positive = 1.0
    sampling_strategy: str = "all"


OverBudget = Literal["error", "drop", "smaller_media", "cut_longest"]
OLD_NAMES = {"fewer_tiles": "smaller_media"}  # in experiments and runs from before there were families without tiles


class Data(Section):
    """`path`: a ranked source file, a directory that `mmrlhf data build` wrote, MM-RLHF's mixture file (YAML), or a list.

    `template`: `checkpoint` is the chat template in the model's directory; null means the default of the model's family.
    `over_budget`: the policy for groups that exceed the row budget, or have a conversation beyond the positions of the model's
    rotary embeddings, or several in the order in which they are tried: smaller_media, cut_longest (response), drop, error.

    `pairs`: of each group all strictly ordered pairs, the extreme one, or `at_most: n` of them (n alone means the same).
    `critiques` is the field of a response that holds its critique; null leaves critiques out, for a reward model without them.
    `video_frames`: how many frames are taken of a video, evenly spaced from the first to the last. `video_fps`: how many are
    taken of each of its seconds instead, an even number of at least 4 and at most `video_frames`. `frames_per_second`: the rate
    of the frames in folders of frames, for families whose tokens depend on the times of frames; null: not known.
    `max_pixels`: the most pixels of an image, and of a frame of a video, after resizing, for families that keep its form; null:
    the checkpoint's.
    `rewards` is a file that `mmrlhf score` wrote for the training data, `held_out_rewards` one for the held-out data.
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
    video_fps: Positive | None = None
    frames_per_second: Positive | None = None
    max_pixels: Count | None = None
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
        """The paths as one text, for messages."""
        return ", ".join(self.paths)

    @pydantic.field_validator("over_budget", mode="before")
    @classmethod
    def _one_or_several(cls, policies: Any) -> Any:
        policies = (policies,) if isinstance(policies, str) else policies
        if not isinstance(policies, (list, tuple)):
            return policies
        return [OLD_NAMES.get(one, one) if isinstance(one, str) else one for one in policies]

    @pydantic.field_validator("pairs", mode="before")
    @classmethod
    def _at_most(cls, pairs: Any) -> Any:
        return pairs["at_most"] if isinstance(pairs, dict) and list(pairs) == ["at_most"] else pairs


# The keys of `data` besides `path` whose value is a file or folder.
DATA_PLACES = ("media_root", "rewards", "held_out", "held_out_rewards")
