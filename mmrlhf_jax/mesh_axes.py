"""Sizes of the mesh axes, and checks of them that need only numbers, before JAX starts or anything is loaded or compiled."""

from __future__ import annotations

import math
from collections.abc import Mapping

from mmrlhf_jax.errors import UserError

MESH_AXES = ("data", "fsdp", "tensor", "context")
REST = -1  # the size is derived from the number of devices and the other axes


def check_axes(axes: Mapping[str, int], slices: Mapping[str, int]) -> None:
    """UserError for sizes that are invalid for any number of devices."""
    for name, size in axes.items():
        if size < 1 and size != REST:
            raise UserError(f"mesh.{name} is {size}; give a number of devices, or -1 for those that the other axes leave")
    free = [f"mesh.{name}" for name, size in axes.items() if size == REST]
    if len(free) > 1:
        raise UserError(f"{' and '.join(free)} are -1, and only one axis can take the devices that are left; give the others")
    for name, parts in slices.items():
        if axes[name] != REST and axes[name] % parts:
            raise UserError(f"mesh.slices.{name} {parts} does not divide mesh.{name} {axes[name]}")


def sizes_over(axes: Mapping[str, int], slices: Mapping[str, int], devices: int, where: str) -> dict[str, int]:
    """The size of every axis of a mesh over `devices` devices. UserError if they do not multiply to that number; `where` names
    the devices for the message."""
    check_axes(axes, slices)
    fixed = math.prod(size for size in axes.values() if size != REST)
    shown = " x ".join(f"{name} {size}" for name, size in axes.items())
    sizes = dict(axes)
    if REST in axes.values():
        if devices % fixed:
            raise UserError(
                f"mesh {shown}: {fixed} does not divide the {devices} devices {where}; change `mesh` in the launch file"
            )
        sizes = {name: devices // fixed if size == REST else size for name, size in axes.items()}
    elif fixed != devices:
        raise UserError(f"mesh {shown} needs {fixed} devices but {devices} are {where}; change `mesh` in the launch file")
    check_axes(sizes, slices)
    return sizes


def batch_shards(axes: Mapping[str, int]) -> int:
    """The number of shards of the rows (data x fsdp); devices along `tensor` and `context` share a shard's rows."""
    return axes["data"] * axes["fsdp"]


def fewest_pieces(rows: int, at_once: int | None, axes: Mapping[str, int]) -> int:
    """The fewest equal accumulation pieces of a batch with which no batch shard has more than `at_once` rows at a time (None:
    any number).

    UserError if the number of batch shards does not divide the rows.
    """
    check_rows(rows, 1, axes)
    own = rows // batch_shards(axes)
    return next(pieces for pieces in range(1, own + 1) if own % pieces == 0 and own // pieces <= (at_once or own))


def check_rows(rows: int, accumulation: int, axes: Mapping[str, int]) -> None:
    """UserError if the number of batch shards does not divide the rows of an accumulation piece."""
    at_once, shards = rows // accumulation, batch_shards(axes)
    if at_once % shards:
        raise UserError(
            f"batch.rows / accumulation = {at_once} must be a multiple of the {shards} batch shards of this mesh (data x fsdp);"
            " change batch.rows, or give devices to tensor or context in the launch file"
        )
