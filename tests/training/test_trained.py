"""A run's parameters belong to what the run learnt on: with another base they are another model, which is refused."""

from __future__ import annotations

import shutil

import jax
import optax
import pytest

from mmrlhf_jax import config
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.huggingface.fingerprint import model_fingerprint
from mmrlhf_jax.sections import resolved
from mmrlhf_jax.sharding.mesh import make_mesh, use_mesh
from mmrlhf_jax.training import trained
from mmrlhf_jax.training.base import load_base
from mmrlhf_jax.training.checkpoint import Checkpoints
from mmrlhf_jax.training.directory import CHECKPOINTS, CONFIG_FILE
from mmrlhf_jax.training.identity import MODEL, known_identity
from mmrlhf_jax.training.state import TrainState, init_state, split_model
from mmrlhf_jax.training.trained import export_run, load_trained
from tests import tiny

MESH = make_mesh({}, jax.devices()[:1])


class ModelIsLoaded(Exception):
    pass


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(run, base) of a run with adapters and a head, with checkpoints of steps 2 and 3."""
    root = tmp_path_factory.mktemp("trained")
    run, base = root / "run", tiny.checkpoint(root / "base")
    experiment = config.Experiment(
        model=config.Model(path=str(base), dtype="float32", reward_head="tanh", remat="none"),
        data=config.Data(path="not read"),
        objective=config.RewardModel(),
        trains=config.Trains(projector=False, newline=False),
        lora=config.Lora(rank=2, alpha=8.0),
        run=config.Run(directory=str(run), seed=3),
    )
    with use_mesh(MESH):
        _, params, frozen = split_model(load_base(experiment, MESH), experiment.trains, experiment.lora)
        state = init_state(params, frozen, optax.sgd(1e-3), MESH)
    checkpoints = Checkpoints(run / CHECKPOINTS)
    identity = known_identity(experiment) | {MODEL: model_fingerprint(base)}
    for step in (2, 3):
        checkpoints.save(TrainState(state.step + step, state.params, state.frozen, state.opt_state, None), identity)
    checkpoints.wait()
    checkpoints.close()
    (run / CONFIG_FILE).write_text(resolved(experiment))
    return run, base


@pytest.fixture
def copied(made, tmp_path):
    """The same in another place, to which the run's configuration leads."""
    for path in made:
        shutil.copytree(path, tmp_path / path.name)
    settings = tmp_path / "run" / CONFIG_FILE
    settings.write_text(settings.read_text().replace(str(made[1].parent), str(tmp_path)))
    return tmp_path / "run", tmp_path / "base"


@pytest.fixture
def nothing_is_loaded(monkeypatch):
    def load(*_):
        raise ModelIsLoaded

    monkeypatch.setattr(trained, "load_base", load)


EDITS = [
    ("lora.alpha=16", r"lora\.alpha 8\.0, this run has 16\.0"),
    ("lora.rank=4", r"lora\.rank 2, this run has 4"),
    ("lora.layers=[query, value]", r'lora\.layers none, this run has \["query", "value"\]'),
    ("lora=null", r"lora\.\w+ .*, this run has none"),
    ("model.reward_head=silu", r"model\.reward_head tanh, this run has silu"),
    ("trains.vision_tower=true", "trains .*, this run has vision_tower"),
    ("run.seed=4", r"run\.seed 3, this run has 4"),  # which what is drawn and does not learn depends on
]


@pytest.mark.usefixtures("nothing_is_loaded")
@pytest.mark.parametrize(("edit", "said"), EDITS, ids=[edit for edit, _ in EDITS])
@pytest.mark.parametrize("which", [{}, {"step": 2}, {"up_to": 0}], ids=str)
def test_settings_that_decide_what_the_parameters_mean_are_those_that_the_run_had(made, edit, said, which):
    run, _ = made
    with pytest.raises(UserError, match=rf"^{run}: the checkpoint at step \d was learnt with {said}"):
        load_trained(run, mesh=MESH, overrides=[edit], **which)


@pytest.mark.usefixtures("nothing_is_loaded")
@pytest.mark.parametrize(
    "override",
    [
        "model.remat=full",
        "model.dtype=bfloat16",
        "model.frozen_dtype=bfloat16",
        "model.attention=xla",
        "batch.accumulation=2",
        "optimizer.learning_rate=1",
        "data.path=elsewhere",
        "run.steps=7",
        "run.directory=elsewhere",
    ],
)
def test_what_fits_a_run_to_other_devices_or_tells_of_its_learning_may_be_otherwise(made, override):
    for which in ({}, {"up_to": 0}):
        with pytest.raises(ModelIsLoaded):
            load_trained(made[0], mesh=MESH, overrides=[override], **which)


@pytest.mark.usefixtures("nothing_is_loaded")
def test_a_model_that_was_moved_is_the_same_and_another_one_in_its_place_is_refused_by_every_reader(copied, tmp_path):
    run, base = copied
    with pytest.raises(ModelIsLoaded):
        export_run(str(run), str(tmp_path / "out"))
    tiny.checkpoint(base, seed=1)  # of the same shapes
    for read in (
        lambda: export_run(str(run), str(tmp_path / "out")),
        lambda: export_run(str(run), str(tmp_path / "out"), adapter=True, step=2),
        lambda: load_trained(run, mesh=MESH, up_to=2),
        lambda: load_trained(run, mesh=MESH, up_to=0),
    ):
        with pytest.raises(UserError, match=r"was learnt with model\.path .*base, this run has .*base: .*put back"):
            read()
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("nothing_is_loaded")
@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_other_settings_of_the_model_itself_are_another_model(made, tmp_path, name):
    run, base = tmp_path / "run", made[1]
    shutil.copytree(made[0], run)
    kept = (base / name).read_bytes()
    (base / name).write_bytes(kept + b"\n")
    try:
        with pytest.raises(UserError, match=rf"was learnt with another model: what is at {base} has changed since"):
            load_trained(run, mesh=MESH)
    finally:
        (base / name).write_bytes(kept)


@pytest.mark.usefixtures("nothing_is_loaded")
def test_a_run_without_a_checkpoint_has_nothing_to_compare_its_base_with(copied):
    run, base = copied
    tiny.checkpoint(base, seed=1)
    for step in ("2", "3"):
        shutil.rmtree(run / CHECKPOINTS / step)
    with pytest.raises(ModelIsLoaded):
        load_trained(run, mesh=MESH, up_to=0)


@pytest.mark.usefixtures("nothing_is_loaded")
@pytest.mark.parametrize("line", ["[1]", "junk"])
def test_metrics_that_no_card_can_be_made_from_are_refused_before_the_model_is_loaded(copied, tmp_path, line):
    run, _ = copied
    (run / "metrics.jsonl").write_text(f'{line}\n{{"step": 2}}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 1: .*; delete the line"):
        export_run(str(run), str(tmp_path / "out"))
