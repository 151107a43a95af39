"""Reading a run's checkpoints. Nothing here writes, so that a directory can be read while a trainer is writing to it."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import orbax.checkpoint.experimental.v1 as ocp
from etils import epath
from flax import nnx

from mmrlhf_jax import strict_json
from mmrlhf_jax.config import Lora, Trains
from mmrlhf_jax.errors import UserError, shown
from mmrlhf_jax.faults import Fault, fault, first_line, retried
from mmrlhf_jax.files import entries, is_remote, plain_path, read_text
from mmrlhf_jax.models.vision_language import VisionLanguage
from mmrlhf_jax.progress import say
from mmrlhf_jax.training.identity import configuration
from mmrlhf_jax.training.state import split_model

JUDGEMENT = "judgement"  # a key of the checkpoint's custom metadata in Orbax
SCORE, METRIC, BEST_IS, HELD_OUT = "score", "metric", "best_is", "held_out"
COMMITTED = "commit_success.txt"  # marks a complete checkpoint in an object store; on a file system its final name does


class Criterion(NamedTuple):
    """How the best checkpoint is chosen: by which held-out metric, whether its lowest or highest value is best, and on which
    held-out data (`held_out.fingerprint`). None means not known."""

    metric: str | None
    best_is: str | None
    held_out: str | None = None

    @property
    def figure(self) -> str:
        return f"{self.metric or 'another figure'} ({self.best_is or '?'} is best)"

    def unlike(self, other: Criterion) -> str:
        """How this criterion differs from `other`, in words; names the held-out data if only that differs."""
        if self.figure != other.figure:
            return self.figure
        return f"{self.figure} on {'held-out data that they do not name' if self.held_out is None else 'other held-out data'}"


UNKNOWN = Criterion(None, None)


class Judgement(NamedTuple):
    """A checkpoint's score (finite, higher is better) and its criterion. Scores by different criteria are never compared."""

    score: float
    criterion: Criterion


class StoredCheckpoints:
    """The checkpoints of one directory, which need not exist. Every access lists the directory again."""

    def __init__(self, directory: epath.PathLike, criterion: Criterion = UNKNOWN):
        self._path = epath.Path(directory)
        self._orbax_path = plain_path(self._path)
        self.criterion = criterion
        self.unread: dict[int, str] = {}  # steps whose judgement could not be read, and why

    @property
    def steps(self) -> list[int]:
        """The steps of the complete checkpoints, ascending."""
        return retried(self._finished, f"{self._path}: listing checkpoints")

    @property
    def latest(self) -> int | None:
        steps = self.steps
        return steps[-1] if steps else None

    @property
    def judgements(self) -> dict[int, Judgement]:
        """Judgement by step, for the checkpoints that have one."""
        found = {step: self._judgement(step) for step in self.steps}
        return {step: judgement for step, judgement in found.items() if judgement is not None}

    @property
    def scores(self) -> dict[int, float]:
        """Score by step (higher is better), for the checkpoints that were judged by this criterion."""
        return {step: found.score for step, found in self.judgements.items() if found.criterion == self.criterion}

    @property
    def best(self) -> int | None:
        """The step with the best score by this criterion; of equal scores the earliest. None if there is none."""
        return self.bests.get(self.criterion)

    @property
    def bests(self) -> dict[Criterion, int]:
        """The best step for every criterion that a checkpoint was judged by."""
        found: dict[Criterion, int] = {}
        for step, judgement in sorted(self.judgements.items(), key=lambda item: (-item[1].score, item[0])):
            found.setdefault(judgement.criterion, step)
        return found

    @property
    def other_scores(self) -> str | None:
        """Which checkpoints have scores by other criteria, in words; None if there are none."""
        others = {step: found.criterion for step, found in self.judgements.items() if found.criterion != self.criterion}
        if not others:
            return None
        named = dict.fromkeys(found.unlike(self.criterion) for found in others.values())
        return f"the scores of checkpoints {', '.join(map(str, others))} are by {', '.join(named)}"

    def on_newest_data(self) -> StoredCheckpoints:
        """The same checkpoints, with the held-out data of the newest score by this metric as criterion. For readers, which do
        not open the held-out data and so cannot know its fingerprint."""
        judged = sorted(self.judgements.items(), reverse=True)
        known = (found.criterion for _, found in judged if found.criterion.figure == self.criterion.figure)
        return StoredCheckpoints(self._path, next(known, self.criterion))

    def load(self, step: int, target: dict[str, Any]) -> dict[str, Any]:
        """The parts of the checkpoint at `step` that `target` names, with its shapes, dtypes and shardings. Each process reads
        on its own, without barriers."""
        where, what = self._orbax_path / str(step), f"{self._path}: reading the checkpoint at step {step}"
        with alone():
            return retried(lambda: ocp.load_checkpointables(where, target), what)

    def identity(self, step: int) -> dict[str, Any]:
        """The identity of the run that made the checkpoint (`identity.run_identity`)."""
        return self.load(step, {"identity": None})["identity"]

    def restore_model(self, model: VisionLanguage, trains: Trains, lora: Lora | None, step: int) -> VisionLanguage:
        """`model` with the trained parameters of the checkpoint at `step`. UserError if it was removed or cannot be read."""
        graphdef, params, frozen = split_model(model, trains, lora)
        try:
            loaded = self.load(step, {"params": abstract(params)})
        except Exception as error:
            raise self.explained(step, error) from error
        return nnx.merge(graphdef, like(params, loaded["params"]), frozen)

    def explained(self, step: int, error: Exception) -> Exception:
        """The UserError that explains `error`, which reading the checkpoint at `step` raised; `error` itself if none fits."""
        if isinstance(error, UserError):
            return error
        there, which = self.steps, f"{self._path}: the checkpoint at step {step}"
        match fault(error):
            case Fault.DAMAGED if step not in there:
                return UserError(f"{which} is not there any more; there are {there or 'none'}")
            case Fault.DAMAGED:
                others = [each for each in there if each != step]
                return UserError(f"{which} cannot be read ({first_line(error)}); there are also {others or 'no others'}")
            case Fault.NO_MEMORY:
                return UserError(
                    f"{which} is whole, but the process is out of memory while reading it ({first_line(error)}); use more"
                    " devices, or a launch file that puts less on each"
                )
            case Fault.DENIED:
                return UserError(f"{which} may not be read ({first_line(error)})")
        return error

    def _finished(self) -> list[int]:
        """The steps of complete checkpoints, found by listing directories. A listing that fails raises, whereas `exists` may
        return False if the storage does not answer."""
        folders = [path for path in entries(self._path) if path.name.isdecimal()]
        if is_remote(self._path):
            return sorted(int(path.name) for path in folders if any(file.name == COMMITTED for file in entries(path)))
        return sorted(int(path.name) for path in folders if path.is_dir())

    def _judgement(self, step: int) -> Judgement | None:
        """The judgement at `step`; None if there is none, or (reported once) if it cannot be read."""
        try:
            return self._read_judgement(step)
        except Exception as error:  # any storage backend's error
            if fault(error) is not Fault.DAMAGED:
                raise
            if step in self._finished() and step not in self.unread:  # not listed: a trainer has just removed it
                self.unread[step] = first_line(error)
                say(f"{self._path / str(step)}: its score, if it has one, cannot be read ({first_line(error)})")
            return None

    def _read_judgement(self, step: int) -> Judgement | None:
        """The stored judgement; None if there is none. FileNotFoundError or ValueError if the checkpoint's metadata is
        damaged."""
        folder = self._path / str(step)
        kept = _read_object(folder / "_CHECKPOINT_METADATA").get("custom_metadata") or {}
        found = _object(kept, "custom_metadata").get(JUDGEMENT)
        if found is None:
            try:
                found = _read_object(folder / "metrics" / "metrics")  # where earlier versions stored it
            except FileNotFoundError:
                return None
        found = _object(found, JUDGEMENT)
        if SCORE not in found:
            return None
        if isinstance(found[SCORE], bool) or not isinstance(found[SCORE], int | float):
            raise ValueError(f"{SCORE} is {shown(found[SCORE])}, no number")
        if METRIC not in found:
            return Judgement(found[SCORE], self._configured(step))
        criterion = _criterion(found[METRIC], found.get(BEST_IS, 0), found.get(HELD_OUT))
        if criterion is None:
            raise ValueError(f"{JUDGEMENT} holds {shown(found)}")
        return Judgement(found[SCORE], criterion)

    def _configured(self, step: int) -> Criterion:
        """The criterion of a checkpoint whose score does not name it, from the configuration stored with the checkpoint."""
        try:
            identity = self.identity(step)
        except Exception as error:  # any storage backend's error
            if fault(error) is not Fault.DAMAGED:
                raise
            return UNKNOWN
        return _criterion(*(configuration(identity).get(f"run.{name}") for name in ("best", "best_is"))) or UNKNOWN


def _criterion(*found: Any) -> Criterion | None:
    """A Criterion of these fields; None if any of them has the wrong type."""
    return Criterion(*found) if all(isinstance(each, str | None) for each in found) else None


def _read_object(path: epath.Path) -> dict[str, Any]:
    """The JSON object in a file; empty if it holds a number that is not finite, which is no score. ValueError if it is no JSON
    object."""
    try:
        return _object(strict_json.loads(read_text(path)), path.name)
    except strict_json.BadNumber:
        return {}


def _object(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name} holds {shown(value)}, no JSON object")
    return value


def alone() -> ocp.Context:
    """An Orbax context without barriers between processes: if one failed, the others would wait for ever in its barrier."""
    context, me = ocp.Context(), jax.process_index()
    context.multiprocessing.primary_host, context.multiprocessing.active_processes = me, {me}
    return context


def pure(tree):
    """NNX states inside a pytree as plain dictionaries by parameter name, which any Orbax reader understands."""
    return jax.tree.map(
        lambda x: nnx.to_pure_dict(x) if isinstance(x, nnx.State) else x, tree, is_leaf=lambda x: isinstance(x, nnx.State)
    )


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None)), pure(tree))


def like(tree, stored):
    """The stored arrays in the structure of `tree`; both flatten in the same order of names."""
    return jax.tree.unflatten(jax.tree.structure(tree), jax.tree.leaves(stored))
