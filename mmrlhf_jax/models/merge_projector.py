"""The projector that merges blocks of m × m patches into one visual token each: a pixel unshuffle, a norm and an MLP.

Reference: transformers `models/internvl/modeling_internvl.py` (`pixel_shuffle`, `InternVLMultiModalProjector`).
"""

from __future__ import annotations

from flax import nnx
from jaxtyping import Array, Float

from mmrlhf_jax.models.layers import ACTIVATIONS, layer_norm, linear

EPS = 1e-5  # epsilon of the norm: torch's default, because configs do not contain it


def merge_patches(x: Float[Array, "N P E"], side: int, merge: int) -> Float[Array, "N P/m² m²E"]:
    """Concatenate the features of every block of `merge` × `merge` patches; P = `side`².

    Blocks are in raster order, and so are the patches in a block: (0,0) (0,1) (1,0) (1,1).
    """
    count, blocks = x.shape[0], side // merge
    x = x.reshape(count, blocks, merge, blocks, merge, -1).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(count, blocks**2, -1)


class MergeProjector(nnx.Module):
    """Patch features [N, side², features] to visual tokens [N, (side / merge)², outputs]: merge, norm, linear, activation,
    linear."""

    def __init__(
        self, features: int, outputs: int, *, side: int, merge: int, activation: str, dtype, param_dtype, rngs: nnx.Rngs
    ):
        kinds = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        merged = features * merge**2
        self.norm = layer_norm(merged, EPS, **kinds)
        self.up = linear(merged, outputs, (None, "embed"), bias=True, **kinds)
        self.down = linear(outputs, outputs, ("embed", None), bias=True, **kinds)
        self.side, self.merge, self.activation = side, merge, activation

    def __call__(self, x: Float[Array, "N P E"]) -> Float[Array, "N V O"]:
        x = self.norm(merge_patches(x, self.side, self.merge))
        return self.down(ACTIVATIONS[self.activation](self.up(x)))
