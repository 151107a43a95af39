"""`--fit` takes the shortest step bound of what fits; plans are made up here, so that the search itself is what is tested."""

from __future__ import annotations

import types

import pytest

from mmrlhf_jax import config
from mmrlhf_jax.commands import plan as commands
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.planning import fit
from mmrlhf_jax.training.layout import with_accumulation

EXPERIMENT = config.Experiment(
    model=config.Model(path="m", remat="full"),
    data=config.Data(path="d"),
    objective=config.Preference(),
    batch=config.Batch(rows=16),
    run=config.Run(directory="r"),
)
NAMES = ("experiment", "pod")


def made_up(seconds, fits):
    """A plan whose bound and fit are functions of (tensor, context, remat, accumulation)."""

    def make_plan(experiment, launch, *, names, generation, quick, workload):
        key = launch.mesh.tensor, launch.mesh.context, experiment.model.remat, experiment.batch.accumulation
        return types.SimpleNamespace(fits=fits(*key), step_seconds=seconds(*key), peak=2**30)

    return make_plan


def test_the_fastest_of_what_fits_is_taken(monkeypatch):
    seconds = lambda tensor, context, remat, accumulation: tensor + 2 * context + (remat == "full") + accumulation
    fits = lambda tensor, context, remat, accumulation: context == 2 and remat == "full"
    monkeypatch.setattr(fit, "make_plan", made_up(seconds, fits))
    _, experiment, launch = fit.best_fit(EXPERIMENT, config.Launch(), 16, NAMES, tries=50)
    assert (launch.mesh.tensor, launch.mesh.context, experiment.model.remat) == (1, 2, "full")
    assert experiment.batch.accumulation == 1
    written = fit.as_overrides(experiment, launch)
    assert "rows_per_device: 2" in written and "context: 2" in written and "accumulation" not in written


def test_nothing_is_compiled_that_can_only_be_slower(monkeypatch):
    """Where all rows fit at once, neither more pieces nor more recomputation of the same split."""
    tried = []
    fits = lambda tensor, context, remat, accumulation: tried.append((tensor, context, remat, accumulation)) or context == 1
    monkeypatch.setattr(fit, "make_plan", made_up(lambda *_: 1.0, fits))
    fit.best_fit(EXPERIMENT, config.Launch(), 8, NAMES, tries=50)
    assert [key for key in tried if key[:2] == (2, 1)] == [(2, 1, "dots", 1)]
    assert [key for key in tried if key[:2] == (1, 2)] == [(1, 2, remat, n) for remat in ("dots", "full") for n in (1, 2, 4)]


def test_what_to_write_names_the_axes_between_slices():
    launch = config.Launch(mesh=config.Mesh(data=2, fsdp=16, slices={"data": 2}))
    assert fit.as_overrides(EXPERIMENT, launch).endswith("mesh: {data: 2, fsdp: 16, tensor: 1, context: 1, slices: {data: 2}}")


def test_what_looks_at_the_whole_batch_is_not_taken_in_pieces():
    implicit = config.Preference(scaling=config.Scaling(mode="batch_implicit"))
    found = fit.candidates(EXPERIMENT.model_copy(update={"objective": implicit}), config.Launch(), 8)
    assert {experiment.batch.accumulation for experiment, _ in found} == {1}


def test_every_candidate_divides_rows_and_devices():
    slices = config.Launch(mesh=config.Mesh(data=2, slices={"data": 2}))
    for experiment, launch in fit.candidates(EXPERIMENT, slices, 32):
        mesh = launch.mesh
        assert mesh.data * mesh.fsdp * mesh.tensor * mesh.context == 32 and mesh.data == 2
        assert EXPERIMENT.batch.rows % (mesh.data * mesh.fsdp * experiment.batch.accumulation) == 0


def test_what_is_suggested_for_the_launch_file_gives_the_accumulation_that_was_tried():
    for experiment, launch in fit.candidates(EXPERIMENT, config.Launch(), 4):
        assert with_accumulation(EXPERIMENT, launch, launch.mesh.axes).batch == experiment.batch


def test_an_experiments_own_accumulation_is_the_only_one_tried():
    own = EXPERIMENT.model_copy(update={"batch": config.Batch(rows=16, accumulation=2)})
    assert {experiment.batch.accumulation for experiment, _ in fit.candidates(own, config.Launch(), 4)} == {2}


def test_what_is_not_tried_is_said(monkeypatch, capsys):
    monkeypatch.setattr(fit, "make_plan", made_up(lambda *_: 1.0, lambda *_: True))
    fit.best_fit(EXPERIMENT, config.Launch(), 16, NAMES, tries=2)
    assert "2 ways tried" in capsys.readouterr().err


def test_where_nothing_fits_the_least_is_named(monkeypatch):
    monkeypatch.setattr(fit, "make_plan", made_up(lambda *_: 1.0, lambda *_: False))
    with pytest.raises(UserError, match=r"the least of 12 tried takes 1\.0 GiB; take more chips"):
        fit.best_fit(EXPERIMENT, config.Launch(), 16, NAMES)


def test_a_plan_of_nothing_says_what_to_give():
    with pytest.raises(UserError, match="give an experiment and --launch FILE"):
        commands.plan([], [], [])
