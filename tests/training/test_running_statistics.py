"""Running statistics of a loss (those of mode beta_dpo) are part of the run: kept, continued and replayed."""

from __future__ import annotations

import json
import re

import jax
import numpy as np
import optax
import pytest

from mmrlhf_jax import config
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.sharding.feed import place
from mmrlhf_jax.sharding.mesh import use_mesh
from mmrlhf_jax.tasks import task_of
from mmrlhf_jax.training import loop
from mmrlhf_jax.training import run as run_module
from mmrlhf_jax.training.guard import guarded
from mmrlhf_jax.training.metrics import read_metrics
from mmrlhf_jax.training.record import read_batch
from mmrlhf_jax.training.replay import replay
from mmrlhf_jax.training.state import init_state, split_model
from mmrlhf_jax.training.step import make_train_step
from tests import ranked, tiny
from tests.training import groups

# Every row has at least two pairs.
RANKS = [(1, 2, 3), (1, 2, 2), (2, 1, 3), (1, 1, 2), (1, 2, 3), (3, 2, 1)]
IMAGES = [[(30, 30)], [], [(33, 90)], [], [(50, 20)], []]
LAUNCH = config.Launch(mesh=config.Mesh(data=1, fsdp=1))
MEAN, STD = "beta_dpo/mean", "beta_dpo/std"
pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    root = tmp_path_factory.mktemp("statistics")
    return config.Experiment(
        model=config.Model(path=str(tiny.checkpoint(root / "model")), dtype="float32", remat="none"),
        data=config.Data(
            path=str(ranked.write(root / "data", RANKS, IMAGES)),
            held_out=str(ranked.write(root / "held", RANKS, IMAGES, seed=7)),
        ),
        objective=config.Preference(scaling=config.Scaling(mode="beta_dpo", w=0.6, filtered=0.2)),
        optimizer=config.Optimizer(learning_rate=3e-3, warmup_ratio=0.0, schedule="constant"),
        batch=config.Batch(rows=1, slots=512, logprob_chunk=64),
        run=config.Run(directory=str(root / "whole"), seed=3, steps=5, checkpoint_every=2),
    )


def changed(experiment: config.Experiment, directory, section: str = "run", **changes) -> config.Experiment:
    """The experiment with its run in `directory` and these keys of a section changed."""
    experiment = experiment.model_copy(update={section: getattr(experiment, section).model_copy(update=changes)})
    return experiment.model_copy(update={"run": experiment.run.model_copy(update={"directory": str(directory)})})


@pytest.fixture(scope="module")
def whole(experiment):
    return loop.train(experiment, LAUNCH)


@pytest.fixture(scope="module")
def rows(experiment, whole):
    return [row for row in read_metrics(experiment.run.directory) if "loss" in row]


@pytest.mark.long
def test_every_step_logs_the_running_mean_that_its_margins_give(whole, rows):
    """`rewards/margins` is the mean margin times β, here without pair weights."""
    mean = 0.0
    for row in rows:
        mean = 0.9 * mean + 0.1 * row["rewards/margins"] / 0.1
        assert row[MEAN] == pytest.approx(mean, rel=1e-5, abs=1e-6)
    assert len(rows) == 5 and abs(mean) > 0.05 and rows[-1][STD] > 0.05
    assert {name: float(value) for name, value in whole.statistics.items()} == {name: rows[-1][name] for name in (MEAN, STD)}


@pytest.mark.long
def test_a_run_that_was_cut_off_continues_with_its_statistics_bit_for_bit(experiment, whole, rows, tmp_path, monkeypatch):
    def crash(done, *arguments, **options):
        if done.step == 3:
            raise RuntimeError("the machine is gone")
        record(done, *arguments, **options)

    record, interrupted = run_module.record, changed(experiment, tmp_path)
    with monkeypatch.context() as killed, pytest.raises(RuntimeError):
        killed.setattr(run_module, "record", crash)
        loop.train(interrupted, LAUNCH)
    continued = loop.train(interrupted, LAUNCH)
    for a, b in zip(jax.tree.leaves(continued), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(a, b)
    found = [row for row in read_metrics(tmp_path) if "loss" in row]
    for name in ("loss", MEAN, STD):
        assert [row[name] for row in found] == [row[name] for row in rows]


@pytest.mark.parametrize("filtered", [0.0, 0.5])
@pytest.mark.long
def test_held_out_data_is_judged_with_the_statistics_as_they_stand_and_leaves_them_alone(experiment, tmp_path, filtered):
    """All of its pairs are judged, so that β of a batch, here all of the data, is known from its mean margin and the running
    mean. β of a training batch is, too, where no pair is left out."""
    scaling = config.Scaling(mode="beta_dpo", w=0.6, filtered=filtered)
    made = changed(experiment, tmp_path / "never", "objective", scaling=scaling)
    made = changed(made, tmp_path / "never", "batch", rows=2)
    made = changed(made, tmp_path / "never", "optimizer", learning_rate=1e-4)
    without = loop.train(changed(made, tmp_path / "never", "data", held_out=None), LAUNCH)
    judged = loop.train(changed(made, tmp_path / "judged", eval_every=1), LAUNCH)
    for a, b in zip(jax.tree.leaves(judged), jax.tree.leaves(without), strict=True):
        np.testing.assert_array_equal(a, b)
    steps = [json.loads(line) for line in (tmp_path / "judged" / "metrics.jsonl").read_text().splitlines()]
    steps, evaluations = ([row for row in steps if name in row] for name in ("loss", "eval_loss"))
    assert len(steps) == len(evaluations) == 5
    for step, evaluation in zip(steps, evaluations, strict=True):
        own, beta = (
            0.1 * (1 + 0.6 * (row[f"{prefix}rewards/margins"] / 0.1 - step[MEAN]))
            for row, prefix in ((step, ""), (evaluation, "eval_"))
        )
        # After the step's own batch has moved the mean.
        assert filtered or step["beta/mean"] == pytest.approx(own, rel=1e-5)
        assert evaluation["eval_beta/mean"] == pytest.approx(beta, rel=1e-5)
    assert abs(beta - 0.1) > 1e-3 and step[STD] > 1e-2


@pytest.mark.parametrize("harm", [None, np.nan, np.inf])
@pytest.mark.long
def test_a_bad_step_leaves_them_as_they_are(tiny_step, harm):
    """A batch whose margins are not finite would make them NaN for good."""
    start, step, batch = tiny_step
    if harm is not None:
        references = batch.reference_logps.copy()
        references[0, 0] = harm
        batch = batch._replace(reference_logps=references)
    state, figures = step(start(), batch)
    found = {name: float(value) for name, value in state.statistics.items()}
    assert found == {name: float(figures[name]) for name in (MEAN, STD)}
    assert bool(figures["skipped_steps"]) == (harm is not None)
    assert (found == {MEAN: 0.5, STD: 2.0}) == (harm is not None) and np.isfinite([*found.values()]).all()


@pytest.fixture(scope="module")
def tiny_step(tmp_path_factory):
    """(a function that makes a state with statistics that are not 0, its train step, a batch)."""
    root = tmp_path_factory.mktemp("step")
    mesh, model = groups.load(groups.checkpoint(root / "model"), 1)
    task, tx = task_of(groups.OBJECTIVES["beta-dpo"]), guarded(optax.sgd(1e-3), config.Guard(not_finite="skip"))
    batch = groups.packed(model, groups.examples(root / "data"), task.conversation, rows=4)
    with use_mesh(mesh):
        graphdef, *parts = split_model(model, config.Trains())
        step = make_train_step(graphdef, task, tx, chunk=16)

    def start():
        with use_mesh(mesh):
            params, frozen = jax.tree.map(lambda x: x.copy(), parts)  # the step gives its state away
            return init_state(params, frozen, tx, mesh, statistics={MEAN: 0.5, STD: 2.0})

    def stepped(state, batch):
        with use_mesh(mesh):
            return step(state, place(batch, mesh))

    return start, stepped, batch


@pytest.mark.long
def test_a_batch_that_stopped_the_run_is_replayed_with_the_beta_that_it_had(experiment, tmp_path):
    stopping = changed(experiment, tmp_path, "guard", spike="stop", spike_factor=1.01, decay=0.5)
    with pytest.raises(UserError, match="times its running mean") as error:
        loop.train(changed(stopping, tmp_path, steps=12, checkpoint_every=1), LAUNCH)
    (path,) = tmp_path.glob("bad_batch_step_*.npz")
    saved, (*_, before) = read_batch(path), (row for row in read_metrics(tmp_path) if "loss" in row)
    assert before["step"] == saved.step > 0
    assert saved.statistics == {name: before[name] for name in (MEAN, STD)} and before[STD] > 0
    figures = replay(str(path), LAUNCH).figures
    assert figures["loss"] == pytest.approx(float(re.search(r"loss ([-\d.e]+)", str(error.value))[1]), rel=1e-5)
    assert figures[MEAN] == pytest.approx(0.9 * before[MEAN] + 0.1 * figures["rewards/margins"] / 0.1, rel=1e-5, abs=1e-6)
    whole = dict(np.load(path))
    for value in (np.nan, np.inf):
        np.savez(path, **whole | {f"statistics/{STD}": np.float32(value)})
        with pytest.raises(UserError, match=rf"npz: the running statistic beta_dpo/std is {value}, and no batch"):
            replay(str(path), LAUNCH)
    np.savez(path, **{name: value for name, value in whole.items() if not name.startswith("statistics/")})
    with pytest.raises(UserError, match=r"saved without the running statistics beta_dpo/mean, beta_dpo/std") as error:
        replay(str(path), LAUNCH)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"filtered 0\.2 has an effect only in mode beta_dpo"):
        replay(str(path), LAUNCH, overrides=["objective.scaling.mode=fixed"])
    replay(str(path), LAUNCH, overrides=["objective.scaling.mode=fixed", "objective.scaling.filtered=0"])


@pytest.mark.long
def test_pieces_of_a_batch_have_no_statistics(tmp_path):
    """No configuration allows it; a caller of the step is told as well."""
    mesh, model = groups.load(groups.checkpoint(tmp_path / "model"), 1)
    objective = groups.OBJECTIVES["beta-dpo"]
    batch = groups.packed(model, groups.examples(tmp_path / "data"), task_of(objective).conversation, rows=4)
    with pytest.raises(ValueError, match="beta_dpo/mean, beta_dpo/std are of the whole batch"):
        groups.step(mesh, model, objective, batch, accumulation=2)
