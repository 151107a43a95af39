"""The sharding of every array: one table from logical axes to mesh axes (`data, fsdp, tensor, context`).

Parameters name their logical axes when they are created (`partitioned`), activations where it matters (`constrain`). Both look
the names up here, so that the parallelism is changed in this table and not in a model.

Parameters are stored sharded over `fsdp` and `context` and all-gathered before use (`gather`). Rows are sharded over `data` and
`fsdp`, a row's slots over `context`. Attention needs all slots of a row, so there `context` shards the heads instead, and XLA
converts one sharding into the other by an all-to-all (as in DeepSpeed-Ulysses, arXiv 2309.14509).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
from flax import nnx
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from mmrlhf_jax.mesh_axes import MESH_AXES

# Mesh axes over which parameters are sharded in storage only; before use they are all-gathered over these axes.
STORAGE = ("fsdp", "context")

# logical axis -> mesh axes
RULES: dict[str, tuple[str, ...]] = {
    # activations
    "batch": ("data", "fsdp"),
    "replica": ("data",),
    "slots": ("context",),
    "tiles": ("data", "fsdp", "context"),
    "act_heads": ("tensor", "context"),
    "act_mlp": ("tensor",),
    "act_vocab": ("tensor",),
    # parameters
    "embed": STORAGE,
    "mlp": ("tensor",),
    "heads": ("tensor",),
    "vocab": ("tensor",),
    "patch": (),
    "columns": ("fsdp",),  # columns of the embedding table during the lookup; one axis, so that one all-to-all restores rows
}


def flax_rules() -> tuple[tuple[str, tuple[str, ...] | None], ...]:
    """The table in the form that `nnx.logical_axis_rules` takes."""
    return tuple((name, axes or None) for name, axes in RULES.items())


def partitioned(init, *axes: str | None):
    """`init` with logical axes attached to the parameter that it creates."""
    return nnx.with_partitioning(init, axes)


def spec(*axes: str | None) -> PartitionSpec:
    return PartitionSpec(*(RULES[name] or None if name else None for name in axes))


def fit(whole: PartitionSpec, shape: tuple[int, ...], mesh: Mesh | AbstractMesh, droppable=MESH_AXES) -> PartitionSpec:
    """The spec `whole` without the `droppable` mesh axes that do not divide their dimension; the last axes are dropped
    first."""

    def fitting(entry, size: int):
        axes = axes_in(entry)
        while axes and size % _product(axes, mesh) and axes[-1] in droppable:
            axes = axes[:-1]
        return axes or None

    entries = (*whole, *(None,) * (len(shape) - len(whole)))
    return PartitionSpec(*(fitting(entry, size) for entry, size in zip(entries, shape, strict=True)))


# Mesh axes that a parameter's logical axis does without where they do not divide it, beside the storage axes.
UNEVEN = {"vocab": ("tensor",)}
# Rows of a bfloat16 memory tile on TPU. If shards are not whole tiles, XLA replaces a gradient's reduce-scatter by an
# all-reduce.
TILE_ROWS = 16


def fit_stored(axes: Sequence[str | None], shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """The storage spec of a parameter with these logical axes. Dropped are storage axes that do not divide the dimension and,
    except for the first axis of a dimension, those that would make shards that are not whole tiles (`TILE_ROWS`). A vocabulary
    that `tensor` does not divide is replicated over it: vocabularies have any size, all other widths are round numbers."""
    entries = [
        (fit(spec(name), (size,), mesh, (*STORAGE, *UNEVEN.get(name, ())))[0], size) for name, size in _named(axes, shape)
    ]
    whole = PartitionSpec(*(entry for entry, _ in entries))

    def tiled(entry, size: int):
        names = axes_in(entry)
        while len(names) > 1 and names[-1] in STORAGE and size // _product(names, mesh) % TILE_ROWS:
            names = names[:-1]
        return names or None

    return PartitionSpec(*(tiled(entry, size) for entry, size in zip(whole, shape, strict=True)))


def _named(axes: Sequence[str | None], shape: tuple[int, ...]) -> list[tuple[str | None, int]]:
    """(logical axis, size) of every dimension; dimensions behind the named ones have no axis."""
    return list(zip((*axes, *(None,) * (len(shape) - len(axes))), shape, strict=True))


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """`with_sharding_constraint` by logical axes, without mesh axes that do not divide; the identity outside a mesh."""
    mesh = current_mesh()
    return x if mesh is None else jax.lax.with_sharding_constraint(x, fit(spec(*axes), x.shape, mesh))


def gather(x: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
    """All-gather a stored parameter over the storage axes, for use. Its gradient is reduce-scattered into the stored shards.

    Cast to bfloat16 before the call, which halves the bytes to move. Inside a scan over layers a parameter has lost its leading
    dimension while `axes` still names it, so only the last `x.ndim` names are used.
    """
    mesh = current_mesh()
    if mesh is None:
        return x
    stored = fit_stored(axes[-x.ndim :], x.shape, mesh)
    return _gather(x, stored, used(stored))


def scatter(gradient: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
    """Reduce-scatter the gradient of a parameter with these logical axes into the parameter's stored shards."""
    mesh = current_mesh()
    return gradient if mesh is None else _scatter(gradient, fit_stored(axes[-gradient.ndim :], gradient.shape, mesh))


def used(stored: PartitionSpec) -> PartitionSpec:
    """The spec of a gathered parameter: `stored` without the storage axes."""
    return PartitionSpec(*(tuple(a for a in axes_in(entry) if a not in STORAGE) or None for entry in stored))


def axes_in(entry) -> tuple[str, ...]:
    """The mesh axes of one dimension of a `PartitionSpec`."""
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


def current_mesh() -> AbstractMesh | None:
    """The mesh of `jax.set_mesh`; None if there is none or it has a single device."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or mesh.size == 1 else mesh


def platform() -> str:
    """The platform ("cpu", "gpu", "tpu") of the devices that a program is compiled for: those of the mesh of `jax.set_mesh`,
    which need not be present, else jax's default ones."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather(x, stored: PartitionSpec, whole: PartitionSpec):
    x = jax.lax.with_sharding_constraint(x, stored)
    if _over_several_axes(stored):
        x = jax.lax.with_sharding_constraint(x, _over_first_axis(stored))
    return jax.lax.with_sharding_constraint(x, whole)


def _gather_forward(x, stored, whole):
    return _gather(x, stored, whole), None


def _gather_backward(stored, whole, _, cotangent):
    return (_scatter(cotangent, stored),)


def _scatter(cotangent, stored: PartitionSpec):
    # The transpose of `_gather` would constrain the gradient to be replicated first, which makes XLA use an all-reduce.
    mesh = current_mesh()
    if mesh is not None and (_over_several_axes(stored) or mesh.shape["tensor"] > 1):
        cotangent = jax.lax.with_sharding_constraint(cotangent, _over_first_axis(stored))
    return jax.lax.with_sharding_constraint(cotangent, stored)


# In one ring, XLA reduce-scatters a product, and gathers a small matrix, only over axes that are neighbours in the mesh and, on
# some toruses, only over one; else it all-reduces. So both go over the first storage axis and over the others one by one.


def _over_several_axes(stored: PartitionSpec) -> bool:
    """Whether a dimension is sharded over more than one storage axis."""
    return any(len({*axes_in(entry)} & {*STORAGE}) > 1 for entry in stored)


def _over_first_axis(stored: PartitionSpec) -> PartitionSpec:
    """`stored` without the storage axes behind the first one of every dimension."""

    def first(axes: tuple[str, ...]) -> tuple[str, ...]:
        return axes[: next((place + 1 for place, axis in enumerate(axes) if axis in STORAGE), len(axes))]

    return PartitionSpec(*(first(axes_in(entry)) or None for entry in stored))


_gather.defvjp(_gather_forward, _gather_backward)


def _product(axes: tuple[str, ...], mesh: Mesh | AbstractMesh) -> int:
    size = 1
    for axis in axes:
        size *= mesh.shape[axis]
    return size
