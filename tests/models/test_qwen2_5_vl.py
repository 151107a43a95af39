"""What Qwen2.5-VL alone has: images of any size as patches, windows, positions on three axes, and its config's spellings.

Oracles: transformers' image processor that uses Pillow, its `get_rope_index` and `get_window_index`, and tables worked out by
hand from the vendor's rules.
"""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from mmrlhf_jax import config
from mmrlhf_jax.data.positions import three_axes
from mmrlhf_jax.data.rows import Budget, assemble_row, empty_row
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.huggingface.checkpoint import read_sizes
from mmrlhf_jax.models import registry
from mmrlhf_jax.models.patch_geometry import window_order
from mmrlhf_jax.models.patch_images import smart_resize
from mmrlhf_jax.models.qwen2_5_vl.geometry import Qwen25Geometry
from mmrlhf_jax.models.qwen2_5_vl.published import published_config
from mmrlhf_jax.models.qwen_vit import layer_groups, whole_bands
from mmrlhf_jax.models.work import computed_blocks
from mmrlhf_jax.pieces import Visual
from mmrlhf_jax.planning.workload import assumed_workload
from mmrlhf_jax.tasks import task_of
from mmrlhf_jax.training.trained import _say_other_pixels
from mmrlhf_jax.training.work import batch_work
from tests.families import qwen2_5_vl as family
from tests.prompts import noise

PUBLISHED = Qwen25Geometry()
LIMITS = (4 * 196, 128 * 196)  # of images and of frames
TINY = Qwen25Geometry(7, 2, 2, 2, *LIMITS, *LIMITS)
# (height, width) -> (height, width) after resizing, blocks, windows (`Qwen2.5-VL`'s rule by hand)
SIZES = {
    (480, 640): ((476, 644), 391, 30),
    (336, 500): ((336, 504), 216, 15),
    (1080, 1920): ((1092, 1932), 2691, 180),
    (32, 32): ((56, 56), 4, 1),
}


# Pixels


@pytest.mark.parametrize("size", SIZES)
def test_an_image_is_resized_to_whole_blocks_near_its_own_size(size):
    resized, blocks, windows = SIZES[size]
    limits = dict(min_pixels=PUBLISHED.min_pixels, max_pixels=PUBLISHED.max_pixels)
    assert smart_resize(*size, factor=28, **limits) == resized
    (plan,) = PUBLISHED.plans([size])
    assert plan.tokens == plan.tiles == blocks
    (_, visual, _) = plan.pieces
    assert isinstance(visual, Visual) and visual.grid == (resized[0] // 28, resized[1] // 28)
    assert len(np.unique(window_order(*visual.grid, 4)[1])) == windows


@pytest.mark.parametrize("geometry", [TINY, dataclasses.replace(TINY, max_pixels=6 * 196), PUBLISHED])
def test_pixels_are_those_of_transformers_processor_bit_for_bit(geometry):
    """In its order, which the windows' order is of here."""
    processors = pytest.importorskip("transformers")
    processor = processors.Qwen2VLImageProcessorPil(
        patch_size=geometry.patch_size,
        size={"shortest_edge": geometry.min_pixels, "longest_edge": geometry.max_pixels},
        do_rescale=False,
        do_normalize=False,
    )
    sizes = [(30, 200), (333, 41), (97, 64), (14, 14), (5, 9), (151, 149)]
    pictures = noise(sizes)
    found = processor(images=pictures, return_tensors="np")
    grids = [tuple(int(n) // 2 for n in grid[1:]) for grid in found["image_grid_thw"]]
    plans = geometry.plans(sizes)
    assert [plan.pieces[1].grid for plan in plans] == grids
    theirs = np.split(found["pixel_values"], np.cumsum([4 * plan.tiles for plan in plans])[:-1])
    ours = np.split(geometry.cut_images(pictures), np.cumsum([plan.tiles for plan in plans])[:-1])
    for blocks, patches, plan in zip(ours, theirs, plans, strict=True):
        assert blocks.dtype == np.uint8
        raster = blocks[plan.taps[:, 0]].reshape(patches.shape)
        np.testing.assert_array_equal(raster, patches)


def test_an_image_more_than_200_times_as_long_as_wide_is_refused():
    assert PUBLISHED.plans([(10, 2000)])
    with pytest.raises(UserError, match="an image of 2001 x 10 pixels is more than 200 times as long as wide"):
        PUBLISHED.plans([(10, 2001)])


@pytest.mark.parametrize("sizes", [[(480, 640)], [(300, 400), (100, 120)], [(2000, 14)]])
def test_smaller_media_are_ever_smaller_and_what_is_cut_fits_the_plan(sizes):
    now = sum(plan.tiles for plan in PUBLISHED.plans(sizes))
    limits = PUBLISHED.smaller_media(sizes)
    assert limits == sorted(limits, reverse=True) and limits[0] < now and limits[-1] >= 1
    for limit in limits[:: max(1, len(limits) // 4)]:
        plans = PUBLISHED.plans(sizes, None, limit)
        assert min(sizes[0]) < 28 or sum(plan.tiles for plan in plans) <= limit
        assert len(PUBLISHED.cut_images(noise(sizes), limit)) == sum(plan.tiles for plan in plans)


def test_an_experiment_may_say_fewer_pixels(tmp_path):
    """The encoder and a plan's assumed data then have smaller images; a model with tiles refuses the key."""
    directory = family.checkpoint(tmp_path / "model")
    data = config.Data(path="data.jsonl", max_pixels=20 * 196)
    encoder = task_of(config.Preference()).encoder(data, family.tokenizer(), read(directory))
    assert encoder.geometry == dataclasses.replace(TINY, max_pixels=20 * 196, video_max_pixels=20 * 196)
    (plan,) = encoder.geometry.plans([(300, 400)])
    assert plan.tiles <= 20 < TINY.plans([(300, 400)])[0].tiles
    experiment = config.Experiment(
        model=config.Model(path=str(directory)), data=data, objective=config.Preference(), run=config.Run(directory="runs/one")
    )
    most = assumed_workload(experiment, TINY, "for a test").budget.tiles
    whole = experiment.model_copy(update={"data": data.model_copy(update={"max_pixels": None})})
    assert most < assumed_workload(whole, TINY, "for a test").budget.tiles
    with pytest.raises(UserError, match=r"data\.max_pixels: 10 pixels are less than a block of 14 x 14"):
        TINY.within_pixels(10)
    with pytest.raises(UserError, match=r"data\.max_pixels: this model's images are cut into tiles of one size"):
        registry.family("internvl").typical_geometry().within_pixels(1000)


# Windows


@pytest.mark.parametrize("grid", [(1, 1), (4, 4), (5, 4), (3, 9), (13, 7), (1, 30)])
def test_windows_are_transformers(grid):
    torch = pytest.importorskip("torch")
    from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as theirs

    order, ends = window_order(*grid, 4)
    if not hasattr(theirs, "get_vision_window_index"):
        pytest.skip("this version of transformers has the rule inside its model")
    index, seqlens = theirs.get_vision_window_index(torch.tensor([[1, 2 * grid[0], 2 * grid[1]]]), 2, 112, 14)
    np.testing.assert_array_equal(order, index)
    np.testing.assert_array_equal(np.unique(ends), np.unique(np.asarray(seqlens))[1:] // 4)


def test_the_layers_of_published_towers_are_four_equal_groups():
    assert layer_groups(32, (7, 15, 23, 31)) == (4, [(0, 7, False), (7, 8, True)])
    assert layer_groups(3, (1,)) == (1, [(0, 1, False), (1, 2, True), (2, 3, False)])
    assert layer_groups(4, ()) == (1, [(0, 4, False)]) and layer_groups(2, (0, 1)) == (1, [(0, 2, True)])


def test_an_unused_block_shares_no_segment_with_another():
    media = TINY.empty(slots=9, tiles=5, visual=3)
    padded = whole_bands(jax.tree.map(lambda x: jnp.asarray(x)[None], media), 4)
    assert padded.frames.tolist() == padded.windows.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8]]
    assert padded.blocks.shape == (1, 8, 1176 // 4 * 4) and padded.places.shape == (1, 8, 2)


# Positions

IMAGE_AND_TEXT = [  # 2 tokens of text, an image of 2 x 3, 2 tokens of text
    (0, 0, 0), (1, 1, 1),
    (2, 2, 2), (2, 2, 3), (2, 2, 4), (2, 3, 2), (2, 3, 3), (2, 3, 4),
    (5, 5, 5), (6, 6, 6),
]  # fmt: skip


def test_text_behind_an_image_begins_behind_its_longer_side():
    np.testing.assert_array_equal(three_axes([2, (2, 3), 2]), IMAGE_AND_TEXT)
    np.testing.assert_array_equal(three_axes([3]), [(0, 0, 0), (1, 1, 1), (2, 2, 2)])
    assert three_axes([]).shape == (0, 3)


def test_positions_are_transformers():
    torch = pytest.importorskip("torch")
    from transformers import Qwen2_5_VLConfig
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel

    runs = [4, (3, 7), 2, (5, 1), (2, 2), 6]
    types = np.concatenate(
        [np.full(run if isinstance(run, int) else run[0] * run[1], not isinstance(run, int)) for run in runs]
    )
    # Two images that touch would be one run of image tokens there, so a text of one token is between them.
    runs.insert(4, 1)
    types = np.insert(types, 4 + 21 + 2 + 5, False)
    grids = torch.tensor([[1, 2 * run[0], 2 * run[1]] for run in runs if not isinstance(run, int)])
    with torch.device("meta"):
        model = Qwen2_5_VLModel(
            Qwen2_5_VLConfig(**{k: v for k, v in family.config().items() if k in ("vision_config", "text_config")})
        )
    found, _ = model.get_rope_index(torch.zeros(1, len(types)).long(), torch.tensor(types[None]).int(), image_grid_thw=grids)
    np.testing.assert_array_equal(three_axes(runs), found[:, 0].T)


# Rows


def test_indices_of_a_group_move_with_its_place_in_a_row():
    """Frames and windows of the second group end behind those of the first."""
    sizes = [(60, 40), (30, 30)]
    plans = TINY.plans(sizes)
    group = TINY.of_group(TINY.cut_images(noise(sizes)), plans, np.arange(sum(p.tokens for p in plans)), 99)
    units = group.units
    row = TINY.empty(slots=500, tiles=2 * units + 3, visual=2 * units)
    for number in range(2):
        TINY.place(row, group, slot=200 * number, tile=number * units, visual=number * units)
    for name in ("frames", "windows"):
        ends = getattr(row, name)
        np.testing.assert_array_equal(ends[units : 2 * units], ends[:units] + units)
        np.testing.assert_array_equal(ends[2 * units :], np.arange(2 * units, 2 * units + 3) + 1)
    assert row.taps.max() == 2 * units - 1 and sorted(row.taps[:, 0]) == list(range(2 * units))
    assert {*row.frames[:units]} == {plans[0].tiles, units}


def test_work_counts_the_pairs_of_blocks_in_each_frame():
    budget = Budget(slots=64, tiles=40, visual=40, targets=4, responses=2, pairs=1)
    row = empty_row(budget, TINY)
    plans = TINY.plans([(60, 40), (30, 30)])
    assert assemble_row([], budget, TINY).media.frames.tolist() == list(range(1, 41))
    group = TINY.of_group(TINY.cut_images(noise([(60, 40), (30, 30)])), plans, np.arange(sum(p.tokens for p in plans)), 60)
    TINY.place(row.media, group, slot=0, tile=0, visual=0)
    work = batch_work(jax.tree.map(lambda x: jnp.asarray(x)[None], row), 1)
    assert work.tiles == sum(plan.tiles for plan in plans) and work.seen == sum(plan.tiles**2 for plan in plans)


# Config


def read(directory):
    return read_sizes(directory)


def test_the_language_models_settings_may_stand_at_the_top_or_inside(tmp_path):
    inside = read(family.checkpoint(tmp_path / "inside", family.config()))
    assert read(family.checkpoint(tmp_path / "flat", family.config(flat=True))) == inside
    assert inside.text.rope_axes == (0, 0, 1, 2) and inside.vision.full_layers == (1,)
    assert registry.find_family({"model_type": "qwen2_5_vl"}, "config.json").title == "Qwen2.5-VL"


@pytest.mark.parametrize(
    ("stated", "limits"),
    [
        ({"min_pixels": 1000, "max_pixels": 9000}, (1000, 9000)),
        ({"size": {"shortest_edge": 1000, "longest_edge": 9000}}, (1000, 9000)),
        ({"min_pixels": 1000, "size": {"shortest_edge": 2000, "longest_edge": 9000}}, (1000, 9000)),
        ({}, (3136, 1003520)),  # of transformers' class
    ],
)
def test_limits_of_pixels_count_in_either_spelling_as_in_transformers(tmp_path, stated, limits):
    directory = family.checkpoint(tmp_path)
    path = directory / "preprocessor_config.json"
    settings = {key: value for key, value in json.loads(path.read_text()).items() if "pixels" not in key}
    path.write_text(json.dumps(settings | stated))
    geometry = read(directory).geometry
    assert (geometry.min_pixels, geometry.max_pixels) == limits
    transformers = pytest.importorskip("transformers")
    theirs = transformers.Qwen2VLImageProcessorPil.from_pretrained(directory).size
    assert (theirs["shortest_edge"], theirs["longest_edge"]) == limits


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"text": {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 1]}}},
            r"mrope_section \[1, 1, 1\] is not 3 numbers",
        ),
        ({"text": {"rope_scaling": {"type": "yarn", "factor": 4.0}}}, "rope_type 'yarn' is not supported"),
        ({"text": {"use_sliding_window": True}}, "sliding window"),
        ({"vision": {"temporal_patch_size": 1}}, "only patches of 3 channels and 2 frames"),
        ({"vision": {"window_size": 13}}, "window_size 13 is less than 2 patches of 7 pixels"),
        ({"vision": {"fullatt_block_indexes": "all"}}, "fullatt_block_indexes must be a list of layers"),
        ({"vision": {"hidden_act": "gelu"}}, "hidden_act must be one of 'silu'"),
        ({"vision": {"num_heads": 2}}, "heads of 18 dimensions cannot be rotated"),
    ],
)
def test_a_model_that_needs_something_else_is_refused_by_its_key(tmp_path, changed, message):
    with pytest.raises(UserError, match=message):
        read(family.checkpoint(tmp_path, family.config(**changed)))


@pytest.mark.parametrize(("key", "value"), [("patch_size", 14), ("merge_size", 1), ("do_resize", False), ("resample", 2)])
def test_an_image_processor_that_computes_other_pixels_is_refused(tmp_path, key, value):
    directory = family.checkpoint(tmp_path)
    path = directory / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(UserError, match=f"the image processor has {key}"):
        read(directory)


def test_published_sizes_are_those_of_their_names():
    sizes = {name: published_config(f"Qwen/Qwen2.5-VL-{name}-Instruct") for name in ("3B", "7B", "32B", "72B")}
    assert [found.text.layers for found in sizes.values()] == [36, 28, 64, 80]
    assert [found.text.tied for found in sizes.values()] == [True, False, False, False]
    assert [found.text.rope_axes for found in sizes.values()] == [(0,) * 16 + (1,) * 24 + (2,) * 24] * 4
    assert sizes["7B"].text.vocab_size == 152064 and sizes["7B"].geometry == PUBLISHED
    assert published_config("Qwen/Qwen2.5-VL-1B") is None and published_config("Qwen/Qwen2-VL-7B-Instruct") is None


def test_grey_pictures_are_refused_by_the_cutting():
    with pytest.raises(ValueError, match="expected an RGB image"):
        TINY.cut_images([Image.new("L", (30, 30))])


def test_a_lost_axis_or_another_order_of_the_sections_shows_in_the_logits(tmp_path):
    """What the comparison with transformers must find: each changes them by a hundred times its tolerance at least."""
    pytest.importorskip("torch")
    from tests import parity

    raw = family.config(text={"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}})
    directory = family.checkpoint(tmp_path, raw)
    model = parity.load(directory)
    case = parity.image_prompt(model, [(50, 20), (25, 100)], directory)
    expected = parity.theirs(parity.oracle(directory), case)[2]
    np.testing.assert_allclose(parity.ours(model, case)[2], expected, rtol=0, atol=family.TOLERANCE)

    def difference(model, positions) -> float:
        tokens, _, *others = case.row
        return np.abs(parity.ours(model, case._replace(row=(tokens, positions, *others)))[2] - expected).max()

    positions = case.row[1]
    for axis in range(3):
        lost = positions.copy()
        lost[..., axis] = positions[..., (axis + 1) % 3]
        assert difference(model, lost) > 100 * family.TOLERANCE
    assert difference(model, np.repeat(np.arange(positions.shape[1])[None, :, None], 3, axis=2)) > 100 * family.TOLERANCE
    assert model.language.config.rope_axes == (0, 1, 2, 2)
    model.language.config = dataclasses.replace(model.language.config, rope_axes=(0, 2, 1, 2))
    assert difference(model, positions) > 100 * family.TOLERANCE


def test_of_two_statements_of_rotary_embeddings_the_one_counts_that_counts_in_transformers(tmp_path):
    pytest.importorskip("torch")
    from tests import parity

    raw = family.config()
    raw["text_config"] |= {
        "rope_scaling": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4},
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e6},
    }
    directory = family.checkpoint(tmp_path, raw)
    model = parity.load(directory)
    case = parity.image_prompt(model, [(50, 20)], directory)
    np.testing.assert_allclose(parity.ours(model, case)[2], parity.theirs(parity.oracle(directory), case)[2], rtol=0, atol=2e-5)
    assert model.config.text.rope_axes == (0, 1, 2, 2)


def test_a_head_size_that_transformers_would_ignore_is_refused(tmp_path):
    directory = family.checkpoint(tmp_path, family.config(text={"head_dim": 12}))
    with pytest.raises(UserError, match="head_dim 12 is not 8, the width of a head"):
        read_sizes(directory)


@pytest.mark.parametrize(
    ("blocks", "band", "context", "expected"), [(12, 16, 1, 16), (32, 16, 2, 32), (33, 1, 2, 34), (16, 16, 3, 48), (0, 4, 8, 0)]
)
def test_blocks_are_filled_up_to_whole_bands_and_to_as_many_on_every_device(blocks, band, context, expected):
    assert computed_blocks(blocks, band, context) == expected


@pytest.mark.parametrize(("most", "warned"), [(None, False), (50 * 196, True), (128 * 196, False)])
def test_an_export_says_that_its_run_learnt_with_smaller_images(capsys, most, warned):
    experiment = SimpleNamespace(data=config.Data(path="a", max_pixels=most))
    trained = SimpleNamespace(model=SimpleNamespace(config=SimpleNamespace(geometry=TINY)), experiment=experiment)
    _say_other_pixels(trained, "out")
    assert ("out: this run learnt with images of at most 9,800 pixels (data.max_pixels)" in capsys.readouterr().err) == warned
