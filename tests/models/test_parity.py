"""The model is transformers' model. Oracle: LlavaOnevisionForConditionalGeneration (torch, float32) on random weights.

Both sides get the same pictures: transformers through its own image processor, this project through tiles and a plan.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from mmrlhf_jax.huggingface.export import export_model
from mmrlhf_jax.models.llava_onevision.images import cut_tiles
from mmrlhf_jax.models.llava_onevision.model import LlavaOnevision, Visual
from mmrlhf_jax.models.llava_onevision.vision_plan import NEWLINE, join, plan_images
from tests import tiny

torch = pytest.importorskip("torch")

TOLERANCE = 1e-5  # absolute; the project promises 1e-4

# Slots, tiles and visual tokens of a row: room for the largest prompt below, so that each model compiles once.
SLOTS, TILES, VISUALS = 320, 37, 280

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


class Prompt(NamedTuple):
    """int32[1, S] ids and a row for this project, and transformers' inputs for the same prompt."""

    row: tuple[np.ndarray, np.ndarray, np.ndarray, Visual]
    inputs: dict
    length: int


def prompt(model: LlavaOnevision, sizes: list[tuple[int, int]], directory) -> Prompt:
    from transformers import LlavaOnevisionImageProcessorPil

    rng = np.random.default_rng(len(sizes))
    pictures = [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for h, w in sizes]
    geometry, image_token = model.config.geometry, model.config.image_token
    plans = plan_images(sizes, geometry) if sizes else []
    ids = [*rng.integers(0, 256, 9)]
    for plan in plans:
        ids += [image_token] * plan.tokens + [*rng.integers(0, 256, 5)]
    ids = np.array(ids)
    inputs = {"input_ids": torch.tensor(ids[None])}
    if sizes:
        processor = LlavaOnevisionImageProcessorPil.from_pretrained(directory)
        inputs |= processor(images=[pictures], return_tensors="pt")
    tiles = [cut_tiles(picture, geometry, anyres=len(sizes) == 1) for picture in pictures]
    return Prompt(row(ids, tiles, join(plans), image_token), inputs, len(ids))


def row(ids: np.ndarray, tiles: list[np.ndarray], plan, image_token: int):
    """A row of the static shape, the rest of it padding."""
    tokens, positions = np.zeros((1, SLOTS), np.int32), np.zeros((1, SLOTS), np.int32)
    tokens[0, : len(ids)], positions[0, : len(ids)] = ids, np.arange(len(ids))
    visible_until = np.where(np.arange(SLOTS) < len(ids), len(ids), np.arange(SLOTS) + 1)[None].astype(np.int32)
    images = np.zeros((1, TILES, tiny.SIDE, tiny.SIDE, 3), np.uint8)
    slots, taps = np.full((1, VISUALS), SLOTS, np.int32), np.zeros((1, VISUALS, 4), np.int32)
    weights = np.zeros((1, VISUALS, 4), np.float32)
    if tiles:
        images[0, : plan.tiles] = np.concatenate(tiles)
        slots[0, : plan.tokens] = np.flatnonzero(ids == image_token)
        taps[0, : plan.tokens] = np.where(plan.taps == NEWLINE, TILES * plan.patches, plan.taps)
        weights[0, : plan.tokens] = plan.weights
    return tokens, positions, visible_until, Visual(images, slots, taps, weights)


@jax.jit
def hidden_and_logits(model: LlavaOnevision, tokens, positions, visible_until, visual):
    hidden = model(tokens, positions, visible_until, visual)
    return hidden, hidden @ model.language.vocabulary()


def load(directory) -> LlavaOnevision:
    return tiny.on_one_device(directory, remat="none")


def oracle(directory):
    from transformers import LlavaOnevisionForConditionalGeneration

    model, info = LlavaOnevisionForConditionalGeneration.from_pretrained(
        directory, dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["mismatched_keys"], info
    return model.eval()


@functools.cache
def pair(name: str, directory):
    """The same checkpoint in both frameworks."""
    tiny.checkpoint(directory, tiny.config(**CONFIGS[name]))
    return load(directory), oracle(directory)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("checkpoints")


@pytest.mark.parametrize("pictures", PICTURES)
@pytest.mark.parametrize("name", CONFIGS)
def test_hidden_states_and_logits_are_transformers(root, name, pictures):
    ours, theirs = pair(name, root / name)
    case = prompt(ours, PICTURES[pictures], root / name)
    hidden, logits = (np.asarray(x)[0, : case.length] for x in hidden_and_logits(ours, *case.row))
    with torch.no_grad():
        expected = theirs(**case.inputs, output_hidden_states=True)
    assert expected.logits.abs().max() > 1
    np.testing.assert_allclose(hidden, expected.hidden_states[-1][0], rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(logits, expected.logits[0], rtol=0, atol=TOLERANCE)


def test_one_compilation_served_every_size_of_picture(root):
    ours, _ = pair("tied, 6 heads over 2", root / "tied, 6 heads over 2")
    before = hidden_and_logits._cache_size()
    for sizes in ([], [(77, 33)], [(9, 300)], [(31, 64), (180, 180)]):
        hidden_and_logits(ours, *prompt(ours, sizes, root / "tied, 6 heads over 2").row)
    assert hidden_and_logits._cache_size() <= max(before, 1)


def test_the_kernels_of_the_tpu_change_nothing_in_the_tower_or_the_language_model(root):
    """Interpreted here, and named as a run's `model.attention` names them."""
    name = "tied, 6 heads over 2"
    ours, _ = pair(name, root / name)
    case = prompt(ours, [(40, 95)], root / name)
    kernels = tiny.on_one_device(root / name, remat="none", attention="pallas")
    for actual, expected in zip(hidden_and_logits(kernels, *case.row), hidden_and_logits(ours, *case.row), strict=True):
        np.testing.assert_allclose(actual[0, : case.length], expected[0, : case.length], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("naming", ["legacy", "saved"])
def test_transformers_and_this_project_read_other_spellings_alike(tmp_path, naming):
    directory = tiny.checkpoint(tmp_path, naming=naming)
    ours, theirs = load(directory), oracle(directory)
    case = prompt(ours, [], directory)
    with torch.no_grad():
        expected = theirs(**case.inputs).logits[0].numpy()
    np.testing.assert_allclose(hidden_and_logits(ours, *case.row)[1][0, : case.length], expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", CONFIGS)
def test_what_transformers_saves_is_read(root, tmp_path, name):
    ours, theirs = pair(name, root / name)
    theirs.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_bytes((root / name / "preprocessor_config.json").read_bytes())
    saved = load(tmp_path)
    assert saved.config == ours.config
    jax.tree.map(np.testing.assert_array_equal, nnx.state(saved), nnx.state(ours))


def test_an_original_checkpoint_converted_for_transformers_gives_the_same_logits_there(tmp_path):
    source = tiny.checkpoint(tmp_path / "original", naming="original")
    ours = load(source)
    export_model(ours, source, tmp_path / "hf")
    case = prompt(ours, [(40, 95)], tmp_path / "hf")
    with torch.no_grad():
        expected = oracle(tmp_path / "hf")(**case.inputs).logits[0].numpy()
    np.testing.assert_allclose(hidden_and_logits(ours, *case.row)[1][0, : case.length], expected, rtol=0, atol=TOLERANCE)


def test_the_reward_heads_input_is_the_hidden_state_after_the_final_norm(root, tmp_path):
    """Upstream reads `hidden_states[-1]`, which in transformers' Qwen2 is normed."""
    name = "tied, 6 heads over 2"
    ours, theirs = pair(name, root / name)
    head = load(tiny.checkpoint(tmp_path, reward_head=True)).reward_head
    stored = {k: torch.tensor(v) for k, v in tiny.tensors(tiny.config(), reward_head=True).items() if k.startswith("rm_head")}
    case = prompt(ours, [(40, 95)], root / name)
    with torch.no_grad():
        last = theirs(**case.inputs, output_hidden_states=True).hidden_states[-1][0, -1]
        dense = torch.tanh(stored["rm_head.dense.weight"] @ last + stored["rm_head.dense.bias"])
        expected = stored["rm_head.out_proj.weight"] @ dense + stored["rm_head.out_proj.bias"]
    reward = head(hidden_and_logits(ours, *case.row)[0][0, case.length - 1])
    assert reward.dtype == jnp.float32
    np.testing.assert_allclose(reward, expected[0], rtol=0, atol=TOLERANCE)
