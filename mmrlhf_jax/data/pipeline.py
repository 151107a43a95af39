"""From an experiment's data section to numbered rows: open, tokenise, measure, budget, plan."""

from __future__ import annotations

import dataclasses

import numpy as np
from etils import epath

from mmrlhf_jax import config
from mmrlhf_jax.data.encode import GroupEncoder
from mmrlhf_jax.data.examples import BuiltExamples, open_examples
from mmrlhf_jax.data.index import GroupIndex, build_index, keep_groups, within_budget
from mmrlhf_jax.data.overlay import check_rewards, with_human_margins, with_rewards
from mmrlhf_jax.data.packing import auto_budget
from mmrlhf_jax.data.rows import Budget
from mmrlhf_jax.data.stream import Rows
from mmrlhf_jax.data.tokens import PieceTokenizer
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.models.llava_onevision.config import LlavaOnevisionConfig
from mmrlhf_jax.progress import say, track


def make_encoder(data: config.Data, objective: config.Objective | None, tokenizer, model: LlavaOnevisionConfig) -> GroupEncoder:
    """The encoder for an objective: critiques for the reward model, answers for everything else."""
    return GroupEncoder(
        tokenizer=PieceTokenizer(tokenizer, model.image_token),
        geometry=model.geometry,
        template=data.template,
        task="critique" if isinstance(objective, config.RewardModel) else "answer",
        pairs=data.pairs,
        weighting=data.weighting,
        learn=data.learn,
    )


def open_training_examples(data: config.Data, objective: config.Objective):
    """The examples with the rewards that the objective's β needs. UserError where they are missing."""
    examples = open_examples(data.path, data.media_root, data.video_frames)
    if not isinstance(objective, config.Preference) or objective.scaling.mode not in ("margin", "ls_factor"):
        return examples
    if objective.scaling.margins == "human_scores":
        examples = with_human_margins(examples)
    elif data.rewards is not None:
        examples = with_rewards(examples, data.rewards)
    check_rewards(examples, data.path)
    return examples


def plan_training_rows(
    examples, encoder: GroupEncoder, data: config.Data, batch: config.Batch, objective, *, seed: int
) -> Rows:
    """Measure all groups, settle the row budget and plan. What is left out is counted and listed."""
    index = build_index(examples, encoder, cache=index_cache(examples), progress=track)
    if not isinstance(objective, config.Supervised):
        has_pairs = index.sizes[:, Budget.names().index("pairs")] > 0
        index = keep_groups(index, has_pairs, "no strictly ordered pair", examples)
    if not len(index.groups):
        raise UserError(f"{data.path}: no group has a strictly ordered pair; there is nothing to prefer")
    budget = row_budget(batch, index)
    index = within_budget(index, examples, budget, data.over_budget)
    if index.dropped:
        say(f"{data.path}: left out {len(index.dropped)} of {len(examples)} groups:")
        for line in index.dropped[:20]:
            say(f"  {line}")
        if len(index.dropped) > 20:
            say(f"  ... and {len(index.dropped) - 20} more")
    return Rows(examples, encoder, index, budget, seed)


def row_budget(batch: config.Batch, index: GroupIndex) -> Budget:
    """The experiment's budgets; what it leaves open follows from the groups that fit its slots."""
    fitting = index.sizes[index.sizes[:, 0] <= batch.slots]
    derived = auto_budget(fitting, batch.slots)
    given = [getattr(batch, name) for name in Budget.names()]
    return Budget(*(int(d if g is None else g) for g, d in zip(given, derived, strict=True)))


def all_rows(examples, encoder: GroupEncoder, *, slots: int = 0, seed: int = 0) -> Rows:
    """Rows over every group, for passes that score or measure: a row has `slots` slots, or more if a group needs more."""
    index = build_index(examples, encoder, cache=index_cache(examples))
    longest = int(index.sizes[:, 0].max())
    slots = max(slots, -(-longest // 128) * 128)
    return Rows(examples, encoder, index, Budget(*map(int, auto_budget(index.sizes, slots))), seed)


def index_cache(examples) -> epath.Path | None:
    """Beside a built data set; a source file has no place of its own for it."""
    base = getattr(examples, "examples", examples)
    return base.directory / "index" if isinstance(base, BuiltExamples) else None


def with_reference(rows: Rows, logps: np.ndarray) -> Rows:
    return dataclasses.replace(rows, reference_logps=logps)
