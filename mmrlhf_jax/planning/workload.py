"""The rows that a plan assumes: packed from the experiment's own data if it is available, else from groups like MM-RLHF's.

Of MM-RLHF the number of queries by kind and of pairs (120k of 30k queries) are known (arXiv 2502.10391, table 1); the sizes
below are assumptions, and a plan that uses them says so.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

from mmrlhf_jax import config
from mmrlhf_jax.data.encode import Limit
from mmrlhf_jax.data.index import GroupIndex
from mmrlhf_jax.data.mixture import open_examples, sets
from mmrlhf_jax.data.packing import plan_rows
from mmrlhf_jax.data.pipeline import count_rows, row_budget
from mmrlhf_jax.data.rows import Budget
from mmrlhf_jax.data.stream import Rows
from mmrlhf_jax.data.videos import frames_at
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.faults import first_line
from mmrlhf_jax.huggingface.hub import local_directory
from mmrlhf_jax.huggingface.tokenizer import load_tokenizer
from mmrlhf_jax.models.attention.visibility import HIDDEN, most_pairs, rectangle_kinds
from mmrlhf_jax.models.family import ModelConfig
from mmrlhf_jax.models.geometry import Geometry, evenly_spaced
from mmrlhf_jax.models.video import VideoLayout
from mmrlhf_jax.tasks import plan_training_rows, task_of


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of query. `answer` is the median length in tokens; lengths are log-normal."""

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
VIDEO = ((360, 640), 900, 30.0)  # height and width, number of frames, and frames per second of a video of 30 seconds
PROMPT, SPREAD, CRITIQUE = 50, 0.5, 180  # tokens; standard deviation of the logarithm
CRITIQUE_PROMPT = 130  # tokens of the critique prompt's text, which every branch repeats after the question
RESPONSES = (3, 4, 5)
SAMPLE = 256  # number of rows whose attention masks are computed
TIED = 0.37  # share of a ranking's pairs that are tied, which leaves the paper's 4 pairs per query


@dataclasses.dataclass(frozen=True)
class Workload:
    """Rows of a static budget, and the contents of one epoch."""

    budget: Budget
    rows: int
    groups: int
    used: dict[str, float]  # mean use per row of every resource of the budget
    source: str
    visible_until: np.ndarray  # int32[at most SAMPLE, slots]: attention masks of the first rows
    visible_pairs: float  # mean number of unmasked (query, key) pairs per row
    seen_tiles: float  # mean number of pairs of tiles per row that see each other in the tower

    def visible_blocks(self, queries: int, keys: int | None = None) -> float:
        """The share of attention blocks on and below the diagonal that are not completely masked, so that the kernel computes
        them. A block has so many slots of queries and of keys, or as many of keys as of queries."""
        keys, slots = keys or queries, self.visible_until.shape[1]
        until = np.maximum(self.visible_until, np.arange(1, slots + 1, dtype=np.int32))
        until = np.pad(until, ((0, 0), (0, -slots % keys)), constant_values=0)
        seen = (np.asarray(rectangle_kinds(until, queries, keys, causal=True)) != HIDDEN).sum()
        return float(seen * queries * keys / (len(until) * most_pairs(slots, queries, keys, causal=True)))

    @property
    def fill(self) -> float:
        """Share of slots that hold tokens."""
        return self.used["slots"] / self.budget.slots


def assumed_sizes(
    geometry: Geometry,
    *,
    targets_are: Literal["answers", "critiques", "none"],
    frames: int,
    fps: float | None = None,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """The groups of a data set like MM-RLHF, without its videos if the geometry has none: (their sizes, int64[30k, resources of
    `Budget`], how many pairs of their tiles see each other, int64[30k])."""
    rng = np.random.default_rng(seed)
    pictures = [geometry.plans([size])[0] for size in IMAGE_SIZES]
    size, total, rate = VIDEO
    frames = frames if fps is None else frames_at(fps, total, rate, frames)
    clip = VideoLayout(frames, size, tuple(evenly_spaced(total, frames)), total, rate)
    (video,) = geometry.plans([], clip) if geometry.has_videos else (None,)
    sizes, seen = [], []
    for kind in (kind for kind in KINDS if geometry.has_videos or not kind.video):
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
            seen.append(geometry.pairs_of_tiles([plan]))
    return np.asarray(sizes, np.int64), np.asarray(seen, np.int64)


def find_workload(experiment: config.Experiment, model: ModelConfig) -> Workload:
    """The workload of the experiment's own data if that and the model's tokenizer are available and can be packed; else an
    assumed one, with the reason. UserError if no assumed group fits a row.
    """
    try:
        return measured_workload(experiment, model)
    except (UserError, OSError, ImportError) as error:  # ImportError: gs:// without gcsfs
        return assumed_workload(experiment, model.geometry, first_line(error))


def measured_workload(experiment: config.Experiment, model: ModelConfig) -> Workload:
    """The workload of the experiment's own data. UserError if data, media or tokenizer are not available, or if `mmrlhf train`
    would refuse to pack the data.
    """
    data, task = experiment.data, task_of(experiment.objective)
    examples = open_examples(
        sets(data.path), data.media_root, data.video_frames, video_fps=data.video_fps, frames_per_second=data.frames_per_second
    )
    examples = task.with_critiques(examples, data, data.named)
    encoder = task.encoder(data, load_tokenizer(local_directory(experiment.model.path)), model)
    rows = plan_training_rows(examples, encoder, data, experiment.batch, task, seed=experiment.run.seed)
    count_rows(rows, experiment)
    if not rows.plan(0):  # a mixture whose first epoch has no rows: take every group once
        rows = rows.once()
    seen = _seen_tiles(rows)
    found = _workload(rows.index.sizes, seen, rows.plan(0), rows.budget, f"measured in {data.named}")
    if encoder.ties:  # tied pairs use pair slots of the budget, but do not count as pairs
        ordered = [len(examples.records[g].pairs()) for row in rows.plan(0) for g in rows.index.groups[row]]
        found = dataclasses.replace(found, used=found.used | {"pairs": sum(ordered) / found.rows})
    return found


def _seen_tiles(rows: Rows) -> np.ndarray:
    """int64[G]: how many pairs of each group's tiles see each other in the tower."""
    index, encoder = rows.index, rows.encoder
    if encoder.geometry.tiles_apart:
        return index.sizes[:, Budget.names().index("tiles")]
    plans = (
        encoder.plans(rows.examples.records[number], rows.examples.layout(number), Limit(*map(int, limits)))
        for number, limits in zip(map(int, index.groups), index.limits, strict=True)
    )
    return np.asarray([encoder.geometry.pairs_of_tiles(of_group) for of_group in plans], np.int64)


def assumed_workload(experiment: config.Experiment, geometry: Geometry, why: str) -> Workload:
    """The workload of `assumed_sizes`; `why` is the reason that the plan shows."""
    geometry = geometry.within_pixels(experiment.data.max_pixels)
    targets = task_of(experiment.objective).assumed_targets(experiment.data)
    sizes, seen = assumed_sizes(
        geometry, targets_are=targets, frames=experiment.data.video_frames, fps=experiment.data.video_fps
    )
    return pack_workload(experiment, sizes, f"MM-RLHF-like sizes (assumed: {why})", seen)


def pack_workload(experiment: config.Experiment, sizes: np.ndarray, source: str, seen: np.ndarray) -> Workload:
    """The workload of groups of these sizes, int64[G, resources of `Budget`], of whose tiles `seen` pairs see each other,
    int64[G]. UserError if none fits a row."""
    index = GroupIndex(
        sizes=sizes,
        groups=np.arange(len(sizes)),
        limits=np.zeros((len(sizes), 2), np.int64),
        first_responses=np.zeros(1, np.int64),
        dropped=(),
        fingerprint="",
    )
    budget = row_budget(experiment.batch, index)
    fitting = (sizes <= budget.vector).all(axis=1)
    kept = sizes[fitting]
    if not len(kept):
        raise UserError(f"batch.slots {experiment.batch.slots}: no group of {source} fits a row; raise batch.slots")
    rows = plan_rows(kept, budget.vector, seed=experiment.run.seed, epoch=0)
    return _workload(kept, seen[fitting], rows, budget, source)


def _workload(sizes: np.ndarray, seen: np.ndarray, rows: list[np.ndarray], budget: Budget, source: str) -> Workload:
    """The workload of one epoch; `rows` are the indices of the groups in each row."""
    groups = np.concatenate(rows)
    used = dict(zip(Budget.names(), (sizes[groups].sum(axis=0) / len(rows)).tolist(), strict=True))
    masks = [_masks(sizes[row], budget) for row in rows[:SAMPLE]]
    until, ends = np.stack([mask for mask, _ in masks]), np.asarray([end for _, end in masks])
    here = np.arange(budget.slots)
    pairs = np.where(here < ends[:, None], until - here, 0).sum() / len(masks)
    return Workload(budget, len(rows), len(groups), used, source, until, float(pairs), float(seen[groups].sum() / len(rows)))


def _masks(groups: np.ndarray, budget: Budget) -> tuple[np.ndarray, int]:
    """(`visible_until` of a row of groups, int32[slots], and the end of its last group).

    A group's targets are split evenly over its branches, and branches are assumed to contain nothing else, because sizes say no
    more. This counts slightly too many visible pairs."""
    until = np.arange(1, budget.slots + 1, dtype=np.int32)
    start = 0
    for size in groups:
        tokens, targets, count = (int(size[Budget.names().index(name)]) for name in ("slots", "targets", "responses"))
        end = start + tokens
        # Targets in the trunk count once per response, so there may be more targets than tokens.
        learnt = min(targets, tokens)
        branches = end - learnt + np.arange(count + 1) * learnt // count
        until[start : branches[0]] = end
        until[branches[0] : end] = np.repeat(branches[1:], np.diff(branches))
        start = end
    return until, start
