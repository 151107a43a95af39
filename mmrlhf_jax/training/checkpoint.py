"""Orbax checkpoints: trained parameters, optimizer state and step, with what identifies the run beside them.

The step is also the data position, because batch s is a pure function of (fingerprint, seed, s). Frozen parameters are not
stored: they are the base model's.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint.experimental.v1 as ocp
from etils import epath
from flax import nnx

from mmrlhf_jax.config import Lora, Trains
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.files import is_remote
from mmrlhf_jax.models.llava_onevision.model import LlavaOnevision
from mmrlhf_jax.progress import say
from mmrlhf_jax.training.identity import difference
from mmrlhf_jax.training.state import TrainState, split_model

SCORE = "score"


class Checkpoints:
    """The checkpoints of one run directory. Saving is asynchronous and atomic.

    The newest `keep` stay, and the best of those that were saved with a `score` (higher is better).
    """

    def __init__(self, directory: epath.PathLike, *, keep: int = 2):
        path = epath.Path(directory)
        path.mkdir(parents=True, exist_ok=True)
        policies = ocp.training.preservation_policies
        best = policies.BestN(n=1, get_metric_fn=lambda metrics: metrics[SCORE], keep_checkpoints_without_metrics=False)
        self._checkpointer = ocp.training.Checkpointer(
            path if is_remote(path) else path.resolve(),  # which takes gs:// for the name of a folder here
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), best]),
            cleanup_tmp_directories=True,
        )
        self._path = path
        self._unreadable: set[int] = set()

    @property
    def steps(self) -> list[int]:
        """Of the checkpoints that are there and not known to be unreadable, ascending."""
        return sorted({checkpoint.step for checkpoint in self._checkpointer.checkpoints} - self._unreadable)

    @property
    def latest(self) -> int | None:
        return self.steps[-1] if self.steps else None

    @property
    def scores(self) -> dict[int, float]:
        """Score by step, of the checkpoints that have one."""
        return {c.step: c.metrics[SCORE] for c in self._checkpointer.checkpoints if c.metrics}

    @property
    def best(self) -> int | None:
        """The step of the best score, the earliest of equals."""
        scores = self.scores
        return min(scores, key=lambda step: (-scores[step], step)) if scores else None

    def save(self, state: TrainState, identity: dict[str, Any], *, score: float | None = None) -> None:
        """Start writing the state at its step; returns once the arrays are copied off the device.

        UserError where the checkpoint before could not be written: what was there before that is still there.
        """
        step = int(state.step)
        if step not in self.steps:
            parts = {"params": _pure(state.params), "opt_state": _pure(state.opt_state), "identity": identity}
            with self._writing():
                self._checkpointer.save_checkpointables_async(
                    step,
                    parts,
                    force=True,
                    overwrite=step in self._unreadable,
                    metrics=None if score is None else {SCORE: score},
                )
            self._unreadable.discard(step)

    def restore(self, state: TrainState, identity: dict[str, Any]) -> TrainState:
        """The newest state that can be read, sharded like `state`: another mesh or number of hosts than wrote it may read it.

        A checkpoint that cannot be read is named, and the one before is taken. UserError if none can be read, or if it is of
        another experiment.
        """
        target = {"params": _abstract(state.params), "opt_state": _abstract(state.opt_state)}
        step, loaded = self._newest(target, identity)
        params, opt_state = (_like(getattr(state, name), loaded[name]) for name in ("params", "opt_state"))
        number = jax.device_put(jnp.asarray(step, jnp.int32), state.step.sharding)
        return TrainState(number, params, state.frozen, opt_state, state.start)

    def restore_model(self, model: LlavaOnevision, trains: Trains, lora: Lora | None, step: int) -> LlavaOnevision:
        """`model` with the trained parameters of the checkpoint at `step`."""
        graphdef, params, frozen = split_model(model, trains, lora)
        loaded = self._checkpointer.load_checkpointables(step, {"params": _abstract(params)})
        return nnx.merge(graphdef, _like(params, loaded["params"]), frozen)

    def _newest(self, target: dict[str, Any], identity: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        tried = self.steps
        for step in reversed(tried):
            try:
                # First whose it is: the arrays of another run may not even have the same names.
                self._check(step, self._checkpointer.load_checkpointables(step, {"identity": None})["identity"], identity)
                return step, self._checkpointer.load_checkpointables(step, target)
            except UserError:
                raise
            except Exception as error:  # whatever a storage backend raises for what it cannot read
                reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
                say(f"the checkpoint at step {step} cannot be read ({reason}); trying the one before")
                self._unreadable.add(step)
        raise UserError(f"{self._path}: none of the checkpoints {tried} can be read; use --fresh to start over")

    def _check(self, step: int, found: dict[str, Any], wanted: dict[str, Any]) -> None:
        other = difference(found, wanted)
        if other is not None:
            name, before, now = other
            raise UserError(
                f"the checkpoint at step {step} has {name} {before!r}, this run has {now!r}: it would not be the same run;"
                " use --fresh, or another run.directory"
            )

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Errors of the file system as what they mean. An unfinished checkpoint has no name yet: the last good one stays."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # OSError here, but tensorstore and Orbax have their own
            if not any(sign in str(error) for sign in _NO_ROOM) and getattr(error, "errno", None) not in _NO_ROOM_ERRNO:
                raise
            kept = f"the checkpoint at step {self.latest} is complete" if self.steps else "there is no complete one yet"
            raise UserError(
                f"{self._path}: no room for a checkpoint ({str(error).strip().splitlines()[0][:160]}); {kept}."
                " Make room, or set run.directory or run.keep, and start the same command again"
            ) from None

    def wait(self) -> None:
        """Until what is being written is complete. UserError where it could not be."""
        with self._writing():
            self._checkpointer.wait()

    def close(self) -> None:
        self._checkpointer.close()


# How file systems and the libraries above them say that there is no room.
_NO_ROOM = ("No space left", "RESOURCE_EXHAUSTED", "File too large", "Disk quota exceeded")
_NO_ROOM_ERRNO = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


def _pure(tree):
    """NNX states inside a pytree as plain dictionaries by parameter name, which any Orbax reader understands."""
    return jax.tree.map(
        lambda x: nnx.to_pure_dict(x) if isinstance(x, nnx.State) else x, tree, is_leaf=lambda x: isinstance(x, nnx.State)
    )


def _abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), _pure(tree))


def _like(tree, stored):
    """The stored arrays in the structure of `tree`; both flatten in the same order of names."""
    return jax.tree.unflatten(jax.tree.structure(tree), jax.tree.leaves(stored))
