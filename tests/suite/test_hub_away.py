"""Where the hub cannot be reached, a task without data of its own says what to do."""

from __future__ import annotations

import pytest

from mmrlhf_jax.inference.jobs import ALONE
from mmrlhf_jax.suite.catalogue import TASKS
from mmrlhf_jax.suite.harness.running import Harness
from mmrlhf_jax.suite.harness.source import HarnessTasks, Options
from mmrlhf_jax.suite.own.tasks import OwnTasks
from mmrlhf_jax.suite.task import TaskFailed
from tests.suite.support import harness


@harness.needed
def test_a_task_of_the_harness_names_its_option_and_the_cache(tmp_path, monkeypatch):
    for name, value in {"HF_HUB_OFFLINE": "1", "HF_HOME": f"{tmp_path / 'empty'}"}.items():
        monkeypatch.setenv(name, value)
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_DATASETS_CACHE"):
        monkeypatch.delenv(name, raising=False)
    with Harness(tmp_path / "logs") as running:
        tasks = HarnessTasks(running, Options(), {})
        for name in ("realworldqa", "mme"):
            with pytest.raises(TaskFailed) as error, tasks.ask(TASKS[name], {}, ALONE):
                pass
            said = str(error.value)
            assert (
                said.endswith(f"; give --data {name}=FILE, or fill the hub's cache (docs/benchmarks.md)") and "\n" not in said
            )
            assert TASKS[name].data.hub in said and "Traceback" in (tmp_path / "logs" / f"{name}.ask.log").read_text()


@pytest.mark.parametrize("name", ["mmhal_bench", "nsfw_text"])
def test_a_task_that_is_scored_here_names_its_option(name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(TaskFailed) as error, OwnTasks({}).ask(TASKS[name], {}, ALONE):
        pass
    assert str(error.value).startswith(f"hf://datasets/{TASKS[name].data.hub}: ")
    assert str(error.value).endswith(f"unset it, or give --data {name}=FILE")
