"""Layers of the real models' sizes, lowered for the devices of a mesh that need not be here.

Few layers and words: layers are scanned, so their number changes no temporary of a layer.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from mmrlhf_jax.models.decoder import Decoder, TextConfig
from mmrlhf_jax.models.intern_vit import InternVit, InternVitConfig
from mmrlhf_jax.models.siglip import Siglip, VisionConfig
from mmrlhf_jax.sharding.mesh import batch_sharding

KERNELS = ("attention_forward", "attention_queries_gradient", "attention_keys_gradient")

# LLaVA-OneVision 7B's.
TEXT = TextConfig(
    vocab_size=1024,
    hidden_size=3584,
    intermediate_size=18944,
    layers=2,
    heads=28,
    kv_heads=4,
    head_dim=128,
    rope_theta=1e6,
    rms_norm_eps=1e-6,
    tied=True,
)
TOWER = VisionConfig(
    hidden_size=1152, intermediate_size=4304, layers=2, heads=16, image_size=384, patch_size=14, feature_layers=2
)
INTERN_VIT = InternVitConfig(
    hidden_size=1024, intermediate_size=4096, layers=2, heads=16, image_size=448, patch_size=14, feature_layers=2
)
KINDS = dict(dtype=jnp.bfloat16, param_dtype=jnp.bfloat16, remat="full")


def lower_language(mesh, slots: int, backend: str):
    """Gradients of all layers' parameters for one row per batch shard."""
    abstract = nnx.eval_shape(lambda: Decoder(TEXT, attention=backend, rngs=nnx.Rngs(0), **KINDS))
    graph, params = sharded(abstract, mesh)
    rows = mesh.shape["data"] * mesh.shape["fsdp"]
    tokens, positions, until = (
        jax.ShapeDtypeStruct((rows, slots), jnp.int32, sharding=batch_sharding(mesh, 2)) for _ in range(3)
    )

    def loss(params, tokens, positions, until):
        model = nnx.merge(graph, params)
        return jnp.square(model(model.embed(tokens), positions, until).astype(jnp.float32)).mean()

    return jax.jit(jax.grad(loss)).lower(params, tokens, positions, until), (params, tokens, positions, until)


def lower_tower(mesh, tiles: int, backend: str):
    """Features of `tiles` tiles per batch shard from a frozen tower."""
    graph, params = sharded(nnx.eval_shape(lambda: Siglip(TOWER, attention=backend, rngs=nnx.Rngs(0), **KINDS)), mesh)
    rows = mesh.shape["data"] * mesh.shape["fsdp"]
    images = jax.ShapeDtypeStruct((rows * tiles, 384, 384, 3), jnp.uint8, sharding=batch_sharding(mesh, 4))
    return jax.jit(lambda params, images: nnx.merge(graph, params)(images)).lower(params, images), (params, images)


def lower_trained_tower(mesh, tiles: int, backend: str):
    """Gradients of an InternViT of 300M parameters' width, whose tiles have 1025 slots, for `tiles` tiles per batch shard."""
    graph, params = sharded(nnx.eval_shape(lambda: InternVit(INTERN_VIT, attention=backend, rngs=nnx.Rngs(0), **KINDS)), mesh)
    rows = mesh.shape["data"] * mesh.shape["fsdp"]
    images = jax.ShapeDtypeStruct((rows * tiles, 448, 448, 3), jnp.uint8, sharding=batch_sharding(mesh, 4))

    def loss(params, images):
        return jnp.square(nnx.merge(graph, params)(images).astype(jnp.float32)).mean()

    return jax.jit(jax.grad(loss)).lower(params, images), (params, images)


def sharded(module, mesh):
    graph, state = nnx.split(module)
    shardings = nnx.get_named_sharding(state, mesh)
    return graph, jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings)


PARTS = {"language": lower_language, "tower": lower_tower, "trained tower": lower_trained_tower}
