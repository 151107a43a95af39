"""What is read in a compiled program's text: loops count by their trips, collectives by the mesh axes that they span."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from mmrlhf_jax.accelerators import CHIPS
from mmrlhf_jax.planning import hlo
from mmrlhf_jax.planning.flops import flops
from mmrlhf_jax.planning.roofline import collectives, hbm_bytes, messages


def compiled_text(function, *arguments) -> str:
    return jax.jit(function).lower(*arguments).compile().as_text()


def test_a_scan_counts_as_often_as_it_runs():
    x, w = jnp.ones((8, 16)), jnp.ones((5, 16, 16))

    def loop(x, w):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

    assert flops(hlo.parse(compiled_text(loop, x, w))) == 5 * 2 * 8 * 16 * 16


def test_scans_inside_scans_multiply():
    x, w = jnp.ones((8, 16)), jnp.ones((3, 7, 16, 16))

    def inner(x, w):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)

    def loop(x, w):
        return jax.lax.scan(lambda x, w: (inner(x, w)[0], None), x, w)[0]

    assert flops(hlo.parse(compiled_text(loop, x, w))) == 21 * 2 * 8 * 16 * 16


LOOP = """HloModule test

%cond (p: (u32[], f32[4,8])) -> pred[] {
  %limit = u32[] constant(16)
  %p = (u32[], f32[4,8]) parameter(0)
  %i = u32[] get-tuple-element(%p), index=0
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}

%body (p: (u32[], f32[4,8])) -> (u32[], f32[4,8]) {
  %p = (u32[], f32[4,8]) parameter(0)
  %two = u32[] constant(2)
  %i = u32[] get-tuple-element(%p), index=0
  %x = f32[4,8]{1,0} get-tuple-element(%p), index=1
  %w = f32[8,8]{1,0} constant({...})
  %y = f32[4,8]{1,0} convolution(%x, %w), dim_labels=bf_io->bf
  %next = u32[] add(%i, %two)
  ROOT %t = (u32[], f32[4,8]) tuple(%next, %y)
}

ENTRY %main (x: f32[4,8]) -> f32[4,8] {
  %x = f32[4,8]{1,0:T(8,128)} parameter(0)
  %zero = u32[] constant(0)
  %start = (u32[], f32[4,8]) tuple(%zero, %x)
  %loop = (u32[], f32[4,8]) while(%start), condition=%cond, body=%body
  ROOT %out = f32[4,8]{1,0} get-tuple-element(%loop), index=1
}
"""


def test_trips_follow_from_the_limit_and_the_step_where_they_are_not_noted():
    module = hlo.parse(LOOP)
    assert flops(module) == 8 * 2 * 4 * 8 * 8
    assert module.uncounted_loops == 0


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("%next = u32[] add(%i, %two)", "%next = u32[] multiply(%i, %two)"),
        ("%next = u32[] add(%i, %two)", "%next = u32[] add(%i, %i)"),
        ("%two = u32[] constant(2)", "%two = u32[] constant(0)"),
        ("%zero = u32[] constant(0)", "%zero = u32[] convert(%x)"),
        ("%start = (u32[], f32[4,8]) tuple(%zero, %x)", "%start = (u32[], f32[4,8]) custom-call(%x)"),
        ("ROOT %t = (u32[], f32[4,8]) tuple(%next, %y)", "ROOT %t = (u32[], f32[4,8]) custom-call(%next, %y)"),
    ],
)
def test_a_loop_whose_start_or_step_is_not_said_is_reported_and_not_guessed(text, other):
    assert LOOP.count(text) == 1
    module = hlo.parse(LOOP.replace(text, other))
    assert module.uncounted_loops == 1
    assert flops(module) == 2 * 4 * 8 * 8  # once


def test_a_start_other_than_zero_counts():
    text = LOOP.replace("%zero = u32[] constant(0)", "%six = u32[] constant(6)\n  %zero = u32[] copy(%six)")
    assert flops(hlo.parse(text)) == 5 * 2 * 4 * 8 * 8


def test_a_batched_product_written_as_a_dilated_window_counts_what_meets_the_input():
    """TPUs write [4, 8, 16] x [4, 16, 32] as a convolution over the batch with a window of 4 that meets one element each."""
    text = """HloModule test

ENTRY %main (a: f32[4,8,16], b: f32[4,16,32]) -> f32[4,8,32] {
  %a = f32[4,8,16]{2,1,0} parameter(0)
  %b = f32[4,16,32]{2,1,0} parameter(1)
  ROOT %c = f32[4,8,32]{2,1,0} convolution(%a, %b), window={size=4 stride=3 pad=0_0 lhs_dilate=4}, dim_labels=0bf_0io->0bf
}
"""
    assert flops(hlo.parse(text)) == 4 * 2 * 8 * 16 * 32


MESH = {"data": 2, "fsdp": 4, "tensor": 1, "context": 1}
GROUPS = {
    "replica_groups={{0,1,2,3},{4,5,6,7}}": "fsdp",
    "replica_groups={{0,4},{1,5},{2,6},{3,7}}": "data",
    "replica_groups=[2,4]<=[8]": "fsdp",
    "replica_groups=[4,2]<=[2,4]T(1,0)": "data",
    "replica_groups=[1,8]<=[8]": "data+fsdp",
    "replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}": "fsdp",
    "replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0'}": "data",
    "replica_groups=mesh['axis_0'=8] {'axis_0':(2)4}": "fsdp",
    "replica_groups=mesh['axis_0'=8] {'axis_0':(1)2}": "data",
}


@pytest.mark.parametrize("groups", GROUPS)
def test_the_axis_of_a_collective_is_read_from_every_notation_of_its_groups(groups):
    text = f"""HloModule test

ENTRY %main (a: bf16[16]) -> bf16[64] {{
  %a = bf16[16]{{0}} parameter(0)
  ROOT %g = bf16[64]{{0}} all-gather(%a), channel_id=1, {groups}, dimensions={{0}}
}}
"""
    (found,) = collectives(messages(hlo.parse(text), MESH, {}, CHIPS["v6e"]))
    assert (found.kind, found.axis, found.bytes, found.count) == ("all-gather", GROUPS[groups], 128, 1)


def test_links_between_slices_are_slower_than_those_within_one():
    text = """HloModule test

ENTRY %main (a: f32[1024]) -> f32[1024] {
  %a = f32[1024]{0} parameter(0)
  ROOT %r = f32[1024]{0} all-reduce(%a), replica_groups={{0,4},{1,5},{2,6},{3,7}}, to_apply=%add
}
"""
    chip = CHIPS["v6e"]
    (near,) = collectives(messages(hlo.parse(text), MESH, {}, chip))
    (far,) = collectives(messages(hlo.parse(text), MESH, {"data": 2}, chip))
    assert near.seconds == pytest.approx(4096 / (chip.links / 2))
    assert far.seconds == pytest.approx(4096 / chip.network)


def test_a_ring_of_permutes_beside_a_product_is_the_reduce_scatter_that_it_was():
    text = """HloModule test

%windowed_dot_general_body_rs (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %s = f32[8]{0} collective-permute(%p), source_target_pairs={{0,1},{1,2},{2,3},{3,0}}, metadata={op_name="w"}
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  %c = f32[8]{0} call(%a), to_apply=%windowed_dot_general_body_rs
  ROOT %last = f32[8]{0} collective-permute(%c), source_target_pairs={{0,1},{1,2},{2,3},{3,0}}, metadata={op_name="w"}
}
"""
    (found,) = collectives(messages(hlo.parse(text), MESH, {}, CHIPS["v6e"]))
    assert (found.kind, found.axis, found.count) == ("reduce-scatter", "fsdp", 2)


def test_a_fusion_that_slices_reads_the_slice():
    """One layer's weights out of a stack of 100: the loop reads the stack once, not a hundred times."""
    stack, x = jnp.ones((100, 64, 64)), jnp.ones((8, 64))

    def loop(x, w):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

    read = hbm_bytes(hlo.parse(compiled_text(loop, x, stack)))
    once = stack.nbytes
    assert once <= read <= 5 * once


def test_a_fusion_within_a_fusion_that_slices_reads_the_slice():
    text = """HloModule test

%inner (p: f32[64,8]) -> f32[1,8] {
  %p = f32[64,8]{1,0} parameter(0)
  %z = s32[] constant(0)
  ROOT %s = f32[1,8]{1,0} dynamic-slice(%p, %z, %z), dynamic_slice_sizes={1,8}
}

%outer (p: f32[64,8], q: f32[1,8]) -> f32[1,8] {
  %p = f32[64,8]{1,0} parameter(0)
  %q = f32[1,8]{1,0} parameter(1)
  %f = f32[1,8]{1,0} fusion(%p), kind=kLoop, calls=%inner
  ROOT %r = f32[1,8]{1,0} add(%f, %q)
}

ENTRY %main (a: f32[64,8], b: f32[1,8]) -> f32[1,8] {
  %a = f32[64,8]{1,0} parameter(0)
  %b = f32[1,8]{1,0} parameter(1)
  ROOT %f = f32[1,8]{1,0} fusion(%a, %b), kind=kOutput, calls=%outer
}
"""
    assert hbm_bytes(hlo.parse(text)) == 3 * 32  # the slice, b, and the result


ON_CHIP = """HloModule test

%part (p: f32[4096]) -> f32[1024] {
  %p = f32[4096]{0:T(1024)} parameter(0)
  ROOT %s = f32[1024]{0:T(1024)S(1)} slice(%p), slice={[0:1024]}
}

ENTRY %main (a: f32[4096]) -> f32[1024] {
  %a = f32[4096]{0:T(1024)} parameter(0)
  BEGIN
  %twice = f32[1024]{0:T(1024)S(1)} add(%near, %near)
  ROOT %out = f32[1024]{0:T(1024)} negate(%twice)
}
"""
FETCHED = {
    "%start = ((f32[4096]{0:T(1024)}), f32[1024]{0:T(1024)S(1)}, s32[]{:S(2)}) async-start(%a), calls=%part\n"
    "  %near = f32[1024]{0:T(1024)S(1)} async-done(%start)": 4096,
    "%start = (f32[4096]{0:T(1024)S(1)}, f32[4096]{0:T(1024)}, u32[]{:S(2)}) copy-start(%a)\n"
    "  %near = f32[4096]{0:T(1024)S(1)} copy-done(%start)": 4 * 4096,
    "%near = f32[1024]{0:T(1024)S(1)} slice(%a), slice={[0:1024]}": 4096,
    "%near = f32[1024]{0:T(1024)S(1)} fusion(%a), kind=kLoop, calls=%part": 4096,
}


@pytest.mark.parametrize("fetch", FETCHED)
def test_what_stays_on_the_chip_is_no_traffic_of_main_memory(fetch):
    """Read once as it is fetched, and written once at the end; what is between never leaves the chip."""
    assert hbm_bytes(hlo.parse(ON_CHIP.replace("BEGIN", fetch))) == FETCHED[fetch] + 4096


def test_a_collective_that_is_spread_over_fusions_counts_once():
    """Its start and end run once, its steps in a loop's body beside other work: one channel, one gather."""
    fusions = "".join(
        f"""%part{i} (p: bf16[16]) -> bf16[64] {{
  %p = bf16[16]{{0}} parameter(0)
  ROOT %g{i} = bf16[64]{{0}} all-gather(%p), channel_id=7, replica_groups=[2,4]<=[8], dimensions={{0}}
}}

"""
        for i in range(3)
    )
    calls = "".join(f"  %f{i} = bf16[64]{{0}} fusion(%a), kind=kCustom, calls=%part{i}\n" for i in range(3))
    text = f"HloModule test\n\n{fusions}ENTRY %main (a: bf16[16]) -> bf16[64] {{\n  %a = bf16[16]{{0}} parameter(0)\n{calls}"
    text += "  ROOT %r = bf16[64]{0} copy(%f2)\n}\n"
    (found,) = collectives(messages(hlo.parse(text), MESH, {}, CHIPS["v6e"]))
    assert (found.kind, found.axis, found.bytes, found.count) == ("all-gather", "fsdp", 128, 1)


def test_a_reduce_scatter_in_a_loop_and_in_the_trip_taken_out_of_it_counts_as_often_as_both():
    """The same channel twice, as TPUs write it: a fusion around an all-reduce of which a device keeps its piece."""
    fusions = "".join(
        f"""%all-reduce-scatter.{i} (p: f32[64]) -> f32[16] {{
  %p = f32[64]{{0}} parameter(0)
  %r = f32[64]{{0}} all-reduce(%p), channel_id=9, replica_groups=[2,4]<=[8], to_apply=%add
  ROOT %s = f32[16]{{0}} slice(%r), slice={{[0:16]}}
}}

"""
        for i in range(2)
    )
    call = "%g = f32[64]{{0}} constant({{...}})\n  %s = f32[16]{{0}} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.{}\n  "
    body, entry = LOOP.removeprefix("HloModule test").split("ENTRY")
    loop, entry = body.replace("ROOT %t", call.format(0) + "ROOT %t"), entry.replace("ROOT %out", call.format(1) + "ROOT %out")
    (found,) = collectives(messages(hlo.parse(f"HloModule test\n\n{fusions}{loop}ENTRY{entry}"), MESH, {}, CHIPS["v6e"]))
    assert (found.kind, found.axis, found.count, found.bytes) == ("reduce-scatter", "fsdp", 8 + 1, 9 * 64 * 4)


def test_what_a_host_sends_to_the_other_slice_counts_over_the_network():
    text = """HloModule test

ENTRY %main (a: bf16[112,8,128]) -> bf16[112,8,128] {
  %a = bf16[112,8,128]{2,1,0} parameter(0)
  %token = token[] after-all()
  %s = (bf16[112,8,128]{2,1,0}, u32[], token[]) send(%a, %token), channel_id=4, is_host_transfer=true, ATTRIBUTES
  ROOT %r = bf16[112,8,128]{2,1,0} copy(%a)
}
"""
    names = '_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_host_transfer_rendezvous="all-reduce.173_0"'
    text, chip = text.replace("ATTRIBUTES", f"frontend_attributes={{{names}}}"), CHIPS["v6e"]
    (found,) = collectives(messages(hlo.parse(text), MESH, {"data": 2}, chip))
    assert (found.kind, found.axis, found.bytes) == ("all-reduce", "data", 112 * 8 * 128 * 2)
    assert found.seconds == pytest.approx(found.bytes / chip.network)
