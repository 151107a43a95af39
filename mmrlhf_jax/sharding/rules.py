"""Where every array lives: one table from logical axes to mesh axes (`data, fsdp, tensor, context`).

Parameters name their logical axes where they are made (`partitioned`), activations where it matters (`constrain`). Both
look the names up here, so that another parallelism is a change of this table and not of a model.
"""

from __future__ import annotations

import jax
from flax import nnx
from jax.sharding import PartitionSpec

MESH_AXES = ("data", "fsdp", "tensor", "context")

# logical axis -> mesh axes
RULES: dict[str, tuple[str, ...]] = {
    # activations
    "batch": ("data", "fsdp"),
    "slots": ("context",),
    "act_heads": ("tensor",),
    "act_mlp": ("tensor",),
    "act_vocab": ("tensor",),
    # parameters
    "embed": ("fsdp",),
    "mlp": ("tensor",),
    "heads": ("tensor",),
    "vocab": ("tensor",),
    "patch": (),
}


def flax_rules() -> tuple[tuple[str, tuple[str, ...] | None], ...]:
    """The table in the form that `nnx.logical_axis_rules` takes."""
    return tuple((name, axes or None) for name, axes in RULES.items())


def partitioned(init, *axes: str | None):
    """An initialiser whose parameter carries logical axes."""
    return nnx.with_partitioning(init, axes)


def spec(*axes: str | None) -> PartitionSpec:
    return PartitionSpec(*(RULES[name] or None if name else None for name in axes))


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """`with_sharding_constraint` by logical axes; the identity outside a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, spec(*axes))
