"""What the comparison of programs holds for the same, and what it does not. Nothing is compiled."""

from __future__ import annotations

import pytest

from tests.programs.graph import difference, read_program

PROGRAM = """\
HloModule jit_step, is_scheduled=true, input_output_alias={ {0}: (0, {}, may-alias) }, entry_computation_layout={(f32[4]{0}, \
f32[4]{0}, s32[])->(f32[4]{0}, f32[])}, allow_spmd_sharding_propagation_to_parameters={false,false,true}

FileNames
1 "/somewhere/step.py"

%sum (a.1: f32[], b.1: f32[]) -> f32[] {
  %a.1 = f32[] parameter(0)
  %b.1 = f32[] parameter(1)
  ROOT %add.1 = f32[] add(%a.1, %b.1), metadata={op_name="step/reduce_sum" stack_frame_id=3}
}

%body (carry.1: (s32[], f32[4], f32[4])) -> (s32[], f32[4], f32[4]) {
  %carry.1 = (s32[], f32[4]{0}, f32[4]{0}) parameter(0)
  %count.1 = s32[] get-tuple-element(%carry.1), index=0
  %one.1 = s32[] constant(1)
  %next.1 = s32[] add(%count.1, %one.1)
  %x.1 = f32[4]{0} get-tuple-element(%carry.1), index=1
  %y.1 = f32[4]{0} get-tuple-element(%carry.1), index=2
  %product.1 = f32[4]{0} multiply(%x.1, %y.1)
  ROOT %out.1 = (s32[], f32[4]{0}, f32[4]{0}) tuple(%next.1, %product.1, %y.1)
}

%condition (carry.2: (s32[], f32[4], f32[4])) -> pred[] {
  %carry.2 = (s32[], f32[4]{0}, f32[4]{0}) parameter(0)
  %count.2 = s32[] get-tuple-element(%carry.2), index=0
  %bound.1 = s32[] constant(3)
  ROOT %less.1 = pred[] compare(%count.2, %bound.1), direction=LT
}

ENTRY %main (w: f32[4], x: f32[4], n: s32[]) -> (f32[4], f32[]) {
  %w = f32[4]{0} parameter(0), metadata={op_name="state['w']"}
  %x = f32[4]{0} parameter(1), metadata={op_name="batch.x"}
  %n = s32[] parameter(2), metadata={op_name="batch.n"}
  %start.1 = (s32[], f32[4]{0}, f32[4]{0}) tuple(%n, %w, %x)
  %loop.1 = (s32[], f32[4]{0}, f32[4]{0}) while(%start.1), condition=%condition, body=%body
  %found.1 = f32[4]{0} get-tuple-element(%loop.1), index=1
  %less.2 = f32[4]{0} subtract(%w, %found.1)
  %zero.1 = f32[] constant(0)
  %total.1 = f32[] reduce(%less.2, %zero.1), dimensions={0}, to_apply=%sum
  ROOT %result.1 = (f32[4]{0}, f32[]) tuple(%less.2, %total.1)
}
"""


def changed(*replacements: tuple[str, str]) -> str:
    text = PROGRAM
    for old, new in replacements:
        assert old in text, old
        text = text.replace(old, new)
    return text


SAME = {
    "names": [
        ("%less.2", "%subtract.77"),
        ("%sum", "%region_3"),
        ("%w", "%state.weight"),
        ("jit_step", "jit_train_step"),
    ],
    "source lines": [("stack_frame_id=3", "stack_frame_id=7"), ("/somewhere/step.py", "/elsewhere/loop.py")],
    "order of parameters": [
        ("%w = f32[4]{0} parameter(0)", "%w = f32[4]{0} parameter(2)"),
        ("%n = s32[] parameter(2)", "%n = s32[] parameter(0)"),
        ("{0}: (0, {}, may-alias)", "{0}: (2, {}, may-alias)"),
        ("(f32[4]{0}, f32[4]{0}, s32[])->", "(s32[], f32[4]{0}, f32[4]{0})->"),
        ("{false,false,true}", "{true,false,false}"),
    ],
    "order of results": [
        ("(f32[4]{0}, f32[]) tuple(%less.2, %total.1)", "(f32[], f32[4]{0}) tuple(%total.1, %less.2)"),
        ("{0}: (0, {}, may-alias)", "{1}: (0, {}, may-alias)"),
    ],
    "order of what a loop carries": [
        ("tuple(%n, %w, %x)", "tuple(%n, %x, %w)"),
        ("tuple(%next.1, %product.1, %y.1)", "tuple(%next.1, %y.1, %product.1)"),
        ("%x.1 = f32[4]{0} get-tuple-element(%carry.1), index=1", "%x.1 = f32[4]{0} get-tuple-element(%carry.1), index=2"),
        ("%y.1 = f32[4]{0} get-tuple-element(%carry.1), index=2", "%y.1 = f32[4]{0} get-tuple-element(%carry.1), index=1"),
        ("get-tuple-element(%loop.1), index=1", "get-tuple-element(%loop.1), index=2"),
    ],
}
DIFFERENT = {
    "constant": [("constant(0)", "constant(1)")],
    "shape": [("f32[4]", "f32[5]")],
    "layout": [("%less.2 = f32[4]{0}", "%less.2 = f32[4]{0:T(128)}")],
    "operand": [("subtract(%w, %found.1)", "subtract(%x, %found.1)")],
    "order of operands": [("subtract(%w, %found.1)", "subtract(%found.1, %w)")],
    "reduction": [("%add.1 = f32[] add", "%add.1 = f32[] maximum")],
    "dimension": [("dimensions={0}", "dimensions={}")],
    "what a loop starts with": [("tuple(%n, %w, %x)", "tuple(%n, %x, %w)")],
    "what a loop passes on": [("tuple(%next.1, %product.1, %y.1)", "tuple(%next.1, %y.1, %product.1)")],
    "what of a loop is read": [("get-tuple-element(%loop.1), index=1", "get-tuple-element(%loop.1), index=2")],
    "trip count": [("%bound.1 = s32[] constant(3)", "%bound.1 = s32[] constant(4)")],
    "shared memory": [("{0}: (0, {}, may-alias)", "{0}: (1, {}, may-alias)")],
    "what is left out": [("tuple(%less.2, %total.1)", "tuple(%w, %total.1)")],
}


@pytest.mark.parametrize("replacements", SAME.values(), ids=SAME)
def test_it_is_the_same_program(replacements):
    old, new = read_program(PROGRAM), read_program(changed(*replacements))
    assert (old.digest, old.listed) == (new.digest, new.listed)


@pytest.mark.parametrize("replacements", DIFFERENT.values(), ids=DIFFERENT)
def test_it_is_another_program_and_the_diff_shows_it(replacements):
    old, new = read_program(PROGRAM), read_program(changed(*replacements))
    assert old.digest != new.digest
    assert difference(old, new)


def test_a_diff_has_the_line_that_changed_and_its_neighbours_only():
    diff = difference(read_program(PROGRAM), read_program(changed(("constant(3)", "constant(4)"))))
    assert [line for line in diff if line.startswith(("+ ", "- "))] == [
        "-  %constant = s32[] constant(3)",
        "+  %constant = s32[] constant(4)",
    ]


def test_instructions_in_another_order_are_the_same_program_listed_otherwise():
    lines = PROGRAM.splitlines(keepends=True)
    i = next(i for i, line in enumerate(lines) if "%next.1 = " in line)
    lines[i], lines[i + 1] = lines[i + 1], lines[i]
    old, new = read_program(PROGRAM), read_program("".join(lines))
    assert old.digest == new.digest and old.listed != new.listed


def test_a_constant_that_is_left_out_is_refused():
    with pytest.raises(ValueError, match="large constants are left out"):
        read_program(changed(("constant(3)", "constant({...})")))
