"""What the catalogue says of lmms-eval's tasks is what their YAML files say."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
import yaml

from mmrlhf_jax.suite.catalogue import TASKS
from tests.suite.support import harness

pytestmark = harness.needed
NAMED = [task for task in TASKS.values() if task.harness_task is not None]


class Loader(yaml.SafeLoader):
    """Reads `!function` as text."""


Loader.add_constructor("!function", lambda loader, node: node.value)


@cache
def files() -> dict[str, Path]:
    """The file of every task of the harness, by the task's name."""
    paths = (harness.folder() / "tasks").rglob("*.yaml")
    named = ((re.search(r"^task:\s*[\"']?([\w-]+)[\"']?\s*$", path.read_text(), re.MULTILINE), path) for path in paths)
    return {match[1]: path for match, path in named if match}


def read(path: Path) -> dict:
    found = yaml.load(path.read_text(), Loader)
    base = found.pop("include", None)
    return found if base is None else read(path.parent / base) | found


@pytest.mark.parametrize("task", NAMED, ids=lambda task: task.name)
def test_data_limits_and_metrics(task):
    found = read(files()[task.harness_task])
    assert (found["dataset_path"], found.get("dataset_name"), found["test_split"]) == (
        task.data.hub, task.data.config, task.data.split,
    )  # fmt: skip
    assert found.get("generation_kwargs", {}).get("max_new_tokens") == task.max_new_tokens
    metrics = {each["metric"]: each["higher_is_better"] for each in found["metric_list"]}
    filters = {each["name"] for each in found.get("filter_list", [])} or {"none"}
    for row in task.rows:
        for key in row.metrics:
            metric, _, name = key.partition(",")
            assert metrics[metric] == row.higher_is_better
            assert filters == {name or "none"}
