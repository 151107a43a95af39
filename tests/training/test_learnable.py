"""A run learns something and is judged by something, or says what its data lacks before a model is loaded."""

from __future__ import annotations

import json
import re

import pytest

from mmrlhf_jax import config
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.huggingface.checkpoint import read_sizes
from mmrlhf_jax.huggingface.hub import local_directory
from mmrlhf_jax.planning.workload import measured_workload
from mmrlhf_jax.training.planned import plan_run
from tests import tiny

LONG = "x" * 1900  # a token a byte, and so more than a row has slots
FIXED = config.Preference(scaling=config.Scaling(mode="fixed"))
DROPS = config.Preference(scaling=config.Scaling(negative_margins="drop"))
CRITIC = config.RewardModel(score_weight=0.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny.checkpoint(tmp_path_factory.mktemp("model"), reward_head=True))


@pytest.fixture
def plan(model, tmp_path):
    """What `plan_run` finds for `train` and `held_out` records (responses, or a prompt and responses)."""

    def made(objective, train, held_out=None, weight=1.0, run=None, **data):
        data["path"] = (config.DataSet(path=write(tmp_path / "train.jsonl", train), weight=weight),)
        if held_out is not None:
            data["held_out"] = write(tmp_path / "held.jsonl", held_out)
        experiment = config.Experiment(
            model=config.Model(path=model, reward_head="tanh"),
            data=config.Data(**data),
            objective=objective,
            batch=config.Batch(rows=2, slots=1024),
            run=config.Run(directory=str(tmp_path / "run"), **(run or {})),
        )
        return plan_run(experiment), experiment

    return made


def write(path, groups):
    rows = [
        {"id": f"{path.stem}-{i}", "prompt": f"{path.stem} {i}?" if isinstance(g, list) else g["prompt"]}
        | {"responses": g if isinstance(g, list) else g["responses"]}
        for i, g in enumerate(groups)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def group(*responses, ranks=(1, 2)):
    return [{"text": "ab"[i], "rank": rank} | fields for i, (rank, fields) in enumerate(zip(ranks, responses, strict=True))]


def rewarded(chosen, rejected):
    return group({"reward": chosen}, {"reward": rejected})


PLAIN, CRITICISED, HALF = group({}, {}), group({"critique": "g"}, {"critique": "h"}), group({"critique": "g"}, {})
TIED = group({}, {}, ranks=(1, 1))
TOO_LONG = {"prompt": LONG, "responses": PLAIN}
UNRANKED = ["a", "b"]


# Critiques -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("objective", "data"),
    [
        (CRITIC, {"train": [PLAIN] * 3}),
        (CRITIC, {"train": [CRITICISED], "held_out": [PLAIN]}),
        (CRITIC, {"train": [group({"critique": " "}, {"critique": "\u200b"})]}),
        (CRITIC, {"train": [PLAIN, group({"critique": "g"}, {}, ranks=(1, 1))]}),  # of a tied group nothing is learnt
        (config.RewardModel(score_weight=0.0, tie_weight=1.0), {"train": [PLAIN]}),
    ],
)
def test_a_reward_model_of_critiques_alone_needs_one(plan, objective, data):
    with pytest.raises(
        UserError, match=r"objective\.critique_weight \(0 of \d responses have critiques\)( and .*)? would act on nothing"
    ):
        plan(objective, **data)


@pytest.mark.parametrize(
    ("objective", "data", "said"),
    [
        (
            config.RewardModel(),
            {"train": [PLAIN] * 3},
            "train.jsonl: objective.critique_weight (0 of 6 responses have critiques) will act",
        ),
        (
            config.RewardModel(),
            {"train": [HALF, CRITICISED]},
            "train.jsonl: 3 of 4 responses have critiques; the others are only",
        ),
        (CRITIC, {"train": [CRITICISED], "held_out": [HALF]}, "held.jsonl: 1 of 2 responses have critiques; the others"),
        (
            config.RewardModel(),
            {"train": [CRITICISED], "held_out": [PLAIN]},
            "held.jsonl: objective.critique_weight (0 of 2 responses have critiques) will act",
        ),
        (config.RewardModel(), {"train": [CRITICISED]}, None),
        (config.RewardModel(critique_weight=0.0), {"train": [PLAIN]}, None),
        (config.RewardModel(), {"train": [PLAIN], "critiques": None}, None),
        (FIXED, {"train": [PLAIN]}, None),
    ],
)
def test_responses_without_a_critique_are_counted(plan, capsys, objective, data, said):
    plan(objective, **data)
    heard = capsys.readouterr().err
    assert "critiques" not in heard if said is None else said in heard


TIES = config.RewardModel(score_weight=0.0, critique_weight=0.0, tie_weight=1.0)
NO_TIES = r"objective\.tie_weight \(no two responses of a group are tied\)"


def test_a_reward_model_of_ties_alone_needs_one(plan, capsys):
    for data in ({"train": [PLAIN, CRITICISED]}, {"train": [PLAIN, TIED], "held_out": [PLAIN]}):
        with pytest.raises(UserError, match=rf"(train|held)\.jsonl: {NO_TIES} would act on nothing"):
            plan(TIES, **data)
    plan(TIES, [PLAIN, TIED], [PLAIN, TIED])
    assert "on nothing" not in capsys.readouterr().err
    plan(TIES.model_copy(update={"centring": 0.1}), [PLAIN])
    assert re.search(rf"train\.jsonl: {NO_TIES} will act on nothing", capsys.readouterr().err)


# Pairs ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", [FIXED, config.RewardModel(tie_weight=1.0)])
@pytest.mark.parametrize("part", ["train", "held_out"])
def test_the_groups_that_fit_must_have_a_pair(plan, objective, part):
    data = {"train": [PLAIN], "held_out": [PLAIN]} | {part: [TOO_LONG, TIED]}
    with pytest.raises(
        UserError, match=r"(no group fits the row budget|none of the 1 groups that are left \(1 are left out\))"
    ):
        plan(objective, **data, over_budget=("drop",))


@pytest.mark.parametrize("held_out", [None, [rewarded(-1.0, 2.0)]])
def test_pairs_that_are_all_against_the_reward_model_are_refused_where_such_are_dropped(plan, held_out):
    train = [rewarded(2.0, 0.0)] if held_out else [rewarded(0.0, 5.0), rewarded(-1.0, 1.0)]
    with pytest.raises(
        UserError, match=r"(train|held)\.jsonl: (\d) of \2 pairs have a negative margin, .* nothing would be learnt"
    ):
        plan(DROPS, train, held_out)


def test_pairs_against_the_reward_model_are_counted_where_they_are_dropped(plan, capsys):
    plan(DROPS, [rewarded(0.0, 5.0), rewarded(1.0, 1.0), rewarded(3.0, 1.0)])
    assert "train.jsonl: 1 of 3 pairs have a negative margin, and negative_margins: drop leaves" in capsys.readouterr().err
    plan(config.Preference(), [rewarded(0.0, 5.0)])
    assert "negative margin" not in capsys.readouterr().err


# The best response ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [{"train": [UNRANKED] * 2}, {"train": [PLAIN], "held_out": [UNRANKED]}])
def test_where_the_best_response_is_learnt_some_response_has_a_rank(plan, data):
    with pytest.raises(UserError, match=r"(train|held)\.jsonl: no response has a rank, so that none is the best"):
        plan(config.Supervised(), **data, learn="best")
    plan(config.Supervised(), **data)


def test_groups_without_ranks_are_left_out_and_listed_where_the_best_response_is_learnt(plan, capsys):
    mixed = [UNRANKED, PLAIN, ["a"], group({}, {}, ranks=(None, 3))]
    found, _ = plan(config.Supervised(), mixed, mixed[:2], learn="best")
    assert found.rows.index.groups.tolist() == [1, 3] and found.held_out.index.groups.tolist() == [1]
    heard = capsys.readouterr().err
    assert "train.jsonl: left out 2 of 4 groups" in heard and "held.jsonl: left out 1 of 2 groups" in heard
    assert "  train-2: no response has a rank" in heard
    weights = [found.rows.encoder.encode(found.examples[i]).response_weights.tolist() for i in range(4)]
    assert weights == [[0, 0], [1, 0], [0], [0, 1]]


# Steps ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("weight", "epochs"), [(0.1, 1), (0.01, 9)])
def test_a_run_that_would_see_no_group_is_refused(plan, weight, epochs):
    with pytest.raises(
        UserError, match=rf"{epochs} epochs .* see none of the 3 groups, because the weights .* \(at most {weight}\)"
    ):
        plan(FIXED, [PLAIN] * 3, weight=weight, run={"epochs": epochs})


def test_a_run_of_sets_that_not_every_epoch_sees_has_steps_and_a_plan(plan):
    found, experiment = plan(FIXED, [PLAIN] * 3, weight=0.1, run={"epochs": 12})
    assert found.steps >= 1 and not found.rows.plan(0)
    assert measured_workload(experiment, read_sizes(local_directory(experiment.model.path), None)).rows >= 1
    found, _ = plan(FIXED, [PLAIN] * 3, weight=0.1, run={"steps": 2})
    assert found.steps == 2 and len(found.rows.groups(3)) == 1


def test_a_plan_takes_no_margins_from_rewards_that_a_run_does_not_take(plan):
    """`mmrlhf plan` packs data whose score file is not written yet, or says other than the rewards that the data came with."""
    objective = config.Preference(scaling=config.Scaling(negative_margins="drop", margins="human_scores"))
    responses = group({"reward": 0.0, "scores": {"help": 5}}, {"reward": 5.0, "scores": {"help": 1}})
    found, experiment = plan(objective, [responses])
    assert found.steps == 1
    assert measured_workload(experiment, read_sizes(local_directory(experiment.model.path), None)).rows == 1
