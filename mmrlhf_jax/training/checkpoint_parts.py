"""The arrays that a checkpoint holds, by part: those of a state, and whether a stored checkpoint has them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax

from mmrlhf_jax.training.state import TrainState

STATISTICS = "statistics"  # a part of the checkpoints of runs whose loss has running statistics
# A new checkpoint of up to this size is read back completely; of a larger one only metadata and identity are read.
WHOLE_BYTES = 1 << 24


def arrays_of(state: TrainState) -> dict[str, Any]:
    """The parts of a state that a checkpoint holds, by name."""
    parts = {"params": state.params, "opt_state": state.opt_state}
    return parts | {STATISTICS: state.statistics} if state.statistics else parts


def missing_statistics(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """The names of the running statistics that the parts `wanted` have, and the stored parts `found` do not."""
    return [name for name in wanted.get(STATISTICS, {}) if name not in found.get(STATISTICS, {})]


def check_shapes(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """ValueError if an array of the parts `wanted` is missing in the stored parts `found`, or has another shape there."""
    for name, tree in wanted.items():
        there = {_path_name(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(found[name])}
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if tuple(there.get(_path_name(path), ("missing",))) != leaf.shape:
                raise ValueError(f"{name}{jax.tree_util.keystr(path)} is {there.get(_path_name(path))}, not {leaf.shape}")


def read_back_whole(wanted: Mapping[str, Any]) -> bool:
    """Whether the parts are small enough to be read back completely, and this process may read them on its own."""
    size = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(wanted))
    return jax.process_count() == 1 and size <= WHOLE_BYTES


def _path_name(path) -> str:
    """A pytree path as names joined by "/"; Orbax stores every kind of key as a dictionary key."""
    names = (getattr(each, "key", getattr(each, "idx", getattr(each, "name", each))) for each in path)
    return "/".join(str(name) for name in names)
