"""The device mesh: axes `data, fsdp, tensor, context`, from one CPU device to slices of pods."""

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
    """A mesh over all devices. One axis may be -1: it takes what the others leave.

    `named["slices"]` are the factors of the axes that run over the network between slices (or GPU hosts) instead of the fast
    links within one: with {"data": 2, "fsdp": 32, "slices": {"data": 2}} the gradients alone cross it. Devices are ordered so
    that neighbours in the mesh are neighbours in the machine. `per_slice`: as many devices, one after the other, stand for a
    slice, whatever they say themselves.

    Raises UserError where the product of the axes is not the number of devices, or the slices are not those there are.
    """
    devices = jax.devices() if devices is None else devices
    slices = dict(named.get("slices") or {})
    sizes = mesh_axes.sizes_over({name: named.get(name, 1) for name in rules.MESH_AXES}, slices, len(devices), "here")
    if math.prod(slices.values()) > 1:
        placed = _hybrid(sizes, slices, devices, per_slice)
    else:  # an axis of the torus may serve two axes of the mesh: fsdp 32 x tensor 2 on 4 x 4 x 4 chips
        placed = mesh_utils.create_device_mesh(tuple(sizes.values()), devices, allow_split_physical_axes=True)
    return Mesh(placed, rules.MESH_AXES, axis_types=(AxisType.Auto,) * 4)


def _hybrid(sizes: Mapping[str, int], slices: Mapping[str, int], devices: list, per_slice: int | None) -> np.ndarray:
    """Devices [data, fsdp, tensor, context], every axis a product of its part between slices and its part within one."""
    outer = [slices.get(name, 1) for name in rules.MESH_AXES]
    inner = [size // out for size, out in zip(sizes.values(), outer, strict=True)]
    if per_slice is not None:
        if math.prod(inner) != per_slice:
            raise UserError(f"mesh.slices {dict(slices)} leaves {math.prod(inner)} devices to a slice, which has {per_slice}")
        axes = [place + len(outer) * part for place in range(len(outer)) for part in (0, 1)]
        return np.asarray(devices).reshape(*outer, *inner).transpose(axes).reshape(*sizes.values())
    # Hosts of GPUs and CPUs are no slices to JAX: there the processes are what the network joins.
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
    """Inside, parameters are made sharded and `rules.constrain` acts."""
    with jax.set_mesh(mesh), nnx.logical_axis_rules(rules.flax_rules()):
        yield mesh


def parameter_shardings(state: nnx.State, mesh: Mesh) -> dict[tuple, NamedSharding]:
    """Where each parameter of a (perhaps abstract) state is stored, by path; without storage axes that do not divide it."""
    found = {}
    for path, param in nnx.to_flat_state(state):
        axes = param.get_metadata().get("out_sharding") or ()
        found[path] = NamedSharding(mesh, rules.fit_stored(axes, param.shape, mesh))
    return found


def batch_sharding(mesh: Mesh, ndim: int) -> NamedSharding:
    """Rows over the batch axes; the rest of a row batch's dimensions are whole on every device."""
    return NamedSharding(mesh, rules.spec("batch", *(None,) * (ndim - 1)))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def rows_divisor(mesh: Mesh) -> int:
    """The number of batch shards: a global batch's rows must be a multiple of it."""
    return mesh_axes.batch_shards(mesh.shape)
