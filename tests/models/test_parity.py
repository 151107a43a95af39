"""The model is transformers' model. Oracle: LlavaOnevisionForConditionalGeneration (torch, float32) on random weights.

Both sides get the same pictures: transformers through its own image processor, this project through tiles and a plan.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmrlhf_jax.huggingface.export import export_model
from mmrlhf_jax.models.decoder import rope_frequencies
from tests import tiny

torch = pytest.importorskip("torch")
from tests import parity  # noqa: E402 (needs torch)

TOLERANCE = 1e-5  # absolute; the project promises 1e-4

# Room for the largest prompt below, so that each model compiles once.
ROW = parity.Shape(slots=320, tiles=37, visual=280)

CONFIGS = {
    "tied, 6 heads over 2": {},
    "untied, odd heads": {
        "text": {"tie_word_embeddings": False, "num_attention_heads": 3, "num_key_value_heads": 3, "rope_theta": 10_000.0},
        "vision": {"num_attention_heads": 9, "hidden_act": "gelu"},
        "vision_feature_layer": 3,
    },
    "5 heads over 1, last vision layer unused, no projector bias": {
        "text": {"hidden_size": 40, "num_attention_heads": 5, "num_key_value_heads": 1, "rms_norm_eps": 1e-5},
        "vision": {"patch_size": 10, "num_hidden_layers": 2},
        "vision_feature_layer": -2,
        "vision_aspect_ratio": "anyres_max_4",
        "projector_hidden_act": "gelu_pytorch_tanh",
        "multimodal_projector_bias": False,
    },
}

# (height, width) of the pictures of a prompt
PICTURES = {
    "text only": [],
    "one tile": [(30, 30)],
    "smaller than a tile": [(11, 7)],
    "wide": [(30, 200)],
    "tall": [(333, 41)],
    "scaled down": [(173, 161)],
    "largest": [(180, 180)],
    "two": [(50, 20), (25, 100)],
    "three, one square": [(64, 64), (10, 300), (90, 45)],
}


@functools.cache
def pair(name: str, directory):
    """The same checkpoint in both frameworks."""
    tiny.checkpoint(directory, tiny.config(**CONFIGS[name]))
    return parity.load(directory), parity.oracle(directory)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("checkpoints")


def prompt(model, sizes, directory) -> parity.Prompt:
    return parity.image_prompt(model, sizes, directory, ROW)


@pytest.mark.parametrize("pictures", PICTURES)
@pytest.mark.parametrize("name", CONFIGS)
def test_visual_features_hidden_states_and_logits_are_transformers(root, name, pictures):
    ours, theirs = pair(name, root / name)
    case = prompt(ours, PICTURES[pictures], root / name)
    expected = parity.theirs(theirs, case)
    assert np.abs(expected[-1]).max() > 1
    for found, wanted in zip(parity.ours(ours, case), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("frames", [1, 8, 32])
@pytest.mark.parametrize("name", CONFIGS)
def test_so_they_are_for_videos(root, name, frames):
    ours, theirs = pair(name, root / name)
    case = parity.video_prompt(ours, frames, ROW)
    for found, wanted in zip(parity.ours(ours, case), parity.theirs(theirs, case), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("theta", [1e4, 1e5, 1e6])
@pytest.mark.parametrize("head_dim", [8, 64, 80, 128])
def test_rotary_frequencies_are_rounded_as_torch_rounds_them(head_dim, theta):
    """Equal bits, but for the one in a hundred where torch's own power is a unit in the last place off."""
    expected = (1.0 / (theta ** (torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim))).numpy()
    found = rope_frequencies(head_dim, theta)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1.2e-7)
    assert (found != expected).sum() <= 1


def test_one_compilation_served_every_size_of_picture(root):
    ours, _ = pair("tied, 6 heads over 2", root / "tied, 6 heads over 2")
    before = parity.embedded_hidden_logits._cache_size()
    for sizes in ([], [(77, 33)], [(9, 300)], [(31, 64), (180, 180)]):
        parity.ours(ours, prompt(ours, sizes, root / "tied, 6 heads over 2"))
    assert parity.embedded_hidden_logits._cache_size() <= max(before, 1)


def test_the_kernels_of_the_tpu_change_nothing_in_the_tower_or_the_language_model(root):
    """Interpreted here, and named as a run's `model.attention` names them."""
    name = "tied, 6 heads over 2"
    ours, _ = pair(name, root / name)
    case = prompt(ours, [(40, 95)], root / name)
    kernels = tiny.on_one_device(root / name, remat="none", attention="pallas")
    for actual, expected in zip(parity.ours(kernels, case), parity.ours(ours, case), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("naming", ["legacy", "saved"])
def test_transformers_and_this_project_read_other_spellings_alike(tmp_path, naming):
    directory = tiny.checkpoint(tmp_path, naming=naming)
    ours, theirs = parity.load(directory), parity.oracle(directory)
    case = prompt(ours, [], directory)
    with torch.no_grad():
        expected = theirs(**case.inputs).logits[0].numpy()
    np.testing.assert_allclose(parity.ours(ours, case)[2], expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", CONFIGS)
def test_what_transformers_saves_is_read(root, tmp_path, name):
    ours, theirs = pair(name, root / name)
    theirs.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_bytes((root / name / "preprocessor_config.json").read_bytes())
    saved = parity.load(tmp_path)
    assert saved.config == ours.config
    jax.tree.map(np.testing.assert_array_equal, nnx.state(saved), nnx.state(ours))


def test_an_original_checkpoint_converted_for_transformers_gives_the_same_logits_there(tmp_path):
    source = tiny.checkpoint(tmp_path / "original", naming="original")
    ours = parity.load(source)
    export_model(ours, source, tmp_path / "hf")
    case = prompt(ours, [(40, 95)], tmp_path / "hf")
    with torch.no_grad():
        expected = parity.oracle(tmp_path / "hf")(**case.inputs).logits[0].numpy()
    np.testing.assert_allclose(parity.ours(ours, case)[2], expected, rtol=0, atol=TOLERANCE)


def test_the_reward_heads_input_is_the_hidden_state_after_the_final_norm(root, tmp_path):
    """Upstream reads `hidden_states[-1]`, which in transformers' Qwen2 is normed."""
    name = "tied, 6 heads over 2"
    ours, theirs = pair(name, root / name)
    head = parity.load(tiny.checkpoint(tmp_path, reward_head=True)).reward_head
    stored = {k: torch.tensor(v) for k, v in tiny.tensors(tiny.config(), reward_head=True).items() if k.startswith("rm_head")}
    case = prompt(ours, [(40, 95)], root / name)
    with torch.no_grad():
        last = theirs(**case.inputs, output_hidden_states=True).hidden_states[-1][0, -1]
        dense = torch.tanh(stored["rm_head.dense.weight"] @ last + stored["rm_head.dense.bias"])
        expected = stored["rm_head.out_proj.weight"] @ dense + stored["rm_head.out_proj.bias"]
    reward = head(parity.ours(ours, case)[1][-1])
    assert reward.dtype == jnp.float32
    np.testing.assert_allclose(reward, expected[0], rtol=0, atol=TOLERANCE)
