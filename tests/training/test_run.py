"""`mmrlhf train` as its user meets it: a resumed run is the uninterrupted one, bit for bit; one program serves all rows."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import xml.etree.ElementTree
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath
from safetensors.numpy import load_file

from mmrlhf_jax import config, files, growing_file
from mmrlhf_jax.data.rows import Budget, empty_row
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.models.llava_onevision.geometry import VisionGeometry
from mmrlhf_jax.sharding.mesh import make_mesh
from mmrlhf_jax.training import loop, reference, trained
from mmrlhf_jax.training import record as recording
from mmrlhf_jax.training import replay as replaying
from mmrlhf_jax.training import run as run_module
from mmrlhf_jax.training.directory import CONFIG_FILE
from mmrlhf_jax.training.metrics import read_metrics
from mmrlhf_jax.training.page import PAGE, write_run_page
from mmrlhf_jax.training.record import read_batch
from mmrlhf_jax.training.replay import _responses, as_json, as_text, replay
from mmrlhf_jax.training.trained import export_run, load_trained
from tests import ranked, tiny

RANKS = [(1, 2), (1, 2, 3), (1, 1, 2), (2, 1), (1, 2, 2), (1, 2)]
IMAGES = [[(30, 30)], [(75, 40)], [(33, 90)], [], [(30, 30), (50, 20)], [(120, 31)]]
LAUNCH = config.Launch(mesh=config.Mesh(data=1, fsdp=1))
pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    root = tmp_path_factory.mktemp("experiment")
    return config.Experiment(
        model=config.Model(path=str(tiny.checkpoint(root / "model")), dtype="float32", remat="none"),
        data=config.Data(path=str(ranked.write(root / "data", RANKS, IMAGES))),
        objective=config.Preference(),
        optimizer=config.Optimizer(learning_rate=1e-3),
        batch=config.Batch(rows=1, slots=1024, logprob_chunk=64),
        run=config.Run(directory=str(root / "wh[o]le run?* \\{#%7e'$x"), seed=3, steps=5, checkpoint_every=2),
    )


@pytest.fixture(scope="module")
def train_steps():
    """The compiled steps of `whole`."""
    return []


@pytest.fixture(scope="module")
def whole(experiment, train_steps):
    """Started beside its model and data, by paths relative to there; its readers are elsewhere."""
    root = os.path.dirname(experiment.run.directory)
    parts = {name: getattr(experiment, name) for name in ("model", "data")}
    near = {name: part.model_copy(update={"path": os.path.relpath(part.path, root)}) for name, part in parts.items()}
    make = run_module.make_train_step
    with contextlib.chdir(root), pytest.MonkeyPatch.context() as watched:
        watched.setattr(run_module, "make_train_step", lambda *a, **k: train_steps.append(make(*a, **k)) or train_steps[-1])
        return loop.train(in_directory(experiment.model_copy(update=near), os.path.basename(experiment.run.directory)), LAUNCH)


@pytest.mark.long
def test_a_run_that_was_started_by_relative_paths_keeps_absolute_ones(experiment, whole, monkeypatch, tmp_path, capsys):
    """So that an export, a replay or a continuation from another directory finds the same model and data."""
    directory = epath.Path(experiment.run.directory)
    kept = config.load_experiment(directory / CONFIG_FILE)
    assert (kept.model.path, kept.data.path, kept.run.directory) == (
        experiment.model.path,
        experiment.data.path,
        experiment.run.directory,
    )
    monkeypatch.chdir(tmp_path)
    export_run(str(directory), "out", step=4)
    assert (tmp_path / "out/model.safetensors").exists()
    said = capsys.readouterr().err  # the tiny model's own template has no system turn
    assert "writes conversations otherwise than the qwen_1_5 that this run" in said


def in_directory(experiment, directory):
    return experiment.model_copy(update={"run": experiment.run.model_copy(update={"directory": str(directory)})})


def losses(directory):
    return {row["step"]: row["loss"] for row in map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())}


@pytest.mark.parametrize("object_store", [False, True])
@pytest.mark.long
def test_a_run_that_was_cut_off_continues_bit_for_bit(experiment, whole, tmp_path, monkeypatch, object_store):
    """In an object store lines wait for each other, but no checkpoint is ahead of them, and a kill closes no file."""
    monkeypatch.setattr(files, "is_remote", lambda path: object_store and "metrics" in str(path))
    interrupted = in_directory(experiment, tmp_path)

    def crash(done, *arguments, **options):
        if done.step == 3:
            raise RuntimeError("the machine is gone")
        record(done, *arguments, **options)

    record = run_module.record
    with monkeypatch.context() as killed, pytest.raises(RuntimeError):
        killed.setattr(run_module, "record", crash)
        killed.setattr(growing_file.GrowingFile, "close", lambda self: None)
        loop.train(interrupted, LAUNCH)
    continued = loop.train(interrupted, LAUNCH)

    for a, b in zip(jax.tree.leaves(continued), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(a, b)
    uninterrupted = losses(epath.Path(experiment.run.directory))
    assert losses(tmp_path) == uninterrupted
    assert list(uninterrupted) == [1, 2, 3, 4, 5]
    rows = read_metrics(tmp_path)
    assert [row["goodput/attempt"] for row in rows] == [1, 1, 2, 2, 2]
    assert object_store or rows[-1]["goodput/repeated_seconds"] > 0  # of step 3, whose line was written
    assert "in 2 attempts" in (tmp_path / PAGE).read_text()


def test_a_run_has_a_page_with_its_curves_and_where_its_time_went(experiment, whole):
    page = (epath.Path(experiment.run.directory) / PAGE).read_text()
    xml.etree.ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>"))
    assert "5 of 5 steps are done" in page and "a policy aligned with MM-DPO" in page
    for shown in (
        "implicit reward margin",
        "β of the last step’s pairs".replace("’", "&#39;"),
        "tokens/s",
        "steps that counted",
    ):
        assert shown in page, shown
    assert "held out" not in page.split('id="configuration"')[0]
    assert "in 1 attempt<" in page


def test_no_run_ends_because_of_its_page(experiment, whole, tmp_path, capsys):
    (tmp_path / "metrics.jsonl").write_text("not JSON\n{}\n")
    write_run_page(tmp_path, experiment, done=1, steps=2, goodput={})
    assert not (tmp_path / PAGE).exists() and "is not written: " in capsys.readouterr().err


def test_one_compilation_serves_every_picture_size(whole, train_steps):
    (step,) = train_steps
    assert step._cache_size() == 1


def test_at_the_start_the_policy_is_the_reference(experiment, whole):
    """β·δ = 0 for every pair: the first step's margins are 0 and its loss is log 2 plus γ times the chosen responses' loss."""
    first = json.loads((epath.Path(experiment.run.directory) / "metrics.jsonl").read_text().splitlines()[0])
    assert abs(first["rewards/margins"]) < 1e-4
    assert first["rewards/chosen"] == pytest.approx(0, abs=1e-4)
    assert first["beta/min"] >= 0.1 and first["beta/max"] <= 0.15


def test_another_seed_does_not_continue_the_run(experiment, whole):
    other = experiment.model_copy(update={"run": experiment.run.model_copy(update={"seed": 4})})
    with pytest.raises(UserError, match=r"seed 3.*--fresh"):
        loop.train(other, LAUNCH)


def test_other_rows_of_the_same_data_do_not_continue_the_run(experiment, whole):
    """The position is a number of steps: it means something else where rows have another size."""
    other = experiment.model_copy(update={"batch": experiment.batch.model_copy(update={"slots": 1536})})
    with pytest.raises(UserError, match=r"has batch\.slots 1024, this run has 1536.*--fresh"):
        loop.train(other, LAUNCH)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"objective": config.Preference(beta=0.5)}, r"objective\.beta 0\.1, this run has 0\.5"),
        ({"optimizer": config.Optimizer(learning_rate=2e-3)}, r"optimizer\.learning_rate 0\.001, this run has 0\.002"),
    ],
)
def test_other_settings_of_what_is_learnt_do_not_continue_the_run(experiment, whole, changed, named):
    with pytest.raises(UserError, match=named):
        loop.train(experiment.model_copy(update=changed), LAUNCH)


def test_another_base_model_does_not_continue_the_run(experiment, whole, tmp_path):
    other = tiny.checkpoint(tmp_path / "model", seed=5)
    moved = experiment.model_copy(update={"model": experiment.model.model_copy(update={"path": str(other)})})
    with pytest.raises(UserError, match=r"has model\.path .*, this run has "):
        loop.train(moved, LAUNCH)


def test_reference_log_probs_of_a_set_that_cannot_be_written_are_the_runs_own(experiment, tmp_path, monkeypatch):
    """Built sets are often mounted for reading only."""
    monkeypatch.setattr(reference, "index_cache", lambda examples: tmp_path / "set" / "index")
    assert reference.reference_cache(None, tmp_path) == tmp_path / "set" / "index"
    monkeypatch.setattr(files.os, "access", lambda path, mode: False)
    assert reference.reference_cache(None, tmp_path) == tmp_path / "reference"


def test_missing_rewards_are_counted_and_the_command_is_named(experiment, tmp_path):
    path = ranked.write(tmp_path / "data", RANKS, IMAGES)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    del lines[1]["responses"][0]["reward"]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    lacking = experiment.model_copy(update={"data": config.Data(path=str(path))})
    with pytest.raises(UserError, match=r"1 of 6 records .*'group-1'.*mmrlhf score"):
        loop.train(in_directory(lacking, tmp_path / "run"), LAUNCH)


@pytest.fixture(scope="module")
def stopped(experiment, tmp_path_factory):
    """The directory of a run that ended with a loss that is not finite."""
    directory = tmp_path_factory.mktemp("stopped")
    wild = experiment.model_copy(update={"optimizer": config.Optimizer(learning_rate=1e30, warmup_ratio=0.0)})
    wild = wild.model_copy(
        update={"run": experiment.run.model_copy(update={"directory": str(directory), "checkpoint_every": 1})}
    )
    with pytest.raises(UserError, match="bad_batch_step"):
        loop.train(wild, LAUNCH)
    return directory


@pytest.mark.long
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_batch(stopped):
    (saved,) = stopped.glob("bad_batch_step_*.npz")
    step, batch, groups, numbers, statistics = read_batch(saved)
    assert saved.name == f"bad_batch_step_{step}.npz"
    assert ((groups != "") == (batch.response_ids >= 0)).all() and numbers.max() >= 2
    assert statistics == {}
    assert batch.tokens.shape == (1, 1024) and batch.response_ids.max() >= 1


@pytest.mark.long
def test_a_saved_batch_is_replayed_with_the_runs_own_loss_and_gradient(experiment, whole, tmp_path, monkeypatch):
    """Under the parameters that it met: the figures are those of the step that stopped, by part and by response."""
    spiked = in_directory(experiment, tmp_path)
    spiked = spiked.model_copy(update={"run": spiked.run.model_copy(update={"checkpoint_every": 1})})
    monkeypatch.setattr(recording, "stops", lambda status, settings: "a stop for the test")
    monkeypatch.setattr(recording, "GOOD", -1)
    with pytest.raises(UserError, match=r"mmrlhf replay .*bad_batch_step_0\.npz"):
        loop.train(spiked, LAUNCH)
    found = replay(str(tmp_path / "bad_batch_step_0.npz"), LAUNCH)
    (first,) = [row for row in read_metrics(experiment.run.directory) if row["step"] == 1]
    for name, value in found.figures.items():
        if name != "rewards/accuracies":  # every margin is 0 here, and its rounding error has either sign
            assert value == pytest.approx(first[name], rel=1e-5, abs=1e-6), name
    assert found.parameters == 0
    assert np.linalg.norm(list(found.gradient_norms.values())) == pytest.approx(first["grad_norm"], rel=1e-5)
    assert {each.group for each in found.responses} <= {f"group-{i}" for i in range(len(RANKS))}
    assert all(each.logprob == pytest.approx(each.reference, abs=1e-3) for each in found.responses)
    again = replay(str(tmp_path / "bad_batch_step_0.npz"), LAUNCH, overrides=["model.remat=full"])
    assert again.figures["loss"] == pytest.approx(first["loss"], rel=1e-5)
    monkeypatch.setattr(replaying, "load_trained", lambda *_, **__: pytest.fail("the model is loaded"))
    with pytest.raises(UserError, match=r"step_0\.npz: .* objective\.scaling\.k .*; give it as a number$") as error:
        replay(str(tmp_path / "bad_batch_step_0.npz"), LAUNCH, overrides=["objective.scaling.k=median"])
    assert "\n" not in str(error.value)


@pytest.mark.long
def test_a_batch_that_was_met_later_is_replayed_under_the_checkpoint_before_it(experiment, whole, tmp_path, monkeypatch):
    later = in_directory(experiment, tmp_path)
    later = later.model_copy(update={"run": later.run.model_copy(update={"checkpoint_every": 1})})
    reasons = iter([None, None, "a stop for the test"])
    monkeypatch.setattr(recording, "stops", lambda status, settings: next(reasons))
    monkeypatch.setattr(recording, "GOOD", -1)
    with pytest.raises(UserError, match=r"mmrlhf replay .*bad_batch_step_2\.npz"):
        loop.train(later, LAUNCH)
    found = replay(str(tmp_path / "bad_batch_step_2.npz"), LAUNCH)
    assert found.parameters == 2
    (third,) = [row for row in read_metrics(experiment.run.directory) if row["step"] == 3]
    assert abs(third["rewards/margins"]) > 1e-3 and "rewards/accuracies" in found.figures
    for name, value in found.figures.items():
        assert value == pytest.approx(third[name], rel=1e-5, abs=1e-6), name


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_a_batch_that_cannot_be_saved_does_not_hide_why_the_run_stops(tmp_path, monkeypatch, capsys, number):
    def fails(path, **arrays):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(recording, "write_arrays", fails)
    batch = empty_row(Budget(8, 1, 1, 2, 2, 1), VisionGeometry(28, 14, ((28, 28),), 9))
    batch = jax.tree.map(lambda x: jax.numpy.asarray(x)[None], batch)
    recording.save_batch(epath.Path(tmp_path / "bad_batch_step_0.npz"), 0, batch, [], {})
    assert f"cannot be saved ([Errno {number}]" in capsys.readouterr().err


def test_a_replay_names_what_is_not_finite(stopped, tmp_path):
    (saved,) = stopped.glob("bad_batch_step_*.npz")
    found = replay(str(saved), LAUNCH)
    page = as_text(found, most=3)
    assert not found.responses[0].finite and "NOT FINITE" in page and found.responses[0].group in page
    written = json.loads(json.dumps(as_json(found), allow_nan=False))
    assert written["responses"][0]["finite"] is False and written["figures"]["loss"] is None
    with pytest.raises(UserError, match="no such file"):
        replay(str(tmp_path / "bad_batch_step_99.npz"), LAUNCH)
    for content in ("not one", ""):
        (tmp_path / "text.npz").write_text(content)
        with pytest.raises(UserError, match="not a batch"):
            replay(str(tmp_path / "text.npz"), LAUNCH)


def test_a_reward_models_reward_and_a_policys_reference_must_be_there():
    tokens = np.array([[5, 5]])
    batch = empty_row(Budget(8, 1, 1, 2, 2, 1), VisionGeometry(28, 14, ((28, 28),), 9))
    batch = jax.tree.map(lambda x: x[None], batch)._replace(response_ids=np.array([[0, 1]]))
    saved = recording.SavedBatch(3, batch, np.array([["a", "a"]]), np.array([[1, 2]]), {})
    rewards = np.array([[np.nan, 1.0]])
    outputs = -1.0 * tokens, rewards, np.full((1, 2), np.nan)
    for judges, compares, expected in (
        (True, False, [False, True]),
        (False, False, [True, True]),
        (False, True, [False, False]),
    ):
        found = _responses(saved, *outputs, judges=judges, compares=compares)
        assert [each.finite for each in found] == expected


def snapshot(directory: Path) -> dict[str, tuple]:
    return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns, path.lstat().st_ino) for path in directory.rglob("*")}


def test_readers_of_a_run_change_nothing_in_it(experiment, whole, tmp_path):
    """Beside a trainer that is writing a checkpoint, whose name says so."""
    run = tmp_path / "run"
    shutil.copytree(experiment.run.directory, run)
    shutil.copytree(run / "checkpoints" / "4", run / "checkpoints" / "6.orbax-checkpoint-tmp")
    before = snapshot(run)
    export_run(str(run), str(tmp_path / "out"))
    assert load_trained(run, mesh=make_mesh({}, jax.devices()[:1]), up_to=4).step == 4
    assert snapshot(run) == before
    with pytest.raises(UserError, match=r"there is no checkpoint of step 3; there are those of 4, 5$"):
        load_trained(run, mesh=make_mesh({}, jax.devices()[:1]), step=3)
    with pytest.raises(UserError, match="not a run directory"):
        load_trained(tmp_path / "none", mesh=make_mesh({}, jax.devices()[:1]))
    assert snapshot(run) == before and not (tmp_path / "none").exists()
    for step in ("4", "5"):
        shutil.rmtree(run / "checkpoints" / step)
    with pytest.raises(UserError, match="this run has no complete checkpoint"):
        load_trained(run, mesh=make_mesh({}, jax.devices()[:1]))


def test_a_reader_of_the_newest_takes_a_newer_one_where_that_is_removed_meanwhile(
    experiment, whole, tmp_path, monkeypatch, capsys
):
    run = tmp_path / "run"
    shutil.copytree(experiment.run.directory, run)
    load_base = trained.load_base

    def meanwhile(*arguments):
        (run / "checkpoints" / "5").rename(run / "checkpoints" / "7")
        return load_base(*arguments)

    monkeypatch.setattr(trained, "load_base", meanwhile)
    assert load_trained(run, mesh=make_mesh({}, jax.devices()[:1])).step == 7
    assert "the checkpoint at step 5 was removed meanwhile; taking step 7" in capsys.readouterr().err


def test_the_exported_run_is_the_trained_model(experiment, whole, tmp_path):
    export_run(experiment.run.directory, str(tmp_path / "out"))
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    trained = whole.params["language"]["norm"]["scale"].get_value()
    (name,) = [
        name
        for name in tensors
        if name.endswith("language_model.model.norm.weight") or name.endswith("language_model.norm.weight")
    ]
    np.testing.assert_array_equal(tensors[name], trained)
    frozen = load_file(epath.Path(experiment.model.path) / "model.safetensors")
    for name in tensors:
        if "vision_tower" in name:
            np.testing.assert_array_equal(tensors[name], frozen[name])
    assert "MM-DPO" in (tmp_path / "out" / "README.md").read_text()
