"""SigLIP: a vision tower. Reference: transformers `models/siglip/modeling_siglip.py` (no post-norm, no pooling head)."""

from __future__ import annotations

import dataclasses

import jax
from flax import nnx
from jaxtyping import Array, Float, UInt8

from mmrlhf_jax.models.attention import Backend, full_attention
from mmrlhf_jax.models.layers import ACTIVATIONS, layer_norm, linear, run_stack, stack
from mmrlhf_jax.models.lora import PatchEmbedding
from mmrlhf_jax.models.parameters import used
from mmrlhf_jax.models.pixels import patches
from mmrlhf_jax.models.tower_config import TileTower
from mmrlhf_jax.sharding.rules import constrain, partitioned


@dataclasses.dataclass(frozen=True)
class VisionConfig(TileTower):
    feature_layers: int = 0
    activation: str = "gelu_pytorch_tanh"
    image_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: tuple[float, ...] = (0.5, 0.5, 0.5)
    layer_norm_eps: float = 1e-6


class VisionAttention(nnx.Module):
    """Full self-attention over the patches of a tile."""

    def __init__(self, config: VisionConfig, *, dtype, param_dtype, rngs: nnx.Rngs):
        d = config.hidden_size
        kinds = dict(bias=True, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.q = linear(d, d, ("embed", "heads"), **kinds)
        self.k = linear(d, d, ("embed", "heads"), **kinds)
        self.v = linear(d, d, ("embed", "heads"), **kinds)
        self.o = linear(d, d, ("heads", "embed"), **kinds)
        self.heads = config.heads

    def __call__(self, x: Float[Array, "N P E"], backend: Backend) -> Float[Array, "N P E"]:
        q, k, v = (proj(x).reshape(*x.shape[:2], self.heads, -1) for proj in (self.q, self.k, self.v))
        q, k, v = (constrain(x, "tiles", None, "heads", None) for x in (q, k, v))
        return self.o(full_attention(q, k, v, backend=backend).reshape(x.shape))


class EncoderLayer(nnx.Module):
    """A pre-norm encoder layer: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: VisionConfig, *, dtype, param_dtype, rngs: nnx.Rngs):
        kinds = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.attention_norm = layer_norm(config.hidden_size, config.layer_norm_eps, **kinds)
        self.attention = VisionAttention(config, **kinds)
        self.mlp_norm = layer_norm(config.hidden_size, config.layer_norm_eps, **kinds)
        self.up = linear(config.hidden_size, config.intermediate_size, ("embed", "mlp"), bias=True, **kinds)
        self.down = linear(config.intermediate_size, config.hidden_size, ("mlp", "embed"), bias=True, **kinds)
        self.activation = config.activation

    def __call__(self, x, backend: Backend):
        x = x + self.attention(self.attention_norm(x), backend)
        hidden = constrain(self.up(self.mlp_norm(x)), "tiles", None, "act_mlp")
        return constrain(x + self.down(ACTIVATIONS[self.activation](hidden)), "tiles", None, None)


class Siglip(nnx.Module):
    """uint8 tiles to patch features."""

    def __init__(self, config: VisionConfig, *, dtype, param_dtype, remat: str, attention: Backend, rngs: nnx.Rngs):
        kinds = dict(dtype=dtype, param_dtype=param_dtype)
        self.config = config
        self.remat = remat
        self.attention_backend = attention
        pixels = 3 * config.patch_size**2
        self.patch = linear(pixels, config.hidden_size, ("patch", "embed"), bias=True, kind=PatchEmbedding, rngs=rngs, **kinds)
        self.positions = nnx.Embed(
            config.patches,
            config.hidden_size,
            embedding_init=partitioned(nnx.initializers.normal(config.hidden_size**-0.5), None, "embed"),
            rngs=rngs,
            **kinds,
        )
        self.layers = stack(lambda rngs: EncoderLayer(config, rngs=rngs, **kinds), config.layers, rngs)

    def __call__(self, tiles: UInt8[Array, "N H W 3"]) -> Float[Array, "N P E"]:
        """Hidden states of the feature layer (`feature_layers`), without post-norm."""
        x = self.patch(patches(tiles, self.config))
        x = (x + used(self.positions.embedding, x.dtype)).astype(x.dtype)
        layers = jax.tree.map(lambda p: p[: self.config.feature_layers], self.layers)
        x = constrain(x, "tiles", None, None)
        x, _ = run_stack(lambda layer, x: (layer(x, self.attention_backend), None), x, layers, remat=self.remat)
        return x
