"""`mmrlhf eval benchmarks`: a policy's answers to tasks, their scores, and the table."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from mmrlhf_jax.files import exists, is_address, is_remote
from mmrlhf_jax.huggingface.fingerprint import model_fingerprint
from mmrlhf_jax.huggingface.hub import local_directory
from mmrlhf_jax.inference import compilation_cache
from mmrlhf_jax.inference.endpoint import Endpoint
from mmrlhf_jax.inference.engine import Engine
from mmrlhf_jax.inference.jobs import Share
from mmrlhf_jax.sole_writer import sole_writer
from mmrlhf_jax.suite import hosts, run_directory
from mmrlhf_jax.suite.all_tasks import AllTasks
from mmrlhf_jax.suite.answering import Answering
from mmrlhf_jax.suite.harness import NAME
from mmrlhf_jax.suite.harness.running import Harness
from mmrlhf_jax.suite.harness.source import HarnessTasks, Options
from mmrlhf_jax.suite.jury import Jury
from mmrlhf_jax.suite.local import Local
from mmrlhf_jax.suite.own.grader import Mode
from mmrlhf_jax.suite.own.tasks import OwnTasks
from mmrlhf_jax.suite.policy import EndpointPolicy, EnginePolicy, Policy
from mmrlhf_jax.suite.scoring import Scoring
from mmrlhf_jax.suite.task import Task

AGAINST = "against"  # the base's run, in the directory of a run


@dataclasses.dataclass(frozen=True)
class Model:
    """What is evaluated: a directory or hub id, or the address of a server and the name that the model has there."""

    path: str | None = None
    endpoint: str | None = None
    name: str | None = None
    concurrency: int = 64
    loading: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # options of `Engine.load`

    def like(self, other: str) -> Model:
        """Another model, loaded or found in the same way."""
        if is_address(other):
            return dataclasses.replace(self, path=None, endpoint=other, name=None)
        return dataclasses.replace(self, path=other, endpoint=None, name=None)

    def identity(self, directory: epath.Path) -> dict[str, Any]:
        """What tells it from other models, without loading it; of a model of a server the name alone, since the same one may be
        served at another address later. `directory` is that of its run: if this was begun, the server need not run any more."""
        if self.endpoint is not None:
            begun = exists(directory / run_directory.FILE)
            name = self.name or (run_directory.read(directory)["settings"].get("model") if begun else None)
            return {"model": name or asyncio.run(Endpoint(self.endpoint).check())}
        how = {name: self.loading.get(name) or "default" for name in ("dtype", "template")}
        return {"fingerprint": model_fingerprint(local_directory(self.path), **how)} | how

    def open(self) -> Policy:
        """Load it, or find its server."""
        if self.endpoint is not None:
            return EndpointPolicy(self.endpoint, self.name, self.concurrency)
        compilation_cache.use()
        return EnginePolicy(Engine.load(self.path, **self.loading))


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What is to be evaluated, and how. `share` is this host's part of the documents, `metrics` the mode of the tasks that are
    graded here."""

    tasks: Sequence[Task]
    options: Options
    local: Mapping[str, Local]
    jury: Jury
    share: Share
    metrics: Mode = "corrected"


def evaluate_against(model: Model, base: str | None, wanted: Wanted, out: epath.PathLike) -> epath.Path | None:
    """Evaluate a model in the directory `out`, and then the base in the same way.

    Returns the directory of the base's run, which is AGAINST in `out`, or `base` itself if that is the directory of a run.
    """
    directory = epath.Path(out)
    evaluate(model, wanted, directory)
    if base is None:
        return None
    if not is_address(base) and exists(epath.Path(base) / run_directory.FILE):
        return epath.Path(base)
    evaluate(model.like(base), wanted, directory / AGAINST)
    return directory / AGAINST


def evaluate(model: Model, wanted: Wanted, directory: epath.Path) -> None:
    """Make a model's run, or go on with it. UserError for what concerns all tasks."""
    options = wanted.options
    identity = model.identity(directory)
    if model.endpoint is not None:  # a server that has another model meanwhile is refused
        model = dataclasses.replace(model, name=identity["model"])
    settings = identity | {"harness": NAME, "metrics": wanted.metrics}
    settings |= {"until": options.until, "video_frames": options.video_frames}
    run_directory.settle(directory, model.path or identity["model"], settings, wanted.share)
    jury = wanted.jury.resumed(run_directory.read(directory))
    with contextlib.ExitStack() as stack:
        if wanted.share.count == 1:
            stack.enter_context(sole_writer(directory / hosts.FOLDER, directory, "evaluates there"))
        harness, logs = None, None if is_remote(directory) else directory / "logs"
        if any(not task.own_metrics for task in wanted.tasks):
            harness = HarnessTasks(stack.enter_context(Harness(logs)), options, wanted.local)
        own = OwnTasks(wanted.local, wanted.metrics, limit=options.limit, classifier=jury.classifier)
        tasks = AllTasks(own, harness)
        answering = Answering(directory, wanted.tasks, tasks, model.open, wanted.share)
        answering.run()
        if wanted.share.process == 0:
            run_directory.settle_judge(directory, jury.judge.name, **jury.of_attacks)
            Scoring(directory, tasks, jury.of, answering).run(wanted.tasks)
