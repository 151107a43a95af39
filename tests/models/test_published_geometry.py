"""The grid of proof at the published geometry: tiles of 384 pixels, patches of 14, 36 pinpoints, anyres_max_9.

Oracle: transformers with its own image processor. The layers are few and narrow; shapes of pictures are what counts.
Rows are up to 7,400 tokens long, where transformers' float32 itself is up to 8e-5 from its float64: so we must be within 1e-4
of its float32, and hardly further from its float64 than it is.
"""

import copy

import numpy as np
import pytest

from tests import tiny

torch = pytest.importorskip("torch")
from tests import parity  # noqa: E402 (needs torch)

TOLERANCE = 1e-4  # absolute, from float32: what the project promises
NEAR = 1e-5  # from float64; further only where transformers' float32 is, too: up to 1.5 times as far

PINPOINTS = [[384 * rows, 384 * columns] for rows in range(1, 7) for columns in range(1, 7)]
CONFIG = tiny.config(
    vision={
        "image_size": 384,
        "patch_size": 14,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_attention_heads": 3,
        "num_hidden_layers": 2,
    },
    text={"hidden_size": 40, "num_attention_heads": 5, "num_key_value_heads": 1, "tie_word_embeddings": False},
    image_grid_pinpoints=PINPOINTS,
)

# (height, width) of a lone picture -> its visual tokens, worked out by hand from the rules of the original code.
COUNTS = {
    (480, 640): 2929,
    (384, 384): 1485,
    (100, 200): 1093,
    (800, 800): 7371,
    (600, 1000): 4665,
    (1080, 1920): 7269,
    (1500, 2000): 7309,
    (500, 3000): 5130,
    (3000, 4000): 7309,
}
PICTURES = {
    "text only": [],
    "14 high, 2000 wide": [(14, 2000)],
    "2000 high, 14 wide": [(2000, 14)],
    "two": [(100, 700), (640, 480)],
    **{f"{height} high, {width} wide": [(height, width)] for height, width in COUNTS},
    "2304 high, 2304 wide": [(2304, 2304)],
    "1 high, 1 wide": [(1, 1)],
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    directory = tiny.checkpoint(tmp_path_factory.mktemp("model"), CONFIG)
    return parity.load(directory), parity.oracle(directory), directory


def assert_equal(model, oracle, prompt) -> None:
    doubled = {name: value.double() if value.is_floating_point() else value for name, value in prompt.inputs.items()}
    truth = parity.theirs(copy.deepcopy(oracle).double(), prompt._replace(inputs=doubled))
    for found, wanted, true in zip(parity.ours(model, prompt), parity.theirs(oracle, prompt), truth, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(found, true, rtol=0, atol=max(NEAR, 1.5 * np.abs(wanted - true).max()))


@pytest.mark.parametrize("name", PICTURES)
def test_visual_features_hidden_states_and_logits_are_transformers_for_pictures(pair, name):
    model, oracle, directory = pair
    sizes = PICTURES[name]
    prompt = parity.image_prompt(model, sizes, directory)
    if len(sizes) == 1 and sizes[0] in COUNTS:
        assert (prompt.ids == model.config.image_token).sum() == COUNTS[sizes[0]]
    assert_equal(model, oracle, prompt)


@pytest.mark.parametrize("frames", [8, 32])
def test_so_they_are_for_videos(pair, frames):
    model, oracle, directory = pair
    prompt = parity.video_prompt(model, frames, directory)
    assert (prompt.ids == model.config.image_token).sum() == frames * 196 + 1
    assert_equal(model, oracle, prompt)
