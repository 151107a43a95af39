"""Gradients reach the whole vision tower when it is trained, are torch's, and none is made when it is frozen."""

import jax
import numpy as np
import pytest
from flax import nnx

from mmrlhf_jax.config import Trains
from mmrlhf_jax.training.state import split_model
from tests import tiny

torch = pytest.importorskip("torch")
from tests import parity  # noqa: E402 (needs torch)

FIRST_AND_LAST = (0, 2)  # of the tiny tower's layers


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    directory = tiny.checkpoint(tmp_path_factory.mktemp("model"))
    model = tiny.on_one_device(directory, remat="full")
    return model, parity.image_prompt(model, [(40, 95)], directory), directory


def gradients(model, prompt, trains: Trains) -> dict:
    """Of the mean log-probability of the next token, by parameter path."""
    graph, params, frozen = split_model(model, trains)

    def loss(params):
        merged = nnx.merge(graph, params, frozen)
        logits = (merged(*prompt.row) @ merged.language.vocabulary())[0, :-1]
        return -jax.nn.log_softmax(logits)[np.arange(prompt.length - 1), prompt.ids[1:]].mean()

    with jax.default_matmul_precision("highest"):
        found = jax.jit(jax.grad(loss))(params)
    return {path: np.asarray(value.get_value()) for path, value in nnx.to_flat_state(found)}


def test_the_first_and_the_last_vision_layer_get_torchs_gradient_when_the_tower_is_trained(case):
    model, prompt, directory = case
    found = gradients(model, prompt, Trains(vision_tower=True))
    theirs = parity.oracle(directory)
    logits = theirs(**prompt.inputs).logits[0, :-1]
    torch.nn.functional.cross_entropy(logits, prompt.inputs["input_ids"][0, 1:]).backward()
    tower = theirs.model.vision_tower.encoder if hasattr(theirs.model.vision_tower, "encoder") else None
    layers = (tower or theirs.model.vision_tower.vision_model.encoder).layers
    for number in FIRST_AND_LAST:
        pairs = {"up": layers[number].mlp.fc1, "down": layers[number].mlp.fc2}
        pairs |= {("attention", "q"): layers[number].self_attn.q_proj, ("attention", "o"): layers[number].self_attn.out_proj}
        for name, module in pairs.items():
            path = ("vision", "layers", *((name,) if isinstance(name, str) else name), "kernel")
            expected = module.weight.grad.numpy().T
            assert np.abs(expected).max() > 0
            np.testing.assert_allclose(found[path][number], expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_a_frozen_tower_gets_no_gradient_and_everything_else_keeps_its_own(case):
    model, prompt, _ = case
    trained, frozen = (gradients(model, prompt, Trains(vision_tower=learns)) for learns in (True, False))
    assert not [path for path in frozen if path[0] == "vision"]
    assert {path for path in trained if path[0] != "vision"} == frozen.keys()
    for path, value in frozen.items():
        np.testing.assert_allclose(value, trained[path], rtol=1e-5, atol=1e-6 * np.abs(value).max())
