"""Orbax checkpoints: trained parameters, optimizer state, running statistics (if there are any), step and the run's identity
(`identity.run_identity`).

The step is also the data position, because batch s is a pure function of (fingerprint, seed, s). Frozen parameters are not
stored; they are loaded from the base model.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint.experimental.v1 as ocp
from etils import epath
from orbax.checkpoint._src.futures.synchronization import OperationIdGenerator  # has no public name

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.faults import Fault, fault, first_line, retried
from mmrlhf_jax.progress import say
from mmrlhf_jax.sharding.agreement import described, fail_together, first_acts, first_decides, gather
from mmrlhf_jax.training.checkpoint_folders import UNREADABLE, prepare, remove, set_aside
from mmrlhf_jax.training.checkpoint_parts import STATISTICS, arrays_of, check_shapes, missing_statistics, read_back_whole
from mmrlhf_jax.training.identity import check_identity
from mmrlhf_jax.training.orbax_threads import print_no_errors_twice
from mmrlhf_jax.training.state import TrainState
from mmrlhf_jax.training.stored import (
    BEST_IS,
    HELD_OUT,
    JUDGEMENT,
    METRIC,
    SCORE,
    UNKNOWN,
    Criterion,
    Judgement,
    StoredCheckpoints,
    abstract,
    alone,
    like,
    pure,
)
from mmrlhf_jax.training.write_faults import explained_writing

print_no_errors_twice()


class _Pending(NamedTuple):
    """A checkpoint that is being written."""

    step: int
    expected: dict[str, Any]  # abstract arrays and identity that reading it back must give
    judgement: Judgement | None
    writing: Any  # Orbax's response; `result()` waits until the checkpoint is complete


class Checkpoints(StoredCheckpoints):
    """The checkpoints of a run, for the one trainer that owns its directory. Saving is asynchronous and atomic.

    Kept are the newest `keep` checkpoints and, for every criterion that checkpoints were scored by (higher is better), the best
    one: changing `run.best` does not delete the best checkpoint by the old criterion. The others are removed once a newer
    checkpoint is complete and was read back. All processes make the same calls and use the first process's directory listing.
    """

    def __init__(self, directory: epath.PathLike, *, keep: int = 2, criterion: Criterion = UNKNOWN):
        super().__init__(directory, criterion)
        self._keep = keep
        self._pending: _Pending | None = None
        first_acts(lambda: retried(lambda: prepare(self._path, self._finished()), f"{self._path}"))
        found, unread = first_decides(self._found)
        self._judged: dict[int, Judgement | None] = {
            int(step): None if judged is None else Judgement(judged[0], Criterion(*judged[1])) for step, judged in found.items()
        }
        self.unread = {int(step): why for step, why in unread.items()}

    @property
    def steps(self) -> list[int]:
        """The steps of the checkpoints that are complete and not known to be unreadable, ascending."""
        return sorted(self._judged)

    @property
    def judgements(self) -> dict[int, Judgement]:
        """Judgement by step, for the checkpoints that have one, including the checkpoint that is being written."""
        found = self._judged if self._pending is None else self._judged | {self._pending[0]: self._pending[2]}
        return {step: judgement for step, judgement in found.items() if judgement is not None}

    def save(self, state: TrainState, identity: dict[str, Any], *, score: float | None = None) -> None:
        """Start writing the state at its step; returns once the arrays are copied off the device.

        UserError if the previous checkpoint could not be written or read back; the checkpoints before that one are kept.
        """
        self.wait()
        step = int(state.step)
        if step in self._judged:
            return
        judgement = None if score is None or not math.isfinite(score) else Judgement(score, self.criterion)
        arrays = {name: pure(tree) for name, tree in arrays_of(state).items()}
        parts = arrays | {"identity": identity}
        judged = {}
        if judgement is not None:
            names = METRIC, BEST_IS, HELD_OUT
            judged[JUDGEMENT] = {SCORE: judgement.score} | dict(zip(names, self.criterion, strict=True))
        _same_operation()
        with explained_writing(self._path, self._kept):
            # Not `ocp.training.Checkpointer`: it reads the metadata of all checkpoints in the directory when it is created.
            writing = ocp.save_checkpointables_async(self._orbax_path / str(step), parts, custom_metadata=judged)
        expected = {name: abstract(tree) for name, tree in arrays.items()} | {"identity": identity}
        self._pending = _Pending(step, expected, judgement, writing)

    def wait(self) -> None:
        """Wait until the pending checkpoint is complete and was read back. UserError if either fails."""
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        with explained_writing(self._path, self._kept):
            pending.writing.result()
        self._check_saved(pending.step, pending.expected)
        self._judged[pending.step] = pending.judgement
        self._remove_older()

    def close(self) -> None:
        """Wait for the pending write, without collectives: after an error the other processes may not call this."""
        pending, self._pending = self._pending, None
        if pending is not None:
            with explained_writing(self._path, self._kept):
                pending.writing.result()

    def restore(self, state: TrainState, identity: dict[str, Any]) -> TrainState:
        """The newest readable state, sharded like `state`; mesh and number of hosts may differ from those that wrote it.

        If any process finds a checkpoint damaged, it is reported and renamed, and the previous one is tried. UserError if none
        can be read, or if the checkpoint belongs to another experiment; Unavailable if the storage does not answer.
        """
        arrays = arrays_of(state)
        step, loaded = self._newest({name: abstract(tree) for name, tree in arrays.items()}, identity)
        number = jax.device_put(jnp.asarray(step, jnp.int32), state.step.sharding)
        restored = {name: like(tree, loaded[name]) for name, tree in arrays.items()}
        return dataclasses.replace(state, step=number, **restored)

    def _newest(self, target: dict[str, Any], identity: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        tried, damaged = self.steps, {}
        for step in reversed(tried):
            loaded, damage = self._load_together(step, target, identity)
            if loaded is not None:
                for each in damaged:
                    self._set_aside(each)
                return step, loaded
            damaged[step] = damage
        for step, damage in damaged.items():
            if len(damage) < jax.process_count():  # some processes can read it, so the checkpoint itself is sound
                process, line = next(iter(damage.items()))
                raise UserError(
                    f"{self._path}: process {process} can read none of the checkpoints that others can read, as of step {step}"
                    f" ({line}); nothing is removed. Does every host see the same directory?"
                )
        newest, *_ = damaged[tried[-1]].values()
        # The message does not advise to remove them, because another version of this program may be able to read them.
        raise UserError(
            f"{self._path}: none of the checkpoints {tried} can be read (of step {tried[-1]}: {newest}); nothing is removed. To"
            " start over set another run.directory"
        )

    def _load_together(
        self, step: int, target: dict[str, Any], identity: dict[str, Any]
    ) -> tuple[dict[str, Any] | None, dict[int, str]]:
        """(parts of the checkpoint, {}), or in every process (None, error text by process) if any process finds it damaged."""
        loaded, error, damage = None, None, None
        try:
            # Check that the checkpoint belongs to this run before loading arrays; another run's arrays may have other names.
            check_identity(step, self.identity(step), identity)
            self._check_statistics(step, target)
            loaded = self.load(step, target)
        except Exception as raised:  # any storage backend's error; the other processes must be told
            if isinstance(raised, UserError) or fault(raised) is not Fault.DAMAGED:
                error = self.explained(step, raised)
            else:
                damage = first_line(raised)
        fail_together(error, gather(None if error is None else described(error)))
        found = {process: line for process, line in enumerate(gather(damage)) if line is not None}
        if not found:
            return loaded, {}
        process = min(found)
        where = f" by process {process}" if jax.process_count() > 1 else ""
        say(f"the checkpoint at step {step} cannot be read{where} ({found[process]}); trying the one before")
        return None, found

    def _check_saved(self, step: int, expected: dict[str, Any]) -> None:
        """UserError if the new checkpoint cannot be read back; it says which older checkpoint is still complete."""

        def check() -> None:
            try:
                if step not in StoredCheckpoints(self._path).steps:
                    raise FileNotFoundError("it is not listed")
                check_identity(step, self.identity(step), expected["identity"])
                self._check_arrays(step, {name: tree for name, tree in expected.items() if name != "identity"})
            except Exception as error:
                if fault(error) is not Fault.DAMAGED and not isinstance(error, UserError):
                    raise
                raise UserError(
                    f"{self._path}: the checkpoint at step {step} was written but cannot be read back ({first_line(error)});"
                    f" {self._kept()}. Is the disk sound, and does nothing else write there?"
                ) from error

        first_acts(check)

    def _check_statistics(self, step: int, wanted: Mapping[str, Any]) -> None:
        """UserError if the checkpoint lacks running statistics that the parts `wanted` have: a run without them wrote it."""
        if STATISTICS in wanted and (missing := missing_statistics(self._stored_arrays(step, "reading"), wanted)):
            raise UserError(
                f"{self._path}: the checkpoint at step {step} has no running statistics {', '.join(missing)}, which the loss of"
                " this run needs: it would not be the same run; set another run.directory"
            )

    def _check_arrays(self, step: int, wanted: dict[str, Any]) -> None:
        check_shapes(self._stored_arrays(step, "reading back"), wanted)
        if read_back_whole(wanted):
            self.load(step, wanted)

    def _stored_arrays(self, step: int, doing: str) -> Mapping[str, Any]:
        """Orbax's metadata of every part of a checkpoint."""
        where, what = self._orbax_path / str(step), f"{self._path}: {doing} the checkpoint at step {step}"
        with alone():
            return retried(lambda: ocp.checkpointables_metadata(where).metadata, what)

    def _remove_older(self) -> None:
        keep = {*self.steps[-self._keep :], *self.bests.values()}
        for step in [step for step in self.steps if step not in keep]:
            if step in self.unread:  # its score is not known, so it may be the best; keep it under another name
                self._set_aside(step)
                continue
            first_acts(lambda step=step: retried(lambda: remove(self._path / str(step)), f"{self._path / str(step)}"))
            del self._judged[step]

    def _set_aside(self, step: int) -> None:
        """Rename an unreadable checkpoint, which keeps its files and frees its step's name."""
        folder = self._path / str(step)
        first_acts(lambda: set_aside(folder))
        say(f"{folder} is kept as {folder.name}{UNREADABLE}")
        del self._judged[step]

    def _found(self) -> tuple[dict[str, Judgement | None], dict[str, str]]:
        """(judgement by step, error text by step whose judgement cannot be read); keys are strings because they travel as
        JSON."""
        stored = StoredCheckpoints(self._path)
        judgements = stored.judgements
        return {str(step): judgements.get(step) for step in stored.steps}, {str(s): why for s, why in stored.unread.items()}

    def _kept(self) -> str:
        return f"the checkpoint at step {self.latest} is complete" if self.steps else "there is no complete one yet"


def _same_operation() -> None:
    """Give all processes the same Orbax operation number. Orbax names its barriers by a counter of each process, and a process
    that has read more checkpoints than the others has counted further."""
    if jax.process_count() > 1:
        most = max(gather(int(OperationIdGenerator.get_current_operation_id())))
        while int(OperationIdGenerator.get_current_operation_id()) < most:
            OperationIdGenerator.next_operation_id()
