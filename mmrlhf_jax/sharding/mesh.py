"""The device mesh: axes `data, fsdp, tensor, context`, from one CPU device to a pod."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import jax
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.sharding import rules


def make_mesh(axes: Mapping[str, int], devices: list | None = None) -> Mesh:
    """A mesh over all devices. One axis may be -1: it takes what the others leave.

    Raises UserError where the product of the axes is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = {name: axes.get(name, 1) for name in rules.MESH_AXES}
    fixed = 1
    for size in sizes.values():
        fixed *= size if size != -1 else 1
    free = [name for name, size in sizes.items() if size == -1]
    if free and len(devices) % fixed == 0:
        sizes[free[0]] = len(devices) // fixed
        fixed = len(devices)
    if fixed != len(devices) or len(free) > 1:
        raise UserError(
            f"mesh {dict(axes)} needs {fixed} devices but {len(devices)} are here; change `mesh` in the launch file"
        )
    return jax.make_mesh(tuple(sizes.values()), rules.MESH_AXES, axis_types=(AxisType.Auto,) * 4, devices=devices)


@contextlib.contextmanager
def use_mesh(mesh: Mesh) -> Iterator[Mesh]:
    """Inside, parameters are made sharded and `rules.constrain` acts."""
    with jax.set_mesh(mesh), nnx.logical_axis_rules(rules.flax_rules()):
        yield mesh


def batch_sharding(mesh: Mesh, ndim: int) -> NamedSharding:
    """Rows over the batch axes; the rest of a row batch's dimensions are whole on every device."""
    return NamedSharding(mesh, rules.spec("batch", *(None,) * (ndim - 1)))


def rows_divisor(mesh: Mesh) -> int:
    """The number of batch shards: a global batch's rows must be a multiple of it."""
    return mesh.shape["data"] * mesh.shape["fsdp"]
