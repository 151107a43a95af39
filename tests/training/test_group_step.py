"""The product's promise: a tree-packed group step is the pair-expanded step, in float32, to 1e-5 relative.

The oracle is the layout that everybody else uses: one conversation per row, each response once per side of each pair.
"""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from mmrlhf_jax import config
from mmrlhf_jax.data.encode import GroupEncoder
from mmrlhf_jax.data.examples import open_examples
from mmrlhf_jax.data.rows import Budget, assemble_row, group_size, stack_rows
from mmrlhf_jax.data.templates import CRITIQUE_PROMPT, SYSTEM
from mmrlhf_jax.data.tokens import PieceTokenizer
from mmrlhf_jax.objectives.weighted import mix
from mmrlhf_jax.quickstart.tokenizer import train_tokenizer
from mmrlhf_jax.training.objective import forward, make_objective
from mmrlhf_jax.training.step import batch_denominators, split_rows
from tests import ranked, tiny

RANKS = [(1, 2), (1, 1, 2), (1, 2, 3, 4), (1, 2, 2, 3, 4), (1, 2, 3, 3, 4, 5)]
# Text only; one picture, square, wide and tall; two pictures.
IMAGES = [[], [(30, 30)], [(75, 40)], [(33, 90)], [(30, 30), (50, 20)]]

OBJECTIVES = {
    "mm-dpo": config.Preference(),
    "mpo": config.Preference(losses={"sigmoid": 0.8, "bco_pair": 0.2, "sft": 1.0}, scaling=config.Scaling(mode="fixed")),
    "reward model": config.RewardModel(centring=0.01),
}


# One token per common word, so that rows stay short.
TOKENIZER = train_tokenizer([CRITIQUE_PROMPT, f"system\n{SYSTEM}", " ".join(ranked.WORDS), *ranked.WORDS] * 9, 640)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    ids = {f"{kind}_token_index": TOKENIZER.convert_tokens_to_ids(f"<{kind}>") for kind in ("image", "video")}
    raw = tiny.config(text={"vocab_size": len(TOKENIZER)}, **ids)
    return tiny.on_one_device(tiny.checkpoint(tmp_path_factory.mktemp("model"), raw, reward_head=True))


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    return open_examples(ranked.write(tmp_path_factory.mktemp("data"), RANKS, IMAGES))


def encoder(model, task: str) -> GroupEncoder:
    return GroupEncoder(PieceTokenizer(TOKENIZER, model.config.image_token), model.config.geometry, task=task)


def with_reference(group, number: int):
    """A made-up reference log-prob per response: the same in either layout."""
    values = np.asarray([-20.0 - 3 * ((number + i) % 5) for i in range(len(group.rewards))], np.float32)
    return group._replace(reference_logps=values)


def budget(groups_per_row) -> Budget:
    sizes = np.max([sum(group_size(g) for g in groups) for groups in groups_per_row], axis=0)
    return Budget(*(int(s) + 3 for s in sizes))  # some of everything stays unused


def batch(groups_per_row, model):
    limits = budget(groups_per_row)
    return stack_rows([assemble_row(groups, limits, model.config.geometry) for groups in groups_per_row])


def packed(model, examples, task: str):
    """Three rows of one or two whole groups."""
    groups = [with_reference(encoder(model, task).encode(examples[i]), i) for i in range(len(examples))]
    return batch([groups[:2], groups[2:4], groups[4:]], model)


def pair_expanded(model, examples, task: str):
    """Per pair one row with two conversations that share nothing: its prompt and media stand there twice."""
    rows = []
    for i in range(len(examples)):
        example = examples[i]
        shared = with_reference(encoder(model, task).encode(example), i)
        for pair in example.record.pairs():
            sides = []
            for r in pair:
                alone = example.record.replace_responses([example.record.responses[r]])
                group = encoder(model, task).encode(dataclasses.replace(example, record=alone))
                sides.append(group._replace(reference_logps=shared.reference_logps[r : r + 1]))
            row = assemble_row(sides, dataclasses.replace(budget([sides]), pairs=1), model.config.geometry)
            row.pairs[0], row.pair_weights[0] = (0, 1), 1.0
            rows.append((sides, row))
    limits = dataclasses.replace(budget([sides for sides, _ in rows]), pairs=1)
    made = []
    for sides, _ in rows:
        row = assemble_row(sides, limits, model.config.geometry)
        row.pairs[0], row.pair_weights[0] = (0, 1), 1.0
        made.append(row)
    return stack_rows(made)


def loss_and_gradient(model, objective, batch, pieces: int = 1):
    graphdef, params = nnx.split(model)
    key = jax.random.key(0)
    split = split_rows(jax.tree.map(np.asarray, batch), pieces)
    denominators = batch_denominators(objective, split, key)

    def loss(params, piece):
        sums, _ = objective.terms(forward(nnx.merge(graphdef, params), piece, chunk=16), piece, key)
        return mix(sums, objective.coefficients, denominators)

    step = jax.jit(jax.value_and_grad(loss))
    found = [step(params, jax.tree.map(lambda x, i=i: x[i], split)) for i in range(pieces)]
    return jax.tree.map(lambda *x: np.sum(x, axis=0, dtype=np.float64), *found)


def assert_same_gradients(actual, expected):
    """Every leaf within 1e-5 of its own largest entry.

    The tower's key biases shift all scores of a query alike, so their true gradient is 0: there both must be rounding noise.
    """
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    for (path, a), (_, b) in zip(*(jax.tree_util.tree_leaves_with_path(x) for x in (actual, expected)), strict=True):
        name, difference, scale = jax.tree_util.keystr(path), np.abs(a - b).max(), np.abs(b).max()
        if "['vision']['layers']['attention']['k']['bias']" in name:
            assert max(np.abs(a).max(), scale) <= 1e-7 * largest, name
        else:
            assert difference <= 1e-5 * scale, (name, difference / scale)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_loss_and_every_gradient_equal_the_pair_expanded_steps(model, examples, name):
    task = "critique" if name == "reward model" else "answer"
    objective = make_objective(OBJECTIVES[name])
    value, gradient = loss_and_gradient(model, objective, packed(model, examples, task))
    # The pair-expanded layout has no rewards of its own: margins come with the pair.
    expanded = pair_expanded(model, examples, task)
    expected, expected_gradient = loss_and_gradient(model, objective, expanded)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert_same_gradients(gradient, expected_gradient)


def test_accumulation_gives_the_whole_batchs_means_not_means_of_means(model, examples):
    objective = make_objective(config.Preference())
    whole = packed(model, examples, "answer")
    value, gradient = loss_and_gradient(model, objective, whole)
    pieces, pieces_gradient = loss_and_gradient(model, objective, whole, pieces=3)
    np.testing.assert_allclose(pieces, value, rtol=1e-5)
    assert_same_gradients(pieces_gradient, gradient)


@pytest.mark.parametrize("task", ["answer", "critique"])
def test_a_response_has_the_log_prob_and_reward_it_has_alone_in_a_row(model, examples, task):
    graphdef, params = nnx.split(model)
    run = jax.jit(lambda params, batch: forward(nnx.merge(graphdef, params), batch, chunk=16))
    together = run(params, packed(model, examples, task))
    lone = [
        dataclasses.replace(examples[i], record=examples[i].record.replace_responses([response]))
        for i in range(len(examples))
        for response in examples[i].record.responses
    ]
    alone = run(params, batch([[encoder(model, task).encode(example)] for example in lone], model))
    used = packed(model, examples, task).response_ids >= 0
    np.testing.assert_allclose(np.asarray(together.logps)[used], alone.logps[:, 0], rtol=1e-5)
    np.testing.assert_allclose(np.asarray(together.rewards)[used], alone.rewards[:, 0], rtol=1e-5, atol=1e-6)


def test_beta_follows_each_pairs_own_margin(model, examples):
    """A pair whose margin is large weighs more: the packed step with rewards differs from plain DPO, as the paper says."""
    rewarded = packed(model, examples, "answer")
    assert np.isfinite(rewarded.rewards[rewarded.response_ids >= 0]).all()
    margin, _ = loss_and_gradient(model, make_objective(config.Preference(sft_weight=0.0)), rewarded)
    plain = config.Preference(sft_weight=0.0, scaling=config.Scaling(mode="fixed"))
    fixed, _ = loss_and_gradient(model, make_objective(plain), rewarded)
    assert abs(margin - fixed) > 1e-4
