"""What the steps are measured on: experiments of the published sizes, and rows of made-up groups that fill their slots."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmrlhf_jax import config
from mmrlhf_jax.data.rows import Budget, EncodedGroup, assemble_row, group_size, stack_rows
from mmrlhf_jax.models.family import ModelConfig
from mmrlhf_jax.planning.bench import Layout, group_layout, pair_layout
from mmrlhf_jax.planning.lowering import model_sizes
from mmrlhf_jax.planning.synthetic import synthetic_group
from tests import tiny

# Of 1 image (729 tokens), 4 responses of about 200 tokens and all 6 pairs: the reference case of `mmrlhf bench`.
IMAGES, RESPONSES, RESPONSE_TOKENS = 1, 4, 200
SLOTS = 8192
SMALL_SLOTS, SMALL_RESPONSE_TOKENS = 512, 12
PUBLISHED = {size: f"lmms-lab/llava-onevision-qwen2-{size}-ov" for size in ("0.5b", "7b")}
LORA = {"7b": config.Lora()}  # by size; the others learn in full, but for the vision tower

Group = tuple[EncodedGroup, list[EncodedGroup]]  # and each of its responses as a group of its own


@dataclasses.dataclass(frozen=True)
class Case:
    """An experiment whose sizes of a row are all set, its model's sizes, and the groups of its one row."""

    experiment: config.Experiment
    sizes: ModelConfig
    groups: Sequence[Group]

    @property
    def pairs(self) -> int:
        return sum(len(group.pairs) for group, _ in self.groups)

    @property
    def budget(self) -> Budget:
        return Budget(**{name: getattr(self.experiment.batch, name) for name in Budget.names()})

    def layout(self, name: str) -> Layout:
        """The row of groups, or its pairs expanded, in accumulation pieces that have as many slots as the row."""
        if name == "pair":
            return pair_layout(self.groups, self.sizes.geometry, pieces_of=self.budget.slots)
        row = assemble_row([group for group, _ in self.groups], self.budget, self.sizes.geometry)
        return group_layout(stack_rows([row]))


def make_case(size: str, small: bool) -> Case:
    """The case of a published size; with `small`, of a model of a few hundred thousand parameters in its place."""
    slots, tokens = (SMALL_SLOTS, SMALL_RESPONSE_TOKENS) if small else (SLOTS, RESPONSE_TOKENS)
    experiment = _experiment(PUBLISHED[size], size)
    if small:
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "config.json").write_text(json.dumps(tiny.config()))
            sizes, _ = model_sizes(_experiment(folder, size))
    else:
        sizes, _ = model_sizes(experiment)
    groups = _fill(sizes, slots, tokens)
    used = np.sum([group_size(group) for group, _ in groups], axis=0)
    found = dict(zip(Budget.names(), map(int, used), strict=True)) | {"slots": slots}
    batch = config.Batch(rows=1, accumulation=1, **found)
    return Case(experiment.model_copy(update={"batch": batch}), sizes, groups)


def _experiment(path: str, size: str) -> config.Experiment:
    settings: dict[str, Any] = dict(
        model=config.Model(path=path, dtype="bfloat16", frozen_dtype="bfloat16"),
        data=config.Data(path="made up"),
        objective=config.Preference(),
        trains=config.Trains(vision_tower=False),
        lora=LORA.get(size),
        run=config.Run(directory="none"),
    )
    return config.Experiment(**settings)


def _fill(sizes: ModelConfig, slots: int, response_tokens: int) -> list[Group]:
    """As many groups as the slots hold."""
    found: list[Group] = []
    left = slots
    while True:
        made = synthetic_group(sizes, images=IMAGES, responses=RESPONSES, response_tokens=response_tokens, seed=len(found))
        left -= len(made[0].tree.tokens)
        if left < 0:
            return found
        found.append(made)
