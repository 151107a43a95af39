"""Held-out evaluation in the loop: on a cadence, exact means however the rows are batched, and the best checkpoint is kept."""

from __future__ import annotations

import json
import math
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrlhf_jax import config
from mmrlhf_jax.data.builder import build
from mmrlhf_jax.data.encode import GroupEncoder
from mmrlhf_jax.data.mixture import open_examples
from mmrlhf_jax.data.rows import Budget, empty_row
from mmrlhf_jax.data.tokens import PieceTokenizer
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.inference.engine import Engine
from mmrlhf_jax.models.llava_onevision.geometry import VisionGeometry
from mmrlhf_jax.objectives.outputs import Outputs
from mmrlhf_jax.sharding.mesh import make_mesh
from mmrlhf_jax.tasks import plan_training_rows, task_of
from mmrlhf_jax.training import base, judge, loop
from mmrlhf_jax.training import run as run_module
from mmrlhf_jax.training.directory import CHECKPOINTS
from mmrlhf_jax.training.held_out import evaluate, figure_names, fingerprint, plan_held_out, say_shared
from mmrlhf_jax.training.stored import Criterion, StoredCheckpoints
from mmrlhf_jax.training.trained import load_trained
from tests import ranked, tiny
from tests.training.pretended import PretendedStep

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


@pytest.fixture(scope="module")
def still(experiment):
    return experiment.model_copy(update={"optimizer": config.Optimizer(learning_rate=1e-30)})


@pytest.fixture(scope="module")
def at_the_start(still, tmp_path_factory):
    """The evaluation after a step that changes nothing."""
    (found,) = evaluations(run(still, tmp_path_factory.mktemp("still"), steps=1)).values()
    return found


@pytest.mark.long
def test_at_learning_rate_zero_the_loss_is_that_of_the_start(experiment, at_the_start):
    """Policy = reference: every pair's DPO loss is log 2, and the SFT term is the mean over the chosen responses' tokens."""
    examples = open_examples(experiment.data.held_out)
    scored = Engine.load(experiment.model.path, batch=1).score_responses(examples, "answer")
    chosen = [(scored[i], pair[0]) for i, record in enumerate(examples.records) for pair in record.pairs()]
    nll = -sum(found["logps"][k] for found, k in chosen) / sum(found["lengths"][k] for found, k in chosen)
    assert at_the_start["eval_rewards/margins"] == pytest.approx(0, abs=1e-4)
    assert at_the_start["eval_loss"] == pytest.approx(math.log(2) + experiment.objective.sft_weight * nll, rel=1e-4)


@pytest.mark.long
def test_the_best_checkpoint_stays_beside_the_last_one(experiment, tmp_path):
    rows = run(experiment, tmp_path)
    found = evaluations(rows)
    assert list(found) == [1, 2, 3, 4]
    best = min(found, key=lambda step: found[step]["eval_loss"])
    checkpoints = StoredCheckpoints(tmp_path / CHECKPOINTS, Criterion("eval_loss", "lowest")).on_newest_data()
    assert set(checkpoints.steps) == {best, 4} and checkpoints.best == best
    assert checkpoints.scores[best] == pytest.approx(-found[best]["eval_loss"])


@pytest.mark.long
def test_the_evaluation_does_not_depend_on_how_its_rows_are_batched(still, at_the_start, tmp_path):
    several = still.model_copy(update={"batch": config.Batch(rows=3, slots=512, logprob_chunk=64)})
    found = evaluations(run(several, tmp_path, steps=1))[1]
    names = [name for name, value in at_the_start.items() if name.startswith("eval_") and isinstance(value, float)]
    names.remove("eval_rewards/accuracies")  # counts the signs of margins, which are rounding errors before the first step
    assert len(names) > 8
    expected = [at_the_start[name] for name in names]
    np.testing.assert_allclose([found[name] for name in names], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.long
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


def unjudged(experiment, tmp_path, **changes):
    """The experiment with these keys of `data` or `run` changed, and what `train` says of it before it loads the model."""
    data = experiment.data.model_copy(update={k: v for k, v in changes.items() if k in config.Data.model_fields})
    settings = {k: v for k, v in changes.items() if k in config.Run.model_fields} | {"directory": str(tmp_path / "run")}
    return experiment.model_copy(update={"data": data, "run": experiment.run.model_copy(update=settings)})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"best": "eval_los"}, r"run\.best: the evaluation has no metric 'eval_los'; there are .*eval_loss"),
        ({"best": "loss", "best_is": "highest"}, r"no metric 'loss'; there are .*eval_rewards/accuracies"),
        ({"best": "eval_beta/histogram"}, r"no metric 'eval_beta/histogram'; there are "),
        ({"held_out": None}, r"run\.eval_every is set, and there is no held-out data to judge: set data\.held_out"),
        ({"held_out": None, "eval_every": None, "best": "eval_rewards/margins"}, r"run\.best is set, and there is no held-out"),
        ({"held_out": None, "eval_every": None, "best_is": "highest"}, r"run\.best_is is set, and there is no held-out"),
        ({"held_out": "/nowhere.jsonl"}, r"/nowhere\.jsonl"),
    ],
)
def test_what_is_wrong_with_held_out_settings_is_said_before_the_model_is_loaded(
    experiment, tmp_path, monkeypatch, changes, said
):
    monkeypatch.setattr(base, "load_base", lambda *_: pytest.fail("the model is loaded"))
    with pytest.raises(UserError, match=said):
        loop.train(unjudged(experiment, tmp_path, **changes), LAUNCH)


@pytest.mark.parametrize("ranks", [[(1, 1), (2, 2, 2)], [(1,), (1, 1, 1)]])
@pytest.mark.parametrize("objective", [config.Preference(), config.RewardModel()])
def test_held_out_data_without_a_strict_pair_is_refused_before_the_model_is_loaded(
    experiment, tmp_path, monkeypatch, ranks, objective
):
    monkeypatch.setattr(base, "load_base", lambda *_: pytest.fail("the model is loaded"))
    held_out = str(ranked.write(tmp_path / "held", ranks, [[] for _ in ranks]))
    tied = unjudged(experiment, tmp_path, held_out=held_out).model_copy(update={"objective": objective})
    with pytest.raises(UserError, match=rf"{held_out}: no group has a strictly ordered pair"):
        loop.train(tied, LAUNCH)
    task_of(config.Supervised()).check_examples(open_examples(held_out), held_out)  # which learns from responses


@pytest.mark.parametrize(
    "objective",
    [
        config.Preference(),
        config.Preference(losses={"aot": 1.0}, scaling=config.Scaling(mode="batch_implicit")),
        config.Preference(scaling=config.Scaling(mode="fixed"), ld_alpha=0.5, reference="live"),
        config.Preference(scaling=config.Scaling(mode="beta_dpo", filtered=0.2)),
        config.RewardModel(),
        config.RewardModel(tie_weight=0.5, margins="rewards"),
        config.Supervised(),
    ],
)
@pytest.mark.long
def test_the_names_that_run_best_may_have_are_those_of_the_figures_that_an_evaluation_gives(objective):
    """Evaluated on an empty row, under outputs that are made up."""
    made = task_of(objective)

    def eval_step(state, batch):
        zeros, tokens = (jnp.zeros(x.shape, jnp.float32) for x in (batch.ends, batch.targets))
        outputs = Outputs(zeros, zeros, zeros, zeros, zeros, tokens)
        return made.terms(outputs, batch, jax.random.key(0), outputs, made.statistics)

    class OneRow:
        budget = Budget(16, 1, 1, 8, 8, 8)
        encoder = types.SimpleNamespace(geometry=VisionGeometry(28, 14, ((28, 28),), 9))
        count = staticmethod(lambda epochs: 1)
        row = staticmethod(lambda t: empty_row(OneRow.budget, OneRow.encoder.geometry))

    figures = evaluate(eval_step, None, OneRow, made, batch_rows=1, mesh=make_mesh({}, jax.devices()[:1]))
    assert figure_names(made) == sorted(name for name, value in figures.items() if isinstance(value, float))


@pytest.mark.parametrize(("steps", "every", "judged"), [(2, None, [2]), (5, 2, [2, 4, 5]), (4, 2, [2, 4])])
@pytest.mark.long
def test_held_out_data_is_judged_at_the_end_and_as_often_as_eval_every_says(
    experiment, tmp_path, monkeypatch, capsys, steps, every, judged
):
    step = PretendedStep()
    monkeypatch.setattr(run_module, "make_train_step", lambda *_, **__: step)
    monkeypatch.setattr(judge, "evaluate", lambda *_, **__: {"eval_loss": 1.0})
    supervised = experiment.model_copy(update={"objective": config.Supervised()})
    assert list(evaluations(run(supervised, tmp_path, eval_every=every, steps=steps))) == judged
    assert ("is judged once, after the last step" in capsys.readouterr().err) == (every is None)


@pytest.mark.parametrize("judges", [True, False])
@pytest.mark.long
def test_a_run_whose_steps_are_all_done_says_that_nothing_is_left(experiment, tmp_path, monkeypatch, capsys, judges):
    """Held-out data that was named afterwards is not judged, which is said."""
    step = PretendedStep()
    monkeypatch.setattr(run_module, "make_train_step", lambda *_, **__: step)
    monkeypatch.setattr(judge, "evaluate", lambda *_, **__: pytest.fail("judged"))
    data = experiment.data.model_copy(update={"held_out": None})
    supervised = experiment.model_copy(update={"objective": config.Supervised(), "data": data})
    run(supervised, tmp_path, eval_every=None, steps=2)
    assert "all 2 steps are done" not in capsys.readouterr().err
    if judges:
        supervised = supervised.model_copy(update={"data": experiment.data})
    run(supervised, tmp_path, eval_every=None, steps=2)
    said = capsys.readouterr().err
    assert "all 2 steps are done: nothing is left to train" in said
    assert (f"; {experiment.data.held_out} is not judged, because that happens only after a step" in said) == judges


@pytest.mark.parametrize(("best_is", "worst"), [("lowest", float("nan")), ("highest", float("inf")), ("lowest", -float("inf"))])
@pytest.mark.long
def test_an_evaluation_that_is_not_finite_is_said_and_the_true_best_is_what_is_exported(
    experiment, tmp_path, monkeypatch, capsys, best_is, worst
):
    step, figures = PretendedStep(), iter([worst, 2.0, 3.0, worst])
    monkeypatch.setattr(run_module, "make_train_step", lambda *_, **__: step)
    monkeypatch.setattr(judge, "evaluate", lambda *_, **__: {"eval_loss": next(figures)})
    supervised = experiment.model_copy(update={"objective": config.Supervised()})
    rows = run(supervised, tmp_path, best_is=best_is)
    best = {"lowest": 2, "highest": 3}[best_is]
    assert f"step 4: eval_loss is {worst}, which is no score" in capsys.readouterr().err
    assert StoredCheckpoints(tmp_path / CHECKPOINTS).steps == [best, 4]
    assert [row.get("eval_loss") for row in rows if "eval_loss" in row] == [None, 2.0, 3.0, None]
    mesh = make_mesh({}, jax.devices()[:1])
    assert load_trained(tmp_path, step="best", mesh=mesh).step == best
    with pytest.raises(UserError, match=rf"no checkpoint has a score by run\.best eval_entropy .*{best} are by eval_loss"):
        load_trained(tmp_path, step="best", mesh=mesh, overrides=["run.best=eval_entropy"])


@pytest.mark.parametrize(
    ("other", "second", "best"),
    [
        ("another file", (5.0, 6.0), 3),  # all worse than the first set's best: it would have stayed the best
        ("the same file with other rows", (0.9, 0.1), 4),  # all better: it would have been removed
        ("other rewards", (6.0, 5.0), 4),
    ],
)
@pytest.mark.long
def test_scores_of_another_held_out_set_are_not_compared_and_the_best_of_each_stays(
    experiment, tmp_path, monkeypatch, capsys, other, second, best
):
    def continued(experiment, done, *figures):
        step, given = PretendedStep(), iter(figures)
        step._done = done
        monkeypatch.setattr(run_module, "make_train_step", lambda *_, **__: step)
        monkeypatch.setattr(judge, "evaluate", lambda *_, **__: {"eval_loss": next(given)})
        run(experiment, tmp_path / "run", checkpoint_every=1)

    held, rewards = tmp_path / "held" / "records.jsonl", tmp_path / "rewards.jsonl"
    rows = [json.loads(line) for line in ranked.write(tmp_path / "held", *HELD_OUT, seed=7).read_text().splitlines()]
    data = experiment.data.model_copy(update={"held_out": str(held)})
    first = experiment.model_copy(update={"data": data, "objective": config.Preference(reference="live")})
    with pytest.raises(StopIteration):  # in the place of a kill behind the second evaluation
        continued(first, 0, 1.0, 2.0)
    if other == "another file":
        data = data.model_copy(update={"held_out": experiment.data.path})
    elif other == "the same file with other rows":
        held.write_text("".join(json.dumps(row) + "\n" for row in rows[1:]))
    else:
        scores = [
            {"id": row["id"], "responses": [{"reward": 0.25 * i} for i, _ in enumerate(row["responses"])]} for row in rows
        ]
        rewards.write_text("".join(json.dumps(row) + "\n" for row in scores))
        data = data.model_copy(update={"held_out_rewards": str(rewards)})
    capsys.readouterr()
    continued(first.model_copy(update={"data": data}), 2, *second)
    said = capsys.readouterr().err
    assert (
        "the scores of checkpoints 1, 2 are by eval_loss (lowest is best) on other held-out data; they are not compared" in said
    )
    assert StoredCheckpoints(tmp_path / "run" / CHECKPOINTS).steps == sorted({1, best, 4})
    assert load_trained(tmp_path / "run", step="best", mesh=make_mesh({}, jax.devices()[:1])).step == best
    said = capsys.readouterr().err
    assert "checkpoints 1 are by eval_loss (lowest is best) on other held-out data, which" in said


def test_the_held_out_data_of_a_score_is_its_groups_and_what_is_known_of_them_not_its_rows(tmp_path):
    _, held = held_out_plan(tmp_path, ([100] * 6, [90, 30, 100]))
    _, wider = held_out_plan(tmp_path, ([100] * 6, [90, 30, 100]), batch={"targets": 400})
    assert held.budget != wider.budget and fingerprint(held) == fingerprint(wider)
    _, fewer = held_out_plan(tmp_path, ([100] * 6, [90, 30]))
    _, cut = held_out_plan(tmp_path, ([100] * 6, [90, 30, 600]), data={"over_budget": "cut_longest"})
    _, left_out = held_out_plan(tmp_path, ([100] * 6, [90, 30, 600]), data={"over_budget": "drop"})
    assert len({fingerprint(rows) for rows in (held, fewer, cut, left_out)}) == 4


@pytest.mark.parametrize(("held", "shared"), [([0, 1, 2], "3 of 3"), ([2, 7], "1 of 2"), ([8, 9], None)])
def test_held_out_records_that_are_learnt_from_are_counted(tmp_path, capsys, held, shared):
    def examples(name, numbers):
        made = ranked.rows([(1, 2)] * len(numbers), [[]] * len(numbers))
        asked = [row | {"id": f"{name}-{i}", "prompt": f"Question {i}?"} for i, row in zip(numbers, made, strict=True)]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in asked))
        return open_examples(tmp_path / name)

    say_shared(examples("train.jsonl", [0, 1, 2, 3]), examples("held.jsonl", held), "HELD")
    said = capsys.readouterr().err
    first = f"held.jsonl-{min(i for i in held if i < 4)}" if shared else None
    expected = f"data.held_out, HELD: {shared} records have prompts and media that training records have"
    assert said.startswith(f"{expected} (the first is {first!r})") if shared else not said


@pytest.mark.parametrize("as_built", [False, True])
@pytest.mark.parametrize(
    ("train", "held", "shared"),
    [
        ({"0.png": 1, "1.png": 2}, {"0.png": 3, "1.png": 4}, None),  # other pictures of the same names
        ({"0.png": 1, "1.png": 2}, {"0.png": 3, "1.png": 2}, "1 of 2"),
        ({"a.png": 1, "b.png": 2}, {"0.png": 2, "1.png": 1}, "2 of 2"),  # the same pictures under other names
    ],
)
def test_pictures_are_learnt_from_by_what_they_show_not_by_their_names(tmp_path, capsys, train, held, shared, as_built):
    def examples(name, pictures):
        (tmp_path / name).mkdir()
        rows = [row | {"prompt": "Describe it."} for row in ranked.rows([(1, 2)] * 2, [[(9, 9)]] * 2)]
        for row, (file, seed) in zip(rows, pictures.items(), strict=True):
            row["images"] = [file]
            (tmp_path / name / file).write_bytes(ranked.picture((9, 9), seed))
        path = tmp_path / name / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return build(path, tmp_path / f"{name}-built", jobs=1) if as_built and name == "held" else open_examples(path)

    say_shared(examples("train", train), examples("held", held), "HELD")
    said = capsys.readouterr().err
    assert (f"HELD: {shared} records" in said) if shared else "HELD" not in said


def held_out_plan(tmp_path, lengths, **changes):
    """(training rows, held-out rows) of groups with a response of so many bytes, which are as many tokens."""
    paths = []
    for name, given in zip(("train", "held"), lengths, strict=True):
        paths.append(tmp_path / f"{name}.jsonl")
        records = [
            {"id": f"{name}-{i}", "prompt": "Well?", "responses": [{"text": "x" * n, "rank": 1}, {"text": "no", "rank": 2}]}
            for i, n in enumerate(given)
        ]
        paths[-1].write_text("".join(json.dumps(record) + "\n" for record in records))
    made = config.Experiment(
        model=config.Model(path="not read"),
        data=config.Data(path=str(paths[0]), held_out=str(paths[1]), **changes.pop("data", {})),
        objective=config.Preference(),
        batch=config.Batch(rows=1, slots=512, **changes.pop("batch", {})),
        run=config.Run(directory="not made"),
    )
    geometry = VisionGeometry(tiny.SIDE, 7, pinpoints=((tiny.SIDE, tiny.SIDE),), max_patches=9)
    encoder = GroupEncoder(PieceTokenizer(tiny.tokenizer(), tiny.IMAGE_TOKEN), geometry, "qwen_1_5")
    train, held = (open_examples(path) for path in paths)
    rows = plan_training_rows(train, encoder, made.data, made.batch, task_of(made.objective), seed=0)
    return rows, plan_held_out(held, encoder, made, rows)


def test_held_out_rows_have_the_size_of_training_rows(tmp_path):
    rows, held = held_out_plan(tmp_path, ([100] * 6, [90, 30, 100]))
    assert held.budget == rows.budget and sum(len(held.groups(t)) for t in range(held.count(1))) == 3


def test_held_out_rows_grow_only_in_what_was_derived_from_the_training_data(tmp_path):
    rows, held = held_out_plan(tmp_path, ([8] * 6, [440, 8]))
    assert held.budget.slots == rows.budget.slots == 512
    assert held.budget.targets == 512 > rows.budget.targets


@pytest.mark.parametrize("long", [600, 6000])
def test_a_held_out_group_that_fits_no_row_is_treated_as_over_budget_says(tmp_path, capsys, long):
    lengths = [100] * 4, [100, long]
    with pytest.raises(
        UserError, match=rf"data\.held_out, .*held\.jsonl: 1 of 2 groups .* held-1 does not fit: {long // 100}\d\d slots > 512"
    ):
        held_out_plan(tmp_path, lengths)
    rows, held = held_out_plan(tmp_path, lengths, data={"over_budget": "drop"})
    assert held.budget == rows.budget and held.index.groups.tolist() == [0]
    assert "held.jsonl: left out 1 of 2 groups" in capsys.readouterr().err
    _, held = held_out_plan(tmp_path, lengths, data={"over_budget": "cut_longest"})
    assert held.index.groups.tolist() == [0, 1] and held.index.sizes[1, 0] <= 512
    assert "held.jsonl: made 1 of 2 groups smaller" in capsys.readouterr().err


def test_a_budget_that_the_experiment_sets_holds_for_held_out_groups_too(tmp_path):
    with pytest.raises(UserError, match=r"held-1 does not fit: 30\d targets > 256"):
        held_out_plan(tmp_path, ([100] * 4, [100, 300]), batch={"targets": 256})
    with pytest.raises(UserError, match=r"^\S*train\.jsonl: 1 of 4 groups .* train-0 does not fit: 30\d targets > 256"):
        held_out_plan(tmp_path, ([300] + [100] * 3, [100, 100]), batch={"targets": 256})
