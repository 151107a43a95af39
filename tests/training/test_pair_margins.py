"""Margins reach exactly their own pair: stored ones (upstream's `ls_factor`), and those of rewards or human scores.

Where a side has none, there is no margin: training refuses the data, held-out data is judged with δ = 0, which is said.
"""

from __future__ import annotations

import itertools
import json

import jax
import numpy as np
import pytest

from mmrlhf_jax import config
from mmrlhf_jax.data.encode import GroupEncoder
from mmrlhf_jax.data.tokens import PieceTokenizer
from mmrlhf_jax.data.unshared import exact_batch
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.models.llava_onevision.geometry import VisionGeometry
from mmrlhf_jax.objectives.outputs import Outputs
from mmrlhf_jax.objectives.reward_scaling import MIN_BETA, margin
from mmrlhf_jax.tasks import open_held_out_examples, open_training_examples, task_of
from mmrlhf_jax.tasks.pairs import reward_margins
from mmrlhf_jax.tasks.preference import pair_betas, pair_margins
from tests import tiny

TEXTS = ("best", "second", "last")
FACTORS = {("best", "second"): 0.25, ("best", "last"): 1.5, ("second", "last"): -0.5}
STORED = config.Preference(scaling=config.Scaling(mode="ls_factor", margins="stored", w=0.1))


def pair_file(directory, factors):
    rows = [{"id": "a", "prompt": "Which?", "chosen": c, "rejected": r, **f} for (c, r), f in factors.items()]
    path = directory / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return config.Data(path=str(path))


def batch_of(examples):
    """A row per group."""
    geometry = VisionGeometry(tiny.SIDE, 7, pinpoints=((tiny.SIDE, tiny.SIDE),), max_patches=9)
    encoder = GroupEncoder(PieceTokenizer(tiny.tokenizer(), tiny.IMAGE_TOKEN), geometry, "qwen_1_5")
    return exact_batch([encoder.encode(examples[i]) for i in range(len(examples))], geometry)


def test_beta_is_upstreams_linear_form_of_each_pairs_own_factor(tmp_path):
    data = pair_file(tmp_path, {pair: {"ls_factor": factor} for pair, factor in FACTORS.items()})
    (record,) = (examples := open_training_examples(data, task_of(STORED))).records
    batch = batch_of(examples)
    betas = pair_betas(STORED, pair_margins(STORED, batch), None, batch.pair_weights, jax.random.key(0))[0]
    texts = [response.text for response in record.responses]
    found = {(texts[c], texts[r]): beta for (c, r), beta in zip(batch.pairs[0], betas, strict=True)}
    assert found.keys() == FACTORS.keys()
    for pair, beta in found.items():
        np.testing.assert_allclose(beta, 0.1 * (1 + 0.1 * FACTORS[pair]), rtol=1e-6)
    # The same numbers as reward margins: the paper's form of them.
    paper = config.Preference(scaling=config.Scaling(margins="stored"))
    figures = [np.zeros((1, 3), np.float32)] * 5
    outputs = Outputs(*figures, np.zeros(batch.targets.shape, np.float32))
    _, metrics = task_of(paper).terms(outputs, batch._replace(reference_logps=figures[0]), jax.random.key(0), None)
    np.testing.assert_allclose(metrics["beta/max"].value, 0.1 * (1 + 0.5 * (1 - np.exp(-0.5 * 1.5))), rtol=1e-6)
    np.testing.assert_allclose(metrics["reward_model/disagreement"].mean, 1 / 3, rtol=1e-6)


def test_pairs_without_a_factor_are_counted(tmp_path):
    factors = {pair: {} for pair in itertools.combinations(TEXTS, 2)} | {("best", "last"): {"ls_factor": 1.0}}
    with pytest.raises(UserError, match=r"1 of 1 records have pairs without `ls_factor` \(the first is 'a'\)"):
        open_training_examples(pair_file(tmp_path, factors), task_of(STORED))


def ranked_file(directory, *groups):
    """Groups of responses, best first, that have these further fields."""
    rows = [
        {
            "id": f"g{g}",
            "prompt": f"Which {g}?",
            "responses": [{"text": "abc"[i], "rank": i + 1} | r for i, r in enumerate(group)],
        }
        for g, group in enumerate(groups)
    ]
    path = directory / "ranked.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def score(**scores):
    return {"scores": scores}


SCORED = config.Preference(scaling=config.Scaling(margins="human_scores"))
NO_REWARD, NO_SCORE = "responses without a reward", "responses without a human score, or without one of the names"


@pytest.mark.parametrize(
    ("objective", "groups", "margins", "said"),
    [
        (config.Preference(), [[{"reward": 5.0}, {}]], [0], f"1 of 1 records have {NO_REWARD}"),
        (
            config.Preference(),
            [[{}, {"reward": 5.0}], [{"reward": 2.0}, {"reward": -1.0}]],
            [0, 3],
            f"1 of 2 records have {NO_REWARD}",
        ),
        (config.Preference(), [[{"reward": 1.0}, {}, {"reward": -1.0}]], [0, 2, 0], f"1 of 1 records have {NO_REWARD}"),
        (config.RewardModel(margins="rewards"), [[{"reward": 4.0}, {}]], [0], f"1 of 1 records have {NO_REWARD}"),
        (SCORED, [[score(help=5), {}], [score(help=5), score(help=3)]], [0, 2], f"1 of 2 records have {NO_SCORE}"),
        (SCORED, [[score(help=4), score(help=4, ethics=1)]], [0], f"1 of 1 records have {NO_SCORE}"),
        (config.RewardModel(margins="human_scores"), [[score(a=4), score(b=1)]], [0], f"1 of 1 records have {NO_SCORE}"),
        (SCORED, [[score(a=4, b=2), score(b=1, a=1)]], [2], None),
    ],
)
def test_a_pair_of_which_one_side_has_no_number_has_no_margin_and_its_record_is_named(
    tmp_path, capsys, objective, groups, margins, said
):
    path = ranked_file(tmp_path, *groups)
    batch = batch_of(open_held_out_examples(config.Data(path="not read", held_out=path), task_of(objective)))
    np.testing.assert_array_equal(reward_margins(batch).ravel(), margins)
    heard = capsys.readouterr().err
    if said is None:
        assert "records have responses" not in heard
        open_training_examples(config.Data(path=path), task_of(objective))
        return
    assert f"data.held_out, {path}: {said}" in heard and "(the first is 'g0')" in heard and "as if it were 0" in heard
    with pytest.raises(UserError, match=said):  # training refuses what held-out data may lack
        open_training_examples(config.Data(path=path), task_of(objective))


def test_a_margin_beyond_float32_is_its_largest_number_and_beta_a_number(tmp_path):
    path = ranked_file(tmp_path, [{"reward": 3e38}, {"reward": -3e38}], [{"reward": -3e38}, {"reward": 3e38}])
    margins = reward_margins(batch_of(open_training_examples(config.Data(path=path), task_of(config.Preference())))).ravel()
    largest = np.finfo(np.float32).max
    np.testing.assert_array_equal(margins, [largest, -largest])
    for k, clamped, least in ((0.0, True, 0.1), (0.5, True, 0.1), (0.0, False, 0.1), (0.5, False, MIN_BETA)):
        betas = margin(margins, 0.1, 0.5, k, clamp_negative=clamped)
        np.testing.assert_allclose(betas, [0.15 if k else 0.1, least], rtol=1e-6)


def test_held_out_pairs_without_a_stored_factor_have_margin_0_and_are_counted(tmp_path, capsys):
    factors = {("best", "second"): {}, ("best", "last"): {"ls_factor": 1.5}, ("second", "last"): {"ls_factor": 0.0}}
    held_out = pair_file(tmp_path, factors)
    examples = open_held_out_examples(held_out.model_copy(update={"held_out": held_out.path}), task_of(STORED))
    assert sorted(pair_margins(STORED, batch_of(examples))[0].tolist()) == [0, 0, 1.5]
    assert "1 of 1 records have pairs without `ls_factor` (the first is 'a'); pairs without a margin" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("factors", "said"),
    [
        ([("best", "last", "0.7")], r"record 'a', pair \(0, 1\): ls_factor must be a finite number"),
        ([("best", "last", True)], r"record 'a', pair \(0, 1\): ls_factor must be a finite number"),
        ([("best", "last", 0.1), ("best", "last", 0.9)], r"record 'a', pair \(0, 1\): ls_factor is both 0.1 and 0.9"),
    ],
)
@pytest.mark.parametrize("opened", [open_training_examples, open_held_out_examples])
def test_stored_factors_are_one_finite_number_a_pair_in_training_and_in_held_out_data(tmp_path, factors, said, opened):
    rows = [{"id": "a", "prompt": "Which?", "chosen": c, "rejected": r, "ls_factor": factor} for c, r, factor in factors]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=said):
        opened(config.Data(path=str(path), held_out=str(path)), task_of(STORED))
