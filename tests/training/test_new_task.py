"""A run learns by a kind of objective that the project does not have, from its settings, its task and a registry line."""

from __future__ import annotations

from typing import ClassVar, Literal

import pytest

from mmrlhf_jax import config
from mmrlhf_jax.objectives.weighted import weighted_sum
from mmrlhf_jax.tasks import task_of
from mmrlhf_jax.tasks.registry import TASKS
from mmrlhf_jax.tasks.supervised import SupervisedTask
from mmrlhf_jax.training import loop
from mmrlhf_jax.training.metrics import read_metrics
from tests import ranked, tiny


class Unlikelihood(config.ObjectiveSection):
    """Makes every response less likely."""

    kind: Literal["unlikelihood"] = "unlikelihood"
    weight: float = 2.0

    reference: ClassVar[None] = None


class Experiment(config.Experiment):
    """In the project its settings would be one of `config.Objective`."""

    objective: Unlikelihood


class UnlikelihoodTask(SupervisedTask):
    """The mean log-prob of a response."""

    @property
    def coefficients(self):
        return {"unlikelihood": self.settings.weight}

    def terms(self, outputs, batch, key, reference=None, statistics=None):
        return {"unlikelihood": weighted_sum(outputs.logps, batch.response_weights)}, {}

    def describe(self):
        return "a policy that forgets", ""


@pytest.mark.usefixtures("one_device")
@pytest.mark.long
def test_a_run_learns_by_a_task_that_only_the_registry_knows(tmp_path, monkeypatch):
    monkeypatch.setitem(TASKS, Unlikelihood, UnlikelihoodTask)
    data = ranked.write(tmp_path / "data", [(1, 2), (1, 2, 3)], [[(30, 30)], []])
    experiment = Experiment(
        model=config.Model(path=str(tiny.checkpoint(tmp_path / "model")), dtype="float32", remat="none"),
        data=config.Data(path=str(data)),
        objective=Unlikelihood(),
        batch=config.Batch(rows=1, slots=512, logprob_chunk=64),
        trains=config.Trains(language_model=False),
        optimizer=config.Optimizer(learning_rate=1e-3),
        run=config.Run(directory=str(tmp_path / "run"), steps=2, checkpoint_every=2),
    )
    loop.train(experiment, config.Launch(mesh=config.Mesh(data=1, fsdp=1)))
    first, second = read_metrics(tmp_path / "run")
    assert second["loss"] < first["loss"] < 0
    assert "a policy that forgets" in (tmp_path / "run" / "report.html").read_text()
    assert task_of(Unlikelihood()).kind == "unlikelihood"
