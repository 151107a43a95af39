"""What Qwen2-VL alone has: whole frames, its MLP and norms, and its config's keys."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.huggingface.checkpoint import read_sizes
from mmrlhf_jax.models import registry
from mmrlhf_jax.models.qwen2_vl.geometry import Qwen2Geometry
from mmrlhf_jax.models.qwen2_vl.published import published_config
from tests.families import qwen2_vl as family


def read(directory):
    return read_sizes(directory)


def test_the_language_models_settings_may_stand_at_the_top_or_inside(tmp_path):
    inside = read(family.checkpoint(tmp_path / "inside", family.config()))
    assert read(family.checkpoint(tmp_path / "flat", family.config(flat=True))) == inside
    assert inside.text.rope_axes == (0, 0, 1, 2)


def test_the_towers_width_and_mlp_are_those_of_its_own_keys(tmp_path):
    """`hidden_size` is the language model's width there, and the MLP's is a multiple of `embed_dim`."""
    found = read(family.checkpoint(tmp_path)).vision
    assert (found.hidden_size, found.intermediate_size, found.activation) == (36, 108, "quick_gelu")
    assert (found.norm, found.gated, found.full_layers, found.window) == ("layer_norm", False, (0, 1, 2), 1)


def test_another_activation_or_norm_or_windows_show_in_the_logits(tmp_path):
    """What the comparison with transformers must find: each changes them by ten times its tolerance at least."""
    pytest.importorskip("torch")
    from tests import parity

    directory = family.checkpoint(tmp_path)
    model = parity.load(directory)
    case = parity.image_prompt(model, [(50, 20), (25, 100)], directory)
    expected = parity.theirs(parity.oracle(directory), case)[2]

    def difference() -> float:
        return np.abs(parity.ours(model, case)[2] - expected).max()

    assert difference() <= family.TOLERANCE
    config, mlp = model.vision.config, model.vision.layers.mlp
    mlp.activation = "gelu"
    assert difference() > 10 * family.TOLERANCE
    mlp.activation = "quick_gelu"
    model.vision.config = dataclasses.replace(config, full_layers=(1,))
    assert difference() > 10 * family.TOLERANCE
    model.vision.config = config
    norms = model.vision.layers.attention_norm
    norms.bias[...] *= 0
    assert difference() > 10 * family.TOLERANCE


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"vision": {"hidden_size": 40}}, "hidden_size is not 48, the language model's width"),
        ({"vision": {"mlp_ratio": 2.5}}, "mlp_ratio must be a whole number"),
        ({"vision": {"embed_dim": 40}}, "hidden_size 40 is no multiple of num_attention_heads 3"),
        ({"vision": {"hidden_act": "relu"}}, "hidden_act must be one of 'quick_gelu'"),
        ({"text": {"rope_scaling": {"mrope_section": [1, 1, 1]}}}, "is not 3 numbers with the sum 4"),
    ],
)
def test_a_model_that_needs_something_else_is_refused_by_its_key(tmp_path, changed, message):
    directory = family.checkpoint(tmp_path)
    (directory / "config.json").write_text(json.dumps(family.config(**changed)))
    with pytest.raises(UserError, match=message):
        read(directory)


def test_published_sizes_are_those_of_their_names():
    sizes = {name: published_config(f"Qwen/Qwen2-VL-{name}-Instruct") for name in ("2B", "7B", "72B")}
    assert [found.text.layers for found in sizes.values()] == [28, 28, 80]
    assert [found.text.tied for found in sizes.values()] == [True, False, False]
    assert all(found.geometry == Qwen2Geometry() and found.vision.intermediate_size == 5120 for found in sizes.values())
    assert published_config("Qwen/Qwen2.5-VL-7B-Instruct") is None
    assert registry.published_config("Qwen/Qwen2-VL-7B-Instruct") == sizes["7B"]
