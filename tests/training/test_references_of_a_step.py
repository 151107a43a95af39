"""Steps that compute their reference themselves: a copy of the start (`live`), or the model without its adapters."""

from __future__ import annotations

import math

import jax
import numpy as np
import pytest

from mmrlhf_jax import config
from mmrlhf_jax.inference.scoring import make_scoring_step
from mmrlhf_jax.sharding.feed import place
from mmrlhf_jax.sharding.mesh import use_mesh
from mmrlhf_jax.tasks import task_of
from mmrlhf_jax.training import step as step_module
from mmrlhf_jax.training.guard import guarded
from mmrlhf_jax.training.state import init_state, split_model
from mmrlhf_jax.training.step import make_train_step
from tests.training import groups

ADAPTED = config.Trains(projector=True, newline=False, reward_head=False)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return groups.checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    return groups.examples(tmp_path_factory.mktemp("data"))[:3]


def first_loss(mesh, model, reference: str | None, rows, trains, lora) -> float:
    settings = dict(losses={"sigmoid": 1.0}, scaling=config.Scaling(mode="fixed"), sft_weight=0.0)
    with use_mesh(mesh):
        graphdef, *parts = split_model(model, trains, lora)
        params, frozen = jax.tree.map(lambda x: x.copy(), parts)  # the step gives its state away
        tx = guarded(groups.KEEP_GRADIENT, config.Guard())
        state = init_state(params, frozen, tx, mesh, keep_start=reference == "live")
        objective = task_of(config.Preference(**settings))
        step = make_train_step(graphdef, objective, tx, chunk=16, reference=reference)
        return float(step(state, place(rows, mesh))[1]["loss"])


@pytest.mark.long
def test_a_live_reference_starts_at_log_2(directory, examples):
    mesh, model = groups.load(directory, 1)
    rows = groups.packed(model, examples, "answer")
    loss = first_loss(mesh, model, "live", rows, config.Trains(), None)
    assert loss == pytest.approx(math.log(2), abs=1e-7)


@pytest.mark.long
def test_the_reference_of_adapters_is_the_model_without_them(directory, examples):
    """Trained adapters (B is not zero) against the base model's log-probs given with the batch; fresh ones start at log 2."""
    mesh, model = groups.load(directory, 1, groups.LORA)
    rows = groups.packed(model, examples, "answer")
    own = first_loss(mesh, model, "adapter_base", rows, ADAPTED, groups.LORA)
    with use_mesh(mesh):
        graphdef, params, frozen = split_model(groups.load(directory, 1)[1], config.Trains())
        outputs, _ = make_scoring_step(graphdef, chunk=16)(params, frozen, place(rows, mesh))
    given = rows._replace(reference_logps=np.where(rows.response_ids < 0, np.nan, outputs.logps))
    assert own != pytest.approx(math.log(2), abs=1e-4)
    assert own == pytest.approx(first_loss(mesh, model, None, given, ADAPTED, groups.LORA), rel=1e-5)
    for _, layer in groups.adapted_layers(model):
        layer.lora_b[...] = layer.lora_b[...] * 0
    fresh = first_loss(mesh, model, "adapter_base", rows, ADAPTED, groups.LORA)
    assert fresh == np.float32(math.log(2))


@pytest.mark.parametrize(
    ("trains", "parts", "times"),
    [
        (config.Trains(vision_tower=False, projector=False, newline=False, reward_head=False), ("language_model",), 1),
        (config.Trains(vision_tower=False, newline=False, reward_head=False), ("language_model", "projector"), 2),
    ],
    ids=["language model", "projector as well"],
)
@pytest.mark.long
def test_media_are_encoded_once_where_policy_and_reference_encode_them_alike(
    directory, examples, monkeypatch, trains, parts, times
):
    """And the loss is that of two encodings."""
    lora = groups.LORA.model_copy(update={"parts": parts})
    mesh, model = groups.load(directory, 1, lora)
    rows = groups.packed(model, examples, "answer")
    seen, original = [], type(model).visual_features

    def counted(self, media):
        seen.append(media)
        return original(self, media)

    monkeypatch.setattr(type(model), "visual_features", counted)
    own = first_loss(mesh, model, "adapter_base", rows, trains, lora)
    assert len(seen) == times
    monkeypatch.setattr(step_module, "with_shared_features", lambda graphdef, state, batch, reference: batch)
    assert own == pytest.approx(first_loss(mesh, model, "adapter_base", rows, trains, lora), rel=1e-6)
    assert len(seen) == times + 2
