"""Orbax checkpoints: trained parameters, optimizer state and step, with what identifies the run beside them.

The step is also the data position, because batch s is a pure function of (fingerprint, seed, s). Frozen parameters are not
stored: they are the base model's.
"""

from __future__ import annotations

from typing import Any

import jax
import orbax.checkpoint.experimental.v1 as ocp
from etils import epath
from flax import nnx

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.training.state import TrainState


class Checkpoints:
    """The checkpoints of one run directory. Saving is asynchronous and atomic; the newest `keep` stay."""

    def __init__(self, directory: epath.PathLike, *, keep: int = 2):
        path = epath.Path(directory)
        path.mkdir(parents=True, exist_ok=True)
        self._checkpointer = ocp.training.Checkpointer(
            path.absolute() if hasattr(path, "absolute") else path,
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),
            cleanup_tmp_directories=True,
        )

    @property
    def latest(self) -> int | None:
        newest = self._checkpointer.latest
        return None if newest is None else newest.step

    def save(self, state: TrainState, identity: dict[str, Any]) -> None:
        """Start writing the state at its step; returns once the arrays are copied off the device."""
        step = int(state.step)
        if step != self.latest:
            self._checkpointer.save_checkpointables_async(
                step, {"state": _storable(state), "identity": identity}, force=True
            )

    def restore(self, state: TrainState, identity: dict[str, Any], step: int | None = None) -> TrainState:
        """The newest state (or that of `step`), sharded like `state`. UserError if it is of another experiment."""
        step = self.latest if step is None else step
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), _storable(state))
        loaded = self._checkpointer.load_checkpointables(step, {"state": target, "identity": None})
        for key, value in identity.items():
            found = loaded["identity"].get(key)
            if found != value:
                raise UserError(
                    f"the checkpoint at step {step} has {key} {found!r}, this run has {value!r}: resume would not continue the"
                    " same run; use --fresh or another run.directory"
                )
        stored = loaded["state"]
        params = jax.tree.unflatten(jax.tree.structure(state.params), jax.tree.leaves(stored["params"]))
        opt_state = jax.tree.unflatten(jax.tree.structure(state.opt_state), jax.tree.leaves(stored["opt_state"]))
        return TrainState(stored["step"], params, state.frozen, opt_state)

    def wait(self) -> None:
        self._checkpointer.wait()

    def close(self) -> None:
        self._checkpointer.close()


def _storable(state: TrainState) -> dict[str, Any]:
    """Plain nested dictionaries by parameter name, which any Orbax reader understands."""
    return {"step": state.step, "params": pure(state.params), "opt_state": pure(state.opt_state)}


def pure(tree):
    """NNX states inside a pytree as plain dictionaries of arrays."""
    return jax.tree.map(
        lambda x: nnx.to_pure_dict(x) if isinstance(x, nnx.State) else x, tree, is_leaf=lambda x: isinstance(x, nnx.State)
    )
