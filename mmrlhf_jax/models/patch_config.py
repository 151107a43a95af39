"""What the configs of families of patches have in common: the sizes of a model, and how its files state them."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.models.decoder import TextConfig
from mmrlhf_jax.models.image_processor import CLIP_MEAN, CLIP_STD, PREPROCESSING
from mmrlhf_jax.models.patch_geometry import PatchGeometry
from mmrlhf_jax.models.qwen_vit import QwenVitConfig
from mmrlhf_jax.models.stated import Stated
from mmrlhf_jax.models.tower_config import width_and_heads
from mmrlhf_jax.models.work import ProjectorWork, TowerWork

# For a file that does not state them: of the image processor's class (`image_processing_pil_qwen2_vl.py` of transformers).
CLASS_LIMITS = (3136, 1003520)
CLASS_SIDES = {"patch_size": 14, "merge_size": 2, "temporal_patch_size": 2}


@dataclasses.dataclass(frozen=True)
class PatchModelConfig:
    """Sizes of a model whose images are patches; a family's class says which family it is."""

    vision: QwenVitConfig
    text: TextConfig
    geometry: PatchGeometry
    image_token: int
    reward_head: str | None = None  # None: a policy; otherwise a variant of `models.reward_head`

    model_type: ClassVar[str]

    @property
    def tower_work(self) -> TowerWork:
        vision = self.vision
        matrices = 3 if vision.gated else 2
        return TowerWork(
            layers=vision.layers,
            slots=vision.block,
            heads=vision.heads,
            width=vision.hidden_size,
            layer_products=4 * vision.hidden_size**2 + matrices * vision.hidden_size * vision.intermediate_size,
            embedding_products=vision.channels * vision.hidden_size * vision.block,
            windowed=vision.layers - len({*vision.full_layers}),
            window=vision.band,
        )

    @property
    def projector_work(self) -> ProjectorWork:
        """Of the merger, and of one for every tapped layer."""
        merged, mergers = self.vision.hidden_size * self.vision.block, 1 + len(self.vision.tapped)
        return ProjectorWork(tokens=1, first=mergers * merged**2, rest=mergers * merged * self.text.hidden_size)


def tower_sizes(
    tower: Stated,
    pixels: Stated,
    text: TextConfig,
    where: str,
    *,
    activations: Collection[str],
    width: str = "hidden_size",
    outputs: str = "out_hidden_size",
    frames: int = 2,
) -> dict[str, Any]:
    """The fields of `QwenVitConfig` that all families' configs state alike: all but those of the MLP and of attention.

    `width` and `outputs` are the keys of the tower's width and of the projector's outputs; `activations` are those that the
    family's towers may have, the default first. UserError, with the key, for sizes that no tower has.
    """
    sizes = {"hidden_size": tower.get(width), "num_attention_heads": tower.get("num_heads")}
    hidden, heads = width_and_heads(Stated(sizes, tower.where), where)
    if hidden // heads % 4:
        raise UserError(f"{tower.where}: heads of {hidden // heads} dimensions cannot be rotated by rows and columns")
    if tower.integer(outputs, text.hidden_size) != text.hidden_size:
        raise UserError(f"{tower.where}: {outputs} is not {text.hidden_size}, the language model's width")
    if tower.integer("in_channels", 3) != 3 or tower.integer("temporal_patch_size", frames) != frames:
        raise UserError(f"{tower.where}: only patches of 3 channels and {frames} frames are supported")
    layers, patch, merge = (tower.integer(key, least=1) for key in ("depth", "patch_size", "spatial_merge_size"))
    return {
        "hidden_size": hidden,
        "layers": layers,
        "heads": heads,
        "patch_size": patch,
        "merge": merge,
        "frames": frames,
        "activation": tower.choice("hidden_act", activations, next(iter(activations))),
        "image_mean": pixels.colour("image_mean", CLIP_MEAN),
        "image_std": pixels.colour("image_std", CLIP_STD, positive=True),
        "rescale": pixels.positive("rescale_factor", 1 / 255),
    }


def layer_numbers(tower: Stated, key: str) -> list[int]:
    """A list of layers' numbers. UserError if the value is something else."""
    numbers = tower.get(key)
    if not isinstance(numbers, list) or not all(type(number) is int and number >= 0 for number in numbers):
        raise UserError(f"{tower.where}: {key} must be a list of layers, found {numbers!r}")
    return numbers


def pixel_limits(pixels: Stated) -> tuple[int, int]:
    """The least and the most pixels of an image, under their older keys, which take precedence as in transformers, or in
    `size`."""
    size = pixels.part("size")
    names = (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge"))
    stated = [
        pixels.integer(older, least=1) if pixels.get(older) is not None else size.integer(newer, value, least=1)
        for (older, newer), value in zip(names, CLASS_LIMITS, strict=True)
    ]
    return stated[0], stated[1]


def check_patches(pixels: Stated, vision: QwenVitConfig) -> None:
    """UserError for an image processor that computes other pixels than this project."""
    sides = {"patch_size": vision.patch_size, "merge_size": vision.merge, "temporal_patch_size": vision.frames}
    for key, expected in (PREPROCESSING | sides).items():
        found = pixels.get(key, CLASS_SIDES.get(key, expected))
        if found != expected:
            raise UserError(f"{pixels.where} has {key} {found!r}; only {expected!r} is supported for this model")


def image_processor(pixels: Mapping[str, Any] | None, published: Mapping[str, Any], where: str) -> Stated:
    """The image processor's settings; without a file (None) those that `published` checkpoints have."""
    return Stated(dict(published if pixels is None else pixels), f"{where}: the image processor")


def geometry_of(kind: type[PatchGeometry], vision: QwenVitConfig, processor: Stated) -> PatchGeometry:
    """The geometry that the image processor's settings give. UserError if they allow no image."""
    least, most = pixel_limits(processor)
    sides = dict(patch_size=vision.patch_size, merge=vision.merge, frames=vision.frames, window=vision.window)
    try:
        return kind(**sides, table=vision.table, min_pixels=least, max_pixels=most)
    except UserError as error:
        raise UserError(f"{processor.where}: {error}") from None
