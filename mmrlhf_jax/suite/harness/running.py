"""Starts the harness's processes and talks with them."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mmrlhf_jax
from mmrlhf_jax import strict_json
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.suite.answers import Answer
from mmrlhf_jax.suite.harness import NAME, VERSION
from mmrlhf_jax.suite.harness.channel import Channel
from mmrlhf_jax.suite.harness.job import Job
from mmrlhf_jax.suite.local import Local
from mmrlhf_jax.suite.needs import hub_cache
from mmrlhf_jax.suite.request import DocumentRequest, Medium, Request
from mmrlhf_jax.suite.task import Task, TaskFailed

PYTHON = "MMRLHF_HARNESS_PYTHON"  # the environment variable that names the Python of another environment, which has the harness
SET = "set it to .venv-eval/bin/python of `make eval-env`"
INSTALL = f"`make eval-env` makes an environment that has it, in .venv-eval; then set {PYTHON}=.venv-eval/bin/python"
# No task of the harness shall find a judge other than ours: nothing listens on this port.
NOWHERE = {"OPENAI_API_URL": "http://127.0.0.1:9/v1", "OPENAI_API_KEY": "none", "API_TYPE": "openai"}
ENDING_SECONDS = 10  # in which the harness's process ends
GONE = (BrokenPipeError, ConnectionResetError)  # errors of a connection whose other end is gone


class Harness:
    """The harness's processes, while it is entered. `logs` is the local folder for what tasks print; None: it is not kept.

    UserError if the harness is not installed, or in another version.
    """

    def __init__(self, logs: os.PathLike | None):
        self._logs = logs
        self._stack = contextlib.ExitStack()
        self._number, self._worked = 0, False

    def __enter__(self) -> Harness:
        self._folder = Path(
            self._stack.enter_context(tempfile.TemporaryDirectory(prefix="mmrlhf-", ignore_cleanup_errors=True))
        )
        self._start()
        self._stack.callback(self._end)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start(self) -> None:
        self._address, self._log = str(self._folder / f"socket-{self._number}"), self._folder / "server.log"
        command = [os.environ.get(PYTHON) or sys.executable, "-m", "mmrlhf_jax.suite.harness.process", self._address]
        with self._log.open("wb") as log:
            try:
                self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=_environment())
            except OSError as error:
                raise UserError(f"{PYTHON}: {command[0]} cannot be started ({error.strerror}); {SET}") from None

    def _end(self) -> None:
        self._process.stdin.close()
        try:
            self._process.wait(ENDING_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @contextlib.contextmanager
    def ask(
        self,
        task: Task,
        local: Local | None,
        options: Mapping[str, Any],
        answered: Mapping[str, Collection[str]],
        share: tuple[int, int],
    ) -> Iterator[HarnessRequests]:
        """The requests of a task's documents. `options` are `until`, `video_frames` and `limit` of `Job`."""
        job = self._job(
            "ask", task, local, answered={name: list(keys) for name, keys in answered.items()}, share=share, **options
        )
        with self._connected(job) as channel:
            yield HarnessRequests(channel, task)

    @contextlib.contextmanager
    def score(
        self,
        task: Task,
        local: Local | None,
        answers: Mapping[str, Answer],
        judge: Mapping[str, str] | None,
        contents: Mapping[str, str],
        *,
        corrected: bool,
    ) -> Iterator[HarnessScoring]:
        """Scores a task's answers. `judge` are environment variables that say where its judge is; `contents`: document -> the
        digest of its content when it was asked; `corrected` is that of `Job`."""
        job = self._job("score", task, local)
        path = Path(job.folder) / "answers.jsonl"
        with path.open("w", encoding="utf-8") as file:
            for each in answers.values():
                row = {"document": each.document, "answer": each.answer, "prompt": each.prompt, "media": list(each.media)}
                row["content"] = contents.get(each.document)
                file.write(strict_json.dumps(row, ensure_ascii=False) + "\n")
        rows = {row.name: row.metrics for row in task.rows}
        environment = {**job.environment, **(judge or {})}
        job = dataclasses.replace(job, answers=str(path), rows=rows, environment=environment, corrected=corrected)
        with self._connected(job) as channel:
            yield HarnessScoring(channel, task)

    def _job(self, doing: str, task: Task, local: Local | None, **more: Any) -> Job:
        self._number += 1
        host, hosts = more.get("share", (0, 1))
        folder = self._folder / f"{self._number}"
        folder.mkdir()
        logs = self._folder / "logs" if self._logs is None else Path(self._logs)
        logs.mkdir(parents=True, exist_ok=True)
        environment = dict(NOWHERE)
        if local is not None and task.media == "video":
            environment["HF_HOME"] = local.folder
        return Job(
            doing,
            task.harness_task,
            str(folder),
            str((logs / f"{task.name}.{doing}{f'.host-{host:04d}' if hosts > 1 else ''}.log").absolute()),
            environment,
            new_tokens=task.new_tokens,
            data=None if local is None else os.path.abspath(local.path),
            columns=dict(task.columns),
            files=task.data.files,
            **more,
        )

    @contextlib.contextmanager
    def _connected(self, job: Job) -> Iterator[Channel]:
        with contextlib.suppress(FileNotFoundError):
            os.remove(job.log)
        if self._worked and self._process.poll() is not None:  # it was killed, perhaps because memory was short
            self._end()
            self._start()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            self._connect(connection)
            file = connection.makefile("rwb")
            try:
                channel = Channel(file)
                with contextlib.suppress(*GONE):  # what it says instead is read next
                    channel.send(dataclasses.asdict(job))
                self._check_version(channel, job)
                yield channel
            finally:
                with contextlib.suppress(*GONE):  # what was left to be sent
                    file.close()
                shutil.rmtree(job.folder, ignore_errors=True)

    def _connect(self, connection: socket.socket) -> None:
        while True:
            try:
                connection.connect(self._address)
                return
            except (FileNotFoundError, ConnectionRefusedError):
                if self._process.poll() is not None:
                    raise self._dead() from None
                time.sleep(0.05)

    def _check_version(self, channel: Channel, job: Job) -> None:
        try:
            found = channel.receive().get("harness")
        except (EOFError, *GONE):
            try:
                self._process.wait(ENDING_SECONDS)
            except subprocess.TimeoutExpired:  # it was only the task's own process that died
                raise TaskFailed(f"the harness's process of {job.task} has died") from None
            raise self._dead() from None
        if found != VERSION:
            raise UserError(f"lmms-eval {found} is installed, and these benchmarks are of {NAME}; {INSTALL}")
        self._worked = True

    def _dead(self) -> UserError:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return UserError(f"{NAME} cannot be started ({lines[-1] if lines else 'it ended without a message'}); {INSTALL}")


class HarnessRequests:
    """The requests of a task's documents. `documents` is how many documents the task has, of all shares."""

    def __init__(self, channel: Channel, task: Task):
        self._channel = channel
        self.documents: int = _received(channel, task)[0]["documents"]
        self._task = task

    def requests(self) -> Iterator[DocumentRequest]:
        """Yield what is asked for every document of this share. TaskFailed if the task's process fails or dies."""
        while True:
            frame, blobs = _received(self._channel, self._task)
            if "end" in frame:
                return
            yield _asked(frame, blobs)


class Scored(NamedTuple):
    """What became of a document: why it could not be scored, if that is so; and whether this is when the harness calls its
    judge, if the task always has one."""

    missing: str | None
    judges: bool


class HarnessScoring:
    """A task's process that scores answers.

    Attributes:
        documents: how many documents the task has.
        scorable: those with an answer.
        groups: document -> the first one of those that the harness scores together with it, where it does.
        categories: document -> its category, of all that the data set has, where figures are over categories.
        without_subtitles: how many documents have no subtitles; None for a task that asks without subtitles.
    """

    def __init__(self, channel: Channel, task: Task):
        self._channel, self._task = channel, task
        frame = _received(channel, task)[0]
        self.documents: int = frame["documents"]
        self.scorable: Sequence[str] = frame["scorable"]
        self.without_subtitles: int | None = frame["without_subtitles"]
        self.groups: Mapping[str, str] = frame["groups"]
        self.categories: Mapping[str, str] = frame["categories"]

    def score(self, document: str) -> Scored:
        """Score a document."""
        found = self._command({"score": document})
        return Scored(found.get("missing"), found["judges"])

    def figures(self, missing: Mapping[str, str]) -> dict[str, Any]:
        """See `figures.HarnessFigures.all`."""
        return self._command({"figures": dict(missing)})

    def _command(self, command: Mapping[str, Any]) -> dict[str, Any]:
        try:
            self._channel.send(command)
        except GONE:
            raise _died(self._task) from None
        return _received(self._channel, self._task)[0]


def _received(channel: Channel, task: Task) -> tuple[dict[str, Any], list[bytes]]:
    try:
        frame, blobs = channel.receive_with_bytes()
    except (EOFError, *GONE):
        raise _died(task) from None
    if "failed" in frame:
        raise TaskFailed(frame["failed"])
    return frame, blobs


def _died(task: Task) -> TaskFailed:
    return TaskFailed(f"the harness's process of {task.name} has died")


def _asked(frame: Mapping[str, Any], blobs: list[bytes]) -> DocumentRequest:
    if "missing" in frame:
        return DocumentRequest(frame["document"], missing=frame["missing"])
    answered, left = frame.get("answered", False), iter(blobs)
    media = tuple(
        Medium(each["kind"], each["digest"], None if answered or each["kind"] == "video" else next(left), each.get("path"))
        for each in frame["media"]
    )
    request = Request(frame["document"], tuple(frame["texts"]), media, frame["options"])
    return DocumentRequest(frame["document"], request, answered, content=frame["content"])


def _environment() -> dict[str, str]:
    """The environment of the harness's processes: with this package, and with the hub's caches where they are."""
    root = str(Path(mmrlhf_jax.__file__).parents[1])
    found = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "AZURE_"))}
    found |= {"PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}
    found |= {"HF_HOME": str(hub_cache.home()), "HF_HUB_CACHE": str(hub_cache.repositories())}
    found |= {"HF_DATASETS_CACHE": str(hub_cache.data_sets())}
    found |= {"CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false", "LOGURU_LEVEL": "WARNING"}
    return found
