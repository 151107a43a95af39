"""In how many pieces a step takes its rows: what the launch file, the mesh and the experiment give, by the numbers alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmrlhf_jax import config
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.training import loop
from mmrlhf_jax.training import run as run_module
from mmrlhf_jax.training.directory import CONFIG_FILE
from mmrlhf_jax.training.identity import difference, known_identity
from mmrlhf_jax.training.layout import say_overruled, with_accumulation
from tests import ranked, tiny
from tests.training.pretended import PretendedStep

ROOT = Path(__file__).parents[2]
ONE = {"data": 1, "fsdp": 1, "tensor": 1, "context": 1}
WHOLE = [
    config.Preference(losses={"aot": 1.0}),
    config.Preference(losses={"aot_unpaired": 1.0}),
    config.Preference(scaling=config.Scaling(mode="batch_implicit")),
    config.Preference(scaling=config.Scaling(mode="beta_dpo")),
]


def experiment(objective: config.Objective | None = None, **batch) -> config.Experiment:
    return config.Experiment(
        model=config.Model(path="model"),
        data=config.Data(path="data"),
        objective=objective or config.Preference(),
        batch=config.Batch(**batch),
        run=config.Run(directory="run"),
    )


@pytest.mark.parametrize(
    ("rows", "axes", "at_once", "pieces"),
    [
        (8, {}, None, 1),
        (8, {}, 1, 8),
        (8, {}, 3, 4),  # pieces are equal: 2 rows at a time
        (8, {}, 9, 1),
        (12, {}, 5, 3),
        (7, {}, 6, 7),
        (32, {"fsdp": 8}, 1, 4),
        (32, {"fsdp": 8}, 2, 2),
        (64, {"data": 2, "fsdp": 16}, 1, 2),
        (32, {"data": 2, "fsdp": 16}, 1, 1),
        # Devices that share rows are one batch shard.
        (32, {"fsdp": 8, "tensor": 4, "context": 2}, 1, 4),
        (32, {"tensor": 8}, 8, 4),
    ],
)
def test_the_fewest_equal_pieces_are_taken_of_which_a_batch_shard_gets_no_more_than_the_launch_file_allows(
    rows, axes, at_once, pieces
):
    settled = with_accumulation(experiment(rows=rows), config.Launch(rows_per_device=at_once), ONE | axes)
    assert settled.batch == config.Batch(rows=rows, accumulation=pieces)
    assert with_accumulation(settled, config.Launch(), ONE | axes) is settled


def test_an_experiments_own_accumulation_wins_and_it_is_said_where_that_differs(capsys):
    own, axes = experiment(rows=32, accumulation=2), ONE | {"fsdp": 8}
    for at_once, differs in ((None, False), (1, True), (2, False), (4, True)):
        launch = config.Launch(rows_per_device=at_once)
        assert with_accumulation(own, launch, axes).batch.accumulation == 2
        say_overruled(own, launch, axes)
        assert ("batch.accumulation: 2 is set and overrules rows_per_device" in capsys.readouterr().err) == differs
    say_overruled(experiment(rows=32), config.Launch(rows_per_device=1), axes)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("batch", "at_once"), [({"rows": 30}, 1), ({"rows": 30}, None), ({"rows": 32, "accumulation": 8}, 1)])
def test_rows_that_the_batch_shards_do_not_divide_are_refused(batch, at_once):
    with pytest.raises(UserError, match=r"must be a multiple of the 8 batch shards of this mesh") as error:
        with_accumulation(experiment(**batch), config.Launch(rows_per_device=at_once), ONE | {"fsdp": 8})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("objective", WHOLE, ids=lambda objective: objective.looks_at_batch)
def test_what_looks_at_the_whole_batch_is_refused_where_the_launch_file_cuts_it(objective):
    launch = config.Launch(rows_per_device=2)
    assert with_accumulation(experiment(objective, rows=8), launch, ONE | {"fsdp": 4}).batch.accumulation == 1
    assert with_accumulation(experiment(objective, rows=8, accumulation=1), launch, ONE).batch.accumulation == 1
    with pytest.raises(UserError, match=r"looks at the whole batch, which rows_per_device: 2 .* 4 pieces; set batch\.acc.*: 1"):
        with_accumulation(experiment(objective, rows=8), launch, ONE)


def test_a_run_may_go_on_where_it_takes_its_rows_in_other_pieces():
    made = experiment(rows=8)
    before, now = (with_accumulation(made, config.Launch(rows_per_device=rows), ONE) for rows in (None, 1))
    assert (before.batch.accumulation, now.batch.accumulation) == (1, 8)
    assert difference(known_identity(before), known_identity(now)) is None


@pytest.mark.usefixtures("one_device")
@pytest.mark.long
def test_a_run_steps_and_is_kept_with_the_number_that_its_launch_file_gives(tmp_path, monkeypatch, capsys):
    """Continued by another launch file, it goes on with another number."""
    step, given = PretendedStep(), []
    monkeypatch.setattr(run_module, "make_train_step", lambda *_, **settings: given.append(settings["accumulation"]) or step)
    data = ranked.write(tmp_path / "data", [(1, 2), (1, 2, 3), (2, 1)], [[(30, 30)], [], []])
    made = config.Experiment(
        model=config.Model(path=str(tiny.checkpoint(tmp_path / "model")), dtype="float32", remat="none"),
        data=config.Data(path=str(data)),
        objective=config.Supervised(),
        batch=config.Batch(rows=4, slots=512, logprob_chunk=64),
        run=config.Run(directory=str(tmp_path / "run"), steps=2),
    )
    for at_once, accumulation in ((1, 4), (None, 1)):
        loop.train(made, config.Launch(mesh=config.Mesh(fsdp=1), rows_per_device=at_once))
        assert given[-1] == accumulation
        assert config.load_experiment(tmp_path / "run" / CONFIG_FILE).batch.accumulation == accumulation
    assert "resumed from step 2" in capsys.readouterr().err


def test_on_tpus_the_published_experiments_are_taken_whole():
    """Their plans fit so."""
    for path in sorted((ROOT / "launch").glob("v*.yaml")):
        launch = config.load_launch(path)
        for each in sorted((ROOT / "configs").glob("*.yaml")):
            assert with_accumulation(config.load_experiment(each), launch, launch.axes()).batch.accumulation == 1


def test_a_gpu_host_takes_the_seven_billion_models_rows_a_few_at_a_time():
    found = {}
    for name in ("a100-8", "h100-8", "h100-8x4", "h200-8"):
        launch = config.load_launch(ROOT / "launch" / f"{name}.yaml")
        for kind in ("mmdpo", "reward"):
            made = config.load_experiment(ROOT / "configs" / f"{kind}_llava_ov_7b.yaml")
            found[name, kind] = with_accumulation(made, launch, launch.axes()).batch.accumulation
    assert list(found.values()) == [1, 2, 1, 2, 1, 1, 1, 1]  # mmdpo has 32 rows, reward has 64
