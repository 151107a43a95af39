"""Every family's model is transformers'. Oracle: `AutoModelForImageTextToText` (torch, float32) on random weights.

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
from tests.families import FAMILIES, WITH_ORIGINAL, other_spellings

torch = pytest.importorskip("torch")
from tests import parity  # noqa: E402 (needs torch)

# Absolute; the project promises 1e-4.
TOLERANCE = {family: tests.TOLERANCE for family, tests in FAMILIES.items()}

MODELS = [(family, shape) for family, tests in FAMILIES.items() for shape in tests.SHAPES]
FIRST = {family: next(iter(tests.SHAPES)) for family, tests in FAMILIES.items()}


@functools.cache
def pair(family: str, shape: str, root):
    """The same checkpoint in both frameworks, and its directory."""
    tests = FAMILIES[family]
    directory = tests.checkpoint(root / family / shape, tests.config(**tests.SHAPES[shape]))
    return parity.load(directory), parity.oracle(directory), directory


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("checkpoints")


def prompt(model, sizes, directory) -> parity.Prompt:
    """In a row with room for every prompt of the family, so that each model compiles once."""
    return parity.image_prompt(model, sizes, directory, parity.Shape(*FAMILIES[model.config.model_type].ROW))


@pytest.mark.parametrize(
    ("family", "shape", "pictures"), [(*model, name) for model in MODELS for name in FAMILIES[model[0]].PICTURES]
)
def test_visual_features_hidden_states_and_logits_are_transformers(root, family, shape, pictures):
    ours, theirs, directory = pair(family, shape, root)
    case = prompt(ours, FAMILIES[family].PICTURES[pictures], directory)
    expected = parity.theirs(theirs, case)
    assert np.abs(expected[-1]).max() > 1
    for found, wanted in zip(parity.ours(ours, case), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=TOLERANCE[family])


@pytest.mark.parametrize(
    ("family", "shape", "frames"), [(*model, frames) for model in MODELS for frames in FAMILIES[model[0]].FRAMES]
)
def test_so_they_are_for_videos(root, family, shape, frames):
    ours, theirs, directory = pair(family, shape, root)
    case = parity.video_prompt(ours, frames, directory, parity.Shape(*FAMILIES[family].ROW))
    for found, wanted in zip(parity.ours(ours, case), parity.theirs(theirs, case), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=TOLERANCE[family])


@pytest.mark.parametrize("theta", [1e4, 1e5, 1e6])
@pytest.mark.parametrize("head_dim", [8, 64, 80, 128])
def test_rotary_frequencies_are_rounded_as_torch_rounds_them(head_dim, theta):
    """Equal bits, but for the one in a hundred where torch's own power is a unit in the last place off."""
    expected = (1.0 / (theta ** (torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim))).numpy()
    found = rope_frequencies(head_dim, theta)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1.2e-7)
    assert (found != expected).sum() <= 1


@pytest.mark.parametrize("family", FAMILIES)
def test_one_compilation_served_every_size_of_picture(root, family):
    ours, _, directory = pair(family, FIRST[family], root)
    parity.ours(ours, prompt(ours, [(30, 30)], directory))
    before = parity.embedded_hidden_logits._cache_size()
    for sizes in ([], [(77, 33)], [(9, 300)], [(31, 64), (180, 180)]):
        parity.ours(ours, prompt(ours, sizes, directory))
    assert parity.embedded_hidden_logits._cache_size() == before


@pytest.mark.parametrize("family", FAMILIES)
def test_the_kernels_of_the_tpu_change_nothing_in_the_tower_or_the_language_model(root, family):
    """Interpreted here, and named as a run's `model.attention` names them."""
    ours, _, directory = pair(family, FIRST[family], root)
    case = prompt(ours, [(40, 95)], directory)
    kernels = tiny.on_one_device(directory, remat="none", attention="pallas")
    for actual, expected in zip(parity.ours(kernels, case), parity.ours(ours, case), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE[family])


@pytest.mark.parametrize(
    ("family", "naming"),
    [(name, naming) for name in FAMILIES for naming in other_spellings(name)],
)
def test_transformers_and_this_project_read_other_spellings_alike(tmp_path, family, naming):
    directory = FAMILIES[family].checkpoint(tmp_path, naming=naming)
    ours, theirs = parity.load(directory), parity.oracle(directory)
    case = prompt(ours, [], directory)
    with torch.no_grad():
        expected = theirs(**case.inputs).logits[0].numpy()
    np.testing.assert_allclose(parity.ours(ours, case)[2], expected, rtol=0, atol=TOLERANCE[family])


@pytest.mark.parametrize(("family", "shape"), MODELS)
def test_what_transformers_saves_is_read(root, tmp_path, family, shape):
    ours, theirs, directory = pair(family, shape, root)
    theirs.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_bytes((directory / "preprocessor_config.json").read_bytes())
    saved = parity.load(tmp_path)
    assert saved.config == ours.config
    jax.tree.map(np.testing.assert_array_equal, nnx.state(saved), nnx.state(ours))


@pytest.mark.parametrize("family", WITH_ORIGINAL)
def test_an_original_checkpoint_converted_for_transformers_gives_the_same_logits_there(tmp_path, family):
    source = FAMILIES[family].checkpoint(tmp_path / "original", naming="original")
    ours = parity.load(source)
    export_model(ours, source, tmp_path / "hf")
    case = prompt(ours, [(40, 95)], tmp_path / "hf")
    with torch.no_grad():
        expected = parity.oracle(tmp_path / "hf")(**case.inputs).logits[0].numpy()
    np.testing.assert_allclose(parity.ours(ours, case)[2], expected, rtol=0, atol=TOLERANCE[family])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_reward_heads_input_is_the_hidden_state_after_the_final_norm(root, tmp_path, family):
    """Upstream reads `hidden_states[-1]`, which in transformers' Qwen2 is normed."""
    ours, theirs, directory = pair(family, FIRST[family], root)
    raw = FAMILIES[family].config(**FAMILIES[family].SHAPES[FIRST[family]])
    head = parity.load(FAMILIES[family].checkpoint(tmp_path, raw, reward_head=True)).reward_head
    stored = FAMILIES[family].tensors(raw, reward_head=True)
    stored = {name: torch.tensor(value) for name, value in stored.items() if name.startswith("rm_head")}
    case = prompt(ours, [(40, 95)], directory)
    with torch.no_grad():
        last = theirs(**case.inputs, output_hidden_states=True).hidden_states[-1][0, -1]
        dense = torch.tanh(stored["rm_head.dense.weight"] @ last + stored["rm_head.dense.bias"])
        expected = stored["rm_head.out_proj.weight"] @ dense + stored["rm_head.out_proj.bias"]
    reward = head(parity.ours(ours, case)[1][-1])
    assert reward.dtype == jnp.float32
    np.testing.assert_allclose(reward, expected[0], rtol=0, atol=TOLERANCE[family])
