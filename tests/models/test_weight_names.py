"""Names of weights, in namings that a family may have: one or two, with tensors that hold several parameters in either."""

from __future__ import annotations

import pytest

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.models import registry
from mmrlhf_jax.models.weight_names import LINEAR, NORM, Part, Row, Stored, WeightNames, piece_name, whole_name

FUSED = tuple(
    Row("vision", f"blocks.{{}}.attn.qkv[{i}/3]", f"vision.layers.attention.{name}", LINEAR) for i, name in enumerate("qkv")
)
ONE_NAMING = WeightNames(
    {"vision": Part("visual.", None)}, (*FUSED, Row("vision", "blocks.{}.norm1", "vision.layers.norm", NORM)), {}, {}
)


def test_a_tensor_of_three_parameters_is_three_pieces_in_hugging_face_naming_too():
    assert ONE_NAMING.pieces("visual.blocks.7.attn.qkv.weight") == 3
    assert ONE_NAMING.pieces("visual.blocks.7.norm1.weight") == 1
    k = ONE_NAMING.resolve(piece_name("visual.blocks.7.attn.qkv.weight", 1, 3))
    assert k == Stored("vision", "blocks.{}.attn.qkv.weight[1/3]", 7)
    assert ONE_NAMING.parameter(k)[0] == ("vision", "layers", "attention", "k", "kernel")
    assert whole_name(ONE_NAMING.spell(k, "hf")) == ("visual.blocks.7.attn.qkv.weight", 1, 3)
    assert ONE_NAMING.tensors(("vision", "layers", "attention", "k", "kernel"), 8)[0][7] == k


def test_a_family_may_have_one_naming():
    assert ONE_NAMING.namings == ("hf",)
    assert not ONE_NAMING.is_original("visual.blocks.7.norm1.weight")
    assert ONE_NAMING.resolve("blocks.7.norm1.weight") is None


def test_a_naming_that_a_family_does_not_have_is_refused(monkeypatch):
    family = registry.family("internvl")
    family.check_naming("original")
    monkeypatch.setattr(type(family), "names", ONE_NAMING)
    with pytest.raises(UserError, match="InternVL checkpoints have no original naming; leave --naming at hf"):
        family.check_naming("original")


@pytest.mark.parametrize("name", registry.FAMILIES)
def test_every_parameter_of_a_family_is_spelt_and_read_back_in_every_naming(name):
    names = registry.family(name).names
    for naming in names.namings:
        seen = set()
        for path in names._by_path:
            tensors, _ = names.tensors(path, 3)
            for tensor in tensors:
                spelt = names.spell(tensor, naming)
                whole, _, count = whole_name(spelt)
                assert names.resolve(spelt) == tensor and names.pieces(whole) == count
                seen.add(spelt)
        assert len(seen) == sum(len(names.tensors(path, 3)[0]) for path in names._by_path)
