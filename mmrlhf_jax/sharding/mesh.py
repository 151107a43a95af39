"""The device mesh with axes `data, fsdp, tensor, context`, for one CPU device up to several TPU slices."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping

import jax
import numpy as np
from flax import nnx
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mmrlhf_jax import mesh_axes
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.sharding import rules


def make_mesh(
    named: Mapping[str, int | Mapping[str, int]], devices: list | None = None, *, per_slice: int | None = None
) -> Mesh:
    """A mesh over all devices. The size of one axis may be -1, which is then derived from the others.

    `named["slices"]` gives for each axis the factor that runs over the data-centre network between slices (or GPU hosts); the
    rest of the axis runs over the fast links within a slice. With {"data": 2, "fsdp": 32, "slices": {"data": 2}} only gradients
    cross the network. Devices are ordered so that neighbours in the mesh are neighbours in the machine. With `per_slice`, every
    run of so many consecutive devices counts as a slice, whatever the devices report.

    Raises UserError if the product of the axes is not the number of devices, or if there are not as many slices.
    """
    devices = jax.devices() if devices is None else devices
    slices = dict(named.get("slices") or {})
    sizes = mesh_axes.sizes_over({name: named.get(name, 1) for name in rules.MESH_AXES}, slices, len(devices), "here")
    if math.prod(slices.values()) > 1:
        placed = _hybrid(sizes, slices, devices, per_slice)
    else:  # one axis of the torus may be split between two mesh axes: fsdp 32 x tensor 2 on 4 x 4 x 4 chips
        placed = mesh_utils.create_device_mesh(tuple(sizes.values()), devices, allow_split_physical_axes=True)
    return Mesh(placed, rules.MESH_AXES, axis_types=(AxisType.Auto,) * 4)


def _hybrid(sizes: Mapping[str, int], slices: Mapping[str, int], devices: list, per_slice: int | None) -> np.ndarray:
    """Devices [data, fsdp, tensor, context]; every axis is the product of its factor between slices and its factor within
    one."""
    outer = [slices.get(name, 1) for name in rules.MESH_AXES]
    inner = [size // out for size, out in zip(sizes.values(), outer, strict=True)]
    if per_slice is not None:
        if math.prod(inner) != per_slice:
            raise UserError(f"mesh.slices {dict(slices)} leaves {math.prod(inner)} devices to a slice, which has {per_slice}")
        axes = [place + len(outer) * part for place in range(len(outer)) for part in (0, 1)]
        return np.asarray(devices).reshape(*outer, *inner).transpose(axes).reshape(*sizes.values())
    # GPU and CPU devices have no `slice_index`; there each process counts as a slice.
    slice_numbers = {getattr(device, "slice_index", None) for device in devices}
    by_slice = len(slice_numbers) > 1
    groups = slice_numbers if by_slice else {device.process_index for device in devices}
    if len(groups) != math.prod(outer):
        what = "slices" if by_slice else "processes"
        raise UserError(f"mesh.slices {dict(slices)} needs {math.prod(outer)} {what} but {len(groups)} are here")
    return mesh_utils.create_hybrid_device_mesh(
        inner, outer, devices, process_is_granule=not by_slice, allow_split_physical_axes=True
    )


@contextlib.contextmanager
def use_mesh(mesh: Mesh) -> Iterator[Mesh]:
    """A context in which parameters are created sharded over `mesh`, and `rules.constrain` and `rules.gather` apply."""
    with jax.set_mesh(mesh), nnx.logical_axis_rules(rules.flax_rules()):
        yield mesh


def parameter_shardings(state: nnx.State, mesh: Mesh) -> dict[tuple, NamedSharding]:
    """The storage sharding of each parameter of a (possibly abstract) state, by path (`rules.fit_stored`)."""
    found = {}
    for path, param in nnx.to_flat_state(state):
        axes = param.get_metadata().get("out_sharding") or ()
        found[path] = NamedSharding(mesh, rules.fit_stored(axes, param.shape, mesh))
    return found


def batch_sharding(mesh: Mesh, ndim: int) -> NamedSharding:
    """The sharding of a row batch's array of `ndim` dimensions: rows over the batch axes, other dimensions not sharded."""
    return NamedSharding(mesh, rules.spec("batch", *(None,) * (ndim - 1)))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def rows_divisor(mesh: Mesh) -> int:
    """The number of batch shards: a global batch's rows must be a multiple of it."""
    return mesh_axes.batch_shards(mesh.shape)
