"""A task object of lmms-eval, on the documents of the hub or on those of a user's own files."""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import lmms_eval
from lmms_eval import evaluator, utils
from lmms_eval.tasks import TaskManager, get_task_dict
from tenacity import RetryError

from mmrlhf_jax import strict_json
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.suite.harness.job import Job, reason_of
from mmrlhf_jax.suite.harness.local_data import as_parquet

TASKS = Path(lmms_eval.__file__).parent / "tasks"


def load(job: Job) -> Any:
    """The task. Whatever its code raises if its documents cannot be had; UserError if the harness has no such task.

    It has a name of its own, since the harness prefers the task that it comes with; and one YAML file is indexed, since the
    harness takes 20 s to index all that it comes with.
    """
    name, folder = f"mmrlhf_{job.task}", Path(job.folder) / "tasks"
    folder.mkdir(parents=True, exist_ok=True)  # YAML is JSON, and more
    included = installed(job.task)
    described = {"include": str(included), "task": name} | _documents(job, included)
    (folder / f"{name}.yaml").write_text(strict_json.dumps(described))
    manager = TaskManager("ERROR", include_path=str(folder), include_defaults=False)
    _allow_loading()
    try:
        found = get_task_dict([name], manager, "chat")[name]
    except (RetryError, OSError) as error:  # the harness tries five times to load a data set, and hides why that failed
        cause = error.last_attempt.exception() if isinstance(error, RetryError) else error
        if job.data is None and isinstance(cause, OSError):  # of the network, or of the hub's cache
            instead = f"give --data {job.task}=FILE, or fill the hub's cache (docs/benchmarks.md)"
            raise UserError(f"{reason_of(cause)}; {instead}") from cause
        raise cause from None
    _check_folders(job)
    return found


def _check_folders(job: Job) -> None:
    """UserError for a folder of videos or subtitles that is not there. (The harness takes missing subtitles for none, and so
    asks another benchmark.)"""
    for pattern in job.files:
        folder = Path(os.environ["HF_HOME"]) / pattern.split("{")[0]
        if not folder.is_dir():
            raise UserError(f"{folder}: there is no such folder; it must hold {pattern.rpartition('/')[2]} of every document")


def without_subtitles(job: Job, documents: Any) -> int | None:
    """How many documents have no file of subtitles; None for a task without subtitles."""
    patterns = [pattern for pattern in job.files if pattern.endswith(".srt")]
    if not patterns:
        return None
    places = [Path(os.environ["HF_HOME"]) / pattern.format(**row) for pattern in patterns for row in documents]
    return sum(not place.is_file() for place in places)


def _allow_loading() -> None:
    """What the harness does in `simple_evaluate` before it loads a data set: locks that a thread may take twice, and
    connections to the hub that can be pickled."""
    evaluator._enable_reentrant_filelocks()
    ssl.SSLContext.__reduce__ = lambda context: (ssl.SSLContext, (context.protocol,))


def installed(task: str) -> Path:
    """The YAML file of a task that the harness comes with."""
    line = re.compile(rf"^task:\s*[\"']?{re.escape(task)}[\"']?\s*$", re.MULTILINE)
    for path in sorted(TASKS.rglob("*.yaml")):
        if line.search(path.read_text()):
            return path
    raise UserError(f"this harness has no task {task!r}")


def _documents(job: Job, included: Path) -> dict[str, Any]:
    """The keys of a task's YAML that say where its documents are, as far as they differ from those of the harness."""
    config = utils.load_yaml_config(str(included), mode="simple")
    if job.data is not None:
        split = config.get("test_split") or config.get("validation_split")
        try:
            files = [str(path) for path in as_parquet(Path(job.data), job.columns, Path(job.folder))]
        except UserError as error:
            raise UserError(f"--data {job.task}: {error}") from None
        return {"dataset_path": "parquet", "dataset_name": None, "dataset_kwargs": {"data_files": {split.strip(): files}}}
    options = dict(config.get("dataset_kwargs") or {})
    if options.get("token") is True and huggingface_hub.get_token() is None:
        del options["token"]  # the sets are public; the hub's client refuses this option where nobody has logged in
        return {"dataset_kwargs": options}
    return {}


def split_of(task: Any) -> str:
    """The split of a task's documents."""
    return task.config.test_split if task.has_test_docs() else task.config.validation_split


def texts_and_media(messages: Any) -> tuple[list[str], list[Any]]:
    """(n + 1 texts, n media) of what the harness asks: the texts around the media, in the order of its parts.

    UserError for anything but one message of the user with texts, pictures and videos.
    """
    if [message["role"] for message in messages] != ["user"]:
        raise UserError(f"it asks {', '.join(message['role'] for message in messages)}, not the user alone")
    texts, media = [""], []
    for part in messages[0]["content"]:
        if part["type"] == "text":
            texts[-1] += part["text"]
        elif part["type"] in ("image", "video"):
            media.append(part["url"])
            texts.append("")
        else:
            raise UserError(f"it has a medium of type {part['type']}")
    return texts, media


def each_request(task: Any, numbers: Iterator[int]) -> Iterator[tuple[int, Any]]:
    """Yield (number of a document, the harness's instance for it)."""
    split = split_of(task)
    for number in numbers:
        metadata = {"task": task.config.task, "doc_id": number, "repeats": 1, "split": split}
        yield number, task.construct_requests(doc_id=number, ctx="", metadata=metadata)
