"""Held-out evaluation in the loop: on a cadence, exact means however the rows are batched, and the best checkpoint is kept."""

from __future__ import annotations

import json
import math
import sys
import types

import numpy as np
import pytest

from mmrlhf_jax import config
from mmrlhf_jax.data.examples import open_examples
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.inference.engine import Engine
from mmrlhf_jax.training import loop
from mmrlhf_jax.training.checkpoint import Checkpoints
from tests import ranked, tiny

TRAIN = [(1, 2), (1, 2, 3), (1, 1, 2)], [[(30, 30)], [], [(33, 90)]]
HELD_OUT = [(2, 1), (1, 2, 2), (1, 2), (3, 1, 2)], [[(30, 30)], [(75, 40)], [], [(50, 20)]]
LAUNCH = config.Launch(mesh=config.Mesh(data=1, fsdp=1))
pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    root = tmp_path_factory.mktemp("held_out")
    return config.Experiment(
        model=config.Model(path=str(tiny.checkpoint(root / "model")), dtype="float32", remat="none"),
        data=config.Data(
            path=str(ranked.write(root / "data", *TRAIN)), held_out=str(ranked.write(root / "held", *HELD_OUT, seed=7))
        ),
        objective=config.Preference(),
        optimizer=config.Optimizer(learning_rate=3e-2, warmup_ratio=0.0, schedule="constant"),
        batch=config.Batch(rows=1, slots=512, logprob_chunk=64),
        run=config.Run(directory="of each test", seed=3, steps=4, checkpoint_every=100, eval_every=1, keep=1),
    )


def run(experiment, directory, **changes):
    """Train into `directory` with these keys of `run` changed; the metrics, a dictionary per line."""
    settings = experiment.run.model_copy(update={"directory": str(directory), **changes})
    loop.train(experiment.model_copy(update={"run": settings}), LAUNCH)
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def evaluations(rows):
    return {row["step"]: row for row in rows if "eval_loss" in row}


def test_at_learning_rate_zero_the_loss_is_that_of_the_start(experiment, tmp_path):
    """Policy = reference: every pair's DPO loss is log 2, and the SFT term is the mean over the chosen responses' tokens."""
    still = experiment.model_copy(update={"optimizer": config.Optimizer(learning_rate=1e-30)})
    (found,) = evaluations(run(still, tmp_path, steps=1)).values()
    examples = open_examples(experiment.data.held_out)
    scored = Engine.load(experiment.model.path, batch=1).score_responses(examples, "answer")
    chosen = [(scored[i], pair[0]) for i, record in enumerate(examples.records) for pair in record.pairs()]
    nll = -sum(found["logps"][k] for found, k in chosen) / sum(found["lengths"][k] for found, k in chosen)
    assert found["eval_rewards/margins"] == pytest.approx(0, abs=1e-4)
    assert found["eval_loss"] == pytest.approx(math.log(2) + experiment.objective.sft_weight * nll, rel=1e-4)


def test_the_best_checkpoint_stays_beside_the_last_one(experiment, tmp_path):
    rows = run(experiment, tmp_path)
    found = evaluations(rows)
    assert list(found) == [1, 2, 3, 4]
    best = min(found, key=lambda step: found[step]["eval_loss"])
    checkpoints = Checkpoints(tmp_path / loop.CHECKPOINTS, keep=1)
    assert set(checkpoints.steps) == {best, 4} and checkpoints.best == best
    assert checkpoints.scores[best] == pytest.approx(-found[best]["eval_loss"])
    checkpoints.close()


def test_the_evaluation_does_not_depend_on_how_its_rows_are_batched(experiment, tmp_path):
    several = experiment.model_copy(update={"batch": config.Batch(rows=3, slots=512, logprob_chunk=64)})
    still = config.Optimizer(learning_rate=1e-30)
    a = evaluations(run(experiment.model_copy(update={"optimizer": still}), tmp_path / "b", steps=1))[1]
    b = evaluations(run(several.model_copy(update={"optimizer": still}), tmp_path / "c", steps=1))[1]
    names = [name for name, value in a.items() if name.startswith("eval_") and isinstance(value, float)]
    assert len(names) > 8
    np.testing.assert_allclose([b[name] for name in names], [a[name] for name in names], rtol=1e-5, atol=1e-6)


def test_a_metric_that_does_not_exist_is_named_with_those_that_do(experiment, tmp_path):
    with pytest.raises(UserError, match=r"no metric 'eval_los'; there are .*eval_loss"):
        run(experiment, tmp_path, best="eval_los", steps=1)


def test_figures_go_to_weights_and_biases_too(experiment, tmp_path, monkeypatch):
    logged, module = [], types.ModuleType("wandb")
    module.init = lambda **settings: (
        logged.append(settings)
        or types.SimpleNamespace(
            log=lambda figures, step: logged.append((step, figures)), finish=lambda: logged.append("finished")
        )
    )
    monkeypatch.setitem(sys.modules, "wandb", module)
    run(experiment, tmp_path, steps=1, wandb="alignment")
    start, *figures, end = logged
    assert start["project"] == "alignment" and end == "finished"
    assert {name for _, shown in figures for name in shown} >= {"loss", "eval_loss"}
