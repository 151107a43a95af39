"""The decoder-only language model of all families: Qwen2 or Qwen3.

Reference: transformers `models/qwen2/modeling_qwen2.py`, `models/qwen3/modeling_qwen3.py`; for `add_features`,
`models/qwen3_vl/modeling_qwen3_vl.py` (`_deepstack_process`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from mmrlhf_jax.models import parameters
from mmrlhf_jax.models.attention import Backend, attention
from mmrlhf_jax.models.layers import linear, rms_norm, run_stack, stack
from mmrlhf_jax.sharding.rules import constrain, partitioned


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Sizes of the language model.

    `rope_axes`: for positions with three axes, the axis that rotates each of the head_dim / 2 pairs of dimensions.
    `qk_norm`: every head's queries and keys have an RMS norm. `deepstack`: the number of layers behind which features of the
    media are added to the hidden states (`add_features`).
    `max_positions`: the number of positions up to which the rotary embeddings are plain (beyond it transformers' `dynamic`
    scaling changes them); None: any number. `data.encode` and `Engine.generate_tokens` refuse longer conversations.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    rope_theta: float
    rms_norm_eps: float
    tied: bool
    attention_bias: bool = True
    rope_axes: tuple[int, ...] | None = None
    max_positions: int | None = None
    qk_norm: bool = False
    deepstack: int = 0


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The projection from hidden states to logits: `hidden @ kernel`, plus `hidden @ A @ B` with an adapter (A includes the
    factor alpha / rank).

    The adapter is not merged into the kernel, because in bfloat16 rounding could remove its update.
    """

    kernel: Float[Array, "E V"]
    adapter: tuple[Float[Array, "E R"], Float[Array, "R V"]] | None = None

    def __rmatmul__(self, hidden: Float[Array, "... E"]) -> Float[Array, "... V"]:
        """Logits in float32 of all hidden states at once, for a small number of them; `objectives.logprobs` computes in
        chunks."""
        kernel, *adapter = (w.astype(hidden.dtype) for w in (self.kernel, *(self.adapter or ())))
        logits = jnp.matmul(hidden, kernel, preferred_element_type=jnp.float32)
        if not adapter:
            return logits
        a, b = adapter
        return logits + jnp.matmul(hidden @ a, b, preferred_element_type=jnp.float32)


def rope_frequencies(head_dim: int, theta: float) -> Float[np.ndarray, "D/2"]:
    """Radians per position of every pair of dimensions, float32, with transformers' rounding (after the power and the
    quotient).

    At position 7000, an error of one unit in the last place of a frequency rotates a pair by up to 5e-4 radians, which is
    visible in the logits. So frequencies are computed on the host and not by an accelerator's less accurate power function.
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    return np.float32(1) / (np.float64(theta) ** exponents.astype(np.float64)).astype(np.float32)


def rope(
    positions: Int[Array, "B S"] | Int[Array, "B S 3"], config: TextConfig
) -> tuple[Float[Array, "B S 1 D/2"], Float[Array, "B S 1 D/2"]]:
    """Cosines and sines of rotary embeddings, float32, one per pair of dimensions.

    For positions with three axes, every pair uses the axis in `config.rope_axes`.
    """
    along = positions[..., None] if positions.ndim == 2 else positions[..., np.asarray(config.rope_axes)]
    angles = (along.astype(jnp.float32) * rope_frequencies(config.head_dim, config.rope_theta))[:, :, None]
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: Float[Array, "B S H D"], cos_sin) -> Float[Array, "B S H D"]:
    """Rotate dimension i against dimension i + D/2 (transformers' half-split layout)."""
    cos, sin = (a.astype(x.dtype) for a in cos_sin)
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


class SelfAttention(nnx.Module):
    """Grouped-query self-attention with rotary position embeddings."""

    def __init__(self, config: TextConfig, *, dtype, param_dtype, rngs: nnx.Rngs):
        d, hd = config.hidden_size, config.head_dim
        kinds = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.q = linear(d, config.heads * hd, ("embed", "heads"), bias=config.attention_bias, **kinds)
        self.k = linear(d, config.kv_heads * hd, ("embed", "heads"), bias=config.attention_bias, **kinds)
        self.v = linear(d, config.kv_heads * hd, ("embed", "heads"), bias=config.attention_bias, **kinds)
        self.o = linear(config.heads * hd, d, ("heads", "embed"), bias=False, **kinds)
        self.head_dim, self.normed = hd, config.qk_norm
        if self.normed:
            self.q_norm = rms_norm(hd, config.rms_norm_eps, **kinds)
            self.k_norm = rms_norm(hd, config.rms_norm_eps, **kinds)

    def __call__(self, x: Float[Array, "B S E"], cos_sin, attend: Callable):
        """`attend(q, k, v) -> (out, kept)` computes the attention; `kept` is returned as well (for a KV cache)."""
        batch, length, _ = x.shape
        q, k, v = (proj(x).reshape(batch, length, -1, self.head_dim) for proj in (self.q, self.k, self.v))
        # Constrained by slots before the resharding by heads, so that the gradients return to slots before the projections.
        q, k, v = (constrain(x, "batch", "slots", "heads", None) for x in (q, k, v))
        if self.normed:
            q, k = self.q_norm(q), self.k_norm(k)
        # Attention needs all slots of a row: reshard from slots to heads, and back afterwards.
        q, k, v = (constrain(x, "batch", None, "act_heads", None) for x in (rotate(q, cos_sin), rotate(k, cos_sin), v))
        out, kept = attend(q, k, v)
        out = constrain(constrain(out, "batch", None, "act_heads", None), "batch", "slots", "heads", None)
        return self.o(out.reshape(batch, length, -1)), kept


class SwiGLU(nnx.Module):
    """The MLP: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: TextConfig, *, dtype, param_dtype, rngs: nnx.Rngs):
        d, hidden = config.hidden_size, config.intermediate_size
        kinds = dict(bias=False, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.gate = linear(d, hidden, ("embed", "mlp"), **kinds)
        self.up = linear(d, hidden, ("embed", "mlp"), **kinds)
        self.down = linear(hidden, d, ("mlp", "embed"), **kinds)

    def __call__(self, x):
        return self.down(constrain(jax.nn.silu(self.gate(x)) * self.up(x), "batch", "slots", "act_mlp"))


class DecoderLayer(nnx.Module):
    """A pre-norm decoder layer: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: TextConfig, *, dtype, param_dtype, rngs: nnx.Rngs):
        kinds = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.attention_norm = rms_norm(config.hidden_size, config.rms_norm_eps, **kinds)
        self.attention = SelfAttention(config, **kinds)
        self.mlp_norm = rms_norm(config.hidden_size, config.rms_norm_eps, **kinds)
        self.mlp = SwiGLU(config, **kinds)

    def __call__(self, x, cos_sin, attend):
        out, kept = self.attention(self.attention_norm(x), cos_sin, attend)
        x = x + out
        return constrain(x + self.mlp(self.mlp_norm(x)), "batch", "slots", None), kept


class Decoder(nnx.Module):
    """Embedding, decoder layers, final norm, and the vocabulary projection (tied to the embedding or not)."""

    def __init__(self, config: TextConfig, *, dtype, param_dtype, remat: str, attention: Backend, rngs: nnx.Rngs):
        kinds = dict(dtype=dtype, param_dtype=param_dtype)
        self.config = config
        self.remat = remat
        self.attention_backend = attention
        self.embedding = nnx.Embed(
            config.vocab_size,
            config.hidden_size,
            embedding_init=partitioned(nnx.initializers.normal(config.hidden_size**-0.5), "vocab", "embed"),
            rngs=rngs,
            **kinds,
        )
        self.layers = stack(lambda rngs: DecoderLayer(config, rngs=rngs, **kinds), config.layers, rngs)
        self.norm = rms_norm(config.hidden_size, config.rms_norm_eps, rngs=rngs, **kinds)
        if not config.tied:
            self.head = linear(config.hidden_size, config.vocab_size, ("embed", "vocab"), bias=False, rngs=rngs, **kinds)

    def vocabulary(self) -> Vocabulary:
        """The projection from hidden states to logits, as stored (sharded), with its adapter."""
        if self.config.tied:
            return Vocabulary(self.embedding.embedding[...].T)
        if not self.head.adapted:
            return Vocabulary(self.head.kernel[...])
        a = parameters.used(self.head.lora_a, None) * self.head.lora_scale
        return Vocabulary(self.head.kernel[...], (a, self.head.lora_b[...]))

    def embed(self, tokens: Int[Array, "B S"]) -> Float[Array, "B S E"]:
        return parameters.look_up(self.embedding.embedding, tokens, self.embedding.dtype)

    def __call__(
        self,
        x: Float[Array, "B S E"],
        positions: Int[Array, "B S"],
        visible_until: Int[Array, "B S"],
        deep: Float[Array, "L B S E"] | None = None,
    ) -> Float[Array, "B S E"]:
        """Embeddings to hidden states after the final norm. `deep[i]` is added behind layer i."""

        def attend(q, k, v):
            return attention(q, k, v, visible_until, backend=self.attention_backend), None

        cos_sin = rope(positions, self.config)
        if deep is None:
            x, _ = run_stack(lambda layer, x: layer(x, cos_sin, attend), x, self.layers, remat=self.remat)
            return self.norm(x)

        def with_features(numbered, x):
            number, layer = numbered
            x, kept = layer(x, cos_sin, attend)
            return add_features(x, number, deep), kept

        numbered = jnp.arange(self.config.layers), self.layers
        x, _ = run_stack(with_features, x, numbered, remat=self.remat)
        return self.norm(x)

    def extend(
        self,
        x: Float[Array, "B S E"],
        positions: Int[Array, "B S"],
        layers: Sequence[DecoderLayer],
        attend: Callable[[int, jax.Array, jax.Array, jax.Array], jax.Array],
        deep: Sequence[Float[Array, "B S E"]] = (),
    ) -> Float[Array, "B S E"]:
        """Embeddings to hidden states after the final norm, where `attend(layer number, q, k, v) -> out` keeps and reads keys.
        `deep[i]` is added behind layer i.

        `layers` are those of this decoder, as modules of their own (`unstacked`): slicing stacked weights would copy them for
        every token.
        """
        cos_sin = rope(positions, self.config)
        for number, layer in enumerate(layers):
            x, _ = layer(x, cos_sin, lambda q, k, v, number=number: (attend(number, q, k, v), None))
            if number < len(deep):
                x = x + deep[number]
        return self.norm(x)


def add_features(x: Float[Array, "B S E"], number: Int[Array, ""], deep: Float[Array, "L B S E"]) -> Float[Array, "B S E"]:
    """`x`, the hidden states behind layer `number`, with that layer's features if it has any.

    They are added in every layer, as zeros in most, and slot by slot, so that no layer has a condition or moves values between
    shards of the slots.
    """
    features = jax.lax.dynamic_index_in_dim(deep, jnp.minimum(number, len(deep) - 1), keepdims=False)
    return constrain(x + jnp.where(number < len(deep), features, 0).astype(x.dtype), "batch", "slots", None)
