"""`ls_factor` as upstream stores it, a number per pair of a pair file, reaches the β of exactly that pair."""

from __future__ import annotations

import itertools
import json

import jax
import numpy as np
import pytest

from mmrlhf_jax import config
from mmrlhf_jax.data.encode import GroupEncoder
from mmrlhf_jax.data.pipeline import open_training_examples
from mmrlhf_jax.data.tokens import PieceTokenizer
from mmrlhf_jax.data.unshared import exact_batch
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.models.llava_onevision.vision_plan import VisionGeometry
from mmrlhf_jax.training.objective import Outputs, make_objective, pair_betas, pair_margins
from tests import tiny

TEXTS = ("best", "second", "last")
FACTORS = {("best", "second"): 0.25, ("best", "last"): 1.5, ("second", "last"): -0.5}
STORED = config.Preference(scaling=config.Scaling(mode="ls_factor", margins="stored", w=0.1))


def pair_file(directory, factors):
    rows = [{"id": "a", "prompt": "Which?", "chosen": c, "rejected": r, **f} for (c, r), f in factors.items()]
    path = directory / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return config.Data(path=str(path))


def test_beta_is_upstreams_linear_form_of_each_pairs_own_factor(tmp_path):
    data = pair_file(tmp_path, {pair: {"ls_factor": factor} for pair, factor in FACTORS.items()})
    (record,) = (examples := open_training_examples(data, STORED)).records
    geometry = VisionGeometry(tiny.SIDE, 7, pinpoints=((tiny.SIDE, tiny.SIDE),), max_patches=9)
    group = GroupEncoder(PieceTokenizer(tiny.tokenizer(), tiny.IMAGE_TOKEN), geometry).encode(examples[0])
    batch = exact_batch([group], geometry)
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
    _, metrics = make_objective(paper).terms(outputs, batch._replace(reference_logps=figures[0]), jax.random.key(0), None)
    np.testing.assert_allclose(metrics["beta/max"].value, 0.1 * (1 + 0.5 * (1 - np.exp(-0.5 * 1.5))), rtol=1e-6)
    np.testing.assert_allclose(metrics["reward_model/disagreement"].mean, 1 / 3, rtol=1e-6)


def test_pairs_without_a_factor_are_counted(tmp_path):
    factors = {pair: {} for pair in itertools.combinations(TEXTS, 2)} | {("best", "last"): {"ls_factor": 1.0}}
    with pytest.raises(UserError, match=r"1 of 1 records have pairs without `ls_factor` \(the first is 'a'\)"):
        open_training_examples(pair_file(tmp_path, factors), STORED)
