"""Generation with a KV cache: a prefill of trees of prompts, then one token per prompt and step until all have stopped.

A row is a tree: a trunk (media, question) and K branches that continue it, with the attention mask `visible_until`. Trunk and
vision tower are computed once per row. All branches share the row's cache; the new tokens of a branch attend to the same cache
slots as the last token of its prompt.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Int, PRNGKeyArray

from mmrlhf_jax.models.decoder import KVCache
from mmrlhf_jax.models.media import Tiles


class PromptRows(NamedTuple):
    """B trees of K prompts in S slots. `ends[b, k]` is the slot of prompt k's last token."""

    tokens: Int[Array, "B S"]
    positions: Int[Array, "B S"] | Int[Array, "B S 3"]
    visible_until: Int[Array, "B S"]
    ends: Int[Array, "B K"]


class _Decoding(NamedTuple):
    count: Int[Array, ""]  # tokens generated so far
    tokens: Int[Array, "B K N"]
    last: Int[Array, "B K"]
    done: Bool[Array, "B K"]
    cache: KVCache


@partial(jax.jit, static_argnames=("graphdef", "max_new_tokens", "stop_tokens", "temperature"))
def generate(
    graphdef: nnx.GraphDef,
    params: nnx.State,
    rows: PromptRows,
    media: Tiles | None,
    key: PRNGKeyArray,
    *,
    max_new_tokens: int,
    stop_tokens: tuple[int, ...],
    temperature: float = 0.0,
) -> Int[Array, "B K N"]:
    """Continue every prompt: greedily at temperature 0, else by sampling.

    Returns int32[B, K, max_new_tokens]: the new tokens, including the stop token, and -1 after it.
    """
    model = nnx.merge(graphdef, params)
    batch, prompt = rows.tokens.shape
    branches = rows.ends.shape[1]

    choose = partial(_choose, model, key, temperature)
    stops = partial(_stops, stop_tokens)

    hidden, cache = model.language.prefill(model.embed(rows.tokens, media), rows.positions, rows.visible_until)
    cache = _with_room(cache, branches * max_new_tokens)  # after the prompts' slots, `max_new_tokens` for each branch
    first = choose(jnp.take_along_axis(hidden, rows.ends[..., None], axis=1), jnp.int32(0))
    out = jnp.full((batch, branches, max_new_tokens), -1, jnp.int32).at[..., 0].set(first)

    of_prompt = _prompt_slots(rows)
    starts = prompt + jnp.arange(branches) * max_new_tokens
    new_slots = prompt + jnp.arange(branches * max_new_tokens)
    end_positions = _end_positions(rows)

    def step(state: _Decoding) -> _Decoding:
        slots = jnp.broadcast_to(starts + state.count - 1, (batch, branches))
        written = (starts[:, None] <= new_slots) & (new_slots < (starts + state.count)[:, None])
        valid = jnp.concatenate([of_prompt, jnp.broadcast_to(written, (batch, *written.shape))], axis=-1)
        embedded = model.embed(state.last, None)
        hidden, cache = model.language.decode(embedded, end_positions + state.count, slots, valid, state.cache)
        new = jnp.where(state.done, -1, choose(hidden, state.count))
        return _Decoding(
            count=state.count + 1,
            tokens=jax.lax.dynamic_update_index_in_dim(state.tokens, new, state.count, axis=2),
            last=jnp.maximum(new, 0),
            done=state.done | stops(new),
            cache=cache,
        )

    def unfinished(state: _Decoding) -> jax.Array:
        return (state.count < max_new_tokens) & ~state.done.all()

    start = _Decoding(jnp.int32(1), out, first, stops(first), cache)
    return jax.lax.while_loop(unfinished, step, start).tokens


def _choose(model, key: PRNGKeyArray, temperature: float, hidden: jax.Array, step: jax.Array) -> jax.Array:
    """The next tokens after these hidden states: the likeliest at temperature 0, else samples."""
    logits = hidden @ model.language.vocabulary()
    if temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return jax.random.categorical(jax.random.fold_in(key, step), logits / temperature).astype(jnp.int32)


def _with_room(cache: KVCache, slots: int) -> KVCache:
    """The cache with this many empty slots behind its own."""
    return jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, slots), (0, 0), (0, 0))), cache)


def _prompt_slots(rows: PromptRows) -> Bool[Array, "B K S"]:
    """Whether a slot of the row belongs to the prompt that each branch continues."""
    slots = jnp.arange(rows.tokens.shape[1])
    return (slots <= rows.ends[..., None]) & (rows.ends[..., None] < rows.visible_until[:, None])


def _stops(stop_tokens: tuple[int, ...], last: jax.Array) -> jax.Array:
    return (last[..., None] == jnp.asarray(stop_tokens)).any(axis=-1)


def _end_positions(rows: PromptRows) -> Int[Array, "B K"]:
    """The position of every prompt's last token. Generated text continues after it; it has the same position on all axes, so
    the largest of the last token's axes counts."""
    latest = rows.positions if rows.positions.ndim == 2 else rows.positions.max(axis=-1)
    return jnp.take_along_axis(latest, rows.ends, axis=1)
