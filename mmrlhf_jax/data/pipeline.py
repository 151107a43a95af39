"""From an experiment's data section to numbered rows: open, tokenise, measure, budget, plan."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from etils import epath

from mmrlhf_jax import config
from mmrlhf_jax.data.checks import summarise_findings
from mmrlhf_jax.data.encode import GroupEncoder
from mmrlhf_jax.data.examples import BuiltExamples
from mmrlhf_jax.data.index import GroupIndex, build_index, keep_groups
from mmrlhf_jax.data.learnable import with_best
from mmrlhf_jax.data.mixture import open_examples, sets
from mmrlhf_jax.data.over_budget import within_budget
from mmrlhf_jax.data.overlay import lacking_rewards, with_critiques, with_human_margins
from mmrlhf_jax.data.packing import auto_budget
from mmrlhf_jax.data.pair_margins import lacking_pair_margins
from mmrlhf_jax.data.rows import Budget
from mmrlhf_jax.data.scores import with_rewards
from mmrlhf_jax.data.stream import Rows
from mmrlhf_jax.data.tokens import PieceTokenizer
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.faults import retried
from mmrlhf_jax.files import write_atomically
from mmrlhf_jax.models.llava_onevision.config import LlavaOnevisionConfig
from mmrlhf_jax.progress import say, track

UNLIMITED = 2**31 - 1
LEFT_OUT_FILE = "left_out_groups.txt"


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
        ties=isinstance(objective, config.RewardModel) and objective.tie_weight > 0,
    )


def open_training_examples(data: config.Data, objective: config.Objective):
    """The examples with the critiques and the rewards that the objective needs. UserError where rewards are missing."""
    examples = _opened(sets(data.path), data)
    examples = with_margins(examples, data, objective, data.rewards, data.named)
    _say_findings(examples, data.named)
    if lacking := lacking_margins(examples, objective, data.named):
        without = "margins: none" if isinstance(objective, config.RewardModel) else "scaling.mode: fixed"
        other = "margins: human_scores" if isinstance(objective, config.RewardModel) else "scaling.margins: human_scores"
        instead = {
            "human_scores": f"take the margins from rewards, or set objective.{without}",
            "rewards": f"run `mmrlhf score --model RM --data {data.named} --out FILE` and set data.rewards to FILE,"
            f" or choose objective.{other}, or objective.{without}",
            "stored": "take objective.scaling.margins from rewards or human_scores",
        }
        raise UserError(f"{lacking}; {instead[margins_from(objective)]}")
    return examples


def open_held_out_examples(data: config.Data, objective: config.Objective):
    """The held-out examples, like the training ones, except that what margins are made of may be missing: β is then that of
    δ = 0, and how many lack it is said. Their rewards are the data's own, or those of `data.held_out_rewards`; never the
    training data's."""
    examples = _opened(data.held_out, data)
    examples = with_margins(examples, data, objective, data.held_out_rewards, data.held_out)
    named = f"data.held_out, {data.held_out}"
    _say_findings(examples, named)
    if lacking := lacking_margins(examples, objective, named):
        scored = margins_from(objective) == "rewards"
        advice = ". `mmrlhf score` it, and set data.held_out_rewards" if scored else ""
        say(f"{lacking}; pairs without a margin are judged as if it were 0{advice}")
    return examples


_LACKING = {
    "human_scores": "responses without a human score, or without one of the names that others of the record have",
    "rewards": "responses without a reward",
    "stored": "pairs without `ls_factor`",
}


def lacking_margins(examples, objective: config.Objective, named: str) -> str | None:
    """How many records lack what the objective's margins are made of, None where none does. UserError for what is no number."""
    source = margins_from(objective)
    if source is None:
        return None
    lacking = lacking_pair_margins(examples, named) if source == "stored" else lacking_rewards(examples)
    if not lacking:
        return None
    return f"{named}: {len(lacking)} of {len(examples)} records have {_LACKING[source]} (the first is {lacking[0]!r})"


def _opened(path, data: config.Data):
    """Examples, with what is to note of them said."""
    examples = open_examples(path, data.media_root, data.video_frames)
    for note in getattr(examples, "notes", ()):
        say(note)
    return examples


def _say_findings(examples, named: str) -> None:
    if found := summarise_findings(examples.records, named):
        say(found)


def with_margins(examples, data: config.Data, objective: config.Objective, rewards: str | None, source: str):
    """Rewards from where the objective takes its margins (`rewards`: a score file of these examples, which are `source`),
    critiques from where the experiment takes them."""
    match margins_from(objective):
        case "human_scores":
            examples = with_human_margins(examples)
        case "rewards" if rewards is not None:
            examples = with_rewards(examples, rewards, source)
    if rewards is not None and margins_from(objective) != "rewards":
        say(f"{rewards} is not read: the objective takes no margins from rewards")
    return with_chosen_critiques(examples, data, objective, source)


def with_chosen_critiques(examples, data: config.Data, objective: config.Objective, source: str):
    """The examples of `source` with critiques from where the experiment takes them, for objectives that learn them."""
    if isinstance(objective, config.RewardModel) and data.critiques != "critique":
        return with_critiques(examples, data.critiques, source)
    return examples


def margins_from(objective: config.Objective) -> str | None:
    """Which numbers of the responses the objective takes margins of: "rewards", "human_scores", "stored", or None."""
    match objective:
        case config.Preference(scaling=scaling) if scaling.mode in ("margin", "ls_factor"):
            return scaling.margins
        case config.RewardModel(margins=margins) if margins != "none":
            return margins
    return None


def plan_training_rows(
    examples, encoder: GroupEncoder, data: config.Data, batch: config.Batch, objective, *, seed: int
) -> Rows:
    """Measure all groups, settle the row budget and plan. What is left out is counted and listed, the first of it by name."""
    index = build_index(examples, encoder, cache=index_cache(examples), progress=track)
    index = with_best(index, examples, objective, data, data.named)
    if not isinstance(objective, config.Supervised):
        has_pairs = index.sizes[:, Budget.names().index("pairs")] > 0
        index = keep_groups(index, has_pairs, "no strictly ordered pair", examples)
    if not len(index.groups):
        raise UserError(f"{data.named}: no group has a strictly ordered pair; there is nothing to prefer")
    # First what the experiment demands; what it leaves open then follows from the groups as they have become.
    index = within_budget(index, examples, encoder, demanded_budget(batch), data.over_budget, data.named)
    list_changes(index, data.named, len(examples))
    return Rows(examples, encoder, index, row_budget(batch, index), seed)


def count_rows(rows: Rows, experiment: config.Experiment) -> int:
    """Rows of the whole run. UserError where there are none, because the sets' weights are so small."""
    run, named = experiment.run, experiment.data.named
    if run.steps is not None:
        return run.steps * experiment.batch.rows
    if count := rows.count(run.epochs):
        return count
    raise UserError(
        f"{named}: {run.epochs} epochs (run.epochs) see none of the {len(rows.index.groups)} groups, because the weights of the"
        f" sets are so small (at most {rows.index.weights.max():g}); raise the weights or run.epochs, or set run.steps"
    )


def list_changes(index: GroupIndex, named: str, count: int) -> None:
    """Say which of the `count` groups of the data set are left out or not whole: their number, and the first of them."""
    _list(f"{named}: left out {len(index.dropped)} of {count} groups", index.dropped)
    _list(f"{named}: made {len(index.cut)} of {count} groups smaller", index.cut)


def _list(heading: str, lines: Sequence[str]) -> None:
    if not lines:
        return
    say(f"{heading}:")
    for line in lines[:20]:
        say(f"  {line}")
    if len(lines) > 20:
        say(f"  ... and {len(lines) - 20} more")


def write_left_out(index: GroupIndex, directory: epath.Path) -> None:
    """Every group that is left out or not whole, with the reason, one a line in `directory`; no file where there is none."""
    path = directory / LEFT_OUT_FILE
    lines = [*(f"left out: {line}" for line in index.dropped), *(f"made smaller: {line}" for line in index.cut)]
    if not lines:
        retried(lambda: path.unlink(missing_ok=True), f"{path}")
        return
    write_atomically(path, "".join(f"{line}\n" for line in lines).encode())
    say(f"{path} lists all groups that are left out ({len(index.dropped)}) or made smaller ({len(index.cut)})")


def demanded_budget(batch: config.Batch) -> Budget:
    """The experiment's budgets; what it leaves open is unlimited."""
    given = [getattr(batch, name) for name in Budget.names()]
    return Budget(*(UNLIMITED if g is None else g for g in given))


def row_budget(batch: config.Batch, index: GroupIndex) -> Budget:
    """The experiment's budgets; what it leaves open follows from the groups that fit its slots."""
    fitting = index.sizes[index.sizes[:, 0] <= batch.slots]
    derived = auto_budget(fitting, batch.slots)
    given = [getattr(batch, name) for name in Budget.names()]
    return Budget(*(int(d if g is None else g) for g, d in zip(given, derived, strict=True)))


def index_cache(examples) -> epath.Path | None:
    """Beside a built data set; a source file has no place of its own for it."""
    base = examples
    while hasattr(base, "examples"):  # overlays may lie on each other
        base = base.examples
    return base.directory / "index" if isinstance(base, BuiltExamples) else None


def with_reference(rows: Rows, logps: np.ndarray) -> Rows:
    return dataclasses.replace(rows, reference_logps=logps)
