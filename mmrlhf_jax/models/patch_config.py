"""What the configs of families of patches have in common: the sizes of a model, and how its files state them."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, ClassVar, NamedTuple

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.models.decoder import TextConfig
from mmrlhf_jax.models.family import Checkpoint
from mmrlhf_jax.models.image_processor import CLIP_MEAN, CLIP_STD, PREPROCESSING, stated_pixels, stated_video_pixels
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


def small_text(*, intermediate_size: int, rope_theta: float, **others: Any) -> TextConfig:
    """A language model of a CPU's size for measuring without a checkpoint, with `others` of the fields of `TextConfig`."""
    heads = dict(heads=8, kv_heads=2, head_dim=64)
    sizes = dict(vocab_size=4096, hidden_size=512, layers=4, tied=False, rms_norm_eps=1e-6)
    return TextConfig(intermediate_size=intermediate_size, rope_theta=rope_theta, **heads, **sizes, **others)


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


class VideoClass(NamedTuple):
    """What a video processor's class of transformers assumes where its file says nothing: the least and the most pixels, the
    side of a patch, and the statistics of pixels."""

    limits: tuple[int, int]
    patch_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


QWEN2_VIDEOS = VideoClass((100352, 602112), 14, CLIP_MEAN, CLIP_STD)  # `video_processing_qwen2_vl.py`


class Processors(NamedTuple):
    """What is said of how a model's pixels are made.

    Attributes:
        images: the image processor's settings.
        videos: the video processor's; None: there are none, and those of `images` count for videos as well.
        in_files: whether (`images`, `videos`) are a file's; else they are what published checkpoints have.
    """

    images: Stated
    videos: Stated | None
    in_files: tuple[bool, bool]


def published_processors(published: Mapping[str, Any], where: str, videos: Mapping[str, Any] | None = None) -> Processors:
    """The settings that published checkpoints have, for a model without files; `videos` are those of the video processor."""
    return Processors(_images(published, where), None if videos is None else _videos(videos, where), (False, False))


def stated_processors(
    checkpoint: Checkpoint, published: Mapping[str, Any], published_videos: Mapping[str, Any] | None = None
) -> Processors:
    """The settings in a model's directory; where it has no file for images, those that `published` checkpoints have, for videos
    as well if it has no file for these either."""
    images, source = stated_pixels(checkpoint)
    videos, video_source = stated_video_pixels(checkpoint)
    found = published_processors(published, source, published_videos)
    if images is not None:
        found = Processors(_images(images, source), None, (True, False))
    if videos is not None:
        found = found._replace(videos=_videos(videos, video_source), in_files=(found.in_files[0], True))
    return found


def _images(settings: Mapping[str, Any], where: str) -> Stated:
    return Stated(dict(settings), f"{where}: the image processor")


def _videos(settings: Mapping[str, Any], where: str) -> Stated:
    return Stated(dict(settings), f"{where}: the video processor")


def pixel_limits(pixels: Stated, default: tuple[int, int]) -> tuple[int, int]:
    """The least and the most pixels of an image, under their older keys, which take precedence as in transformers, or in
    `size`; `default` where neither states them."""
    size = pixels.part("size")
    if others := sorted(key for key in size if key not in ("shortest_edge", "longest_edge") and size.get(key) is not None):
        raise UserError(f"{size.where} has {others[0]}; an area is limited by shortest_edge and longest_edge")
    if pixels.get("cap_pixels_per_frame"):
        raise UserError(f"{pixels.where} has cap_pixels_per_frame, which is not supported; frames have limits of their own")
    names = (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge"))
    stated = [
        pixels.integer(older, least=1) if pixels.get(older) is not None else size.integer(newer, value, least=1)
        for (older, newer), value in zip(names, default, strict=True)
    ]
    return stated[0], stated[1]


def check_patches(pixels: Stated, vision: QwenVitConfig, sides: Mapping[str, int]) -> None:
    """UserError for a processor that computes other pixels than this project. `sides`: those of a file that does not state
    them."""
    expected = {"patch_size": vision.patch_size, "merge_size": vision.merge, "temporal_patch_size": vision.frames}
    for key, value in (PREPROCESSING | expected).items():
        found = pixels.get(key, sides.get(key, value))
        if found != value:
            raise UserError(f"{pixels.where} has {key} {found!r}; only {value!r} is supported for this model")


def check_statistics(videos: Stated, vision: QwenVitConfig, assumed: VideoClass) -> None:
    """UserError for a video processor that gives pixels another scale than the image processor."""
    found = (
        ("image_mean", videos.colour("image_mean", assumed.mean), vision.image_mean),
        ("image_std", videos.colour("image_std", assumed.std, positive=True), vision.image_std),
        ("rescale_factor", videos.positive("rescale_factor", 1 / 255), vision.rescale),
    )
    for key, value, expected in found:
        if value != expected:
            raise UserError(f"{videos.where} has {key} {value}, and the image processor {expected}; they must be equal")


def geometry_of(
    kind: type[PatchGeometry], vision: QwenVitConfig, processors: Processors, assumed: VideoClass = QWEN2_VIDEOS, **others: Any
) -> PatchGeometry:
    """The geometry that the settings of the processors give, with `others` of its fields.

    UserError if they allow no image, or compute other pixels than this project.
    """
    image_file, video_file = processors.in_files
    if image_file:
        check_patches(processors.images, vision, CLASS_SIDES)
    limits = video_limits = pixel_limits(processors.images, CLASS_LIMITS)
    if processors.videos is not None:
        if video_file:
            check_patches(processors.videos, vision, CLASS_SIDES | {"patch_size": assumed.patch_size})
        check_statistics(processors.videos, vision, assumed)
        video_limits = pixel_limits(processors.videos, assumed.limits)
    sides = dict(patch_size=vision.patch_size, merge=vision.merge, frames=vision.frames, window=vision.window)
    sides |= zip(("min_pixels", "max_pixels"), limits, strict=True)
    sides |= zip(("video_min_pixels", "video_max_pixels"), video_limits, strict=True)
    try:
        return kind(**sides, table=vision.table, **others)
    except UserError as error:
        raise UserError(f"{processors.images.where}: {error}") from None
