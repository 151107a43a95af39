"""The cases of `mmrlhf bench`: the first batch of an experiment, or synthetic groups on a model with random weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from mmrlhf_jax import config
from mmrlhf_jax.data.encode import Limit
from mmrlhf_jax.data.rows import EncodedGroup, assemble_row, empty_row, stack_rows
from mmrlhf_jax.data.stream import Rows
from mmrlhf_jax.data.unshared import exact_batch
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.huggingface.hub import local_directory
from mmrlhf_jax.huggingface.tokenizer import load_tokenizer
from mmrlhf_jax.models.family import ModelConfig
from mmrlhf_jax.models.layers import matmul_precision
from mmrlhf_jax.models.registry import bench_configs, family_of
from mmrlhf_jax.models.vision_language import VisionLanguage
from mmrlhf_jax.planning.bench import compare, group_layout, pair_layout
from mmrlhf_jax.planning.synthetic import synthetic_group
from mmrlhf_jax.sharding.mesh import make_mesh, rows_divisor, use_mesh
from mmrlhf_jax.tasks import open_training_examples, plan_training_rows, task_of, with_settled_objective
from mmrlhf_jax.training.base import load_base
from mmrlhf_jax.training.layout import say_overruled, with_accumulation
from mmrlhf_jax.training.state import Path, stored_dtype


@dataclasses.dataclass(frozen=True)
class Case:
    """A synthetic group: one prompt with so many images, and so many responses."""

    images: int
    responses: int


# The first is the project's reference case. An image is one tile: 729 tokens in the default family.
CASES = (Case(1, 4), Case(1, 3), Case(1, 5), Case(3, 3), Case(3, 4), Case(3, 5))


def shape_sizes(shape: str) -> ModelConfig:
    """The sizes that `--shape` names (`registry.bench_configs`). UserError, with the names that there are, for another name."""
    known = bench_configs()
    if shape not in known:
        raise UserError(f"--shape {shape!r}: choose {', '.join(known)}")
    return known[shape]


def shape_experiment(shape: str) -> config.Experiment:
    """MM-DPO with a cached reference, as in the published experiments; float32 for a small shape, else bfloat16."""
    dtype = "float32" if shape.rpartition("/")[2] == "small" else "bfloat16"
    return config.Experiment(
        model=config.Model(path=f"{shape} shape, random weights", dtype=dtype, frozen_dtype=dtype),
        data=config.Data(path="made up"),
        objective=config.Preference(),
        optimizer=config.Optimizer(mu_dtype=dtype),
        run=config.Run(directory="none"),
    )


def compare_cases(shape: str, cases: Sequence[Case], *, repeats: int) -> Iterator[dict[str, Any]]:
    """Yield the figures of each case, measured on one device. UserError for an unknown shape."""
    sizes, experiment = shape_sizes(shape), shape_experiment(shape)
    mesh = make_mesh({}, jax.devices()[:1])
    return (compare_case(sizes, experiment, case, mesh, repeats=repeats) for case in cases)


def compare_case(sizes: ModelConfig, experiment: config.Experiment, case: Case, mesh: Mesh, *, repeats: int) -> dict[str, Any]:
    """The figures (`bench.compare`) of one synthetic group in both layouts."""
    settings = experiment.model
    dtype_of = stored_dtype(family_of(sizes).parts, settings, experiment.trains, experiment.lora)
    made = synthetic_group(sizes, images=case.images, responses=case.responses)
    tokens = len(made[0].tree.visual)
    with use_mesh(mesh), matmul_precision(settings.dtype):
        model = random_model(sizes, dtype_of, remat=settings.remat, dtype=jnp.dtype(settings.dtype))
        layouts = (group_layout(exact_batch([made[0]], sizes.geometry)), pair_layout([made], sizes.geometry))
        title = f"{tokens} image tokens, {case.responses} responses"
        found = compare(model, experiment, layouts, mesh, repeats=repeats, title=title)
    return {"image_tokens": tokens, "responses": case.responses} | found


def random_model(sizes: ModelConfig, dtype_of: Callable[[Path], np.dtype], **options: Any) -> VisionLanguage:
    """A model with random weights. `dtype_of` gives the storage dtype of the parameter at a path. Initialised and cast in one
    program, so that no parameter is held twice."""

    @jax.jit
    def make() -> nnx.State:
        state = nnx.to_flat_state(nnx.state(family_of(sizes).model()(sizes, rngs=nnx.Rngs(0), **options)))
        return nnx.from_flat_state([(path, param.replace(param[...].astype(dtype_of(path)))) for path, param in state])

    graphdef = nnx.split(nnx.eval_shape(lambda: family_of(sizes).model()(sizes, rngs=nnx.Rngs(0), **options)))[0]
    return nnx.merge(graphdef, make())


def compare_experiment(experiment: config.Experiment, launch: config.Launch, *, repeats: int) -> dict[str, Any]:
    """The figures of an experiment's first batch in both layouts; the reference log-probs are made up.

    The accumulation pieces of the pair layout have as many slots as those of the group layout. UserError for an objective
    without pairs, and for one that looks at the whole batch.
    """
    task = task_of(experiment.objective)
    if not task.learns_pairs:
        raise UserError(f"bench compares layouts of pairs; objective {task.kind} has none")
    if (setting := experiment.objective.looks_at_batch) is not None:
        raise UserError(
            f"bench takes the pair layout in pieces, which {setting} excludes; set another objective.scaling.mode or other"
            " objective.losses"
        )
    mesh = make_mesh(launch.mesh.model_dump())
    say_overruled(experiment, launch, mesh.shape)
    experiment = with_accumulation(experiment, launch, mesh.shape)
    batch = experiment.batch
    with use_mesh(mesh), matmul_precision(experiment.model.dtype):
        tokenizer = load_tokenizer(local_directory(experiment.model.path))
        model = load_base(experiment, mesh)
        encoder = task.encoder(experiment.data, tokenizer, model.config)
        examples = open_training_examples(experiment.data, task)
        rows = plan_training_rows(examples, encoder, experiment.data, batch, task, seed=experiment.run.seed)
        experiment = with_settled_objective(experiment, rows)
        made = [[_encoded(rows, *group) for group in rows.limited_groups(t)] for t in range(min(batch.rows, rows.count(1)))]
        packed = [assemble_row([group for group, _ in row], rows.budget, encoder.geometry) for row in made]
        packed += [empty_row(rows.budget, encoder.geometry)] * (batch.rows - len(packed))
        group = group_layout(stack_rows(packed), batch.accumulation)
        settings = dict(pieces_of=group.batch.tokens.size // batch.accumulation, multiple=rows_divisor(mesh))
        pair = pair_layout([found for row in made for found in row], encoder.geometry, **settings)
        return compare(model, experiment, (group, pair), mesh, repeats=repeats, title=experiment.run.directory)


def _encoded(rows: Rows, number: int, limit: Limit) -> tuple[EncodedGroup, list[EncodedGroup]]:
    """(example encoded as a group, each of its responses encoded as a group of its own), with made-up reference log-probs.

    `limit` is what an over-budget policy has reduced the example to.
    """
    example = rows.examples[number]
    lone = [dataclasses.replace(example, record=example.record.replace_responses([r])) for r in example.record.responses]
    alone = [rows.encoder.encode(one, limit=limit) for one in lone]
    reference = np.asarray([-2.0 * len(one.tree.targets) for one in alone], np.float32)
    alone = [one._replace(reference_logps=reference[i : i + 1]) for i, one in enumerate(alone)]
    return rows.encoder.encode(example, limit=limit)._replace(reference_logps=reference), alone


def as_table(found: Sequence[dict[str, Any]]) -> str:
    """One line per comparison, for people."""
    head = (
        "image tokens",
        "responses",
        "pairs",
        "group s",
        "pair s",
        "ratio",
        "FLOP ratio",
        "reached",
        "group GiB",
        "pair GiB",
    )
    lines = ["".join(f"{name:>13}" for name in head)]
    for one in found:
        cells = [one.get("image_tokens", "-"), one.get("responses", "-"), one["pairs"]]
        cells += [f"{one[name]:.3g}" for name in ("group_seconds", "pair_seconds")]
        cells += [f"{one['ratio']:.2f}", f"{one['flop_ratio']:.2f}", f"{one['flop_ratio_reached']:.0%}"]
        cells += ["-" if one[name] is None else f"{one[name] / 2**30:.2f}" for name in ("group_peak_bytes", "pair_peak_bytes")]
        lines.append("".join(f"{cell:>13}" for cell in cells))
    return "\n".join(lines)
