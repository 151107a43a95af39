"""Finds communication that a well-sharded step does not have: all-reduces of gradients that should be reduce-scattered, and
all-gathers of activations over the axis that shards the rows.

Arrays are recognised by their sizes: a gradient has as many elements as the gathered parameter, and an array that is gathered
over `fsdp` but has the size of no parameter is an activation.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import jax

from mmrlhf_jax.planning.hlo import Array
from mmrlhf_jax.planning.roofline import Message
from mmrlhf_jax.sharding.rules import axes_in, used

ROWS = "fsdp"  # the axis that shards both rows and stored parameters
SMALL = 2**20  # bytes; smaller arrays are not judged: metrics of the batch, and matrices that XLA sums rather than scatters


def used_sizes(params) -> dict[int, int]:
    """For a tree of abstract arrays: number of elements of each gathered parameter (and of one layer of it) -> its number of
    dimensions larger than 1.

    With a `tensor` axis both the sharded and the whole size are included, because explicit gathers, such as that of the
    vocabulary matrix, gather all columns.
    """
    found: dict[int, int] = {}
    for x in jax.tree.leaves(params):
        split = prod(x.sharding.mesh.shape[axis] for entry in used(x.sharding.spec) for axis in axes_in(entry))
        for shape in (x.shape, x.shape[1:]):  # the first dimension may be that of stacked layers
            for elements in (prod(shape) // split, prod(shape)):
                found[elements] = max(found.get(elements, 0), sum(size > 1 for size in shape))
    return found


def reduced_whole(sent: Sequence[Message], sizes: dict[int, int]) -> list[str]:
    """Gradients of matrices that are all-reduced over `fsdp`, in words, largest first. `sizes` from `used_sizes`.

    For GPUs, XLA joins several arrays to a flat one before it reduces them, so that a large flat one counts as gradients."""
    reductions = [each for each in sent if each.kind == "all-reduce" and ROWS in each.axes]
    large = ((each, array) for each in reductions for array in each.arrays if array.bytes >= SMALL)
    found = {(array, each.axes) for each, array in large if _is_flat(array) or _is_gradient(array, sizes)}
    return [_shown(array, axes) for array, axes in sorted(found, key=lambda each: -each[0].bytes)]


def gathered_activations(sent: Sequence[Message], sizes: dict[int, int]) -> list[str]:
    """Activations that are all-gathered over `fsdp`, in words, largest first. `sizes` from `used_sizes`."""
    gathers = [each for each in sent if each.kind == "all-gather" and ROWS in each.axes]
    found = {
        (array, each.axes)
        for each in gathers
        for array in each.arrays
        if array.bytes >= SMALL and (array.dtype in ("bf16", "f32", "f16", "u8")) and not _of_a_parameter(array, each, sizes)
    }
    return [_shown(array, axes) for array, axes in sorted(found, key=lambda each: -each[0].bytes)]


def _is_flat(array: Array) -> bool:
    """Whether an array has one dimension; no vector among the parameters is large."""
    return len(array.shape) == 1


def _is_gradient(array: Array, sizes: dict[int, int]) -> bool:
    """Whether an array is a matrix of a parameter's size."""
    return sum(size > 1 for size in array.shape) > 1 and sizes.get(array.elements, 0) > 1


def _of_a_parameter(array: Array, message: Message, sizes: dict[int, int]) -> bool:
    """Whether the array has the size of a parameter or, in a ring, of a parameter's shard (or half of one, in a ring that sends
    both ways)."""
    if not message.ring:
        return array.elements in sizes
    return any(size % array.elements == 0 and size // array.elements <= 2 * message.devices for size in sizes)


def _shown(array: Array, axes: Sequence[str]) -> str:
    return f"{array.dtype}{list(array.shape)} over {'+'.join(axes)}"
