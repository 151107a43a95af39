"""The quickstart's vision tower learns to see before it meets a language model, as SigLIP did before LLaVA-OneVision.

SigLIP learnt from image-text pairs; here the whole-picture tile's patches are asked what is in their place, which takes
seconds. The classifier on top is thrown away.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from mmrlhf_jax.data.encode import media_tiles
from mmrlhf_jax.models.llava_onevision.model import LlavaOnevision
from mmrlhf_jax.progress import Progress
from mmrlhf_jax.quickstart.scenes import COLOURS, PLACES, SHAPES, SIZES

# Classes per attribute of a place: whether something is there, then what. The last three count only where something is.
ATTRIBUTES = (("nothing", "a"), tuple(SIZES), tuple(COLOURS), tuple(SHAPES))
EPOCHS, BATCH, LEARNING_RATE = 12, 64, 3e-3


def train_tower(model: LlavaOnevision, examples, seed: int) -> float:
    """Train `model.vision` in place on the pictures of quickstart records; returns the share of attributes it has right."""
    tiles, labels = whole_pictures(examples, model.config.geometry)
    graphdef, params = nnx.split(model.vision)
    classes = sum(map(len, ATTRIBUTES))
    head = jax.random.normal(jax.random.key(seed), (model.config.vision.hidden_size, classes)) * 0.1
    steps = EPOCHS * len(tiles) // BATCH
    tx = optax.adamw(optax.warmup_cosine_decay_schedule(0.0, LEARNING_RATE, steps // 20, steps), b2=0.98)

    def loss(trained, tiles, labels):
        logits = split_attributes(nnx.merge(graphdef, trained[0])(tiles) @ trained[1])
        losses = [optax.softmax_cross_entropy_with_integer_labels(z, labels[..., i]) for i, z in enumerate(logits)]
        there = labels[..., 0]
        right = [jnp.argmax(z, axis=-1) == labels[..., i] for i, z in enumerate(logits)]
        accuracy = sum((r * there).sum() for r in right[1:]) / (3 * there.sum())
        return (losses[0] + there * sum(losses[1:])).mean(), accuracy

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, tiles, labels):
        trained, opt_state = state
        (_, accuracy), grads = jax.value_and_grad(loss, has_aux=True)(trained, tiles, labels)
        updates, opt_state = tx.update(grads, opt_state, trained)
        return (optax.apply_updates(trained, updates), opt_state), accuracy

    trained = (params, head)
    state, rng, progress = (trained, tx.init(trained)), np.random.default_rng(seed), Progress("vision tower", steps)
    accuracies = []
    for _ in range(steps):
        batch = rng.integers(0, len(tiles), BATCH)
        state, accuracy = step(state, tiles[batch], labels[batch])
        accuracies.append(accuracy)
        progress.update()
    nnx.update(model.vision, state[0][0])
    return float(np.mean(accuracies[-20:]))


def whole_pictures(examples, geometry) -> tuple[UInt8[Array, "N H W 3"], Int[Array, "N P 4"]]:
    """The first tile (the whole picture) of every distinct picture, and the attributes of the place each patch lies in."""
    firsts = {record.images: i for i, record in reversed(list(enumerate(examples.records)))}
    numbers = sorted(firsts.values())
    tiles = np.stack([media_tiles(examples[i], geometry)[0] for i in numbers])
    side = geometry.patches_per_side
    half = np.arange(side) * 2 // side
    place = (2 * half[:, None] + half[None, :]).reshape(-1)
    return tiles, np.stack([attributes(examples.records[i].extra["scene"]) for i in numbers])[:, place]


def attributes(scene: str) -> Int[np.ndarray, "4 4"]:
    """Class numbers per place, in reading order, from a scene's key."""
    found = np.zeros((len(PLACES), len(ATTRIBUTES)), np.int32)
    for phrase in scene.split("; "):
        *place, _, size, colour, shape = phrase.split()
        kinds = zip(ATTRIBUTES[1:], (size, colour, shape), strict=True)
        found[PLACES.index(" ".join(place))] = [1, *(names.index(name) for names, name in kinds)]
    return found


def split_attributes(logits: Float[Array, "N P C"]) -> list[Float[Array, "N P c"]]:
    ends = np.cumsum([len(names) for names in ATTRIBUTES])
    return jnp.split(logits, ends[:-1], axis=-1)
