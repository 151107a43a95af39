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


def on_gpu(*lines: str, before: str = "") -> hlo.Module:
    """A program of these instructions, as XLA writes it for GPUs."""
    return hlo.parse("HloModule test\n\n" + before + "ENTRY %main () -> f32[] {\n  " + "\n  ".join(lines) + "\n}\n")


CUBLAS = (
    '"gemm_backend_config":{"beta":0,"dot_dimension_numbers":{"lhs_contracting_dimensions":[LEFT],'
    '"rhs_contracting_dimensions":[RIGHT],"lhs_batch_dimensions":["0"],"rhs_batch_dimensions":["0"]}}'
)


@pytest.mark.parametrize("function", ["__cublas$lt$matmul", "__cublas$gemm"])
@pytest.mark.parametrize(("left", "contracted"), [((4, 8, 16), '"2"'), ((4, 16, 8), '"1"'), ((4, 2, 8, 8), '"1","3"')])
def test_a_batched_product_by_cublas_counts_as_the_dot_that_it_was(function, left, contracted):
    """Its workspace beside the result is neither FLOPs nor traffic of the product."""
    module = on_gpu(
        f"%a = bf16[{','.join(map(str, left))}]{{2,1,0}} parameter(0)",
        "%b = bf16[4,16,32]{1,2,0} parameter(1)",
        f'%c = (f32[4,8,32]{{2,1,0}}, s8[4194304]{{0}}) custom-call(%a, %b), custom_call_target="{function}", '
        f"backend_config={{{CUBLAS.replace('LEFT', contracted).replace('RIGHT', contracted)}}}",
    )
    assert flops(module) == 2 * 4 * 8 * 32 * 16
    assert hbm_bytes(module) == 2 * 4 * 8 * 16 + 2 * 4 * 16 * 32 + 4 * 4 * 8 * 32


def test_a_product_in_a_fusion_of_triton_counts():
    fused = """%gemm (p: bf16[8,16], q: bf16[16,32]) -> f32[8,32] {
  %p = bf16[8,16]{1,0} parameter(0)
  %q = bf16[16,32]{1,0} parameter(1)
  ROOT %d = f32[8,32]{1,0} dot(%p, %q), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

"""
    module = on_gpu(
        "%a = bf16[8,16]{1,0} parameter(0)",
        "%b = bf16[16,32]{1,0} parameter(1)",
        "ROOT %f = f32[8,32]{1,0} fusion(%a, %b), kind=kCustom, calls=%gemm, "
        'backend_config={"fusion_backend_config":{"kind":"__triton_gemm"}}',
        before=fused,
    )
    assert flops(module) == 2 * 8 * 16 * 32
    assert hbm_bytes(module) == 2 * 8 * 16 + 2 * 16 * 32 + 4 * 8 * 32


# The convolution of images [2, 8, 8, 3] with a filter [3, 3, 3, 16], and its gradients by the images and by the filter.
CONVOLUTIONS = {
    "Forward": ("f32[2,8,8,3]", "f32[3,3,3,16]", "f32[2,8,8,16]"),
    "BackwardInput": ("f32[2,8,8,16]", "f32[3,3,3,16]", "f32[2,8,8,3]"),
    "BackwardFilter": ("f32[2,8,8,3]", "f32[2,8,8,16]", "f32[3,3,3,16]"),
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_a_convolution_by_cudnn_and_its_gradients_count_alike(kind):
    first, second, result = CONVOLUTIONS[kind]
    module = on_gpu(
        f"%a = {first}{{3,2,1,0}} parameter(0)",
        f"%b = {second}{{3,2,1,0}} parameter(1)",
        f"%c = ({result}{{3,2,1,0}}, u8[64]{{0}}) custom-call(%a, %b), window={{size=3x3 pad=1_1x1_1}}, "
        f'dim_labels=b01f_01io->b01f, custom_call_target="__cudnn$conv{kind}"',
    )
    assert flops(module) == 2 * (2 * 8 * 8 * 16) * (3 * 3 * 3)


def test_a_kernel_of_pallas_counts_what_it_was_given_as_its_cost():
    """In the compiled text quotes within a string are escaped, and digits follow the escape."""
    call = '%k = f32[64]{0} custom-call(%a), custom_call_target="__gpu$xla.gpu.triton", backend_config={ir = "ML\\EF", '
    call += 'name = "attention_forward", serialized_metadata = "{\\22flops\\22: \\22119587\\22}"}'
    assert flops(on_gpu("%a = f32[64]{0} parameter(0)", call)) == 119587


def test_a_condition_in_a_fusion_gives_the_trips_too():
    """As GPUs write it. The body's step is in a fusion as well."""
    fused = """%less (p: u32[]) -> pred[] {
  %p.1 = u32[] parameter(0)
  %limit.1 = u32[] constant(16)
  ROOT %lt.1 = pred[] compare(%p.1, %limit.1), direction=LT
}

%more (p: u32[]) -> u32[] {
  %p.2 = u32[] parameter(0)
  %two.2 = u32[] constant(2)
  ROOT %sum.2 = u32[] add(%p.2, %two.2)
}

"""
    text = LOOP.replace("compare(%i, %limit), direction=LT", "fusion(%i), kind=kLoop, calls=%less")
    text = text.replace("%next = u32[] add(%i, %two)", "%next = u32[] fusion(%i), kind=kLoop, calls=%more")
    module = hlo.parse(text.replace("%cond", fused + "%cond", 1))
    assert module.uncounted_loops == 0 and flops(module) == 8 * 2 * 4 * 8 * 8


def test_an_asynchronous_reduce_scatter_counts_once_with_what_it_reads():
    wrapped = """%async (p: f32[64]) -> f32[16] {
  %p = f32[64]{0} parameter(0)
  ROOT %s = f32[16]{0} reduce-scatter(%p), channel_id=3, replica_groups=[2,4]<=[8], dimensions={0}, to_apply=%add
}

"""
    module = on_gpu(
        "%a = f32[64]{0} parameter(0)",
        "%start = ((f32[64]{0}), f32[16]{0}) async-start(%a), calls=%async",
        "ROOT %done = f32[16]{0} async-done(%start)",
        before=wrapped,
    )
    (found,) = collectives(messages(module, MESH, {}, CHIPS["h100"]))
    assert (found.kind, found.axis, found.bytes, found.count) == ("reduce-scatter", "fsdp", 4 * 64, 1)
    assert found.seconds == pytest.approx(4 * 64 * 3 / 4 / 450e9)
    assert hbm_bytes(module) == 4 * (64 + 16)


GATHERED = "((bf16[2,8]{1,0}, bf16[4]{0}), (bf16[8,8]{1,0}, bf16[16]{0})) all-gather-start(%a, %b), channel_id=3"
PASSED = "(bf16[2,8]{1,0}, bf16[2,8]{1,0}) collective-permute-start(%a), channel_id=4, source_target_pairs={{0,1},{1,2},{2,3}}"
STARTED = {
    f"%s = {GATHERED}, replica_groups=mesh['x'=2,'y'=4] {{'y'}}, dimensions={{0}}": ("all-gather", 2 * (64 + 16)),
    f"%s = {PASSED}": ("collective-permute", 2 * 16),
}


@pytest.mark.parametrize("start", STARTED)
def test_the_start_of_a_collective_moves_what_it_makes(start):
    """The tuple of a start has its operands too, which are the smaller part of a gather."""
    module = on_gpu("%a = bf16[2,8]{1,0} parameter(0)", "%b = bf16[4]{0} parameter(1)", start)
    (found,) = collectives(messages(module, MESH, {}, CHIPS["h100"]))
    assert (found.kind, found.axis, found.bytes) == (STARTED[start][0], "fsdp", STARTED[start][1])


def test_a_slice_behind_a_bitcast_is_read_and_written_alone():
    """One layer of a stack whose layers are stored in the middle: GPUs see the stack under another shape."""
    fused = """%read (p: f32[4,16,8], i: s32[]) -> bf16[16,1,8] {
  %p.1 = f32[4,16,8]{2,1,0} parameter(0)
  %i.1 = s32[] parameter(1)
  %z.1 = s32[] constant(0)
  %b.1 = f32[16,4,8]{2,0,1} bitcast(%p.1)
  %d.1 = f32[16,1,8]{2,0,1} dynamic-slice(%b.1, %z.1, %i.1, %z.1), dynamic_slice_sizes={16,1,8}
  ROOT %c.1 = bf16[16,1,8]{2,0,1} convert(%d.1)
}

%write (p: f32[4,16,8], u: f32[16,8], i: s32[]) -> f32[16,4,8] {
  %p.2 = f32[4,16,8]{2,1,0} parameter(0)
  %u.2 = f32[16,8]{1,0} parameter(1)
  %i.2 = s32[] parameter(2)
  %z.2 = s32[] constant(0)
  %b.2 = f32[16,4,8]{2,0,1} bitcast(%p.2)
  %s.2 = f32[16,1,8]{2,0,1} bitcast(%u.2)
  ROOT %d.2 = f32[16,4,8]{2,0,1} dynamic-update-slice(%b.2, %s.2, %z.2, %i.2, %z.2)
}

"""
    given = "%a = f32[4,16,8]{2,1,0} parameter(0)", "%u = f32[16,8]{1,0} parameter(1)", "%i = s32[] parameter(2)"
    read = on_gpu(*given, "%f = bf16[16,1,8]{2,0,1} fusion(%a, %i), kind=kLoop, calls=%read", before=fused)
    assert hbm_bytes(read) == (4 + 2) * 16 * 8 + 4
    written = on_gpu(*given, "%f = f32[16,4,8]{2,0,1} fusion(%a, %u, %i), kind=kLoop, calls=%write", before=fused)
    assert hbm_bytes(written) == 2 * 4 * 16 * 8 + 4


@pytest.mark.parametrize(
    ("slices", "seconds"),
    [({}, 7 / 8 / 450e9), ({"data": 2}, 1 / 2 / (4 * 50e9)), ({"data": 2, "fsdp": 4}, 7 / 8 / 50e9)],
)
def test_what_gpus_of_a_host_share_crosses_the_network_once(slices, seconds):
    """Eight GPUs of one host; of two hosts, whose four bring in the other host's half together; each a host of its own."""
    gather = "%g = bf16[512]{0} all-gather(%a), channel_id=1, replica_groups=[1,8]<=[8], dimensions={0}"
    module = on_gpu("%a = bf16[64]{0} parameter(0)", gather)
    (found,) = messages(module, MESH, slices, CHIPS["h100"])
    assert found.seconds == pytest.approx(1024 * seconds)


@pytest.mark.parametrize(("groups", "seconds"), [("[4,2]<=[8]", 1 / 2 / 450e9), ("[4,2]<=[2,2,2]T(0,2,1)", 1 / 2 / 50e9)])
def test_a_group_over_a_part_of_an_axis_crosses_the_network_if_its_devices_are_on_several_hosts(groups, seconds):
    """The axis `fsdp` runs over two hosts of two: neighbours are on one, every other device is on the other."""
    gather = f"%g = bf16[512]{{0}} all-gather(%a), channel_id=1, replica_groups={groups}, dimensions={{0}}"
    module = on_gpu("%a = bf16[256]{0} parameter(0)", gather)
    (found,) = messages(module, MESH, {"fsdp": 2}, CHIPS["h100"])
    assert (found.axes, found.devices) == (("fsdp",), 2) and found.seconds == pytest.approx(1024 * seconds)
