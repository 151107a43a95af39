"""What Qwen3-VL alone has: learnt positions as taps, interleaved axes, features for the decoder's first layers, its config.

Oracles: transformers' interpolation, rotary embeddings and model, and tables worked out by hand from the vendor's rules.
"""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.huggingface.checkpoint import read_sizes
from mmrlhf_jax.models import registry
from mmrlhf_jax.models.decoder import add_features
from mmrlhf_jax.models.grid_taps import grid_taps
from mmrlhf_jax.models.qwen3_vl.geometry import Qwen3Geometry
from mmrlhf_jax.models.qwen3_vl.published import published_config
from mmrlhf_jax.models.qwen_vit import layer_groups
from mmrlhf_jax.models.weight_names import piece_name
from tests.families import qwen3_vl as family
from tests.prompts import noise

PUBLISHED = Qwen3Geometry()
TINY = Qwen3Geometry(8, min_pixels=4 * 256, max_pixels=128 * 256, table=7)
GRIDS = [(1, 1), (4, 4), (5, 3), (2, 40), (24, 24), (30, 17)]


# Learnt positions


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("side", [1, 7, 48])
def test_positions_are_taps_into_the_table_as_transformers_interpolates_it(grid, side):
    torch = pytest.importorskip("torch")
    from transformers.vision_utils import get_vision_interpolation_indices_and_weights as theirs

    sizes = torch.tensor([[1, 2 * grid[0], 2 * grid[1]]])
    numbers, weights = theirs(sizes, side, mode="bilinear", align_corners=True, spatial_merge_size=2)
    found, found_weights = grid_taps(*grid, 2, side)
    np.testing.assert_array_equal(found.reshape(-1, 4), numbers)
    np.testing.assert_array_equal(found_weights.reshape(-1, 4), weights)


def test_the_corners_of_a_frame_are_those_of_the_table():
    taps, weights = grid_taps(5, 3, 2, 7)
    nearest = np.take_along_axis(taps, weights.argmax(axis=-1)[..., None], axis=-1)[..., 0]
    assert (nearest[0, 0], nearest[2, 1], nearest[-3, 2], nearest[-1, 3]) == (0, 6, 42, 48)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-6)


def test_taps_go_with_their_blocks_into_a_row_and_unused_blocks_have_none():
    sizes = [(60, 40), (30, 70)]
    plans = TINY.plans(sizes, 0)
    group = TINY.of_group(TINY.cut_images(noise(sizes)), plans, np.arange(sum(p.tokens for p in plans)), 99)
    row = TINY.empty(slots=500, tiles=group.units + 5, visual=group.units)
    TINY.place(row, group, slot=0, tile=3, visual=0)
    grids = [grid_taps(*plan.pieces[1].grid, 2, 7) for plan in plans]
    for values, number in ((row.grid, 0), (row.grid_weights, 1)):
        np.testing.assert_array_equal(values[3:-2], np.concatenate([grid[number] for grid in grids]))
        assert not values[:3].any() and not values[-2:].any()


def test_patches_are_in_raster_order_because_there_are_no_windows():
    (plan,) = PUBLISHED.plans([(480, 640)], 0)
    np.testing.assert_array_equal(plan.taps[:, 0], np.arange(300))


# Axes


@pytest.mark.parametrize("sections", [[24, 20, 20], [4, 3, 3], [5, 2, 1], [0, 3, 3], [2, 0, 4], [6, 0, 0]])
def test_axes_take_turns_as_in_transformers(tmp_path, sections):
    torch = pytest.importorskip("torch")
    from transformers import Qwen3VLTextConfig
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRotaryEmbedding

    rope = {"rope_type": "default", "mrope_interleaved": True, "mrope_section": sections}
    raw = family.config(text={"head_dim": 2 * sum(sections), "rope_scaling": rope})
    axes = read(family.checkpoint(tmp_path, raw)).text.rope_axes
    theirs = Qwen3VLTextRotaryEmbedding(
        Qwen3VLTextConfig(head_dim=2 * sum(sections), rope_parameters=rope | {"rope_theta": 1e4})
    )
    marks = torch.arange(3.0)[:, None, None, None].expand(3, 1, 1, sum(sections)).clone()
    np.testing.assert_array_equal(axes, theirs.recomposition_frequencies(marks)[0, 0, : sum(sections)])


def test_published_axes_are_those_of_the_vendors_rule():
    axes = published_config("Qwen/Qwen3-VL-8B-Instruct").text.rope_axes
    assert axes == (0, 1, 2) * 20 + (0,) * 4


@pytest.mark.long
def test_a_lost_axis_or_another_order_of_the_axes_or_no_deep_features_show_in_the_logits(tmp_path):
    """What the comparison with transformers must find: each changes them by a hundred times its tolerance at least."""
    pytest.importorskip("torch")
    from tests import parity

    directory = family.checkpoint(tmp_path)
    model = parity.load(directory)
    case = parity.image_prompt(model, [(50, 20), (25, 100)], directory)
    expected = parity.theirs(parity.oracle(directory), case)[2]

    def difference(case) -> float:
        return np.abs(parity.ours(model, case)[2] - expected).max()

    assert difference(case) <= family.TOLERANCE
    tokens, positions, until, media = case.row
    for axis in range(3):
        lost = positions.copy()
        lost[..., axis] = positions[..., (axis + 1) % 3]
        assert difference(case._replace(row=(tokens, lost, until, media))) > 100 * family.TOLERANCE
    whole = model.language.config
    assert whole.rope_axes == (0, 1, 2, 0, 0, 0)
    for axes in ((0, 0, 0, 0, 1, 2), (0, 2, 1, 0, 0, 0), (0,) * 6):
        model.language.config = dataclasses.replace(whole, rope_axes=axes)
        assert difference(case) > 100 * family.TOLERANCE
    model.language.config = whole
    for name in ("grid", "grid_weights"):
        other = media._replace(**{name: getattr(media, name) * 0})
        assert difference(case._replace(row=(tokens, positions, until, other))) > 100 * family.TOLERANCE
    without_features = nnx.merge(*nnx.split(model))
    without_features.deepstack.down.kernel[...] *= 0
    without_features.deepstack.down.bias[...] *= 0
    assert np.abs(parity.ours(without_features, case)[2] - expected).max() > 100 * family.TOLERANCE


# Features for the decoder's first layers


def test_features_are_added_behind_their_own_layers():
    x = jnp.arange(24.0).reshape(2, 4, 3)
    features = jnp.asarray(np.random.default_rng(0).normal(size=(2, 2, 4, 3)), jnp.float32)
    for layer in range(2):
        np.testing.assert_array_equal(add_features(x, layer, features), x + features[layer])
    for layer in (2, 3):
        np.testing.assert_array_equal(add_features(x, layer, features), x)


@pytest.mark.long
def test_a_row_without_media_runs_the_same_program_and_gives_zero_gradients(tmp_path):
    """Not missing ones, in tower, projector and the projectors of the tapped layers; and it has no features to add."""
    pytest.importorskip("torch")
    from tests import parity

    directory = family.checkpoint(tmp_path)
    model, shape = parity.load(directory), parity.Shape(*family.ROW)

    graphdef, params = nnx.split(model)

    @jax.jit
    @jax.grad
    def gradients(params, row):
        return jnp.square(nnx.merge(graphdef, params)(*row)).mean()

    found = []
    for sizes in ([], [(40, 95)]):
        grads = gradients(params, parity.image_prompt(model, sizes, directory, shape).row)
        found.append({name: jax.tree.leaves(nnx.to_pure_dict(grads)[name]) for name in ("vision", "projector", "deepstack")})
    assert gradients._cache_size() == 1
    for name in found[0]:
        assert len(found[0][name]) == len(found[1][name]) > 0
        assert not any(np.any(np.asarray(leaf)) for leaf in found[0][name])
        assert all(np.any(np.asarray(leaf)) for leaf in found[1][name]), name


def test_the_tower_stops_behind_every_tapped_layer():
    assert layer_groups(27, range(27), (8, 16, 24)) == (1, [(0, 9, True), (9, 17, True), (17, 25, True), (25, 27, True)])
    assert layer_groups(3, (0, 1, 2), (2,)) == (1, [(0, 3, True)])


# Config


def read(directory):
    return read_sizes(directory)


def test_missing_keys_mean_the_defaults_of_transformers_classes(tmp_path):
    """Which are not the published values: theta is 5e5 there."""
    raw = family.config()
    theta = raw["text_config"].pop("rope_theta")
    found = read(family.checkpoint(tmp_path, raw))
    assert found.text.rope_theta == 5e5 != theta
    assert found.text.qk_norm and not found.text.attention_bias and found.text.deepstack == 1
    assert (found.vision.table, found.vision.tapped, found.geometry.table) == (7, (1,), 7)


@pytest.mark.parametrize(("outer", "inner", "tied"), [(True, False, True), (False, True, False), (False, False, False)])
def test_the_outer_config_alone_ties(tmp_path, outer, inner, tied):
    raw = family.config(text={"tie_word_embeddings": inner}, tie_word_embeddings=outer)
    assert read(family.checkpoint(tmp_path, raw)).text.tied is tied


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"text": {"rope_scaling": {"mrope_interleaved": False, "mrope_section": [4, 1, 1]}}},
            "mrope_interleaved is False; the axes of this model are interleaved",
        ),
        ({"text": {"rope_scaling": {"mrope_section": [1, 1, 1]}}}, r"mrope_section \[1, 1, 1\] is not 3 numbers"),
        ({"text": {"attention_bias": True}}, "attention_bias is not supported"),
        ({"text": {"model_type": "qwen3_vl_moe_text"}}, "this project runs Qwen3 language models"),
        ({"vision": {"num_position_embeddings": 50}}, "num_position_embeddings 50 are not those of a square table"),
        ({"vision": {"deepstack_visual_indexes": [2, 1]}}, "deepstack_visual_indexes must be some of 3 layers in order"),
        ({"vision": {"deepstack_visual_indexes": [3]}}, "deepstack_visual_indexes must be some of 3 layers in order"),
        ({"vision": {"deepstack_visual_indexes": [0, 1, 2]}}, "more than the language model's 2 layers"),
        ({"vision": {"hidden_act": "relu"}}, "hidden_act must be one of 'gelu_pytorch_tanh'"),
        ({"model_type": "qwen3_vl_moe"}, r"model_type is 'qwen3_vl_moe'; this project reads .*Qwen3-VL"),
    ],
)
def test_a_model_that_needs_something_else_is_refused_by_its_key(tmp_path, changed, message):
    with pytest.raises(UserError, match=message) as refused:
        read(family.checkpoint(tmp_path, family.config(**changed)))
    assert "\n" not in str(refused.value)


def test_blocks_of_axes_in_a_model_of_blocks_may_not_be_called_interleaved(tmp_path):
    from tests.families import qwen2_5_vl

    rope = {"type": "mrope", "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    with pytest.raises(UserError, match="mrope_interleaved is True; the axes of this model are in blocks"):
        read(qwen2_5_vl.checkpoint(tmp_path, qwen2_5_vl.config(text={"rope_scaling": rope})))


@pytest.mark.parametrize(
    ("stated", "limits"),
    [
        ({"min_pixels": 1000, "max_pixels": 9000}, (1000, 9000)),
        ({"size": {"shortest_edge": 1000, "longest_edge": 9000}}, (1000, 9000)),
        ({}, (3136, 1003520)),  # of transformers' class
    ],
)
def test_limits_of_pixels_count_in_either_spelling(tmp_path, stated, limits):
    directory = family.checkpoint(tmp_path)
    path = directory / "preprocessor_config.json"
    settings = {key: value for key, value in json.loads(path.read_text()).items() if key != "size"}
    path.write_text(json.dumps(settings | stated))
    geometry = read(directory).geometry
    assert (geometry.min_pixels, geometry.max_pixels) == limits


def test_an_image_processor_that_does_not_say_its_patches_has_its_classs(tmp_path):
    """14 pixels, which are not this model's."""
    directory = family.checkpoint(tmp_path)
    path = directory / "preprocessor_config.json"
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "patch_size"}))
    with pytest.raises(UserError, match="the image processor has patch_size 14; only 8 is supported"):
        read(directory)


def test_published_sizes_are_those_of_their_names():
    sizes = {name: published_config(f"Qwen/Qwen3-VL-{name}") for name in ("2B-Thinking", "4B-Instruct", "8B", "32B-Instruct")}
    assert [found.text.layers for found in sizes.values()] == [28, 36, 36, 64]
    assert [found.text.tied for found in sizes.values()] == [True, True, False, False]
    assert [found.vision.layers for found in sizes.values()] == [24, 24, 27, 27]
    assert [found.vision.tapped for found in sizes.values()] == [(5, 11, 17)] * 2 + [(8, 16, 24)] * 2
    assert all(found.geometry == PUBLISHED and found.text.head_dim == 128 for found in sizes.values())
    assert sizes["8B"].vision.image_mean == (0.5, 0.5, 0.5) and sizes["8B"].text.rope_theta == 5e6
    assert published_config("Qwen/Qwen3-VL-30B-A3B-Instruct") is None
    assert registry.published_config("Qwen/Qwen3-VL-8B-Instruct") == sizes["8B"]


# Weights


def test_every_published_name_is_a_parameters_and_back():
    """Of both spellings, under the first of which an export writes them."""
    names = registry.family("qwen3_vl").names
    raw = family.config()
    for naming in family.NAMINGS:
        for name, published in zip(family.tensors(raw, naming=naming), family.shapes(raw), strict=True):
            pieces = names.pieces(name)
            assert pieces == (3 if "qkv" in name else 1)
            for number in range(pieces) if pieces > 1 else (None,):
                spelt, expected = (each if number is None else piece_name(each, number, 3) for each in (name, published))
                stored = names.resolve(spelt)
                assert stored is not None and names.parameter(stored) is not None
                assert names.spell(stored, "hf") == expected
