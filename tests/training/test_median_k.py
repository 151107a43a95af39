"""`objective.scaling.k: median` is ln 2 / (median positive margin of the learnt pairs), and the run knows it as a number."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from etils import epath

from mmrlhf_jax import config, core_yaml, sections
from mmrlhf_jax.dynamic_scaling import median_k
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.tasks import task_of
from mmrlhf_jax.tasks.preference import pair_betas
from mmrlhf_jax.training import loop, planned
from mmrlhf_jax.training import run as run_module
from mmrlhf_jax.training.directory import CHECKPOINTS, CONFIG_FILE
from mmrlhf_jax.training.identity import CONFIGURATION, difference, known_identity
from mmrlhf_jax.training.planned import agreed_plan, plan_run
from mmrlhf_jax.training.stored import StoredCheckpoints
from tests import tiny
from tests.sharding import loopback
from tests.training.pretended import PretendedStep

LAUNCH = config.Launch(mesh=config.Mesh(data=1, fsdp=1))
MEDIAN = config.Preference(scaling=config.Scaling(k="median"), reference="live")
LONG = "x" * 1900  # more tokens than a row has slots
pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny.checkpoint(tmp_path_factory.mktemp("model")))


def written(path, groups):
    """`groups` have, per response, (rank or None, reward, human scores)."""
    rows = [
        {
            "id": f"g{g}",
            "prompt": f"Which {g}? {LONG if g == 'long' else ''}",
            "responses": [
                {"text": f"{i} {g}", "rank": rank, "reward": reward, "scores": scores}
                for i, (rank, reward, scores) in enumerate(group)
            ],
        }
        for g, group in groups.items()
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def experiment(model, path, objective=MEDIAN, **data):
    return config.Experiment(
        model=config.Model(path=model, dtype="float32", remat="none"),
        data=config.Data(path=path, **data),
        objective=objective,
        batch=config.Batch(rows=1, slots=512, logprob_chunk=64),
        run=config.Run(directory=str(epath.Path(path).parent / "run"), steps=2),
    )


def with_scaling(made, **values):
    scaling = made.objective.scaling.model_copy(update=values)
    return made.model_copy(update={"objective": made.objective.model_copy(update={"scaling": scaling})})


def responses(*rewards, ranks=None, scores=None):
    ranks = ranks or range(1, len(rewards) + 1)
    return [
        (rank, reward, None if scores is None else {"helpfulness": scores[i], "ethics": 2 * scores[i] + 1})
        for i, (rank, reward) in enumerate(zip(ranks, rewards, strict=True))
    ]


GROUPS = {
    "plain": responses(9.25, 2.5, -3.0, scores=(5, 3, 4)),
    "ties": responses(8.0, 1.0, 1.0, -20.0, ranks=(1, 1, 2, 3), scores=(4, 1, 2, 2)),  # (1, 1) is no pair
    "negative": responses(-1.0, 0.5, scores=(1, 5)),
    "zero": responses(2.0, 2.0, scores=(2, 2)),
    "long": responses(1000.0, 0.0, scores=(9, 0)),  # does not fit a row, and is left out
}


def oracle(groups, value, extreme=False):
    """ln 2 / median, in float64, from the strictly ordered pairs of `groups`; `value` gives a response's number."""
    margins = []
    for group in groups.values():
        ranks = [response[0] for response in group]
        for i, j in itertools.product(range(len(group)), repeat=2):
            kept = not extreme or (ranks[i] == min(ranks) and ranks[j] == max(ranks))
            if ranks[i] < ranks[j] and kept:
                margins.append(np.float64(value(group[i])) - np.float64(value(group[j])))
    return math.log(2) / np.median([margin for margin in margins if margin > 0])


KEPT = {name: group for name, group in GROUPS.items() if name != "long"}


@pytest.mark.parametrize(
    ("margins", "value"),
    [("rewards", lambda response: response[1]), ("human_scores", lambda response: np.mean(list(response[2].values())))],
)
def test_k_is_that_of_the_median_positive_margin_of_the_learnt_pairs(model, tmp_path, capsys, margins, value):
    asked = experiment(model, written(tmp_path / "data.jsonl", GROUPS), over_budget=("drop",))
    asked = with_scaling(asked, margins=margins)
    settled = plan_run(asked).experiment
    k = settled.objective.scaling.k
    np.testing.assert_allclose(k, oracle(KEPT, value), rtol=1e-6)
    assert settled == with_scaling(asked, k=k)  # nothing else has changed
    assert f"objective.scaling.k: median is {k:.4g} (the median of " in capsys.readouterr().err


def test_only_the_pairs_that_are_chosen_count(model, tmp_path):
    groups = {"plain": KEPT["plain"], "apart": responses(30.0, 7.0, 1.0)}
    path = written(tmp_path / "data.jsonl", groups)
    every, extreme = (plan_run(experiment(model, path, pairs=pairs)).experiment for pairs in ("all", "extreme"))
    reward = lambda response: response[1]
    np.testing.assert_allclose(every.objective.scaling.k, oracle(groups, reward), rtol=1e-6)
    np.testing.assert_allclose(extreme.objective.scaling.k, oracle(groups, reward, extreme=True), rtol=1e-6)
    assert every.objective.scaling.k != extreme.objective.scaling.k


def test_stored_margins_give_k_too(model, tmp_path):
    factors = {("a", "b"): 0.25, ("a", "c"): 1.5, ("b", "c"): -0.5}
    rows = [{"id": "1", "prompt": "Which?", "chosen": c, "rejected": r, "ls_factor": f} for (c, r), f in factors.items()]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    k = plan_run(with_scaling(experiment(model, str(path)), margins="stored")).experiment.objective.scaling.k
    np.testing.assert_allclose(k, math.log(2) / np.median([0.25, 1.5]), rtol=1e-6)


def test_beta_of_the_median_pair_is_half_of_the_rise():
    margins = np.float32([-4.0, 0.0, 1.0, 13.5, 40.0])
    objective = with_k(median_k(margins, "").k)
    betas = pair_betas(objective, margins, None, None, None)
    np.testing.assert_allclose(betas[3], 0.1 * (1 + 0.5 / 2), rtol=1e-6)
    assert betas[0] == betas[1] == np.float32(0.1) and betas[2] < betas[3] < betas[4] < 0.15


def with_k(k):
    return MEDIAN.model_copy(update={"scaling": MEDIAN.scaling.model_copy(update={"k": k})})


@pytest.mark.parametrize(
    ("margins", "said"),
    [
        ([-1.0, 0.0], "data: k: none of 2 margins is positive"),
        ([], "data: k: none of 0 margins is positive"),
        ([np.nan, -2.0], "none of 2 margins is positive"),
        ([1e-40], "has no k in float32"),
        ([np.inf], "has no k in float32"),
    ],
)
def test_margins_that_have_no_k_are_refused_in_one_line(margins, said):
    with pytest.raises(UserError, match=said) as refused:
        median_k(np.asarray(margins), "data: k")
    assert "\n" not in str(refused.value)


def test_data_without_a_positive_margin_is_refused_before_the_model_is_loaded(model, tmp_path):
    path = written(tmp_path / "data.jsonl", {"a": responses(0.0, 1.0)})
    with pytest.raises(UserError, match=r"data\.jsonl: objective\.scaling\.k: median: none of 1 margins is positive.*number"):
        plan_run(experiment(model, path))
    plan_run(with_scaling(experiment(model, path), mode="fixed"))  # which needs none


def test_a_task_with_k_median_computes_nothing_before_it_is_settled():
    with pytest.raises(ValueError, match="k: median must be settled"):
        pair_betas(MEDIAN, np.float32([1.0]), None, None, None)
    assert task_of(MEDIAN).without_data.settings.scaling.k == 1.0
    fixed = config.Preference(scaling=config.Scaling(mode="fixed"))
    assert task_of(fixed).without_data.settings is fixed and not fixed.from_data


@pytest.mark.parametrize("value", ["medium", "true", "-1", "null", ".nan", "1e-50", "[1]", "'0.5'"])
def test_any_other_word_is_refused_with_the_key(tmp_path, value):
    path = tmp_path / "config.yaml"
    path.write_text(core_yaml.dump(experiment("m", str(tmp_path / "data.jsonl")).model_dump(mode="json")))
    assert config.load_experiment(path, ["objective.scaling.k=median"]).objective.scaling.k == "median"
    with pytest.raises(UserError, match=r"objective\.scaling\.k: ") as error:
        config.load_experiment(path, [f"objective.scaling.k={value}"])
    assert "more)" not in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("mode", ["fixed", "ls_factor", "batch_implicit", "beta_dpo"])
def test_a_mode_without_k_has_the_default_number_where_its_base_has_the_median(tmp_path, mode):
    settings = experiment("m", str(tmp_path / "data.jsonl")).model_dump(mode="json")
    assert settings["objective"]["scaling"]["k"] == "median"
    (tmp_path / "base.yaml").write_text(core_yaml.dump(settings))
    (tmp_path / "config.yaml").write_text(f"base: base.yaml\nobjective: {{scaling: {{mode: {mode}}}}}\n")
    found = config.load_experiment(tmp_path / "config.yaml")
    assert found.objective.scaling == config.Scaling(mode=mode) == config.Scaling(mode=mode, k="median")
    assert found == config.load_experiment(tmp_path / "base.yaml", [f"objective.scaling.mode={mode}"])
    assert core_yaml.parse(sections.resolved(found), "")["objective"]["scaling"]["k"] == 0.5


# A run ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def pretended(monkeypatch):
    monkeypatch.setattr(run_module, "make_train_step", lambda *_, **__: PretendedStep())


def test_the_runs_directory_and_its_checkpoints_have_the_number_and_the_same_command_continues(
    model, tmp_path, capsys, pretended
):
    asked = experiment(model, path := written(tmp_path / "data.jsonl", KEPT))
    loop.train(asked, LAUNCH)
    k = oracle(KEPT, lambda response: response[1])
    directory = epath.Path(asked.run.directory)
    kept = config.load_experiment(directory / CONFIG_FILE)
    np.testing.assert_allclose(kept.objective.scaling.k, k, rtol=1e-6)
    stored = StoredCheckpoints(directory / CHECKPOINTS)
    identity = stored.identity(stored.latest)
    assert core_yaml.parse(identity[CONFIGURATION], "")["objective"]["scaling"]["k"] == kept.objective.scaling.k
    assert difference(identity, known_identity(asked)) is None
    capsys.readouterr()
    for same in (asked, kept):
        loop.train(same, LAUNCH)
        assert "all 2 steps are done" in capsys.readouterr().err
    # Another number is refused before the data are read, and the median of a run that was given another number behind that.
    with pytest.raises(UserError, match=r"objective\.scaling\.k 0\.\d+, this run has 0\.5"):
        loop.train(with_scaling(asked, k=0.5), LAUNCH)
    given = agreed_plan(with_scaling(asked, k=0.5)).identity
    assert difference(given, known_identity(asked)) is None
    assert difference(given, agreed_plan(asked).identity).startswith("objective.scaling.k 0.5, this run has 0.")
    assert difference(identity, known_identity(with_scaling(asked, w=0.25))).startswith("objective.scaling.w 0.5, this run")
    written(tmp_path / "data.jsonl", KEPT | {"plain": responses(99.0, 2.5, -3.0)})
    with pytest.raises(UserError, match=rf"other data: the data at {path} has changed since"):
        loop.train(asked, LAUNCH)


def test_processes_whose_data_give_another_k_are_told_apart(model, tmp_path, monkeypatch):
    asked = experiment(model, written(tmp_path / "data.jsonl", KEPT))
    compared = []
    monkeypatch.setattr(planned, "same_everywhere", lambda values, _: compared.append(values))
    agreed_plan(asked)
    settings = json.loads(compared[0]["settings"])["objective"]["scaling"]
    np.testing.assert_allclose(settings["k"], oracle(KEPT, lambda response: response[1]), rtol=1e-6)


@pytest.mark.slow
def test_two_processes_take_the_same_number_and_steps_as_one(tmp_path):
    """With a train step of its own, on data of which no margin is a round number."""
    asked = loopback.write_experiment(tmp_path, "preference", steps=2)
    asked["objective"]["scaling"] = {"k": "median"}
    expected = loopback.train_here(tmp_path / "one", asked)
    for _ in range(2):  # the second time, both continue behind the last step
        found = loopback.train(tmp_path / "two", asked, {"fsdp": 2}, 2, 1)
        np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-5)
    rows = [json.loads(line) for line in epath.Path(asked["data"]["path"]).read_text().splitlines()]
    groups = {row["id"]: [(r["rank"], r["reward"]) for r in row["responses"]] for row in rows}
    kept = [config.load_experiment(tmp_path / name / "run" / CONFIG_FILE).objective.scaling.k for name in ("one", "two")]
    assert kept[0] == kept[1]
    np.testing.assert_allclose(kept[0], oracle(groups, lambda response: response[1]), rtol=1e-6)
    for process in range(2):
        assert "objective.scaling.k: median is " in (tmp_path / "two" / f"process-{process}.log").read_text()
