"""Generation with a KV cache: prefill in one pass, then one token per step until every sequence has stopped."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Int, PRNGKeyArray

from mmrlhf_jax.models.attention import causal_visible_until
from mmrlhf_jax.models.llava_onevision.model import Visual
from mmrlhf_jax.models.qwen2 import KVCache


class _Decoding(NamedTuple):
    count: Int[Array, ""]  # tokens written so far
    tokens: Int[Array, "B N"]
    last: Int[Array, "B"]
    done: Bool[Array, "B"]
    cache: KVCache


@partial(jax.jit, static_argnames=("graphdef", "max_new_tokens", "stop_tokens", "temperature"))
def generate(
    graphdef: nnx.GraphDef,
    params: nnx.State,
    tokens: Int[Array, "B S"],
    lengths: Int[Array, "B"],
    visual: Visual | None,
    key: PRNGKeyArray,
    *,
    max_new_tokens: int,
    stop_tokens: tuple[int, ...],
    temperature: float = 0.0,
) -> Int[Array, "B N"]:
    """Continue right-padded prompts. Greedy at temperature 0, else sampled.

    Returns int32[B, max_new_tokens]: the new tokens, the stop token included; -1 after it.
    """
    model = nnx.merge(graphdef, params)
    batch, prompt = tokens.shape
    total = prompt + max_new_tokens

    def choose(hidden: jax.Array, step: jax.Array) -> jax.Array:
        logits = jnp.einsum("be,ev->bv", hidden, model.language.vocabulary(), preferred_element_type=jnp.float32)
        if temperature == 0:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        return jax.random.categorical(jax.random.fold_in(key, step), logits / temperature).astype(jnp.int32)

    def stops(last: jax.Array) -> jax.Array:
        return (last[:, None] == jnp.asarray(stop_tokens)).any(axis=1)

    # A prompt's padding slots hold keys of nothing: new tokens overwrite them in order, and `valid` ends at the newest.
    embedded = model.embed(tokens, visual)
    positions = jnp.broadcast_to(jnp.arange(prompt), tokens.shape)
    hidden, cache = model.language.prefill(embedded, positions, causal_visible_until(prompt, lengths))
    cache = jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, max_new_tokens), (0, 0), (0, 0))), cache)
    first = choose(jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0], jnp.int32(0))
    out = jnp.full((batch, max_new_tokens), -1, jnp.int32).at[:, 0].set(first)

    def step(state: _Decoding) -> _Decoding:
        slots = lengths + state.count - 1
        valid = jnp.arange(total)[None] <= slots[:, None]
        embedded = model.embed(state.last[:, None], None)
        hidden, cache = model.language.decode(embedded, slots[:, None], slots, valid, state.cache)
        new = jnp.where(state.done, -1, choose(hidden[:, 0], state.count))
        return _Decoding(
            count=state.count + 1,
            tokens=jax.lax.dynamic_update_index_in_dim(state.tokens, new, state.count, axis=1),
            last=jnp.maximum(new, 0),
            done=state.done | stops(new),
            cache=cache,
        )

    def unfinished(state: _Decoding) -> jax.Array:
        return (state.count < max_new_tokens) & ~state.done.all()

    start = _Decoding(jnp.int32(1), out, first, stops(first), cache)
    return jax.lax.while_loop(unfinished, step, start).tokens
