"""The vision tower of Qwen's models: patches of frames of any size, attention in windows and, in some layers, in whole frames.

Reference: transformers `models/qwen2_5_vl/modeling_qwen2_5_vl.py` (`Qwen2_5_VisionTransformerPretrainedModel`). The blocks of
patches arrive in the order of their windows, which the host makes, so that nothing is sorted here and all shapes are static.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from mmrlhf_jax.models.attention import Backend, segment_attention, window_attention
from mmrlhf_jax.models.class_token import ClassToken
from mmrlhf_jax.models.decoder import rope_frequencies, rotate
from mmrlhf_jax.models.layers import ACTIVATIONS, NORMS, linear, run_stack, stack
from mmrlhf_jax.models.lora import PatchEmbedding
from mmrlhf_jax.models.media import Patches
from mmrlhf_jax.models.position_table import PositionTable
from mmrlhf_jax.models.work import computed_blocks
from mmrlhf_jax.sharding.rules import constrain, current_mesh

ROPE_THETA = 1e4
OF_MLPS = {**ACTIVATIONS, "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x), "silu": jax.nn.silu}


@dataclasses.dataclass(frozen=True)
class QwenVitConfig:
    """Sizes of the tower. `merge` patches on a side are a block, and `window` blocks on a side a window; a patch has
    `patch_size` pixels on a side and `frames` frames. `full_layers` are the layers that attend to the whole frame.

    `gated`: the MLP multiplies its activation with a third matrix. `table`: positions on a side of the table of learnt
    positions, which are added to the patches; 0: there is none. `tapped`: layers behind which the hidden states are used as
    well (`deepstack`), in ascending order. `class_token`: every frame begins with a learnt token, which has learnt angles
    instead of a row and a column, and the layers are preceded by a norm.
    """

    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    patch_size: int
    merge: int
    frames: int
    window: int
    full_layers: tuple[int, ...]
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    rescale: float = 1 / 255
    norm: str = "rms_norm"
    norm_eps: float = 1e-6
    gated: bool = True
    activation: str = "silu"
    patch_bias: bool = False
    table: int = 0
    tapped: tuple[int, ...] = ()
    class_token: bool = False

    @property
    def block(self) -> int:
        """Patches of a block."""
        return self.merge**2

    @property
    def band(self) -> int:
        """The most patches of a window."""
        return self.window**2 * self.block

    @property
    def channels(self) -> int:
        """Numbers of a patch."""
        return 3 * self.frames * self.patch_size**2


class PatchAttention(nnx.Module):
    """Self-attention with rotary embeddings, which are applied in float32."""

    def __init__(self, config: QwenVitConfig, *, dtype, param_dtype, rngs: nnx.Rngs):
        d = config.hidden_size
        kinds = dict(bias=True, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.q = linear(d, d, ("embed", "heads"), **kinds)
        self.k = linear(d, d, ("embed", "heads"), **kinds)
        self.v = linear(d, d, ("embed", "heads"), **kinds)
        self.o = linear(d, d, ("heads", "embed"), **kinds)
        self.heads = config.heads

    def __call__(self, x: Float[Array, "B N E"], cos_sin, attend: Callable) -> Float[Array, "B N E"]:
        q, k, v = (proj(x).reshape(*x.shape[:2], self.heads, -1) for proj in (self.q, self.k, self.v))
        q, k = (rotate(part.astype(jnp.float32), cos_sin).astype(x.dtype) for part in (q, k))
        q, k, v = (constrain(part, "batch", None, "act_heads", None) for part in (q, k, v))
        out = constrain(constrain(attend(q, k, v), "batch", None, "act_heads", None), "batch", "slots", "heads", None)
        return self.o(out.reshape(x.shape))


class GatedMlp(nnx.Module):
    """down(activation(gate(x)) * up(x)), with biases."""

    def __init__(self, config: QwenVitConfig, *, dtype, param_dtype, rngs: nnx.Rngs):
        d, hidden = config.hidden_size, config.intermediate_size
        kinds = dict(bias=True, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.gate = linear(d, hidden, ("embed", "mlp"), **kinds)
        self.up = linear(d, hidden, ("embed", "mlp"), **kinds)
        self.down = linear(hidden, d, ("mlp", "embed"), **kinds)
        self.activation = config.activation

    def __call__(self, x):
        hidden = OF_MLPS[self.activation](self.gate(x)) * self.up(x)
        return self.down(constrain(hidden, "batch", "slots", "act_mlp"))


class PlainMlp(nnx.Module):
    """down(activation(up(x))), with biases."""

    def __init__(self, config: QwenVitConfig, *, dtype, param_dtype, rngs: nnx.Rngs):
        d, hidden = config.hidden_size, config.intermediate_size
        kinds = dict(bias=True, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.up = linear(d, hidden, ("embed", "mlp"), **kinds)
        self.down = linear(hidden, d, ("mlp", "embed"), **kinds)
        self.activation = config.activation

    def __call__(self, x):
        return self.down(constrain(OF_MLPS[self.activation](self.up(x)), "batch", "slots", "act_mlp"))


class QwenVitLayer(nnx.Module):
    def __init__(self, config: QwenVitConfig, *, dtype, param_dtype, rngs: nnx.Rngs):
        kinds, norm = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs), NORMS[config.norm]
        self.attention_norm = norm(config.hidden_size, config.norm_eps, **kinds)
        self.attention = PatchAttention(config, **kinds)
        self.mlp_norm = norm(config.hidden_size, config.norm_eps, **kinds)
        self.mlp = (GatedMlp if config.gated else PlainMlp)(config, **kinds)

    def __call__(self, x, cos_sin, attend):
        x = x + self.attention(self.attention_norm(x), cos_sin, attend)
        return constrain(x + self.mlp(self.mlp_norm(x)), "batch", "slots", None)


class QwenVit(nnx.Module):
    """Blocks of uint8 patches to patch features."""

    def __init__(self, config: QwenVitConfig, *, dtype, param_dtype, remat: str, attention: Backend, rngs: nnx.Rngs):
        kinds = dict(dtype=dtype, param_dtype=param_dtype)
        self.attention_backend = attention
        self.config = config
        self.remat = remat
        d = config.hidden_size
        embedding = dict(bias=config.patch_bias, kind=PatchEmbedding)
        self.patch = linear(config.channels, d, ("patch", "embed"), rngs=rngs, **embedding, **kinds)
        if config.table:
            self.table = PositionTable(config.table, d, rngs=rngs, **kinds)
        if config.class_token:
            sizes = dict(width=d, pairs=d // config.heads // 2, block=config.block, norm=config.norm, eps=config.norm_eps)
            self.class_token = ClassToken(**sizes, rngs=rngs, **kinds)
        self.layers = stack(lambda rngs: QwenVitLayer(config, rngs=rngs, **kinds), config.layers, rngs)

    def __call__(self, media: Patches) -> tuple[Float[Array, "B N E"], list[Float[Array, "B N E"]]]:
        """Hidden states of the patches after the last layer, and after those of `tapped`, in the order of the blocks; N is a
        multiple of a window's."""
        config = self.config
        media = whole_bands(media, config.window**2)
        x = constrain(self.patch(normalised(media.blocks, config)), "batch", "slots", None)
        if config.table:
            x = x + self.table(media.grid, media.grid_weights, x.dtype)
        turned = angles(media.places, config)
        frames, windows = (config.block * jnp.repeat(ends, config.block, axis=1) for ends in (media.frames, media.windows))
        if config.class_token:
            x, turned, frames = self.class_token(media.places, x, turned, frames)
        cos_sin = jnp.cos(turned), jnp.sin(turned)

        def in_windows(q, k, v):
            return window_attention(q, k, v, windows, config.band, backend=self.attention_backend)

        def in_frames(q, k, v):
            return segment_attention(q, k, v, frames, backend=self.attention_backend)

        def run(x, layers, stacks: Sequence[Stack]):
            """Run these stacks of `layers`, each as a scan; also returns what is behind each tapped layer."""
            behind = []
            for first, end, is_full in stacks:
                attend = in_frames if is_full else in_windows
                part = jax.tree.map(lambda p, first=first, end=end: p[first:end], layers)
                body = lambda layer, x, attend=attend: (layer(x, cos_sin, attend), None)
                x, _ = run_stack(body, x, part, remat=self.remat)
                if end - 1 in config.tapped:
                    behind.append(x)
            return x, behind

        groups, stacks = layer_groups(config.layers, config.full_layers, config.tapped)
        if groups == 1:
            return run(x, self.layers, stacks)
        grouped = jax.tree.map(lambda p: p.reshape(groups, -1, *p.shape[1:]), self.layers)
        return jax.lax.scan(lambda x, layers: (run(x, layers, stacks)[0], None), x, grouped)[0], []


Stack = tuple[int, int, bool]  # consecutive layers of one kind: the first, the one behind the last, whether they see frames


def layer_groups(layers: int, full: Sequence[int], tapped: Sequence[int] = ()) -> tuple[int, list[Stack]]:
    """(how many equal groups the layers consist of, the stacks of a group): the fewest programs that run these layers.

    A stack ends behind every `tapped` layer, and then there is one group.
    """
    kinds = [number in full for number in range(layers)]
    length = next(n for n in range(1, layers + 1) if layers % n == 0 and kinds == kinds[:n] * (layers // n))
    if tapped or len({*kinds}) == 1:
        length = layers
    inner = (n for n in range(1, length) if kinds[n] != kinds[n - 1] or n - 1 in tapped)
    starts = [0, *inner, length]
    return layers // length, [(first, end, kinds[first]) for first, end in itertools.pairwise(starts)]


def whole_bands(media: Patches, band: int) -> Patches:
    """The media with unused blocks at the end: whole bands of so many blocks, and as many for every device of `context`."""
    mesh = current_mesh()
    count = media.blocks.shape[1]
    more = computed_blocks(count, band, 1 if mesh is None else mesh.shape["context"]) - count
    own = count + 1 + jnp.arange(more, dtype=jnp.int32)

    def padded(x, with_):
        return jnp.concatenate([x, jnp.broadcast_to(with_, (len(x), more, *x.shape[2:])).astype(x.dtype)], axis=1)

    return media._replace(
        blocks=padded(media.blocks, 0),
        places=padded(media.places, 0),
        frames=padded(media.frames, own),
        windows=padded(media.windows, own),
        grid=padded(media.grid, 0),
        grid_weights=padded(media.grid_weights, 0),
    )


def normalised(blocks: UInt8[Array, "B U C"], config: QwenVitConfig) -> Float[Array, "B N C"]:
    """Patches of normalised pixels, each flattened as (channel, frame, row, column)."""
    x = blocks.reshape(len(blocks), -1, config.channels).astype(jnp.float32)
    mean, std = (np.repeat(np.float32(v), config.channels // 3) for v in (config.image_mean, config.image_std))
    return (x * config.rescale - mean) / std


def angles(places: Int[Array, "B U 2"], config: QwenVitConfig) -> Float[Array, "B N 1 D/2"]:
    """Angles of every patch: a head's first half of pairs of dimensions is rotated by the patch's row, the second by its
    column."""
    inside = np.stack(np.divmod(np.arange(config.block), config.merge), axis=-1)
    place = (config.merge * places[:, :, None] + inside).reshape(len(places), -1, 2).astype(jnp.float32)
    frequencies = rope_frequencies(config.hidden_size // config.heads // 2, ROPE_THETA)
    return (place[..., None] * frequencies).reshape(*place.shape[:2], 1, -1)
