"""InternViT, a vision tower of 448-pixel tiles with a class token.

Reference: transformers `models/internvl/modeling_internvl.py` (`InternVLVisionModel`), OpenGVLab's `modeling_intern_vit.py`.

One config covers the 300M tower (layer norms, biases) and the 6B one (RMS norms, no biases on queries, keys and values, which
are normalised over the whole width).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, UInt8

from mmrlhf_jax.models.attention import Backend, full_attention
from mmrlhf_jax.models.layers import ACTIVATIONS, NORMS, linear, rms_norm, run_stack, stack
from mmrlhf_jax.models.lora import PatchEmbedding
from mmrlhf_jax.models.parameters import used, vector
from mmrlhf_jax.models.pixels import patches
from mmrlhf_jax.models.tower_config import TileTower
from mmrlhf_jax.sharding.rules import constrain, partitioned


@dataclasses.dataclass(frozen=True)
class InternVitConfig(TileTower):
    activation: str = "gelu"
    image_mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    image_std: tuple[float, ...] = (0.229, 0.224, 0.225)
    norm: str = "layer_norm"
    norm_eps: float = 1e-6
    attention_bias: bool = True  # bias of queries, keys and values; the output projection always has one
    qk_norm_eps: float | None = None  # epsilon of the RMS norm over all heads' queries or keys together; None: no norm


class VisionAttention(nnx.Module):
    """Full self-attention over the slots of a tile, with optional RMS norms of queries and keys."""

    def __init__(self, config: InternVitConfig, *, dtype, param_dtype, rngs: nnx.Rngs):
        d = config.hidden_size
        kinds = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.q = linear(d, d, ("embed", "heads"), bias=config.attention_bias, **kinds)
        self.k = linear(d, d, ("embed", "heads"), bias=config.attention_bias, **kinds)
        self.v = linear(d, d, ("embed", "heads"), bias=config.attention_bias, **kinds)
        self.o = linear(d, d, ("heads", "embed"), bias=True, **kinds)
        self.heads = config.heads
        self.normed = config.qk_norm_eps is not None
        if self.normed:
            self.q_norm = rms_norm(d, config.qk_norm_eps, **kinds)
            self.k_norm = rms_norm(d, config.qk_norm_eps, **kinds)

    def __call__(self, x: Float[Array, "N P E"], backend: Backend) -> Float[Array, "N P E"]:
        q, k, v = self.q(x), self.k(x), self.v(x)
        if self.normed:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (constrain(x.reshape(*x.shape[:2], self.heads, -1), "tiles", None, "heads", None) for x in (q, k, v))
        return self.o(full_attention(q, k, v, backend=backend).reshape(x.shape))


class EncoderLayer(nnx.Module):
    """A pre-norm layer; the outputs of attention and MLP are scaled per channel (LayerScale, arXiv 2103.17239)."""

    def __init__(self, config: InternVitConfig, *, dtype, param_dtype, rngs: nnx.Rngs):
        kinds = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        d, hidden, norm = config.hidden_size, config.intermediate_size, NORMS[config.norm]
        self.attention_norm = norm(d, config.norm_eps, **kinds)
        self.attention = VisionAttention(config, **kinds)
        self.attention_scale = channel_scale(d, param_dtype)
        self.mlp_norm = norm(d, config.norm_eps, **kinds)
        self.up = linear(d, hidden, ("embed", "mlp"), bias=True, **kinds)
        self.down = linear(hidden, d, ("mlp", "embed"), bias=True, **kinds)
        self.mlp_scale = channel_scale(d, param_dtype)
        self.activation = config.activation

    def __call__(self, x, backend: Backend):
        x = x + scaled(self.attention(self.attention_norm(x), backend), self.attention_scale)
        hidden = constrain(self.up(self.mlp_norm(x)), "tiles", None, "act_mlp")
        mlp = self.down(ACTIVATIONS[self.activation](hidden))
        return constrain(x + scaled(mlp, self.mlp_scale), "tiles", None, None)


def channel_scale(features: int, dtype) -> nnx.Param:
    return vector(jnp.full(features, 0.1, dtype))


def scaled(x: Float[Array, "N P E"], scale: nnx.Param) -> Float[Array, "N P E"]:
    return (x * used(scale, x.dtype)).astype(x.dtype)


class InternVit(nnx.Module):
    """uint8 tiles to patch features."""

    def __init__(self, config: InternVitConfig, *, dtype, param_dtype, remat: str, attention: Backend, rngs: nnx.Rngs):
        kinds = dict(dtype=dtype, param_dtype=param_dtype)
        d = config.hidden_size
        self.config = config
        self.remat = remat
        self.attention_backend = attention
        self.patch = linear(3 * config.patch_size**2, d, ("patch", "embed"), bias=True, kind=PatchEmbedding, rngs=rngs, **kinds)
        self.class_token = vector(nnx.initializers.normal(d**-0.5)(rngs.params(), (1, d), param_dtype))
        self.positions = nnx.Embed(
            1 + config.patches,
            d,
            embedding_init=partitioned(nnx.initializers.normal(d**-0.5), None, "embed"),
            rngs=rngs,
            **kinds,
        )
        self.layers = stack(lambda rngs: EncoderLayer(config, rngs=rngs, **kinds), config.layers, rngs)

    def __call__(self, tiles: UInt8[Array, "N H W 3"]) -> Float[Array, "N P E"]:
        """Hidden states of the patches after `feature_layers` layers; the class token, which is the first slot, is dropped."""
        x = self.patch(patches(tiles, self.config))
        class_token = jnp.broadcast_to(used(self.class_token, x.dtype), (x.shape[0], 1, x.shape[2])).astype(x.dtype)
        x = jnp.concatenate([class_token, x], axis=1)
        x = (x + used(self.positions.embedding, x.dtype)).astype(x.dtype)
        layers = jax.tree.map(lambda p: p[: self.config.feature_layers], self.layers)
        x = constrain(x, "tiles", None, None)
        x, _ = run_stack(lambda layer, x: (layer(x, self.attention_backend), None), x, layers, remat=self.remat)
        return x[:, 1:]
