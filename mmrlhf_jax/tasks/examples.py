"""Opens records and adds what a task needs: rewards or human scores for margins, and critiques. Missing values are reported."""

from __future__ import annotations

from mmrlhf_jax import config
from mmrlhf_jax.data.checks import summarise_findings
from mmrlhf_jax.data.mixture import open_examples, sets
from mmrlhf_jax.data.overlay import lacking_rewards, with_human_margins
from mmrlhf_jax.data.pair_margins import lacking_pair_margins
from mmrlhf_jax.data.rewarded import with_rewards
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.progress import say
from mmrlhf_jax.tasks.task import Task

_LACKING = {
    "human_scores": "responses without a human score, or without one of the names that others of the record have",
    "rewards": "responses without a reward",
    "stored": "pairs without `ls_factor`",
}


def open_training_examples(data: config.Data, task: Task):
    """The training examples with the critiques and margins that the task needs. UserError if records lack what margins need."""
    examples = _opened(sets(data.path), data)
    examples = _completed(examples, data, task, data.rewards, data.named)
    _say_findings(examples, data.named)
    if lacking := _lacking_margins(examples, task, data.named):
        instead = {
            "human_scores": f"take the margins from rewards, or set objective.{task.no_margins}",
            "rewards": f"run `mmrlhf score --model RM --data {data.named} --out FILE` and set data.rewards to FILE,"
            f" or choose objective.{task.margins_key}: human_scores, or objective.{task.no_margins}",
            "stored": f"take objective.{task.margins_key} from rewards or human_scores",
        }
        raise UserError(f"{lacking}; {instead[task.margins]}")
    return examples


def open_held_out_examples(data: config.Data, task: Task):
    """The held-out examples, like the training ones, except that margins may be missing: δ is then 0, and the number of records
    that lack them is reported. Rewards come from the data or `data.held_out_rewards`, never from `data.rewards`."""
    examples = _opened(data.held_out, data)
    examples = _completed(examples, data, task, data.held_out_rewards, data.held_out)
    named = f"data.held_out, {data.held_out}"
    _say_findings(examples, named)
    if lacking := _lacking_margins(examples, task, named):
        advice = ". `mmrlhf score` it, and set data.held_out_rewards" if task.margins == "rewards" else ""
        say(f"{lacking}; pairs without a margin are judged as if it were 0{advice}")
    return examples


def _opened(path, data: config.Data):
    """Open the examples and print their notes."""
    examples = open_examples(
        path, data.media_root, data.video_frames, video_fps=data.video_fps, frames_per_second=data.frames_per_second
    )
    for note in getattr(examples, "notes", ()):
        say(note)
    return examples


def _completed(examples, data: config.Data, task: Task, rewards: str | None, source: str):
    """The examples of `source` with the margins' rewards (`rewards` is a score file of these examples, or None) and
    critiques."""
    if task.margins == "human_scores":
        examples = with_human_margins(examples)
    elif task.margins == "rewards" and rewards is not None:
        examples = with_rewards(examples, rewards, source)
    if rewards is not None and task.margins != "rewards":
        say(f"{rewards} is not read: the objective takes no margins from rewards")
    return task.with_critiques(examples, data, source)


def _say_findings(examples, named: str) -> None:
    if found := summarise_findings(examples.records, named):
        say(found)


def _lacking_margins(examples, task: Task, named: str) -> str | None:
    """How many records lack the values of the task's margins, in words; None if none does. UserError if a value is no
    number."""
    source = task.margins
    if source is None:
        return None
    lacking = lacking_pair_margins(examples, named) if source == "stored" else lacking_rewards(examples)
    if not lacking:
        return None
    return f"{named}: {len(lacking)} of {len(examples)} records have {_LACKING[source]} (the first is {lacking[0]!r})"
