"""Language-image alignment, LLaVA-OneVision's first stage: tower and projector learn to describe what a patch shows.

Afterwards visual tokens are near the embeddings of the words for what they show, as after SigLIP's image-text training and
LLaVA's projector stage. Here the words are known for every place of an image, so that seconds suffice. The language model's
embeddings are not trained.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Int, UInt8

from mmrlhf_jax.data.encode import media_tiles
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.models.llava_onevision.model import LlavaOnevision
from mmrlhf_jax.progress import Progress
from mmrlhf_jax.quickstart.scenes import COLOURS, PLACES, SHAPES, SIZES, objects_from_key

# The words that describe a patch, by attribute of its place.
ATTRIBUTES = (
    PLACES,
    ("nothing", *SIZES),
    ("nothing", *COLOURS),
    ("nothing", *SHAPES),
)
EPOCHS, BATCH, LEARNING_RATE, MATRIX_LEARNING_RATE = 10, 64, 3e-3, 0.02
NEARNESS = 0.5  # weight of the squared distance from the sum of the words' embeddings
SCALE = 10.0  # factor of the logits, with which a token as long as a word's embedding gives confident predictions


def align(model: LlavaOnevision, tokenizer, examples, seed: int) -> float:
    """Train `model.vision` and `model.projector` in place on the images of quickstart records.

    Returns the share of attributes that are predicted correctly in the last batches.
    """
    tiles, labels = whole_pictures(examples, model.config.geometry)
    words = [model.language.embedding.embedding[...][word_tokens(tokenizer, names)] for names in ATTRIBUTES]
    graphdef, params = nnx.split((model.vision, model.projector))
    steps = EPOCHS * len(tiles) // BATCH
    tx = optimizer(steps)

    def loss(params, tiles, labels):
        vision, projector = nnx.merge(graphdef, params)
        features = projector(vision(tiles))
        told_apart, rights = jnp.float32(0), []
        for i, embeddings in enumerate(words):
            logits = SCALE * features @ embeddings.T
            told_apart += optax.softmax_cross_entropy_with_integer_labels(logits, labels[..., i]).mean()
            rights.append((jnp.argmax(logits, axis=-1) == labels[..., i]).mean())
        # Classification alone would allow features with large components in other directions; this pulls them to the sum of
        # their words' embeddings.
        wanted = sum(embeddings[labels[..., i]] for i, embeddings in enumerate(words))
        return told_apart + NEARNESS * ((features - wanted) ** 2).sum(axis=-1).mean(), jnp.stack(rights).mean()

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, tiles, labels):
        params, opt_state = state
        (_, accuracy), grads = jax.value_and_grad(loss, has_aux=True)(params, tiles, labels)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), accuracy

    state, rng, progress = (params, tx.init(params)), np.random.default_rng(seed), Progress("alignment", steps)
    accuracies = []
    for _ in range(steps):
        batch = rng.integers(0, len(tiles), BATCH)
        state, accuracy = step(state, tiles[batch], labels[batch])
        accuracies.append(accuracy)
        progress.update()
    nnx.update((model.vision, model.projector), state[0])
    return float(np.mean(accuracies[-20:]))


def optimizer(steps: int) -> optax.GradientTransformation:
    """Muon for matrices (of single and of stacked layers), Adam for all other parameters."""

    def matrices(params):
        def dimensions(path, param):
            is_kernel = "kernel" in jax.tree_util.keystr(path)
            return optax.contrib.MuonDimensionNumbers(param.ndim - 2, param.ndim - 1) if is_kernel else None

        return jax.tree_util.tree_map_with_path(dimensions, params)

    matrix_rate, rate = (
        optax.warmup_cosine_decay_schedule(0.0, peak, steps // 20, steps) for peak in (MATRIX_LEARNING_RATE, LEARNING_RATE)
    )
    return optax.contrib.muon(matrix_rate, adam_learning_rate=rate, muon_weight_dimension_numbers=matrices)


def word_tokens(tokenizer, words) -> Int[np.ndarray, " N"]:
    """The token of every word as it occurs in a sentence, after a space. Raises UserError for a word of several tokens."""
    tokens = [tokenizer.encode(f" {word}", add_special_tokens=False) for word in words]
    for word, found in zip(words, tokens, strict=True):
        if len(found) != 1:
            raise UserError(f"quickstart tokenizer: {word!r} takes {len(found)} tokens, expected 1; train it on more text")
    return np.asarray(tokens)[:, 0]


def whole_pictures(examples, geometry) -> tuple[UInt8[Array, "N H W 3"], Int[Array, "N P 4"]]:
    """(the first tile, which is the whole image, of every distinct image; the attributes of the place of each patch)."""
    firsts = {record.images: i for i, record in reversed(list(enumerate(examples.records)))}
    numbers = sorted(firsts.values())
    tiles = np.stack([media_tiles(examples[i], geometry)[0] for i in numbers])
    side = geometry.patches_per_side
    half = np.arange(side) * 2 // side
    place = (2 * half[:, None] + half[None, :]).reshape(-1)
    return tiles, np.stack([attributes(examples.records[i].extra["scene"]) for i in numbers])[:, place]


def attributes(scene: str) -> Int[np.ndarray, "4 4"]:
    """Indices of words, per place in reading order and attribute, from a scene's key."""
    found = {place: ("nothing",) * 3 for place in PLACES}
    found |= {thing.place: (thing.size, thing.colour, thing.shape) for thing in objects_from_key(scene)}
    labels = [(place, *look) for place, look in found.items()]
    numbers = [[names.index(word) for names, word in zip(ATTRIBUTES, label, strict=True)] for label in labels]
    return np.asarray(numbers, np.int32)
