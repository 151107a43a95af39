"""The visual plan says exactly what transformers computes. Oracle: transformers' LLaVA-OneVision code, in float32."""

from types import SimpleNamespace

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.models.llava_onevision import vision_plan
from mmrlhf_jax.models.llava_onevision.geometry import VisionGeometry
from mmrlhf_jax.models.media import NEWLINE, VisualPlan, join

REAL = VisionGeometry(384, 14, tuple((384 * i, 384 * j) for i in range(1, 7) for j in range(1, 7)), max_patches=9)
TINY = VisionGeometry(48, 12, ((48, 48), (48, 96), (96, 48)), max_patches=9)
TINY_SCALED_DOWN = VisionGeometry(48, 12, ((48, 48), (48, 96), (96, 48), (96, 96), (144, 192)), max_patches=2)
GEOMETRIES = {"real": REAL, "tiny": TINY, "tiny, scaled down": TINY_SCALED_DOWN}

# (height, width)
SIZES = [
    (1, 1), (14, 2000), (2000, 14), (1, 30000), (48, 48), (48, 49), (94, 423), (100, 200), (384, 384), (480, 640),
    (600, 1000), (799, 801), (800, 800), (500, 3000), (1080, 1920), (1500, 2000), (2000, 1500), (3000, 4000), (2304, 2304),
]  # fmt: skip
sides = st.integers(1, 5000)


def hf_config(geometry: VisionGeometry) -> SimpleNamespace:
    """The part of a transformers config that its feature packing reads."""
    tower = SimpleNamespace(image_size=geometry.image_size, patch_size=geometry.patch_size)
    return SimpleNamespace(vision_config=tower, image_grid_pinpoints=[list(p) for p in geometry.pinpoints])


def hf_pack(geometry, features, sizes, newline):
    """transformers' visual tokens: one [V, D] array per image, from one [tiles, patches, D] array per image."""
    torch = pytest.importorskip("torch")
    modeling = pytest.importorskip("transformers.models.llava_onevision.modeling_llava_onevision")
    packed, _ = modeling.LlavaOnevisionModel.pack_image_features(
        SimpleNamespace(config=hf_config(geometry)),
        [torch.from_numpy(f) for f in features],
        torch.tensor(sizes),
        image_newline=torch.from_numpy(newline),
        vision_aspect_ratio=f"anyres_max_{geometry.max_patches}",
    )
    return [p.numpy() for p in packed]


def hf_token_count(geometry, height, width):
    processing = pytest.importorskip("transformers.models.llava_onevision.processing_llava_onevision")
    processor = object.__new__(processing.LlavaOnevisionProcessor)
    processor.image_processor = SimpleNamespace(image_grid_pinpoints=[list(p) for p in geometry.pinpoints])
    processor.num_image_tokens = geometry.patches
    processor.vision_aspect_ratio = f"anyres_max_{geometry.max_patches}"
    return processor._get_number_of_features(height, width, geometry.image_size, geometry.image_size)


def random_features(tiles, geometry, dim=8, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((tiles, geometry.patches, dim), np.float32), rng.standard_normal(dim, np.float32)


def apply(plan: VisualPlan, features: np.ndarray, newline: np.ndarray) -> np.ndarray:
    """What the device does: a weighted gather from [tiles * patches] features followed by the newline."""
    assert len(features) == plan.tiles
    table = np.concatenate([features.reshape(-1, newline.size), newline[None]])
    taps = np.where(plan.taps == NEWLINE, len(table) - 1, plan.taps)
    return np.einsum("vk,vkd->vd", plan.weights, table[taps])


# anyres_max_9 counts worked out by hand from the rules of the original code.
@pytest.mark.parametrize(
    "height, width, tokens",
    [(384, 384, 1485), (100, 200, 1093), (480, 640, 2929), (800, 800, 7371), (600, 1000, 4665), (1080, 1920, 7269),
     (1500, 2000, 7309), (500, 3000, 5130), (3000, 4000, 7309)],
)  # fmt: skip
def test_published_geometry_has_the_known_token_counts(height, width, tokens):
    assert vision_plan.plan_image(height, width, REAL).tokens == tokens


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
@hypothesis.given(height=sides, width=sides)
@hypothesis.settings(max_examples=200, deadline=None)
def test_canvas_and_counts_are_those_of_transformers(geometry, height, width):
    utils = pytest.importorskip("transformers.image_processing_utils")
    canvas = utils.select_best_resolution((height, width), [list(p) for p in geometry.pinpoints])
    assert vision_plan.best_resolution(height, width, geometry.pinpoints) == canvas
    assert vision_plan.plan_image(height, width, geometry).tiles == 1 + canvas[0] * canvas[1] // geometry.image_size**2
    assert vision_plan.plan_image(height, width, geometry).tokens == hf_token_count(geometry, height, width)


def test_rounding_follows_transformers_where_the_original_code_differs():
    """94 * (54 / 423) is 12 in exact arithmetic and just below it in floats: 13 rows stay here, 11 in the original."""
    assert vision_plan.plan_image(94, 423, REAL).tokens == hf_token_count(REAL, 94, 423) == 729 + 13 * (54 + 1)


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
def test_an_image_is_packed_as_in_transformers(geometry, size):
    """Gathering by the plan equals pack_image_features: base tile, unpadding, down-scaling, newlines."""
    plan = vision_plan.plan_image(*size, geometry)
    features, newline = random_features(plan.tiles, geometry)
    (expected,) = hf_pack(geometry, [features], [size], newline)
    np.testing.assert_allclose(apply(plan, features, newline), expected, rtol=0, atol=1e-6)


@hypothesis.given(height=sides, width=sides)
@hypothesis.settings(max_examples=50, deadline=None)
def test_any_image_is_packed_as_in_transformers(height, width):
    plan = vision_plan.plan_image(height, width, REAL)
    features, newline = random_features(plan.tiles, REAL, dim=2)
    (expected,) = hf_pack(REAL, [features], [(height, width)], newline)
    np.testing.assert_allclose(apply(plan, features, newline), expected, rtol=0, atol=1e-6)


def test_several_images_get_one_tile_and_one_newline_each():
    """As in transformers, only a lone image is cut; the joined plan reads the images' tiles in order."""
    sizes = [(480, 640), (2000, 14), (48, 48)]
    plans = vision_plan.plan_images(sizes, TINY)
    features, newline = random_features(3, TINY)
    expected = hf_pack(TINY, [f[None] for f in features], sizes, newline)
    for plan, tile, want in zip(plans, features, expected, strict=True):
        np.testing.assert_array_equal(apply(plan, tile[None], newline), want)
    np.testing.assert_array_equal(apply(join(plans), features, newline), np.concatenate(expected))


def test_a_lone_image_in_a_list_is_cut_into_tiles():
    (plan,) = vision_plan.plan_images([(480, 640)], REAL)
    assert plan is vision_plan.plan_image(480, 640, REAL)


@pytest.mark.parametrize("geometry", [REAL, TINY, VisionGeometry(14, 14, ((14, 14),), 9)], ids=["27", "4", "1"])
@pytest.mark.parametrize("frames", [1, 3])
def test_a_video_is_pooled_as_in_transformers(geometry, frames):
    """Every frame bilinearly halved (27 -> 14), one newline at the end."""
    torch = pytest.importorskip("torch")
    modeling = pytest.importorskip("transformers.models.llava_onevision.modeling_llava_onevision")
    features, newline = random_features(frames, geometry)
    pooled = modeling.LlavaOnevisionModel.apply_pooling(SimpleNamespace(config=hf_config(geometry)), torch.from_numpy(features))
    expected = np.concatenate([pooled.numpy().reshape(-1, newline.size), newline[None]])
    plan = vision_plan.plan_video(frames, geometry)
    np.testing.assert_allclose(apply(plan, features, newline), expected, rtol=0, atol=1e-6)
    assert plan.tokens == len(expected)


def test_ten_frames_are_1961_tokens():
    assert vision_plan.plan_video(10, REAL).tokens == 10 * 14 * 14 + 1 == 1961


@pytest.mark.parametrize(
    "rule, newline_at",
    [
        ("no_token", []),
        ("one_token", [8]),  # two frames of 2 x 2 tokens, then the newline
        ("frame", [4, 9]),
        ("grid", [2, 5, 8, 11]),
    ],
)
def test_the_video_newline_rule_says_where_newlines_stand(rule, newline_at):
    """Rules of the original code (mm_newline_position); apart from newlines all give the same tokens in order."""
    geometry = VisionGeometry(48, 12, TINY.pinpoints, 9, video_newline=rule)
    plan = vision_plan.plan_video(2, geometry)
    assert np.flatnonzero(plan.taps[:, 0] == NEWLINE).tolist() == newline_at
    assert plan.tokens == 8 + len(newline_at)
    plain = vision_plan.plan_video(2, VisionGeometry(48, 12, TINY.pinpoints, 9, video_newline="no_token"))
    patches = plan.taps[:, 0] != NEWLINE
    np.testing.assert_array_equal(plan.taps[patches], plain.taps)
    np.testing.assert_array_equal(plan.weights[patches], plain.weights)


def test_joining_moves_taps_by_the_tiles_before():
    """A joined plan over joined features is the items one after the other, whatever kinds they are."""
    plans = [
        vision_plan.plan_image(60, 100, TINY),
        vision_plan.plan_video(3, TINY),
        vision_plan.plan_image(90, 40, TINY),
    ]
    joined = join(plans)
    features, newline = random_features(sum(p.tiles for p in plans), TINY)
    parts, first = [], 0
    for plan in plans:
        parts.append(apply(plan, features[first : first + plan.tiles], newline))
        first += plan.tiles
    np.testing.assert_array_equal(apply(joined, features, newline), np.concatenate(parts))
    assert joined.tokens == sum(p.tokens for p in plans)


def test_a_plan_of_nothing_joins_with_everything():
    nothing, image = join([]), vision_plan.plan_image(60, 60, TINY)
    assert (nothing.tiles, nothing.tokens, nothing.taps.shape) == (0, 0, (0, 4))
    joined = join([nothing, image, nothing])
    np.testing.assert_array_equal(joined.taps, image.taps)
    assert (joined.tiles, joined.features) == (image.tiles, image.features)


def test_plans_of_different_geometries_do_not_join():
    with pytest.raises(ValueError, match="geometries"):
        join([vision_plan.plan_image(60, 60, TINY), vision_plan.plan_image(60, 60, REAL)])


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
@pytest.mark.parametrize("size", [(1, 30000), (94, 423), (1500, 2000)])
def test_a_plan_is_well_formed(geometry, size):
    """Taps lie in the item's features, weights sum to one, unused taps are (0, 0), arrays are typed and read-only."""
    plan = join([vision_plan.plan_image(*size, geometry), vision_plan.plan_video(2, geometry)])
    assert (plan.taps.dtype, plan.weights.dtype) == (np.int32, np.float32)
    assert plan.taps.min() >= NEWLINE and plan.taps.max() < plan.tiles * geometry.patches
    assert (plan.taps[plan.weights == 0] == 0).all()
    np.testing.assert_allclose(plan.weights.sum(1), 1, atol=1e-6)
    with pytest.raises(ValueError, match="read-only"):
        plan.taps[0] = 1


@pytest.mark.parametrize("sizes", [[(60, 100)], [(60, 100), (30, 20)]], ids=["one image", "two images"])
@pytest.mark.parametrize("anyres", [True, False])
def test_only_an_image_that_is_alone_is_cut_into_tiles_and_only_with_anyres(sizes, anyres):
    geometry = VisionGeometry(48, 12, TINY.pinpoints, 9, anyres=anyres)
    plan = join(vision_plan.plan_images(sizes, geometry))
    if anyres and len(sizes) == 1:
        assert (plan.tiles, plan.tokens) == (3, hf_token_count(geometry, *sizes[0]))
    else:
        assert (plan.tiles, plan.tokens) == (len(sizes), len(sizes) * (geometry.patches + 1))


def test_without_anyres_an_image_is_one_tile_and_a_newline():
    geometry = VisionGeometry(384, 14, (), max_patches=None, anyres=False)
    plan = vision_plan.plan_image(1500, 2000, geometry)
    assert (plan.tiles, plan.tokens) == (1, 730)
    assert plan.taps[-1, 0] == NEWLINE and plan.taps[:-1, 0].tolist() == list(range(729))


def test_without_a_limit_the_grid_keeps_every_patch():
    geometry = VisionGeometry(384, 14, REAL.pinpoints, max_patches=None)
    assert vision_plan.plan_image(2304, 2304, geometry).tokens == 729 + 162 * 163
    assert vision_plan.plan_image(2304, 2304, geometry).weights.tolist().count([1, 0, 0, 0]) == 729 + 162 * 163


def test_a_strip_too_thin_for_the_limit_keeps_one_row():
    """1 x 48 patches, limit 9: transformers interpolates to zero rows and fails. The real geometry never gets there."""
    geometry = VisionGeometry(42, 14, ((42, 42 * 16),), max_patches=1)
    assert vision_plan.plan_image(1, 672, geometry).tokens == 9 + 1 * (20 + 1)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"pinpoints": ((384, 400),)}, r"image_grid_pinpoints: \(384, 400\)"),
        ({"pinpoints": ()}, "image_grid_pinpoints is empty"),
        ({"max_patches": 0}, "anyres_max_N"),
        ({"video_newline": "row"}, "video_newline"),
        ({"patch_size": 0}, "patch_size"),
    ],
)
def test_impossible_geometries_are_named(change, message):
    with pytest.raises(UserError, match=message):
        VisionGeometry(**{"image_size": 384, "patch_size": 14, "pinpoints": ((384, 384),), "max_patches": 9} | change)


def test_nothing_to_see_is_an_error():
    with pytest.raises(ValueError, match="no plan"):
        vision_plan.plan_image(0, 10, REAL)
    with pytest.raises(ValueError, match="no plan"):
        vision_plan.plan_video(0, REAL)
