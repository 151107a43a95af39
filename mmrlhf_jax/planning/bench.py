"""`mmrlhf bench`: times the same groups in the group layout and in the pair-expanded one, with the same train step."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from mmrlhf_jax import config
from mmrlhf_jax.data.rows import EncodedGroup, RowBatch
from mmrlhf_jax.data.unshared import expand, unshared_batch
from mmrlhf_jax.inference.forward import forward
from mmrlhf_jax.models.registry import family_of
from mmrlhf_jax.models.vision_language import VisionLanguage
from mmrlhf_jax.planning.unshared import forward_unshared, split_halves
from mmrlhf_jax.progress import Progress
from mmrlhf_jax.sharding.feed import place
from mmrlhf_jax.tasks import task_of
from mmrlhf_jax.training.optimizer import make_optimizer
from mmrlhf_jax.training.state import init_state, split_model
from mmrlhf_jax.training.step import Forward, make_train_step
from mmrlhf_jax.training.work import Work, batch_work, peak_flops, useful_flops

# A learning rate that changes no parameter, so that both layouts compute with the same parameters in every step.
STILL = 1e-30


@dataclasses.dataclass(frozen=True)
class Layout:
    """A batch in one of the two layouts, its number of accumulation pieces, and its forward pass."""

    name: str
    batch: RowBatch
    pieces: int
    forward: Forward

    def work(self, features: int) -> Work:
        """Counts without padding. `features` per tile."""
        rows = split_halves(self.batch, features) if self.forward is forward_unshared else self.batch
        return jax.tree.map(float, jax.jit(batch_work, static_argnums=1)(rows, features))


def group_layout(batch: RowBatch, pieces: int = 1) -> Layout:
    return Layout("group", batch, pieces, forward)


def pair_layout(groups: Sequence[tuple[EncodedGroup, Sequence[EncodedGroup]]], geometry, **options: Any) -> Layout:
    """The layout in which every pair repeats its prompt. `groups` are (group, its responses' conversations encoded one by one).

    `options` as for `unshared_batch`.
    """
    batch, pieces = unshared_batch([pair for group, alone in groups for pair in expand(group, alone)], geometry, **options)
    return Layout("pair", batch, pieces, forward_unshared)


def compare(
    model: VisionLanguage, experiment: config.Experiment, layouts: Sequence[Layout], mesh, *, repeats: int, title: str
) -> dict[str, Any]:
    """Time the layouts in turn, `repeats` times each after one warm-up step; each step continues with the state of the last.

    Seconds are medians; `ratio` is the median over turns of pair seconds / group seconds.
    """
    graphdef, params, frozen = split_model(model, experiment.trains, experiment.lora)
    settings = experiment.optimizer.model_copy(update={"learning_rate": STILL, "part_rates": {}})
    tx = make_optimizer(
        settings.model_copy(update={"matrix_learning_rate": None}), 1000, family_of(model.config).parts, experiment.guard
    )
    state = init_state(params, frozen, tx, mesh)
    del params, frozen
    features = model.config.geometry.features
    figures: dict[str, Any] = {}
    steps, batches = [], []
    for layout in layouts:
        step = make_train_step(
            graphdef,
            task_of(experiment.objective),
            tx,
            chunk=experiment.batch.logprob_chunk,
            accumulation=layout.pieces,
            shardings=jax.tree.map(lambda x: x.sharding, state),
            forward=layout.forward,
        )
        batches.append(place(layout.batch, mesh))
        steps.append(step.lower(state, batches[-1]).compile())
        figures[f"{layout.name}_peak_bytes"] = peak_bytes(steps[-1])
        work = layout.work(features)
        figures[f"{layout.name}_flops"] = useful_flops(work, model.config, experiment)
        figures[f"{layout.name}_tokens"] = int(work.tokens)

    progress = Progress(title, repeats + 1)
    seconds: list[list[float]] = []
    for _ in range(repeats + 1):
        seconds.append([])
        for layout, step, batch in zip(layouts, steps, batches, strict=True):
            start = time.perf_counter()
            state, found = jax.block_until_ready(step(state, batch))
            seconds[-1].append(time.perf_counter() - start)
            figures |= {f"{layout.name}_{name}": float(found[name]) for name in ("loss", "grad_norm")}
        progress.update("  ".join(f"{layout.name} {s:.3g} s" for layout, s in zip(layouts, seconds[-1], strict=True)))
    timed = np.asarray(seconds[1:])
    for i, layout in enumerate(layouts):
        figures[f"{layout.name}_seconds"] = statistics.median(timed[:, i])
    return figures | ratios(figures, timed, int((layouts[0].batch.pair_weights > 0).sum()))


def ratios(figures: dict[str, Any], seconds: np.ndarray, pairs: int) -> dict[str, Any]:
    """Figures that compare the layouts. `seconds` is float[turns, 2]: group, pair."""
    found = {"ratio": statistics.median(seconds[:, 1] / seconds[:, 0]), "pairs": pairs, "repeats": len(seconds)}
    found["flop_ratio"] = figures["pair_flops"] / figures["group_flops"]
    found["flop_ratio_reached"] = found["ratio"] / found["flop_ratio"]
    peak = peak_flops()
    for name in ("group", "pair"):
        found[f"{name}_pairs_per_second"] = pairs / figures[f"{name}_seconds"]
        rate = figures[f"{name}_flops"] / figures[f"{name}_seconds"]
        found[f"{name}_useful_tflops_per_second"] = rate / 1e12
        if peak is not None:
            found[f"{name}_flop_utilisation"] = rate / peak
    return found


def peak_bytes(compiled) -> int | None:
    """Peak memory of a compiled step in bytes per device, donated arguments counted once; None if the backend does not say."""
    stats = compiled.memory_analysis()
    if stats is None:
        return None
    return stats.argument_size_in_bytes + stats.output_size_in_bytes + stats.temp_size_in_bytes - stats.alias_size_in_bytes
