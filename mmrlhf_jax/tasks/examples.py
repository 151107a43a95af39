"""Records with all that a task needs of them: rewards or human scores for margins, critiques; what is missing is said."""

from __future__ import annotations

from mmrlhf_jax import config
from mmrlhf_jax.data.checks import summarise_findings
from mmrlhf_jax.data.mixture import open_examples, sets
from mmrlhf_jax.data.overlay import lacking_rewards, with_human_margins
from mmrlhf_jax.data.pair_margins import lacking_pair_margins
from mmrlhf_jax.data.scores import with_rewards
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.progress import say
from mmrlhf_jax.tasks.task import Task

_LACKING = {
    "human_scores": "responses without a human score, or without one of the names that others of the record have",
    "rewards": "responses without a reward",
    "stored": "pairs without `ls_factor`",
}


def open_training_examples(data: config.Data, task: Task):
    """The examples with the critiques and the rewards that the task needs. UserError where rewards are missing."""
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
    """The held-out examples, like the training ones, except that what margins are made of may be missing: β is then that of
    δ = 0, and how many lack it is said. Their rewards are the data's own, or those of `data.held_out_rewards`; never the
    training data's."""
    examples = _opened(data.held_out, data)
    examples = _completed(examples, data, task, data.held_out_rewards, data.held_out)
    named = f"data.held_out, {data.held_out}"
    _say_findings(examples, named)
    if lacking := _lacking_margins(examples, task, named):
        advice = ". `mmrlhf score` it, and set data.held_out_rewards" if task.margins == "rewards" else ""
        say(f"{lacking}; pairs without a margin are judged as if it were 0{advice}")
    return examples


def _opened(path, data: config.Data):
    """Examples, with what is to note of them said."""
    examples = open_examples(path, data.media_root, data.video_frames)
    for note in getattr(examples, "notes", ()):
        say(note)
    return examples


def _completed(examples, data: config.Data, task: Task, rewards: str | None, source: str):
    """The examples of `source` with rewards from where the task takes its margins (`rewards`: a score file of these examples),
    and with critiques from where the experiment takes them."""
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
    """How many records lack what the task's margins are made of, None where none does. UserError for what is no number."""
    source = task.margins
    if source is None:
        return None
    lacking = lacking_pair_margins(examples, named) if source == "stored" else lacking_rewards(examples)
    if not lacking:
        return None
    return f"{named}: {len(lacking)} of {len(examples)} records have {_LACKING[source]} (the first is {lacking[0]!r})"
