"""What LLaVA-OneVision-1.5 alone has: a class token before the patches of each image, its geometry, its config, its own code.

Oracles: `rice_reference`, after the vendor's code, and tables worked out by hand.
"""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.huggingface.checkpoint import read_sizes
from mmrlhf_jax.huggingface.export import export_checkpoint
from mmrlhf_jax.models import registry
from mmrlhf_jax.models.llavaonevision1_5.geometry import RiceGeometry
from mmrlhf_jax.models.llavaonevision1_5.published import published_config
from tests.families import llavaonevision1_5 as family
from tests.prompts import noise

TINY = RiceGeometry(7, min_pixels=4 * 196, max_pixels=128 * 196)
SIZES = [(40, 20), (30, 70)]  # which become 3 x 2 and 2 x 5 blocks


def read(directory):
    return read_sizes(directory)


# Geometry


def test_every_image_has_a_block_for_its_class_token_of_which_no_visual_token_is_made():
    plans = TINY.plans(SIZES, None)
    assert [(plan.tiles, plan.tokens) for plan in plans] == [(7, 6), (11, 10)]
    assert [plan.taps[:, 0].tolist() for plan in plans] == [list(range(1, 7)), list(range(1, 11))]
    pixels = TINY.cut_images(noise(SIZES))
    assert pixels.shape == (18, 3 * 14**2) and not pixels[[0, 7]].any()
    assert all(block.any() for number, block in enumerate(pixels) if number not in (0, 7))


def test_the_blocks_of_an_image_end_with_it_and_so_do_those_of_its_place_in_a_row():
    plans = TINY.plans(SIZES, None)
    group = TINY.of_group(TINY.cut_images(noise(SIZES)), plans, np.arange(16), 99)
    assert group.frames.tolist() == [7] * 7 + [18] * 11
    places = [
        [-1, -1],
        *([r, c] for r in range(3) for c in range(2)),
        [-1, -1],
        *([r, c] for r in range(2) for c in range(5)),
    ]
    assert group.places.tolist() == places
    row = TINY.empty(slots=100, tiles=40, visual=32)
    for number in range(2):
        TINY.place(row, group, slot=40 * number, tile=18 * number, visual=16 * number)
    assert row.frames.tolist() == [7] * 7 + [18] * 11 + [25] * 7 + [36] * 11 + [37, 38, 39, 40]
    expected = [*range(1, 7), *range(8, 18)]
    assert row.taps[:, 0].tolist() == expected + [18 + tap for tap in expected]


@pytest.mark.parametrize("sizes", [[(480, 640)], [(300, 400), (100, 120)], [(2000, 14)]])
def test_smaller_media_are_ever_smaller_and_what_is_cut_fits_the_plan(sizes):
    geometry = RiceGeometry()
    now = sum(plan.tiles for plan in geometry.plans(sizes, None))
    limits = geometry.smaller_media(sizes, None)
    assert limits == sorted(limits, reverse=True) and limits[0] < now and limits[-1] > len(sizes)
    for limit in limits[:: max(1, len(limits) // 4)]:
        plans = geometry.plans(sizes, None, limit)
        assert min(sizes[0]) < 28 or sum(plan.tiles for plan in plans) <= limit
        assert len(geometry.cut_images(noise(sizes), limit)) == sum(plan.tiles for plan in plans)
        assert sum(plan.tokens for plan in plans) == sum(plan.tiles for plan in plans) - len(sizes)


def test_so_many_blocks_fit_a_prompt_of_so_many_visual_tokens():
    assert TINY.most_tiles(100, 3, 0) == 103


def test_videos_are_refused_in_words():
    with pytest.raises(UserError, match="supported for images only"):
        TINY.plans([], 8)


# The class token


@pytest.mark.long
def test_a_class_token_in_another_place_or_without_its_angles_shows_in_the_logits(tmp_path):
    """What the comparison with the oracle must find: each changes them by a hundred times its tolerance at least."""
    pytest.importorskip("torch")
    from tests import parity

    directory = family.checkpoint(tmp_path)
    model = parity.load(directory)
    case = parity.image_prompt(model, [(50, 20), (25, 100)], directory)
    expected = parity.theirs(parity.oracle(directory), case)[2]

    def difference(model, media) -> float:
        tokens, positions, until, _ = case.row
        return np.abs(parity.ours(model, case._replace(row=(tokens, positions, until, media)))[2] - expected).max()

    media = case.row[3]
    assert difference(model, media) <= family.TOLERANCE
    no_token = media._replace(places=np.maximum(media.places, 0))
    one_frame = media._replace(frames=np.where(media.frames <= media.frames[0, -1], media.frames[0, -1], media.frames))
    exchanged = media._replace(places=np.where(media.places < 0, -1, media.places[..., ::-1]))
    for other in (no_token, one_frame, exchanged):
        assert difference(model, other) > 100 * family.TOLERANCE
    for name in ("embedding", "angles"):
        changed = nnx.merge(*nnx.split(model))
        getattr(changed.vision.class_token, name)[...] *= 0
        assert difference(changed, media) > 100 * family.TOLERANCE


def test_the_unused_patches_of_the_class_tokens_block_see_nothing_and_are_seen_by_nothing(tmp_path):
    """Whatever their pixels are, and so are those of the token's own patch."""
    pytest.importorskip("torch")
    from tests import parity

    model = parity.load(family.checkpoint(tmp_path))
    media = parity.image_prompt(model, [(50, 20), (25, 100)], tmp_path).row[3]
    is_class = media.places[..., 0] < 0
    assert is_class.sum() == 2
    other = media._replace(blocks=np.where(is_class[..., None], 255, media.blocks).astype(np.uint8))
    features = [np.asarray(jax.jit(lambda model, media: model.visual_features(media))(model, each)) for each in (media, other)]
    np.testing.assert_array_equal(features[0][~is_class], features[1][~is_class])
    assert not np.array_equal(features[0][is_class], features[1][is_class])


@pytest.mark.long
def test_the_class_token_learns_where_there_are_media_and_nowhere_else(tmp_path):
    """One program for both, and zero gradients without media."""
    pytest.importorskip("torch")
    from tests import parity

    directory = family.checkpoint(tmp_path)
    model, shape = parity.load(directory), parity.Shape(*family.ROW)
    graphdef, params = nnx.split(model)

    @jax.jit
    @jax.grad
    def gradients(params, row):
        return jnp.square(nnx.merge(graphdef, params)(*row)).mean()

    for sizes in ([], [(40, 95)]):
        found = gradients(params, parity.image_prompt(model, sizes, directory, shape).row)["vision"]["class_token"]
        leaves = jax.tree.leaves(nnx.to_pure_dict(found))
        assert len(leaves) == 4 and all(np.any(np.asarray(leaf)) == bool(sizes) for leaf in leaves)
    assert gradients._cache_size() == 1


# Config and files


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"vision": {"model_type": "siglip"}}, "model_type must be one of 'rice_vit'"),
        ({"vision": {"temporal_patch_size": 2}}, "only patches of 3 channels and 1 frames"),
        ({"vision": {"hidden_act": "silu"}}, "hidden_act must be one of 'gelu'"),
        ({"text": {"num_hidden_layers": 0}}, "num_hidden_layers must be a whole number"),
        ({"vision": {"layer_norm_eps": 1e-6}}, "layer_norm_eps 1e-06 is not 1e-05, which the layers have"),
        ({"text": {"model_type": "qwen2"}}, "this project runs Qwen3 language models"),
    ],
)
def test_a_model_that_needs_something_else_is_refused_by_its_key(tmp_path, changed, message):
    directory = family.checkpoint(tmp_path)
    (directory / "config.json").write_text(json.dumps(family.config(**changed)))
    with pytest.raises(UserError, match=message) as refused:
        read(directory)
    assert "\n" not in str(refused.value)


def test_an_image_processor_with_patches_of_two_frames_is_refused(tmp_path):
    directory = family.checkpoint(tmp_path)
    path = directory / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"temporal_patch_size": 2}))
    with pytest.raises(UserError, match="the image processor has temporal_patch_size 2; only 1 is supported"):
        read(directory)


def test_an_export_keeps_the_code_that_the_config_names(tmp_path):
    """Without it transformers could not load the model: it has no class of its own."""
    names = {
        "AutoConfig": "configuration_ov.Config",
        "AutoModelForCausalLM": "modeling_ov.Model",
        "Other": "a/b--c.D",
        "Odd": 5,
    }
    source = family.checkpoint(tmp_path / "in", family.config(auto_map=names))
    for name in ("configuration_ov", "modeling_ov", "c", "other"):
        (source / f"{name}.py").write_text(f"# {name}\n")
    export_checkpoint(source, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").glob("*.py")} == {"configuration_ov.py", "modeling_ov.py"}
    assert (tmp_path / "out" / "modeling_ov.py").read_text() == "# modeling_ov\n"
    assert json.loads((tmp_path / "out" / "config.json").read_text())["auto_map"] == names


def test_published_sizes_are_those_of_their_names_and_of_no_other_familys():
    sizes = {name: published_config(f"lmms-lab/LLaVA-OneVision-1.5-{name}-Instruct") for name in ("4B", "8B")}
    assert [found.text.hidden_size for found in sizes.values()] == [2560, 4096]
    assert all(not found.text.tied and found.text.rope_axes is None and found.vision.class_token for found in sizes.values())
    assert registry.published_config("lmms-lab/LLaVA-OneVision-1.5-8B-Instruct") == sizes["8B"]
    assert published_config("llava-hf/llava-onevision-qwen2-7b-ov-hf") is None
