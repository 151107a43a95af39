"""What a step must not send: gradients summed whole on every device, activations gathered over the axis that shares the rows.

Judged by sizes: a parameter's gradient has as many elements as the parameter where it is used, and what is gathered over `fsdp`
has as many elements as some parameter, or it is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import jax

from mmrlhf_jax.planning.hlo import Array
from mmrlhf_jax.planning.roofline import Message
from mmrlhf_jax.sharding.rules import axes_in, used

ROWS = "fsdp"  # of the axes that share the rows the one that parameters are stored over as well
SMALL = 2**20  # bytes; below, it is figures of the batch that are gathered, and matrices that are summed sooner than scattered


def used_sizes(params) -> dict[int, int]:
    """Elements, as a device uses them, of every parameter of a tree of abstract arrays and of one layer of the stacked ones,
    with the number of dimensions that are more than 1.

    With `tensor` also whole: what is gathered by hand, as the vocabulary is, is gathered with all its columns.
    """
    found: dict[int, int] = {}
    for x in jax.tree.leaves(params):
        split = prod(x.sharding.mesh.shape[axis] for entry in used(x.sharding.spec) for axis in axes_in(entry))
        for shape in (x.shape, x.shape[1:]):  # the first dimension is perhaps that of the layers
            for elements in (prod(shape) // split, prod(shape)):
                found[elements] = max(found.get(elements, 0), sum(size > 1 for size in shape))
    return found


def reduced_whole(sent: Sequence[Message], sizes: dict[int, int]) -> list[str]:
    """Matrices' gradients of which every device gets the whole sum."""
    reductions = [each for each in sent if each.kind == "all-reduce" and ROWS in each.axes]
    large = ((each, array) for each in reductions for array in each.arrays if array.bytes >= SMALL)
    found = {(array, each.axes) for each, array in large if _is_matrix(array) and sizes.get(array.elements, 0) > 1}
    return [_shown(array, axes) for array, axes in sorted(found, key=lambda each: -each[0].bytes)]


def gathered_activations(sent: Sequence[Message], sizes: dict[int, int]) -> list[str]:
    gathers = [each for each in sent if each.kind == "all-gather" and ROWS in each.axes]
    found = {
        (array, each.axes)
        for each in gathers
        for array in each.arrays
        if array.bytes >= SMALL and (array.dtype in ("bf16", "f32", "f16", "u8")) and not _of_a_parameter(array, each, sizes)
    }
    return [_shown(array, axes) for array, axes in sorted(found, key=lambda each: -each[0].bytes)]


def _is_matrix(array: Array) -> bool:
    return sum(size > 1 for size in array.shape) > 1


def _of_a_parameter(array: Array, message: Message, sizes: dict[int, int]) -> bool:
    """Whole, or where a ring hands on its pieces (one way, or half of each both ways), a piece."""
    if not message.ring:
        return array.elements in sizes
    return any(size % array.elements == 0 and size // array.elements <= 2 * message.devices for size in sizes)


def _shown(array: Array, axes: Sequence[str]) -> str:
    return f"{array.dtype}{list(array.shape)} over {'+'.join(axes)}"
