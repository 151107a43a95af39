"""Where parameters lie and how they are used: pieces that do not divide are left whole, use is the identity on one device."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.sharding import rules
from mmrlhf_jax.sharding.mesh import make_mesh

MESH = AbstractMesh((2, 4, 2, 2), rules.MESH_AXES)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((16, 6), PartitionSpec(("fsdp", "context"), "tensor")),
        ((4, 6), PartitionSpec("fsdp", "tensor")),  # 4 pieces, not 8
        ((6, 6), PartitionSpec(None, "tensor")),
        (
            (16, 7),
            PartitionSpec(("fsdp", "context"), "tensor"),
        ),  # tensor changes what is computed: left for the loader to refuse
    ],
)
def test_storage_axes_that_do_not_divide_are_left_out(shape, expected):
    assert rules.fit(rules.spec("embed", "heads"), shape, MESH, rules.STORAGE) == expected


@pytest.mark.parametrize(("size", "pieces"), [(256, ("fsdp", "context")), (64, "fsdp"), (12, "fsdp")])
def test_parameters_are_stored_in_whole_tiles_where_they_can(size, pieces):
    """Over 8 devices a piece of 256 has 32 rows, but one of 64 only half a tile: then 4 devices hold it, and their peers."""
    assert rules.fit_stored(("embed", "heads"), (size, 6), MESH) == PartitionSpec(pieces, "tensor")


def test_a_parameter_is_used_whole_over_the_storage_axes_only():
    assert rules.used(PartitionSpec(("fsdp", "context"), "tensor")) == PartitionSpec(None, "tensor")
    assert rules.used(PartitionSpec(None, ("tensor", "context"))) == PartitionSpec(None, "tensor")


def test_without_a_mesh_gathering_and_its_gradient_are_the_identity():
    x = jnp.arange(6.0).reshape(2, 3)
    value, gradient = jax.value_and_grad(lambda x: (rules.gather(x, ("embed", "mlp")) ** 2).sum())(x)
    assert value == 55
    np.testing.assert_array_equal(gradient, 2 * x)


def test_slices_must_be_there_and_divide_their_axis():
    devices = jax.devices()[:1]
    with pytest.raises(UserError, match=r"mesh\.slices\.data 2 does not divide mesh\.data 1"):
        make_mesh({"fsdp": 1, "slices": {"data": 2}}, devices)
    with pytest.raises(UserError, match="needs 2 devices but 1 are here"):
        make_mesh({"data": 2, "slices": {"data": 2}}, devices)
