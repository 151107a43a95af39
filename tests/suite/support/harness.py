"""Where tests find lmms-eval, in their environment or in that of MMRLHF_HARNESS_PYTHON, and pieces of tests of its tasks."""

from __future__ import annotations

import functools
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmrlhf_jax.inference.jobs import ALONE
from mmrlhf_jax.suite.answers import Answer
from mmrlhf_jax.suite.catalogue import TASKS
from mmrlhf_jax.suite.harness import NAME, VERSION
from mmrlhf_jax.suite.harness.running import PYTHON, Harness
from mmrlhf_jax.suite.harness.source import HarnessTasks, Options
from mmrlhf_jax.suite.local import Local
from mmrlhf_jax.suite.own.grader import Mode
from mmrlhf_jax.suite.task import Task
from tests.serving.fakes import Reply, chat
from tests.suite.support import made_up


def python() -> str:
    """The Python that may have it."""
    return os.environ.get(PYTHON) or sys.executable


@functools.cache
def folder() -> Path | None:
    """The package's folder; None where it is not installed. An error if MMRLHF_HARNESS_PYTHON names a Python without it."""
    command = (
        "import importlib.metadata as m, importlib.util as u;"
        " print(m.version('lmms-eval'), u.find_spec('lmms_eval').submodule_search_locations[0])"
    )
    run = subprocess.run([python(), "-c", command], capture_output=True, text=True)
    version, _, place = run.stdout.strip().partition(" ")
    if version == VERSION:
        return Path(place)
    assert PYTHON not in os.environ, f"{PYTHON}: {python()} has no {NAME} ({run.stderr.strip()[-200:] or version})"
    return None


needed = pytest.mark.skipif(
    folder() is None,
    reason=f"needs {NAME}: `make test-eval`, or `make eval-env` and {PYTHON}=.venv-eval/bin/python pytest tests/suite",
)


SCORED = [task for task in TASKS.values() if not task.own_metrics]


def tasks_of(running: Harness, task: Task, folder, form: str = "jsonl", mode: Mode = "corrected", **options) -> HarnessTasks:
    local = Local(str(made_up.write(task.harness_task, folder, form=form)))
    return HarnessTasks(running, Options(video_frames=2, **options), {task.name: local}, mode)


def asked(tasks: HarnessTasks, task: Task, answered=None):
    with tasks.ask(task, answered or {}, ALONE) as asking:
        return asking.documents, list(asking.requests())


def right(task: Task, number: int) -> str:
    """An answer that a rule may find right, in some of the forms that models write."""
    document = made_up.documents(task.harness_task)[number]
    answer = document.get("answer", document.get("answers", "A"))
    answer = answer[0] if isinstance(answer, list) else answer
    answer = answer["answer"] if isinstance(answer, dict) else str(answer)
    return (answer, f"{answer}.", "no idea, 不知道", f"({answer})", "")[number % 5]


def answers_of(task: Task, requests) -> dict[str, Answer]:
    return {one.document: Answer.to(one.request, right(task, int(one.document)), "stop") for one in requests}


def verdict(text: str) -> Reply:
    """A judge's reply, with the judge's name, without which some tasks take it for a failure."""
    return chat(said(text), model="m")


def said(text: str) -> str:
    """What a judge says in the form that is asked for, which differs between questions."""
    number, other, *_ = hashlib.sha256(text.encode()).digest()
    if "[[A>>B]]" in text or "Assistant A's Answer" in text:
        return ("[[B>A]]", "[[A>B]]", "[[A=B]]")[other % 3]
    if "Python dictionary string" in text:
        return f"{{'score': {number % 6}}}"
    if "Your output:" in text:
        return "ABCD"[number % 4]
    if "Extracted answer:" in text:
        return ("7", "1.5", "B")[number % 3]
    if "[System]" in text:
        return f"{5 + number % 5} {number % 10 + 1}"
    return str(number % 2)
