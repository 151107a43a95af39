"""What is sent is judged by its size: a matrix's gradient summed whole, or an activation gathered over `fsdp`, is named."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from mmrlhf_jax.accelerators import CHIPS
from mmrlhf_jax.planning.audit import gathered_activations, reduced_whole, used_sizes
from mmrlhf_jax.planning.hlo import parse
from mmrlhf_jax.planning.roofline import messages
from mmrlhf_jax.sharding import rules

MESH = {"data": 1, "fsdp": 4, "tensor": 2, "context": 1}
OVER_FSDP, OVER_TENSOR = "replica_groups={{0,2,4,6},{1,3,5,7}}", "replica_groups={{0,1},{2,3},{4,5},{6,7}}"


@pytest.fixture(scope="module")
def sizes():
    """12 stacked layers of a [1024, 2048] matrix that `tensor` splits, and of a vector of 1024."""
    mesh = AbstractMesh(tuple(MESH.values()), rules.MESH_AXES)

    def param(shape, *spec):
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(*spec)))

    return used_sizes([param((12, 1024, 2048), None, "fsdp", "tensor"), param((12, 1024), None, None), param((1024, 1))])


def sent(operation: str, result: str, groups: str, operand: str = "f32[8]"):
    text = f"""HloModule test

ENTRY %main (a: {operand}) -> {result} {{
  %a = {operand} parameter(0)
  ROOT %r = {result} {operation}(%a), channel_id=1, {groups}, to_apply=%add
}}
"""
    return messages(parse(text), MESH, {}, CHIPS["v5e"])


def test_sizes_are_those_of_one_layer_where_it_is_used_and_of_all(sizes):
    assert sizes[1024 * 1024] == 2 and sizes[12 * 1024 * 1024] == 3
    assert sizes[1024] == 1, "a vector, and a matrix of one column, are no matrix"


@pytest.mark.parametrize("shape", ["f32[1024,1024]", "bf16[1,1024,1024]", "bf16[2,512,1024]"])
def test_a_whole_gradient_on_every_device_is_named_whatever_its_layout(sizes, shape):
    (found,) = reduced_whole(sent("all-reduce", shape, OVER_FSDP), sizes)
    assert shape.split("[")[0] in found and "over fsdp" in found


def test_what_is_scattered_summed_over_other_axes_or_a_vector_is_not(sizes):
    assert not reduced_whole(sent("reduce-scatter", "f32[256,1024]", OVER_FSDP, "f32[1024,1024]"), sizes)
    assert not reduced_whole(sent("all-reduce", "f32[1024,1024]", OVER_TENSOR), sizes)
    assert not reduced_whole(sent("all-reduce", "f32[1024]", OVER_FSDP), sizes)


def test_gradients_that_are_joined_to_a_flat_array_are_named(sizes):
    assert reduced_whole(sent("all-reduce", "f32[1049600]", OVER_FSDP), sizes) == ["f32[1049600] over fsdp"]
    assert not reduced_whole(sent("all-reduce", "f32[1049600]", OVER_TENSOR), sizes)


def test_a_gathered_parameter_is_expected_an_activation_is_named(sizes):
    assert not gathered_activations(sent("all-gather", "bf16[1,1024,1024]", OVER_FSDP), sizes)
    (found,) = gathered_activations(sent("all-gather", "bf16[32,512,1024]", OVER_FSDP), sizes)
    assert found == "bf16[32, 512, 1024] over fsdp"
    assert not gathered_activations(sent("all-gather", "bf16[32,512,1024]", OVER_TENSOR), sizes)


def test_tokens_and_figures_of_the_batch_may_be_gathered(sizes):
    assert not gathered_activations(sent("all-gather", "s32[64,16384]", OVER_FSDP), sizes)
    assert not gathered_activations(sent("all-gather", "f32[64,32]", OVER_FSDP), sizes)


@pytest.mark.parametrize(("piece", "named"), [("bf16[256,1024]", 0), ("bf16[128,1024]", 0), ("bf16[8,512,1000]", 1)])
def test_a_ring_hands_on_pieces_of_a_parameter_or_of_an_activation(sizes, piece, named):
    """The steps of a gather that XLA runs beside the pieces of a product: its pieces are fourths, or eighths both ways."""
    text = f"""HloModule test

%windowed_dot_general_body_ag (p: {piece}) -> {piece} {{
  %p = {piece} parameter(0)
  ROOT %s = {piece} collective-permute(%p), source_target_pairs={{{{0,2}},{{2,4}},{{4,6}},{{6,0}}}}, metadata={{op_name="w"}}
}}

ENTRY %main (a: {piece}) -> {piece} {{
  %a = {piece} parameter(0)
  ROOT %c = {piece} call(%a), to_apply=%windowed_dot_general_body_ag
}}
"""
    found = messages(parse(text), MESH, {}, CHIPS["v5e"])
    assert [each.kind for each in found] == ["all-gather"]
    assert len(gathered_activations(found, sizes)) == named
