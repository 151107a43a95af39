"""What a pod will be fed: the experiment's own groups where they are at hand, else groups like MM-RLHF's.

Known of those (arXiv 2502.10391, table 1): the queries by kind, and 120k pairs of 30k queries. Assumed: the sizes below. A plan
that is made from them says so.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

from mmrlhf_jax import config
from mmrlhf_jax.data.index import GroupIndex
from mmrlhf_jax.data.mixture import open_examples, sets
from mmrlhf_jax.data.packing import plan_rows
from mmrlhf_jax.data.pipeline import count_rows, row_budget
from mmrlhf_jax.data.rows import Budget
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.faults import first_line
from mmrlhf_jax.huggingface.hub import local_directory
from mmrlhf_jax.huggingface.load import load_tokenizer
from mmrlhf_jax.models.attention.visibility import HIDDEN, block_kinds
from mmrlhf_jax.models.family import ModelConfig
from mmrlhf_jax.models.geometry import Geometry
from mmrlhf_jax.tasks import plan_training_rows, task_of


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of query. Lengths are medians in tokens; the spread is log-normal."""

    queries: int
    answer: int
    video: bool = False


KINDS = (
    Kind(queries=9575, answer=220),  # long
    Kind(queries=12063, answer=80),  # short
    Kind(queries=2125, answer=40),  # multiple choice
    Kind(queries=1999, answer=140),  # safety
    Kind(queries=4235, answer=180, video=True),
)
IMAGE_SIZES = ((336, 500), (480, 640), (768, 1024), (1080, 1920))  # height, width
PROMPT, SPREAD, CRITIQUE = 50, 0.5, 180  # tokens; standard deviation of the logarithm
CRITIQUE_PROMPT = 130  # tokens around question and answer, repeated in every branch after the question
RESPONSES = (3, 4, 5)
SAMPLE = 256  # rows whose masks are laid out
TIED = 0.37  # of the pairs of a ranking: what is left makes the paper's 4 pairs per query


@dataclasses.dataclass(frozen=True)
class Workload:
    """Rows of a static budget and what an epoch of them holds."""

    budget: Budget
    rows: int
    groups: int
    used: dict[str, float]  # what an average row holds of every resource of the budget
    source: str
    visible_until: np.ndarray  # int32[SAMPLE, slots]: of some of the rows
    visible_pairs: float  # (query, key) pairs that attend in an average row

    def visible_blocks(self, block: int) -> float:
        """Share of the blocks on and below the diagonal in which some pair attends: those that a kernel visits."""
        padding = -self.visible_until.shape[1] % block
        until = np.pad(self.visible_until, ((0, 0), (0, padding)), constant_values=0)
        until = np.maximum(until, np.arange(1, until.shape[1] + 1, dtype=np.int32))
        kinds = np.asarray(block_kinds(until, block, causal=True))
        blocks = kinds.shape[1]
        return float((kinds != HIDDEN).sum() / (len(kinds) * blocks * (blocks + 1) / 2))

    @property
    def fill(self) -> float:
        """Share of slots that hold tokens."""
        return self.used["slots"] / self.budget.slots


def assumed_sizes(
    geometry: Geometry, *, targets_are: Literal["answers", "critiques", "none"], frames: int, seed: int = 0
) -> np.ndarray:
    """int64[30k, resources of `Budget`]: what the groups of an MM-RLHF-like data set take of a row."""
    rng = np.random.default_rng(seed)
    pictures = [geometry.plans([size], 0)[0] for size in IMAGE_SIZES]
    (video,) = geometry.plans([], frames)
    sizes = []
    for kind in KINDS:
        for _ in range(kind.queries):
            count = int(rng.choice(RESPONSES))
            plan = video if kind.video else pictures[rng.integers(len(pictures))]
            prompt, *answers = np.exp(rng.normal(0, SPREAD, count + 1)) * [PROMPT, *[kind.answer] * count]
            branches, targets = np.sum(answers), np.sum(answers) if targets_are == "answers" else 0.0
            if targets_are == "critiques":
                targets = np.sum(np.exp(rng.normal(0, SPREAD, count)) * CRITIQUE)
                branches = np.sum(answers) + targets + count * CRITIQUE_PROMPT
            pairs = count * (count - 1) / 2 * (1 - TIED)
            tokens = plan.tokens + prompt + 30 + branches + 4 * count
            ends = 0 if targets_are == "none" else count
            sizes.append((tokens, plan.tiles, plan.tokens, targets + ends, count, round(pairs)))
    return np.asarray(sizes, np.int64)


def find_workload(experiment: config.Experiment, model: ModelConfig) -> Workload:
    """The rows that the experiment packs: of its own data where that and the model's tokenizer are at hand and can be packed,
    else of assumed groups, with the reason. UserError where none of these fits a row.
    """
    try:
        return measured_workload(experiment, model)
    except (UserError, OSError, ImportError) as error:  # ImportError: gs:// without gcsfs
        return assumed_workload(experiment, model.geometry, first_line(error))


def measured_workload(experiment: config.Experiment, model: ModelConfig) -> Workload:
    """Of the experiment's own data. UserError where that, its media or the tokenizer is not at hand, or where `mmrlhf train`
    would refuse to pack it.
    """
    data, task = experiment.data, task_of(experiment.objective)
    examples = open_examples(sets(data.path), data.media_root, data.video_frames)
    examples = task.with_critiques(examples, data, data.named)
    encoder = task.encoder(data, load_tokenizer(local_directory(experiment.model.path)), model)
    rows = plan_training_rows(examples, encoder, data, experiment.batch, task, seed=experiment.run.seed)
    count_rows(rows, experiment)
    if not rows.plan(0):  # of sets that not every epoch sees
        rows = rows.once()
    found = _workload(rows.index.sizes, rows.plan(0), rows.budget, f"measured in {data.named}")
    if encoder.ties:  # their places are in the budget, but they are no pairs
        ordered = [len(examples.records[g].pairs()) for row in rows.plan(0) for g in rows.index.groups[row]]
        found = dataclasses.replace(found, used=found.used | {"pairs": sum(ordered) / found.rows})
    return found


def assumed_workload(experiment: config.Experiment, geometry: Geometry, why: str) -> Workload:
    """Rows of `assumed_sizes`; `why` is for whoever reads the plan."""
    targets = task_of(experiment.objective).assumed_targets(experiment.data)
    sizes = assumed_sizes(geometry, targets_are=targets, frames=experiment.data.video_frames)
    return pack_workload(experiment, sizes, f"MM-RLHF-like sizes (assumed: {why})")


def pack_workload(experiment: config.Experiment, sizes: np.ndarray, source: str) -> Workload:
    """Rows of groups of these sizes (int64[G, resources of `Budget`])."""
    index = GroupIndex(
        sizes=sizes,
        groups=np.arange(len(sizes)),
        limits=np.zeros((len(sizes), 2), np.int64),
        first_responses=np.zeros(1, np.int64),
        dropped=(),
        fingerprint="",
    )
    budget = row_budget(experiment.batch, index)
    kept = sizes[(sizes <= budget.vector).all(axis=1)]
    if not len(kept):
        raise UserError(f"batch.slots {experiment.batch.slots}: no group of {source} fits a row; raise batch.slots")
    return _workload(kept, plan_rows(kept, budget.vector, seed=experiment.run.seed, epoch=0), budget, source)


def _workload(sizes: np.ndarray, rows: list[np.ndarray], budget: Budget, source: str) -> Workload:
    """`rows`: numbers of the groups in each row of an epoch."""
    groups = np.concatenate(rows)
    used = dict(zip(Budget.names(), (sizes[groups].sum(axis=0) / len(rows)).tolist(), strict=True))
    masks = [_masks(sizes[row], budget) for row in rows[:SAMPLE]]
    until, ends = np.stack([mask for mask, _ in masks]), np.asarray([end for _, end in masks])
    here = np.arange(budget.slots)
    pairs = np.where(here < ends[:, None], until - here, 0).sum() / len(masks)
    return Workload(budget, len(rows), len(groups), used, source, until, float(pairs))


def _masks(groups: np.ndarray, budget: Budget) -> tuple[np.ndarray, int]:
    """`visible_until` of a row of groups and where they end. What is learnt makes up the branches, in equal parts: sizes do not
    say how long each is, nor what else is in them, so that a few more pairs are counted than there are."""
    until = np.arange(1, budget.slots + 1, dtype=np.int32)
    start = 0
    for size in groups:
        tokens, targets, count = (int(size[Budget.names().index(name)]) for name in ("slots", "targets", "responses"))
        end = start + tokens
        # Targets of a trunk that several responses share count for each of them.
        learnt = min(targets, tokens)
        branches = end - learnt + np.arange(count + 1) * learnt // count
        until[start : branches[0]] = end
        until[branches[0] : end] = np.repeat(branches[1:], np.diff(branches))
        start = end
    return until, start
