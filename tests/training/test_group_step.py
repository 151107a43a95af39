"""The product's promise: a tree-packed group step is the pair-expanded step, in float32, to 1e-5 relative.

Loss, every metric and every leaf of the gradient, through the train step itself; `groups.py` makes both layouts.
"""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
from flax import nnx

from mmrlhf_jax import config
from mmrlhf_jax.data.rows import assemble_row, stack_rows
from mmrlhf_jax.data.unshared import expand, unshared_batch
from mmrlhf_jax.inference.forward import forward
from mmrlhf_jax.mesh_axes import fewest_pieces
from mmrlhf_jax.objectives.outputs import Outputs
from mmrlhf_jax.planning.unshared import forward_unshared
from mmrlhf_jax.tasks import task_of
from tests.families import FAMILIES, WITH_VIDEOS
from tests.training import groups
from tests.training.groups import LORA, OBJECTIVES, alone, assert_same_step, encoder, packed, pair_expanded

FIRST = "llava_onevision"  # for what does not depend on the family


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """The checkpoint of a family."""
    return functools.cache(lambda family: groups.checkpoint(tmp_path_factory.mktemp(family), family))


@pytest.fixture(scope="module")
def model(directory):
    """The model of a family."""
    return functools.cache(lambda family=FIRST: groups.load(directory(family), 1)[1])


@pytest.fixture(scope="module")
def examples_of(tmp_path_factory):
    """The groups of a family: a video is among them if it has videos."""
    return functools.cache(lambda family: groups.examples(tmp_path_factory.mktemp("data"), video=family in WITH_VIDEOS))


@pytest.fixture(scope="module")
def examples(examples_of):
    return examples_of(FIRST)


@pytest.fixture(scope="module")
def expanded_step(directory, examples_of):
    """The oracle: (figures, gradients) of an objective's pair-expanded step on one device."""

    @functools.cache
    def found(family: str, name: str, lora: config.Lora | None):
        mesh, model = groups.load(directory(family), 1, lora)
        rows = pair_expanded(model, examples_of(family), task_of(OBJECTIVES[name]).conversation)
        return groups.step(mesh, model, OBJECTIVES[name], rows, lora=lora)

    return found


@pytest.mark.parametrize(
    ("family", "name", "lora", "at_once"),
    [
        *((family, "mm-dpo", None, None) for family in FAMILIES),
        (FIRST, "reward model", None, 1),
        (FIRST, "mm-dpo", LORA, 1),
        (FIRST, "beta-dpo", None, None),
        (FIRST, "beta-dpo, filtered", None, None),
        (FIRST, "implicit", None, None),
        *(pytest.param(family, "mpo", None, None, marks=pytest.mark.slow) for family in FAMILIES),
        *(pytest.param(family, "reward model", None, None, marks=pytest.mark.slow) for family in FAMILIES),
        pytest.param(FIRST, "mm-dpo", None, 1, marks=pytest.mark.slow),
        *(pytest.param(family, "mm-dpo", LORA, None, marks=pytest.mark.slow) for family in FAMILIES),
        pytest.param(FIRST, "reward model", LORA, None, marks=pytest.mark.slow),
        pytest.param(FIRST, "reward model", LORA, 1, marks=pytest.mark.slow),
    ],
)
@pytest.mark.long
def test_loss_metrics_and_every_gradient_equal_the_pair_expanded_steps(
    directory, examples_of, expanded_step, family, name, lora, at_once
):
    """Ties, two to six responses, text, pictures and video. Accumulation gives the batch's means, not means of means.

    `at_once`: the launch file's rows per device; None: all four.
    """
    mesh, model = groups.load(directory(family), 1, lora)
    rows = packed(model, examples_of(family), task_of(OBJECTIVES[name]).conversation, rows=4)
    accumulation = fewest_pieces(4, at_once, mesh.shape)
    assert accumulation == (1 if at_once is None else 4)
    actual = groups.step(mesh, model, OBJECTIVES[name], rows, accumulation=accumulation, lora=lora)
    assert_same_step(actual, expanded_step(family, name, lora))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("task", ["answer", "critique"])
@pytest.mark.long
def test_a_response_has_the_log_prob_and_reward_it_has_alone_in_a_row(model, examples_of, task, family):
    model, examples = model(family), examples_of(family)
    graphdef, params = nnx.split(model)
    run = jax.jit(lambda params, batch: forward(nnx.merge(graphdef, params), batch, chunk=16))
    together = run(params, packed(model, examples, task))
    lone = [alone(example, r) for example in examples for r in range(len(example.record.responses))]
    found = run(params, groups.batch([[encoder(model, task).encode(example)] for example in lone], model))
    used = packed(model, examples, task).response_ids >= 0
    np.testing.assert_allclose(np.asarray(together.logps)[used], found.logps[:, 0], rtol=1e-5)
    np.testing.assert_allclose(np.asarray(together.rewards)[used], found.rewards[:, 0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.long
def test_rows_without_media_give_tower_and_projector_zero_gradients(directory, examples_of, family):
    """Zero and not missing ones, by the program that rows with media of these sizes have as well."""
    mesh, model = groups.load(directory(family), 1)
    examples = enumerate(examples_of(family)[:2])
    made = [[groups.with_reference(encoder(model, "answer").encode(example), i)] for i, example in examples]
    limits = groups.budget(made)
    text, picture = (stack_rows([assemble_row(row, limits, model.config.geometry)]) for row in made)
    assert [int(rows.media.pixels.any()) for rows in (text, picture)] == [0, 1]
    assert jax.tree.map(np.shape, text) == jax.tree.map(np.shape, picture)
    (_, without), (_, with_media) = (groups.step(mesh, model, OBJECTIVES["mm-dpo"], rows) for rows in (text, picture))
    assert jax.tree.structure(without) == jax.tree.structure(with_media)
    for part in ("vision", "projector"):
        assert len(jax.tree.leaves(without[part])) > 0
        assert not any(leaf.any() for leaf in jax.tree.leaves(without[part])), part
        assert any(leaf.any() for leaf in jax.tree.leaves(with_media[part])), part
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(without))
    assert any(leaf.any() for leaf in jax.tree.leaves(without["language"]))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.long
def test_so_it_does_behind_a_picture_and_a_text_in_one_row_with_a_video(model, examples_of, family):
    model, examples = model(family), [examples_of(family)[number] for number in (2, 0, 5)]
    assert [(len(one.images), len(one.frames)) for one in examples] == [
        (1, 0),
        (0, 0),
        (0, 3) if family in WITH_VIDEOS else (3, 0),
    ]
    graphdef, params = nnx.split(model)
    run = jax.jit(lambda params, batch: forward(nnx.merge(graphdef, params), batch, chunk=16))
    rows = packed(model, examples, "answer", per_row=3)
    assert len(rows.tokens) == 1
    together = run(params, rows)
    lone = [alone(example, r) for example in examples for r in range(len(example.record.responses))]
    found = run(params, groups.batch([[encoder(model, "answer").encode(example)] for example in lone], model))
    used = rows.response_ids >= 0
    np.testing.assert_allclose(np.asarray(together.logps)[used], found.logps[:, 0], rtol=1e-5)
    np.testing.assert_allclose(np.asarray(together.rewards)[used], found.rewards[:, 0], rtol=1e-5, atol=1e-6)


@pytest.mark.long
def test_beta_follows_each_pairs_own_margin(model, examples):
    """A pair whose margin is large weighs more: with rewards the loss differs from plain DPO's, as the paper says."""
    rows = packed(model(), examples, "answer")
    assert np.isfinite(rows.rewards[rows.response_ids >= 0]).all()
    logps = np.random.default_rng(0).normal(-20, 3, rows.ends.shape).astype(np.float32)
    outputs = Outputs(logps, logps, logps, logps, logps, np.zeros(rows.targets.shape, np.float32))
    margin, fixed = (
        task_of(config.Preference(scaling=config.Scaling(mode=mode))).terms(outputs, rows, jax.random.key(0))[0]
        for mode in ("margin", "fixed")
    )
    assert abs(margin["sigmoid"].mean - fixed["sigmoid"].mean) > 1e-4


@pytest.mark.long
def test_the_bench_measures_the_pair_expanded_layout(model, examples):
    """Its rows run as two halves each, and as the ordinary rows that they are: the same outputs, those of the packed rows."""
    model = model()
    task, geometry = "critique", model.config.geometry
    pairs = []
    for example in examples:
        lone = [encoder(model, task).encode(alone(example, r)) for r in range(len(example.record.responses))]
        pairs += expand(encoder(model, task).encode(example), lone)
    rows, pieces = unshared_batch(pairs, geometry, pieces_of=2000, multiple=2)
    assert pieces > 1 and len(rows.tokens) % (2 * pieces) == 0
    assert (rows.pair_weights > 0).sum() == len(pairs) == sum(len(example.record.pairs()) for example in examples)
    graphdef, params = nnx.split(model)
    ordinary, halved = (
        jax.jit(lambda params, rows, run=run: run(nnx.merge(graphdef, params), rows, chunk=16))(params, rows)
        for run in (forward, forward_unshared)
    )
    np.testing.assert_allclose(halved.rewards, ordinary.rewards, rtol=1e-5, atol=1e-6)
    used = rows.ends < rows.tokens.shape[1]
    np.testing.assert_allclose(np.asarray(halved.logps)[used], np.asarray(ordinary.logps)[used], rtol=1e-5, atol=1e-5)
