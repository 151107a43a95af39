"""Orbax checkpoints: trained parameters, optimizer state and step, with what identifies the run beside them.

The step is also the data position, because batch s is a pure function of (fingerprint, seed, s). Frozen parameters are not
stored: they are the base model's.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint.experimental.v1 as ocp
from etils import epath
from orbax.checkpoint._src.futures.synchronization import OperationIdGenerator  # which has no public name

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.faults import Fault, Unavailable, fault, first_line, retried
from mmrlhf_jax.files import entries, exists, is_remote
from mmrlhf_jax.progress import say
from mmrlhf_jax.sharding.agreement import described, fail_together, first_acts, first_decides, gather
from mmrlhf_jax.training.identity import check_identity
from mmrlhf_jax.training.orbax_threads import print_no_errors_twice
from mmrlhf_jax.training.state import TrainState
from mmrlhf_jax.training.stored import (
    BEST_IS,
    COMMITTED,
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

# Of folders beside the checkpoints: what Orbax is writing, what could not be read and is kept, what is being removed.
UNFINISHED, UNREADABLE, REMOVED = ".orbax-checkpoint-tmp", ".unreadable", ".removed"
# Up to here a new checkpoint is read back whole; of larger ones what says what they hold.
WHOLE_BYTES = 1 << 24


print_no_errors_twice()


class _Pending(NamedTuple):
    """A checkpoint that is being written."""

    step: int
    expected: dict[str, Any]  # of what is read back
    judgement: Judgement | None
    writing: Any  # Orbax's response, whose `result()` waits


class Checkpoints(StoredCheckpoints):
    """The checkpoints of a run, for the one trainer that owns its directory. Saving is asynchronous and atomic.

    The newest `keep` stay, and the best of those that were saved with a `score` (higher is better) by the `criterion`, as well
    as by any other that there are scores by: a changed setting makes none of them worse. Others are removed when a newer one is
    complete and was read back. All processes make the same calls; the first one's listing counts.
    """

    def __init__(self, directory: epath.PathLike, *, keep: int = 2, criterion: Criterion = UNKNOWN):
        super().__init__(directory, criterion)
        self._keep = keep
        self._pending: _Pending | None = None
        first_acts(lambda: retried(self._prepare, f"{self._path}"))
        found, unread = first_decides(self._found)
        self._judged: dict[int, Judgement | None] = {
            int(step): None if judged is None else Judgement(judged[0], Criterion(*judged[1])) for step, judged in found.items()
        }
        self.unread = {int(step): why for step, why in unread.items()}

    @property
    def steps(self) -> list[int]:
        """Of the checkpoints that are complete and not known to be unreadable, ascending."""
        return sorted(self._judged)

    @property
    def judgements(self) -> dict[int, Judgement]:
        """By step, of the checkpoints that have one, with that which is being written."""
        found = self._judged if self._pending is None else self._judged | {self._pending[0]: self._pending[2]}
        return {step: judgement for step, judgement in found.items() if judgement is not None}

    def save(self, state: TrainState, identity: dict[str, Any], *, score: float | None = None) -> None:
        """Start writing the state at its step; returns once the arrays are copied off the device.

        UserError where the checkpoint before could not be written or read back: what was there before that is still there.
        """
        self.wait()
        step = int(state.step)
        if step in self._judged:
            return
        judgement = None if score is None or not math.isfinite(score) else Judgement(score, self.criterion)
        parts = {"params": pure(state.params), "opt_state": pure(state.opt_state), "identity": identity}
        judged = {}
        if judgement is not None:
            names = METRIC, BEST_IS, HELD_OUT
            judged[JUDGEMENT] = {SCORE: judgement.score} | dict(zip(names, self.criterion, strict=True))
        _same_operation()
        with self._writing():
            # Orbax's own checkpointer of a directory would read all that is there whenever it is made.
            writing = ocp.save_checkpointables_async(self._orbax_path / str(step), parts, custom_metadata=judged)
        expected = {name: abstract(parts[name]) for name in ("params", "opt_state")} | {"identity": identity}
        self._pending = _Pending(step, expected, judgement, writing)

    def wait(self) -> None:
        """Until what is being written is complete and was read back. UserError where it could not be."""
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        with self._writing():
            pending.writing.result()
        self._check_saved(pending.step, pending.expected)
        self._judged[pending.step] = pending.judgement
        self._remove_older()

    def close(self) -> None:
        """Wait for what is being written, in whatever state the run is: the other processes may be elsewhere."""
        pending, self._pending = self._pending, None
        if pending is not None:
            with self._writing():
                pending.writing.result()

    def restore(self, state: TrainState, identity: dict[str, Any]) -> TrainState:
        """The newest state that can be read, sharded like `state`: another mesh or number of hosts than wrote it may read it.

        A checkpoint that is damaged for any of the processes is named and kept aside, and the one before is taken. UserError
        if none can be read, or if it is of another experiment; Unavailable where the storage does not answer.
        """
        target = {"params": abstract(state.params), "opt_state": abstract(state.opt_state)}
        step, loaded = self._newest(target, identity)
        params, opt_state = (like(getattr(state, name), loaded[name]) for name in ("params", "opt_state"))
        number = jax.device_put(jnp.asarray(step, jnp.int32), state.step.sharding)
        return TrainState(number, params, state.frozen, opt_state, state.start)

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
            if len(damage) < jax.process_count():  # nothing is wrong with it, but with what these processes see
                process, line = next(iter(damage.items()))
                raise UserError(
                    f"{self._path}: process {process} can read none of the checkpoints that others can read, as of step {step}"
                    f" ({line}); nothing is removed. Does every host see the same directory?"
                )
        newest, *_ = damaged[tried[-1]].values()
        # No advice to remove them: what this version cannot read another may.
        raise UserError(
            f"{self._path}: none of the checkpoints {tried} can be read (of step {tried[-1]}: {newest}); nothing is removed. To"
            " start over set another run.directory"
        )

    def _load_together(
        self, step: int, target: dict[str, Any], identity: dict[str, Any]
    ) -> tuple[dict[str, Any] | None, dict[int, str]]:
        """The parts of a checkpoint; or, in every process, None and for which processes it is damaged, with the error."""
        loaded, error, damage = None, None, None
        try:
            # Check that the checkpoint belongs to this run before loading arrays: those of another run may have other names.
            check_identity(step, self.identity(step), identity)
            loaded = self.load(step, target)
        except Exception as raised:  # whatever a storage backend raises; the others have to hear of it
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
        """A checkpoint that cannot be read back is none. UserError says so, and that the ones before are still there."""

        def check() -> None:
            try:
                if step not in StoredCheckpoints(self._path).steps:
                    raise FileNotFoundError("it is not listed")
                check_identity(step, self.identity(step), expected["identity"])
                self._check_arrays(step, {name: expected[name] for name in ("params", "opt_state")})
            except Exception as error:
                if fault(error) is not Fault.DAMAGED and not isinstance(error, UserError):
                    raise
                raise UserError(
                    f"{self._path}: the checkpoint at step {step} was written but cannot be read back ({first_line(error)});"
                    f" {self._kept()}. Is the disk sound, and does nothing else write there?"
                ) from error

        first_acts(check)

    def _check_arrays(self, step: int, wanted: dict[str, Any]) -> None:
        where, what = self._orbax_path / str(step), f"{self._path}: reading back the checkpoint at step {step}"
        with alone():
            found = retried(lambda: ocp.checkpointables_metadata(where).metadata, what)
        for name, tree in wanted.items():
            there = {_path_name(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(found[name])}
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
                if tuple(there.get(_path_name(path), ("missing",))) != leaf.shape:
                    raise ValueError(f"{name}{jax.tree_util.keystr(path)} is {there.get(_path_name(path))}, not {leaf.shape}")
        leaves = jax.tree.leaves(wanted)
        if jax.process_count() == 1 and sum(math.prod(x.shape) * x.dtype.itemsize for x in leaves) <= WHOLE_BYTES:
            self.load(step, wanted)

    def _remove_older(self) -> None:
        keep = {*self.steps[-self._keep :], *self.bests.values()}
        for step in [step for step in self.steps if step not in keep]:
            if step in self.unread:  # it may have been the best
                self._set_aside(step)
                continue
            first_acts(lambda step=step: retried(lambda: self._remove(str(step)), f"{self._path / str(step)}"))
            del self._judged[step]

    def _remove(self, name: str) -> None:
        """So that a kill half way leaves no part of it under a checkpoint's name."""
        folder, aside = self._path / name, self._path / (name if name.endswith(REMOVED) else f"{name}{REMOVED}")
        if is_remote(folder):
            (folder / COMMITTED).unlink(missing_ok=True)
            aside = folder
        elif folder != aside and exists(folder):
            folder.rename(aside)
        aside.rmtree(missing_ok=True)

    def _set_aside(self, step: int) -> None:
        """A checkpoint that could not be read keeps its bytes, under a name that the run does not come to again."""
        name = f"{step}{UNREADABLE}"
        first_acts(lambda: self._rename(str(step), name))
        say(f"{self._path / str(step)} is kept as {name}")
        del self._judged[step]

    def _rename(self, name: str, new: str) -> None:
        old, new = self._path / name, self._path / new

        def rename() -> None:
            if exists(old):  # else a try whose success was not heard of has done it
                old.rename(new)

        retried(lambda: new.rmtree(missing_ok=True), f"{new}")  # of an earlier time
        if is_remote(old):  # which copies: a second try would meet what the first has copied
            rename()
        else:
            retried(rename, f"{old}")

    def _prepare(self) -> None:
        """Make the directory, and clear away what a killed process was writing or removing."""
        self._path.mkdir(parents=True, exist_ok=True)
        finished = {str(step) for step in self._finished()}
        for path in entries(self._path):
            if UNFINISHED in path.name or path.name.endswith(REMOVED) or (path.name.isdecimal() and path.name not in finished):
                self._remove(path.name)

    def _found(self) -> tuple[dict[str, Judgement | None], dict[str, str]]:
        """Judgements by step, and of which steps they cannot be read."""
        stored = StoredCheckpoints(self._path)
        judgements = stored.judgements
        return {str(step): judgements.get(step) for step in stored.steps}, {str(s): why for s, why in stored.unread.items()}

    def _kept(self) -> str:
        return f"the checkpoint at step {self.latest} is complete" if self.steps else "there is no complete one yet"

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Errors of the file system as what they mean. An unfinished checkpoint has no name yet: the last good one stays."""
        try:
            yield
        except (UserError, Unavailable):
            raise
        except Exception as error:  # OSError here, but tensorstore and Orbax have their own
            if fault(error) is Fault.NO_ROOM:
                raise UserError(
                    f"{self._path}: no room for a checkpoint ({first_line(error)}); {self._kept()}."
                    " Make room, or set run.directory or run.keep, and start the same command again"
                ) from None
            if fault(error) is Fault.DENIED:
                denied = f"a checkpoint may not be written ({first_line(error)})"
                raise UserError(f"{self._path}: {denied}; {self._kept()}") from None
            if fault(error) is Fault.PASSING:  # the arrays are gone from the device, so it cannot be written once more
                reason = f"a checkpoint could not be written ({first_line(error)})"
                raise Unavailable(f"{self._path}: {reason}; {self._kept()}") from None
            raise


def _same_operation() -> None:
    """Orbax's barriers bear the number of its operation by each process's own count, but one may have read more often."""
    if jax.process_count() > 1:
        most = max(gather(int(OperationIdGenerator.get_current_operation_id())))
        while int(OperationIdGenerator.get_current_operation_id()) < most:
            OperationIdGenerator.next_operation_id()


def _path_name(path) -> str:
    """The names in a pytree's path, which Orbax has as keys of dictionaries whatever they were."""
    names = (getattr(each, "key", getattr(each, "idx", getattr(each, "name", each))) for each in path)
    return "/".join(str(name) for name in names)
