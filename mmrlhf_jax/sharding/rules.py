"""Where every array lives: one table from logical axes to mesh axes (`data, fsdp, tensor, context`).

Parameters name their logical axes where they are made (`partitioned`), activations where it matters (`constrain`). Both
look the names up here, so that another parallelism is a change of this table and not of a model.

Parameters are stored in pieces over `fsdp` and `context` and used whole (`gather`); rows are split over `data` and `fsdp`, a
row's slots over `context`. Attention needs a row's slots together: there `context` splits the heads instead, and XLA
exchanges the one split for the other (all-to-all, as in DeepSpeed-Ulysses, arXiv 2309.14509).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
from flax import nnx
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from mmrlhf_jax.mesh_axes import MESH_AXES

# Axes over which parameters are only stored: what is computed with them does not depend on the split.
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
    "columns": ("fsdp",),  # of the embedding while tokens are looked up: rows go back over one axis, in one exchange
}


def flax_rules() -> tuple[tuple[str, tuple[str, ...] | None], ...]:
    """The table in the form that `nnx.logical_axis_rules` takes."""
    return tuple((name, axes or None) for name, axes in RULES.items())


def partitioned(init, *axes: str | None):
    """An initialiser whose parameter carries logical axes."""
    return nnx.with_partitioning(init, axes)


def spec(*axes: str | None) -> PartitionSpec:
    return PartitionSpec(*(RULES[name] or None if name else None for name in axes))


def fit(whole: PartitionSpec, shape: tuple[int, ...], mesh: Mesh | AbstractMesh, droppable=MESH_AXES) -> PartitionSpec:
    """`whole` without the `droppable` mesh axes that do not divide their dimension, the last ones first."""

    def fitting(entry, size: int):
        axes = axes_in(entry)
        while axes and size % _product(axes, mesh) and axes[-1] in droppable:
            axes = axes[:-1]
        return axes or None

    entries = (*whole, *(None,) * (len(shape) - len(whole)))
    return PartitionSpec(*(fitting(entry, size) for entry, size in zip(entries, shape, strict=True)))


# Rows of a tile of TPU memory in bfloat16. A gradient whose pieces are no whole tiles XLA does not scatter: all get all of it.
TILE_ROWS = 16


def fit_stored(axes: Sequence[str | None], shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """Where a parameter of these logical axes is stored: storage axes that do not divide it are left out, and those after the
    first where they would leave pieces that are no whole tiles."""
    whole = fit(spec(*axes), shape, mesh, STORAGE)

    def tiled(entry, size: int):
        names = axes_in(entry)
        while len(names) > 1 and names[-1] in STORAGE and size // _product(names, mesh) % TILE_ROWS:
            names = names[:-1]
        return names or None

    return PartitionSpec(*(tiled(entry, size) for entry, size in zip(whole, shape, strict=True)))


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """`with_sharding_constraint` by logical axes, where they divide; the identity outside a mesh."""
    mesh = current_mesh()
    return x if mesh is None else jax.lax.with_sharding_constraint(x, fit(spec(*axes), x.shape, mesh))


def gather(x: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
    """A stored parameter as it is used: whole over the storage axes. Its gradient is reduced straight into the pieces.

    Cast before: then half as many bytes travel. In a scan over layers a parameter has lost its leading axis but not that
    axis's name: the last names count.
    """
    mesh = current_mesh()
    if mesh is None:
        return x
    stored = fit_stored(axes[-x.ndim :], x.shape, mesh)
    return _gather(x, stored, used(stored))


def scatter(gradient: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
    """The gradient of a parameter of these logical axes, reduced straight into the stored pieces."""
    mesh = current_mesh()
    return gradient if mesh is None else _scatter(gradient, fit_stored(axes[-gradient.ndim :], gradient.shape, mesh))


def used(stored: PartitionSpec) -> PartitionSpec:
    """A parameter's spec without the storage axes."""
    return PartitionSpec(*(tuple(a for a in axes_in(entry) if a not in STORAGE) or None for entry in stored))


def axes_in(entry) -> tuple[str, ...]:
    """The mesh axes of one dimension of a `PartitionSpec`."""
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


def current_mesh() -> AbstractMesh | None:
    """The mesh of `jax.set_mesh`, or None where there is nothing to split."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or mesh.size == 1 else mesh


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather(x, stored: PartitionSpec, whole: PartitionSpec):
    return jax.lax.with_sharding_constraint(jax.lax.with_sharding_constraint(x, stored), whole)


def _gather_forward(x, stored, whole):
    return _gather(x, stored, whole), None


def _gather_backward(stored, whole, _, cotangent):
    return (_scatter(cotangent, stored),)


def _scatter(cotangent, stored: PartitionSpec):
    # Not the transposed constraints: they would ask for the whole gradient everywhere first, which is an all-reduce.
    mesh = current_mesh()
    if mesh is not None and mesh.shape["tensor"] > 1:
        # `tensor` lies between the storage axes. XLA scatters a product in a ring over one axis, or over neighbouring ones.
        first = PartitionSpec(*(_until_first_storage_axis(axes_in(entry)) or None for entry in stored))
        cotangent = jax.lax.with_sharding_constraint(cotangent, first)
    return jax.lax.with_sharding_constraint(cotangent, stored)


def _until_first_storage_axis(axes: tuple[str, ...]) -> tuple[str, ...]:
    end = next((place + 1 for place, axis in enumerate(axes) if axis in STORAGE), len(axes))
    return axes[:end]


_gather.defvjp(_gather_forward, _gather_backward)


def _product(axes: tuple[str, ...], mesh: Mesh | AbstractMesh) -> int:
    size = 1
    for axis in axes:
        size *= mesh.shape[axis]
    return size
