"""Ranking groups in both layouts on a tiny model, and one train step on them that gives its gradients away.

The pair-expanded layout is what everybody else uses: per pair one row with two conversations that share nothing, its prompt and
media there twice.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tokenizers import AddedToken

from mmrlhf_jax import config
from mmrlhf_jax.data.encode import GroupEncoder
from mmrlhf_jax.data.examples import Example
from mmrlhf_jax.data.mixture import open_examples
from mmrlhf_jax.data.rows import Budget, assemble_row, empty_row, group_size, stack_rows
from mmrlhf_jax.data.templates import CRITIQUE_PROMPT, SYSTEM
from mmrlhf_jax.data.tokens import PieceTokenizer
from mmrlhf_jax.huggingface.load import load_model
from mmrlhf_jax.models.lora import adapted_layers
from mmrlhf_jax.quickstart.tokenizer import train_tokenizer
from mmrlhf_jax.sharding.feed import place
from mmrlhf_jax.sharding.mesh import make_mesh, use_mesh
from mmrlhf_jax.tasks import task_of
from mmrlhf_jax.training.guard import guarded
from mmrlhf_jax.training.state import init_state, split_model, with_adapters
from mmrlhf_jax.training.step import make_train_step
from tests import ranked
from tests.families import FAMILIES
from tests.prompts import every_frame

# Two to six responses, with and without ties.
RANKS = [(1, 2), (1, 1, 2), (1, 2, 3, 4), (1, 2, 2, 3, 4), (1, 2, 3, 3, 4, 5), (1, 2, 3)]
# Text only; one picture, square, wide and tall; two pictures; and the last group's pictures become a video.
IMAGES = [[], [(30, 30)], [(75, 40)], [(33, 90)], [(30, 30), (50, 20)], [(30, 30)] * 3]

OBJECTIVES: dict[str, config.Preference | config.RewardModel] = {
    "mm-dpo": config.Preference(),
    "mpo": config.Preference(losses={"sigmoid": 0.8, "bco_pair": 0.2, "sft": 1.0}, scaling=config.Scaling(mode="fixed")),
    "reward model": config.RewardModel(centring=0.01),
    "beta-dpo": config.Preference(scaling=config.Scaling(mode="beta_dpo", w=0.6)),
    "beta-dpo, filtered": config.Preference(scaling=config.Scaling(mode="beta_dpo", w=0.6, filtered=0.2)),
    "implicit": config.Preference(scaling=config.Scaling(mode="batch_implicit")),
}
LORA = config.Lora(parts=("language_model", "projector"), rank=4, alpha=8)

# One token per common word, so that rows stay short.
TOKENIZER = train_tokenizer([CRITIQUE_PROMPT, f"system\n{SYSTEM}", " ".join(ranked.WORDS), *ranked.WORDS] * 9, 640)


# With the media tokens of every family behind it.
MEDIA_TOKENS = [
    AddedToken(token, special=True)
    for token in ("<img>", "</img>", "<IMG_CONTEXT>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
]
WITH_MEDIA_TOKENS = copy.deepcopy(TOKENIZER)
WITH_MEDIA_TOKENS.add_tokens(MEDIA_TOKENS, special_tokens=True)


def checkpoint(directory, family: str = "llava_onevision"):
    text = {"vocab_size": len(WITH_MEDIA_TOKENS)}
    raw = FAMILIES[family].config(text=text, **FAMILIES[family].media_ids(WITH_MEDIA_TOKENS))
    return FAMILIES[family].checkpoint(directory, raw, reward_head=True)


def examples(directory, *, video: bool = True) -> list[Example]:
    """Groups of every modality; one response has no critique. Without `video` the last group keeps its three pictures."""
    source = open_examples(ranked.write(directory, RANKS, IMAGES))
    found = [source[i] for i in range(len(source))]
    if video:
        last = found[-1]
        record = dataclasses.replace(last.record, images=(), video="frames")
        found[-1] = Example(record, frames=last.images, video=every_frame(len(last.images), rate=1.5))
    third = found[2].record
    uncriticised = [dataclasses.replace(r, critique=None) if i == 1 else r for i, r in enumerate(third.responses)]
    found[2] = dataclasses.replace(found[2], record=third.replace_responses(uncriticised))
    return found


def encoder(model, task: str) -> GroupEncoder:
    axes = model.config.geometry.position_axes
    pieces = PieceTokenizer(WITH_MEDIA_TOKENS, model.config.image_token, position_axes=axes)
    return GroupEncoder(pieces, model.config.geometry, "qwen_1_5", task=task)


def with_reference(group, number: int):
    """A made-up reference log-prob per response: the same in either layout."""
    values = np.asarray([-20.0 - 3 * ((number + i) % 5) for i in range(len(group.rewards))], np.float32)
    return group._replace(reference_logps=values)


def alone(example: Example, response: int) -> Example:
    record = example.record
    return dataclasses.replace(example, record=record.replace_responses([record.responses[response]]))


def budget(groups_per_row) -> Budget:
    sizes = np.max([sum(group_size(g) for g in groups) for groups in groups_per_row], axis=0)
    return Budget(*(int(s) + 3 for s in sizes))  # some of everything stays unused


def batch(groups_per_row, model, rows: int = 0):
    """`rows`: at least so many, the last of them empty."""
    limits = budget(groups_per_row)
    made = [assemble_row(groups, limits, model.config.geometry) for groups in groups_per_row]
    return stack_rows(made + [empty_row(limits, model.config.geometry)] * (rows - len(made)))


def first_response(group: int) -> int:
    """The number of a group's first response, the same in either layout."""
    return 8 * group


def packed(model, examples, task: str, *, per_row: int = 2, rows: int = 0):
    """Rows of `per_row` whole groups."""
    encoded = [encoder(model, task).encode(example, first_response(i)) for i, example in enumerate(examples)]
    groups = [with_reference(group, i) for i, group in enumerate(encoded)]
    return batch([groups[i : i + per_row] for i in range(0, len(groups), per_row)], model, rows)


def pair_expanded(model, examples, task: str):
    made = []
    for number, example in enumerate(examples):
        shared = with_reference(encoder(model, task).encode(example), number)
        for pair in example.record.pairs():
            sides = [encoder(model, task).encode(alone(example, r), first_response(number) + r) for r in pair]
            references = [shared.reference_logps[r : r + 1] for r in pair]
            made.append([side._replace(reference_logps=x) for side, x in zip(sides, references, strict=True)])
    limits = dataclasses.replace(budget(made), pairs=1)
    rows = [assemble_row(sides, limits, model.config.geometry) for sides in made]
    for row in rows:
        row.pairs[0], row.pair_weights[0] = (0, 1), 1.0
    return stack_rows(rows)


def load(directory, devices: int, lora: config.Lora | None = None, axes: Mapping[str, int] | None = None):
    """(mesh, model) on the first `devices` devices; rows are sharded over two axes where there are several.

    `axes`: the sizes of another mesh. The adapters' B is not zero, so that gradients reach A.
    """
    mesh = make_mesh(axes or {"data": 2 if devices > 1 else 1, "fsdp": -1}, jax.devices()[:devices])
    with use_mesh(mesh):
        model = with_adapters(load_model(directory, mesh=mesh, remat="none"), lora, seed=0)
    for _, layer in adapted_layers(model):
        b = layer.lora_b[...]
        layer.lora_b[...] = b + 0.02 * np.cos(np.arange(b.size, dtype=np.float32)).reshape(b.shape)
    return mesh, model


# An optimizer whose state is the gradient that it was given.
KEEP_GRADIENT = optax.GradientTransformation(
    lambda params: jax.tree.map(jnp.zeros_like, params), lambda grads, state, params=None: (grads, grads)
)


def step(mesh, model, objective, rows, *, accumulation: int = 1, lora: config.Lora | None = None):
    """One train step from scratch: (figures, gradients), as NumPy arrays. Everything learns, or the adapters of `lora` do."""
    trains = config.Trains(vision_tower=lora is None)
    with use_mesh(mesh):
        graphdef, *parts = split_model(model, trains, lora)
        params, frozen = jax.tree.map(lambda x: x.copy(), parts)  # the step gives its state away
        tx, task = guarded(KEEP_GRADIENT, config.Guard()), task_of(objective)
        state = init_state(params, frozen, tx, mesh, statistics=task.statistics)
        run = make_train_step(graphdef, task, tx, chunk=16, accumulation=accumulation)
        state, figures = run(state, place(rows, mesh))
    return jax.tree.map(np.asarray, (figures, state.opt_state.inner))


def assert_same_step(actual, expected):
    """Figures to 1e-5 relative; every leaf of the gradient within 1e-5 of its own largest entry.

    Key biases of a tower without rotary embeddings shift all scores of a query alike, so their true gradient is 0: there both
    must be rounding noise. Towers with rotary embeddings have no learnt positions, or those in a module of their own (`table`).
    """
    (figures, gradients), (expected_figures, expected_gradients) = actual, expected
    assert figures.keys() == expected_figures.keys()
    for name, value in figures.items():
        np.testing.assert_allclose(value, expected_figures[name], rtol=1e-5, atol=1e-6, err_msg=name)
    learnt_positions = "positions" in expected_gradients.get("vision", {})
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected_gradients))
    leaves = [jax.tree_util.tree_leaves_with_path(x) for x in (gradients, expected_gradients)]
    for (path, a), (_, b) in zip(*leaves, strict=True):
        name, difference, scale = jax.tree_util.keystr(path), np.abs(a - b).max(), np.abs(b).max()
        if "['vision']['layers']['attention']['k']['bias']" in name and learnt_positions:
            assert max(np.abs(a).max(), scale) <= 1e-7 * largest, name
        else:
            assert difference <= 1e-5 * scale, (name, difference / scale)
